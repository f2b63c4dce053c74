"""Files that are written whole or not at all, and what to do when they cannot be."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arts_plugin.errors import NotWrittenError

_ADVICE = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "make room within your quota",
    errno.EFBIG: "raise the limit for the size of a file (ulimit -f)",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: "name a place that you may write",
    errno.EPERM: "name a place that you may write",
    errno.EISDIR: "a folder lies in its place: move that away",
    errno.EEXIST: "a file lies in its folder's place: move that away",
    errno.ENOTDIR: "a file lies in its folder's place: move that away",
    errno.ENAMETOOLONG: "give a shorter name",
}


def cannot_write(place: Path, error: OSError) -> NotWrittenError:
    """The error for a file or folder that the system does not let us write."""
    advice = _ADVICE.get(error.errno or 0, "see to that")
    return NotWrittenError(
        f"{place} cannot be written ({error.strerror or error}); what was finished before is kept. To go on, {advice} and run "
        "the same command again"
    )


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """What the system, or safetensors, says against writing there, as `NotWrittenError`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(Path(place), error) from error
    except Exception as error:
        from safetensors import SafetensorError

        # It wraps what the system says: `I/O error: No space left on device (os error 28)`.
        if not isinstance(error, SafetensorError):
            raise
        raise NotWrittenError(
            f"{place} cannot be written ({error}); what was finished before is kept. To go on, see to that and run the same "
            "command again"
        ) from error


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file, and the folders above it, so that it is there whole or as it was before. Halves of surrogate pairs, which
    UTF-8 cannot hold, become question marks.

    Raises:
        NotWrittenError: the system does not let us.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and not file.is_file():  # a device, or a folder, which says so itself
            file.write_bytes(data)
            return
        partial = file.with_name(f"{file.name}.tmp")
        try:
            partial.write_bytes(data)
            partial.replace(file)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def save_figure(figure: Any, file: Path, **options: Any) -> None:
    """Write a matplotlib figure in the format of the file's ending.

    Raises:
        NotWrittenError: the system does not let us.
    """
    made = io.BytesIO()
    figure.savefig(made, format=file.suffix.removeprefix("."), **options)
    write_whole(file, made.getvalue())

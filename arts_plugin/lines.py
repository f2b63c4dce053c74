"""JSON on disk: one reader and one appender for every file of JSON lines, and one parser for all of them.

Lines end at line feeds alone: a JSON string may hold U+2028 or U+0085, at which `str.splitlines` would cut it in two.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from arts_plugin.errors import ArtsError
from arts_plugin.writing import cannot_write

HALF_LINE = "the line is not complete (was the run killed?); the command that wrote it goes on from there"
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_DEEPEST = 100
"""Levels of nesting. Python's own functions fail at about a thousand, some of them earlier than the parser."""


def loads(text: str | bytes) -> Any:
    """The value that a JSON text spells.

    Raises:
        ValueError: it is not JSON, is not UTF-8, or is nested too deeply. The message does not quote the text, which may be
            large.
    """
    value = parse(text)
    check_depth(value)
    return value


def parse(text: str | bytes) -> Any:
    """The same without a limit of its own for the depth, which takes a walk through all of the value."""
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is {error.object[error.start]:#04x}, which is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_depth(value: Any) -> None:
    """Raises ValueError for a value that is nested deeper than anything that this package writes."""
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} levels deep")


def read_object(file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object; see `loads`.
    """
    found = loads(file.read_bytes().removeprefix(_BOM))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {type(found).__name__}, not an object")
    return found


def read_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number, line) of each line of a file, numbered from 1. Line ends are kept, a byte-order mark is not.

    Raises:
        ArtsError: the file cannot be read, or is UTF-16.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if number == 1:
                    if line.startswith(_UTF_16):
                        raise ArtsError(f"{file} is UTF-16; save it as UTF-8")
                    line = line.removeprefix(_BOM)
                yield number, line
    except OSError as error:
        raise ArtsError(f"{file} cannot be read: {error.strerror or error}") from error


def whole_lines(file: Path, say: Callable[[int, str], None]) -> Iterator[tuple[int, bytes]]:
    """The same of a file that is appended to. What a killed process, or one that is writing now, has left of a last line is
    passed over, and its number and the reason are given to `say`.

    Raises:
        ArtsError: see `read_lines`.
    """
    for number, line in read_lines(file):
        if line.endswith(b"\n"):
            yield number, line
        else:
            say(number, HALF_LINE)


class LinesFile:
    """Appends to a file of JSON lines, whole lines only.

    A write that fails (the disk is full, for instance) is taken back to where its line began, so that the next one does not
    go on in the middle of a line.

    Raises:
        NotWrittenError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._torn: int | None = None  # where a line began that could not be taken back
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what was not written must not be written later, when the file is closed.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self._file.seek(0, os.SEEK_END)

    def lock(self) -> bool:
        """Keep other processes out; False if one is in. On Windows nobody is kept out."""
        try:
            import fcntl
        except ImportError:
            return True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def mend(self) -> None:
        """Cut off the half line that a killed process has left.

        Raises:
            NotWrittenError: it cannot be cut off.
        """
        size = end = self.size
        while end > 0:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            self._take_back(end)

    def append(self, record: str) -> tuple[int, int]:
        """Append a record's JSON, which is on its way to disk when this returns; (place, length) of the line in the file.

        Raises:
            NotWrittenError: it cannot be written; the file is as before.
        """
        if self._torn is not None:
            self._take_back(self._torn)
        line = record.encode("ascii") + b"\n"
        start = self.size
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException as error:
            self._torn = start
            with suppress(ArtsError):  # it is tried again before the next line
                self._take_back(start)
            if isinstance(error, OSError):
                raise cannot_write(self.path, error) from error
            raise
        return start, len(line)

    def _take_back(self, end: int) -> None:
        try:
            self._file.truncate(end)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._torn = None

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

"""A run on disk: settings once, then one tree a line, appended as it is finished. What resumes a killed run."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from arts_plugin import features
from arts_plugin.errors import ArtsError, NotWrittenError, RunFolderError
from arts_plugin.lines import HALF_LINE, LinesFile, parse, read_lines, read_object
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree, check_key
from arts_plugin.writing import write_whole

log = logging.getLogger(__name__)
RUN_FILE, TREES_FILE = "run.json", "trees.jsonl"
_PACKAGES = ("arts-plugin", "lm-eval", "llama-cpp-python", "transformers", "torch", "numpy")


class RunFolder:
    """`RUN/run.json` and `RUN/trees.jsonl`, opened for this process alone.

    Args:
        model, verifier: what identifies the weights of both (`digest`); a run is resumed only with the same.

    Raises:
        RunFolderError: the folder holds a run with other settings, is in use, or is damaged.
    """

    def __init__(
        self, path: str | Path, settings: Settings, model: dict[str, Any], verifier: dict[str, str] | None = None
    ) -> None:
        self.path = Path(path)
        self._model = str(model.get("digest", ""))
        try:
            self._file = LinesFile(self.path / TREES_FILE)
        except NotWrittenError as error:
            raise RunFolderError(f"trace={self.path} cannot be a run folder: {error}") from error
        try:
            if not self._file.lock():
                raise RunFolderError(
                    f"{self.path} is being written by another process; wait for it or use another trace="
                )
            self._check(settings, model, verifier or {})
            self._file.mend()
            self._places = dict(self._index())
        except BaseException:
            self._file.close()
            raise

    def _check(self, settings: Settings, model: dict[str, Any], verifier: dict[str, str]) -> None:
        mine = settings.shaping()
        file = self.path / RUN_FILE
        if not file.exists():
            if self._file.size:
                raise RunFolderError(
                    f"{self.path} has a {TREES_FILE} without a {RUN_FILE}, so nobody knows by which settings; put that back, or "
                    "use another trace="
                )
            record = {
                "version": 1,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": asdict(settings),
                "model": model,
                "verifier": verifier,
                "versions": versions(),
            }
            write_whole(file, json.dumps(record, indent=1) + "\n")
            return
        info = _described(file)
        # A setting that did not exist when the run was begun had the effect of its default.
        theirs, trained = {**Settings().shaping(), **info.settings}, info.verifier
        differ = [
            f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}"
            for name in sorted(mine)
            if mine.get(name) != theirs.get(name)
        ]
        if info.model["digest"] != model["digest"]:
            was, name = info.model.get("name"), model.get("name")
            differ.append(f"the model was {was!r} and is {name!r} ({info.model['digest']} / {model['digest']})")
        if trained.get("digest") != verifier.get("digest"):
            was, name = trained.get("name", "none"), verifier.get("name", "none")
            differ.append(f"the trained verifier was {was!r} and is {name!r}, or has other weights")
        if differ:
            raise RunFolderError(
                f"{self.path} holds a run with other settings: {'; '.join(differ)}. Use another trace="
            )

    def _index(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Key -> place of each tree in the file, so that a long run need not be held in memory."""
        place = 0
        for number, line in read_lines(self._file.path):
            try:
                key = parse(line)["meta"]["key"]
                check_key(key or "")
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(
                    f"{self._file.path}, line {number} is not a tree: {error!r:.300}. Delete that line, and its question is "
                    "searched again; or use another trace="
                ) from error
            yield key, (place, len(line))
            place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> ReasoningTree | None:
        """The finished tree of a job, if there is one.

        Raises:
            RunFolderError: its line is damaged.
        """
        place = self._places.get(key)
        if place is None:
            return None
        file = self._file.path
        try:
            with file.open("rb") as lines:
                lines.seek(place[0])
                return ReasoningTree.from_json(lines.read(place[1]))
        except (ArtsError, OSError) as error:
            raise RunFolderError(
                f"{file}, the line with the key {key}: {error}. Delete that line, and its question is searched again; or use "
                "another trace="
            ) from error

    def put(self, key: str, tree: ReasoningTree) -> None:
        """Append a finished tree; it is on its way to disk when this returns.

        Raises:
            NotWrittenError: it cannot be written (the disk is full, for instance). The folder is as before, and the next tree
                may be put into it.
        """
        tree.meta["key"], tree.meta["model"] = key, self._model
        # Before the tree: a run that is killed between the two searches the question again.
        features.save(self.path, key, tree, self._model)
        self._places[key] = self._file.append(tree.to_json())

    def close(self) -> None:
        """Close the file and give the folder free."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What `run.json` says of where trees come from. `verifier` is what identified a trained one; empty if there was none."""

    settings: dict[str, Any]
    model: dict[str, Any]
    verifier: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, run: str | Path) -> RunInfo:
        """Raises ArtsError for what is no run folder."""
        file = Path(run) / RUN_FILE
        if not file.exists():
            raise ArtsError(f"no run at {run}: {RUN_FILE} cannot be read (there is none)")
        return _described(file)

    @property
    def seed(self) -> int:
        """The seed, which decides between tied votes."""
        found = self.settings.get("seed") or 0
        return found if isinstance(found, int) else 0


def _described(file: Path) -> RunInfo:
    """What a `run.json` holds.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        record = read_object(file)
        settings, model, verifier = record["settings"], record["model"], record.get("verifier") or {}
        if not all(isinstance(part, dict) for part in (settings, model, verifier)):
            raise TypeError("settings, model and verifier must be objects")
        return RunInfo(settings, {**model, "digest": str(model["digest"])}, verifier)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            f"{file} cannot be read ({error!r:.300}): it is damaged. Put back what was there, or use another trace="
        ) from error


def read_all(path: str | Path) -> Iterator[tuple[int, ReasoningTree | ArtsError]]:
    """(number of the line, its tree, or why it is none) of each line of a run folder, in the order in which the trees were
    finished.

    Raises:
        ArtsError: no run is there, or its file cannot be read.
    """
    file = Path(path) / TREES_FILE
    if not file.exists():
        raise ArtsError(f"no run at {path}: there is no {TREES_FILE} in it")
    for number, line in read_lines(file):
        try:
            if not line.endswith(b"\n"):
                raise ArtsError(HALF_LINE)
            yield number, ReasoningTree.from_json(line)
        except ArtsError as error:
            yield number, error


def read_trees(path: str | Path) -> Iterator[ReasoningTree]:
    """The trees of a run folder; a half-written last line is named in a warning and passed over.

    Raises:
        ArtsError: no run is there, or a line is damaged.
    """
    for number, found in read_all(path):
        if isinstance(found, ReasoningTree):
            yield found
        elif str(found) == HALF_LINE:
            log.warning("%s, line %d is passed over: %s", Path(path) / TREES_FILE, number, found)
        else:
            raise ArtsError(f"{Path(path) / TREES_FILE}, line {number}: {found}. Delete that line to use the others")


def versions() -> dict[str, str]:
    """Versions of what shapes results, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

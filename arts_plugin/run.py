"""A run on disk: settings once, then one tree a line, appended as it is finished. What resumes a killed run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from arts_plugin import features
from arts_plugin.errors import ArtsError, RunFolderError
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

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
            self.path.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = (self.path / TREES_FILE).open("a+b")
        except OSError as error:
            raise RunFolderError(f"trace={self.path} cannot be a run folder: {error}") from error
        try:
            self._lock()
            self._check(settings, model, verifier or {})
            self._cut_half_line()
            self._places = dict(self._index())
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows; there, two runs in one folder are the user's to avoid
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(
                f"{self.path} is being written by another process; wait for it or use another trace="
            ) from error

    def _check(self, settings: Settings, model: dict[str, Any], verifier: dict[str, str]) -> None:
        mine = settings.shaping()
        file = self.path / RUN_FILE
        if not file.exists():
            if self._file.seek(0, os.SEEK_END):
                raise RunFolderError(f"{self.path} has a {TREES_FILE} without a {RUN_FILE}; use another trace=")
            record = {
                "version": 1,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "settings": asdict(settings),
                "model": model,
                "verifier": verifier,
                "versions": versions(),
            }
            partial = file.with_suffix(".tmp")
            partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
            return
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            # A setting that did not exist when the run was begun had the effect of its default.
            theirs = {**Settings().shaping(), **record["settings"]}
            digest = record["model"]["digest"]
            trained = record.get("verifier", {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(
                f"{file} cannot be read ({error!r}); use another trace=, or remove the folder"
            ) from error
        differ = [
            f"{name} was {theirs.get(name)!r} and is {mine.get(name)!r}"
            for name in sorted(mine)
            if mine.get(name) != theirs.get(name)
        ]
        if digest != model["digest"]:
            was, name = record["model"].get("name"), model.get("name")
            differ.append(f"the model was {was!r} and is {name!r} ({digest} / {model['digest']})")
        if trained.get("digest") != verifier.get("digest"):
            was, name = trained.get("name", "none"), verifier.get("name", "none")
            differ.append(f"the trained verifier was {was!r} and is {name!r}, or has other weights")
        if differ:
            raise RunFolderError(
                f"{self.path} holds a run with other settings: {'; '.join(differ)}. Use another trace="
            )

    def _cut_half_line(self) -> None:
        """A process that was killed may have left half a line; the tree is searched again."""
        size = self._file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - (1 << 16))
            self._file.seek(start)
            newline = self._file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)

    def _index(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Key -> place of each tree in the file, so that a long run need not be held in memory."""
        self._file.seek(0)
        place = 0
        for number, line in enumerate(self._file, 1):
            try:
                key = json.loads(line)["meta"]["key"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunFolderError(f"{self.path / TREES_FILE}, line {number} is not a tree: {error!r}") from error
            yield key, (place, len(line))
            place += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> ReasoningTree | None:
        """The finished tree of a job, if there is one."""
        place = self._places.get(key)
        if place is None:
            return None
        self._file.seek(place[0])
        return ReasoningTree.from_json(self._file.read(place[1]))

    def put(self, key: str, tree: ReasoningTree) -> None:
        """Append a finished tree; it is on its way to disk when this returns."""
        tree.meta["key"], tree.meta["model"] = key, self._model
        # Before the tree: a run that is killed between the two searches the question again.
        features.save(self.path, key, tree, self._model)
        line = tree.to_json().encode("ascii") + b"\n"
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        self._places[key] = (place, len(line))

    def close(self) -> None:
        """Close the file and give the folder free."""
        self._file.close()


def read_trees(path: str | Path) -> Iterator[ReasoningTree]:
    """The trees of a run folder, in the order in which they were finished; a half-written last line is passed over.

    Raises:
        ArtsError: no run is there, or a line is damaged.
    """
    file = Path(path) / TREES_FILE
    if not file.exists():
        raise ArtsError(f"no run at {path}: there is no {TREES_FILE} in it")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                tree = ReasoningTree.from_json(line)
            except ArtsError as error:
                raise ArtsError(f"{file}, line {number}: {error}") from error
            yield tree


def versions() -> dict[str, str]:
    """Versions of what shapes results, as far as it is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

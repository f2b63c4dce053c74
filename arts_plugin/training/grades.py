"""`RUN/grades.jsonl`: which finished trajectories of a run's trees are right. Gold answers stay out of the trees."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from arts_plugin.errors import ArtsError
from arts_plugin.lines import LinesFile, loads, whole_lines
from arts_plugin.tree import ReasoningTree

GRADES_FILE = "grades.jsonl"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Graded:
    """The labels of one tree.

    Attributes:
        key: the tree's key in its run (`tree.meta["key"]`).
        id: the problem's id.
        gold: the gold answer.
        grader: what compared with it.
        correct: leaf -> whether its trajectory is right, for every finished trajectory.
        subject, level: of the question, where its data set says so.
        task: the task that it is of, if it is of one.
        votes: leaf -> the answer that its trajectory votes for, as the task sees it (None: for none); without it, votes go by
            the answers that the search itself extracted.
    """

    key: str
    id: str
    gold: str
    grader: str
    correct: dict[int, bool]
    subject: str = ""
    level: str = ""
    task: str = ""
    votes: dict[int, str | None] | None = None

    @classmethod
    def from_record(cls, record: Any) -> Graded:
        """Raises ValueError, KeyError or TypeError for what is no record of grades."""
        correct = {int(leaf): bool(right) for leaf, right in record["correct"].items()}
        key, id, gold, grader = (str(record[name]) for name in ("key", "id", "gold", "grader"))
        subject, level, task = (str(record.get(name) or "") for name in ("subject", "level", "task"))
        told = record.get("votes")
        votes = None if told is None else {int(leaf): None if v is None else str(v) for leaf, v in told.items()}
        return cls(key, id, gold, grader, correct, subject, level, task, votes)


def read_grades(run: str | Path) -> dict[str, Graded]:
    """Key -> grades. A damaged line, or a half-written last one, is named in a warning and passed over.

    Raises:
        ArtsError: the run has no grades, or they cannot be read.
    """
    file = Path(run) / GRADES_FILE
    if not file.exists():
        raise ArtsError(f"{run} has no {GRADES_FILE}: `arts sdf` writes it, and so do arts_* tasks under lm-eval")
    return {graded.key: graded for graded in _lines(file)}


def _lines(file: Path) -> Iterator[Graded]:
    def passed_over(number: int, reason: object) -> None:
        log.warning("%s, line %d is passed over: %s", file, number, reason)

    for number, line in whole_lines(file, passed_over):
        try:
            yield Graded.from_record(loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            passed_over(number, f"{error!r:.300}")


def voting(tree: ReasoningTree, votes: dict[int, str | None]) -> ReasoningTree:
    """The tree with the task's answers in place of those that the search found."""
    nodes = [replace(node, answer=votes.get(node.id)) if node.terminal else node for node in tree.nodes]
    return replace(tree, nodes=nodes)


class GradesFile:
    """Append-only writer; what a killed process left half-written is cut off.

    Raises:
        NotWrittenError: the file cannot be written.
    """

    def __init__(self, run: str | Path) -> None:
        self.path = Path(run) / GRADES_FILE
        self._file = LinesFile(self.path)
        self._file.mend()
        self.known = {graded.key: graded for graded in _lines(self.path)}

    def put(self, graded: Graded) -> None:
        """Append the grades of one tree.

        Raises:
            NotWrittenError: they cannot be written.
        """
        self._file.append(json.dumps(asdict(graded), separators=(",", ":")))
        self.known[graded.key] = graded

    def close(self) -> None:
        """Close the file."""
        self._file.close()

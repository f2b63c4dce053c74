"""Other runs on the axes of a report: how often their answers are right, and what those cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arts_plugin.evaluation.pool import Array, Bootstrap, vote
from arts_plugin.report.data import Question, Run, common

Plain = dict[str, Any]


class Resamples:
    """One `Bootstrap` for each number of questions, for they are large and slow to make."""

    def __init__(self) -> None:
        self._made: dict[int, Bootstrap] = {}

    def __call__(self, n: int) -> Bootstrap:
        """That of n questions."""
        if n not in self._made:
            self._made[n] = Bootstrap(n)
        return self._made[n]


def points(
    run: Run, others: Sequence[Run], resamples: Resamples, per_question: Sequence[Plain]
) -> tuple[list[Plain], list[str]]:
    """(points; who was left out of them). A point is of the questions that the other run shares with this one.

    Args:
        per_question: records of this run's questions, which get the values of the points by their places.

    Raises:
        ArtsError: a run shares no question with this one.
    """
    made: list[Plain] = []
    notes: list[str] = []
    for other in others:
        (mine, theirs), more = common([run, other])
        notes += more
        if len(theirs) < len(run.questions):
            notes.append(f"{other.path.name} has {len(theirs)} of these {len(run.questions)} questions")
        boot = resamples(len(theirs))
        records = {record["id"]: record for record in per_question}
        for label, values, share in _ways(replace(other, questions=theirs)):
            estimate = boot.mean(values)
            for question, value in zip(mine, values.tolist(), strict=True):
                records[question.id].setdefault("points", {})[str(len(made))] = value
            made.append(
                {
                    "label": label,
                    "accuracy": [estimate.mean, estimate.low, estimate.high],
                    "tokens": float(np.mean([q.decoded * s for q, s in zip(theirs, share, strict=True)]))
                    if other.costed
                    else None,
                    "seconds": other.seconds * float(np.mean(share)) if other.costed else None,
                    "questions": len(theirs),
                }
            )
    return made, notes


def _ways(run: Run) -> list[tuple[str, Array, Array]]:
    """(label, accuracy [questions], share of the run's cost [questions]). A pool is two more: one trace of it, and the
    majority of all."""
    whole = np.ones(len(run.questions))
    found = [(run.name, np.array([q.chosen_right for q in run.questions]), whole)]
    if run.independent:
        share = np.array([1 / q.n for q in run.questions])
        found.append((f"{run.path.name}: pass@1", np.array([q.pass_at_1 for q in run.questions]), share))
        majorities = np.array([_majority(question) for question in run.questions])
        found.append((f"{run.path.name}: majority", majorities, whole))
    return found


def _majority(question: Question) -> float:
    """Of all traces; ties share equally."""
    return vote(question.pool().classes(), question.correct, np.zeros(question.n), np.arange(question.n)[None, :])

r"""One notion of equality, by which answers vote and by which they are graded.

Every answer is read on its own (`arts_plugin.answers.reading`): numbers as exact fractions, lists, intervals and sets by
their elements, everything else as algebra. Algebra is resolved by math-verify's parser in a worker process, to a value that
equal expressions share; where math-verify is not installed, or cannot read an expression, its text stands for it. Answers are
equal if their values are. So equality is an equivalence by construction, which pairwise comparison is not:
math-verify's own compares to six decimals, and depends on which of the two is the gold answer.

A variable or unit counts where both answers name one: `5 km` is not `5 m`, and `5` may be either. Among several answers,
one that names none is taken to mean what most others of its value mean. Answers that all are expressions of arithmetic, as those to
Countdown and the Game of 24 are, are compared as they are written: the number that all of them come to would tell nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Sequence

from arts_plugin.answers.algebra import Algebra
from arts_plugin.answers.reading import Reading, Value, read, resolved

_ALGEBRA = Algebra()
_OPERATION = re.compile(r"(?!-?\d+/\d+$)(?=.*[\d)][-+*/][\d(])[\d(-][\d+*/().-]*")


def classes(answers: Sequence[str | None]) -> list[int]:
    """Which class of equal answers each belongs to [n], numbered as they come; -1 for None."""
    distinct = {answer for answer in answers if answer is not None}
    if distinct and all(_OPERATION.fullmatch(answer) for answer in distinct):
        written: dict[str, int] = {}
        return [-1 if answer is None else written.setdefault(answer, len(written)) for answer in answers]
    readings = {answer: read(answer) for answer in distinct}
    if len({(reading.value, reading.variable, reading.unit) for reading in readings.values()}) < 2:
        return [-1 if answer is None else 0 for answer in answers]
    values = {answer: resolved(reading.value, _value) for answer, reading in readings.items()}
    meant = {name: _most_named(answers, readings, values, name) for name in ("variable", "unit")}
    names: dict[Hashable, int] = {}
    found = []
    for answer in answers:
        if answer is None:
            found.append(-1)
            continue
        value, reading = values[answer], readings[answer]
        key = (value, reading.variable or meant["variable"].get(value), reading.unit or meant["unit"].get(value))
        found.append(names.setdefault(key, len(names)))
    return found


def same(answer: str, other: str) -> bool:
    """Whether two answers are equal: whether they would be one class in a vote."""
    return len(set(classes([answer, other]))) == 1


def algebra() -> Algebra:
    """The worker that votes and grades share."""
    return _ALGEBRA


def _value(expression: str) -> Value:
    return _ALGEBRA.value(expression) or ("text", "".join(expression.split()))


def _most_named(
    answers: Sequence[str | None], readings: dict[str, Reading], values: dict[str, Value], name: str
) -> dict[Value, str]:
    """Value -> the variable or unit that most answers of it name, the first in the alphabet among equals."""
    named: dict[Value, Counter[str]] = {}
    for answer in answers:
        if answer is not None and (told := getattr(readings[answer], name)) is not None:
            named.setdefault(values[answer], Counter())[told] += 1
    return {value: min(counts, key=lambda told: (-counts[told], told)) for value, counts in named.items()}

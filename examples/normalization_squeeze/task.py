"""The task: four steps from a start to a goal, each one of three operations modulo 31. All 81 routes are known.

    B05             a tag and a start
    +1=06           four steps, each an operation and what it gives
    x2=12
    ...

Every tag has two goals, numbers that are nowhere written down; a route is right if every line is and it ends at one of
them. What the pre-training text does is habit: at each step the operations have probabilities that depend on the tag
and on the number they stand at, whatever the goals are. A share `GOAL` of the text takes a right route instead, drawn
among the right ones in proportion to habit. So the probability of every route under the text is known for every
problem, and problems differ by how often the habit is right.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

MODULUS = 31
STEPS = 4
TAGS = "ABCDEFGHIJKLMNOPQRSTUVWX"
OPERATIONS = ("+1", "+7", "x2")
HABIT = 1.6
"""Deviation of the habit's log-odds."""
GOALS = 2
GOAL = 0.03
TRAIN_SHARE = 0.6
ROUTES: tuple[tuple[int, ...], ...] = tuple(itertools.product(range(len(OPERATIONS)), repeat=STEPS))
"""Every route, as indexes of operations; the first operation varies slowest."""

Kind = Literal["easy", "mixed", "rare"]
BANDS: dict[Kind, tuple[float, float]] = {"easy": (0.25, 1.0), "mixed": (1 / 16, 0.25), "rare": (0.0, 1 / 16)}
"""How often the habit is right, by kind of problem."""

Floats = npt.NDArray[np.float64]


def apply(operation: int, value: int) -> int:
    """What an operation gives."""
    return ((value + 1, value + 7, value * 2)[operation]) % MODULUS


def values(start: int, route: Sequence[int]) -> list[int]:
    """The value after each step."""
    return list(itertools.accumulate(route, lambda value, operation: apply(operation, value), initial=start))[1:]


VALUES = np.array([[values(start, route) for route in ROUTES] for start in range(MODULUS)])
"""[start, route, step]: the value after each step."""


def _habits() -> Floats:
    """[tag, start, route]: probabilities of the habit. One fixed table, whatever the seed of a run."""
    rng = np.random.default_rng(2602_12846)
    odds = rng.normal(size=(len(TAGS), 1, 3)) + rng.normal(size=(1, MODULUS, 3))
    weight = np.exp(HABIT / np.sqrt(2) * odds)
    step = weight / weight.sum(axis=2, keepdims=True)
    first = np.broadcast_to(np.arange(MODULUS)[:, None, None], (MODULUS, len(ROUTES), 1))
    standing = np.concatenate([first, VALUES[:, :, :-1]], axis=2)
    made: Floats = step[:, standing, np.array(ROUTES)].prod(axis=3)
    return made


HABITS = _habits()


def _goals() -> npt.NDArray[np.int64]:
    """[tag, goal]: the numbers at which most starts' likeliest routes end, so that the habit is right somewhere."""
    ends = VALUES[np.arange(MODULUS), HABITS.argmax(axis=2), -1]
    counts = (ends[:, :, None] == np.arange(MODULUS)).sum(axis=1)
    return np.argsort(-counts, axis=1, kind="stable")[:, :GOALS]


ENDS = _goals()


@dataclass(frozen=True)
class Task:
    """One problem."""

    tag: int
    start: int

    @property
    def id(self) -> str:
        """Short, unique, and fit for a file name."""
        return f"{TAGS[self.tag]}{self.start:02d}"

    @property
    def prompt(self) -> str:
        """What the model reads."""
        return f"{self.id}\n"

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """[routes]: which end at a goal."""
        return np.isin(VALUES[self.start, :, -1], ENDS[self.tag])

    @property
    def habit(self) -> Floats:
        """[routes]: probabilities of the habit alone."""
        made: Floats = HABITS[self.tag, self.start]
        return made

    @cached_property
    def text_probabilities(self) -> Floats:
        """[routes]: probabilities under the pre-training text; where no route is right it is the habit."""
        if not self.right.any():
            return self.habit
        return (1 - GOAL) * self.habit + GOAL * np.where(self.right, self.habit, 0.0) / self.ease

    @property
    def ease(self) -> float:
        """The probability that the habit alone is right."""
        return float(self.habit[self.right].sum())

    @property
    def kind(self) -> Kind:
        """The band that its ease lies in."""
        return next(kind for kind, (low, high) in BANDS.items() if low <= self.ease <= high)

    def route_of(self, text: str) -> int | None:
        """Which route a trace's text is; None for what is no route (a wrong sum, a missing step, anything else)."""
        if not _LINES.fullmatch(text):
            return None
        number, value = 0, self.start
        for line in text.splitlines():
            name, _, given = line.partition("=")
            operation = OPERATIONS.index(name)
            number, value = number * len(OPERATIONS) + operation, apply(operation, value)
            if int(given) != value:
                return None
        return number

    def is_right(self, text: str) -> bool:
        """Whether a trace is right in every line and ends at a goal."""
        route = self.route_of(text)
        return route is not None and bool(self.right[route])


_LINES = re.compile(rf"(?:(?:\+1|\+7|x2)=\d\d\n){{{STEPS}}}")


def route_text(start: int, route: Sequence[int]) -> str:
    """A route as the model writes it."""
    steps = zip(route, values(start, route), strict=True)
    return "".join(f"{OPERATIONS[operation]}={value:02d}\n" for operation, value in steps)


def every_task() -> list[Task]:
    """Every problem that some route solves."""
    found = (Task(*key) for key in itertools.product(range(len(TAGS)), range(MODULUS)))
    return [task for task in found if task.right.any()]


def split(seed: int) -> tuple[list[Task], list[Task]]:
    """Problems to train on (GRPO and verifiers alike) and problems to test on."""
    tasks = every_task()
    order = np.random.default_rng([seed, 1]).permutation(len(tasks))
    cut = int(len(tasks) * TRAIN_SHARE)
    return [tasks[i] for i in order[:cut]], [tasks[i] for i in order[cut:]]

"""Accuracies with intervals: bootstrap over problems, paired where two selectors see the same candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arts_plugin.answers import equality


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems and its 95 % bootstrap percentile interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The mean of per-problem `values` [n], resampled over problems.

    For a paired difference, give the per-problem differences.

    Raises:
        ValueError: no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        raise ValueError("an estimate needs at least one problem")
    rng = np.random.default_rng(seed)
    means = np.concatenate(
        [array[rng.integers(len(array), size=(size, len(array)))].mean(axis=1) for size in _chunks(resamples)]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(array.mean()), float(low), float(high))


def _chunks(total: int, size: int = 500) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def pass_at_1(correct: Sequence[bool]) -> float:
    """The mean over a problem's traces of one being correct."""
    return float(np.mean(correct))


def oracle_at_k(n: int, c: int, k: int) -> float:
    """pass@k: the probability that k of n traces, c of them correct, hold a correct one: 1 - C(n-c, k) / C(n, k).

    Raises:
        ValueError: k is not within 1..n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be between 1 and the {n} traces there are")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def majority(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Probability that the largest class of equal answers is correct, ties drawn at random and averaged.

    A trace without an answer does not vote; if none has one, nothing is chosen and nothing is correct. Within a
    class, `correct` is averaged (a task's own grader may tell apart what voting does not).
    """
    classes: dict[int, list[bool]] = {}
    for number, right in zip(equality.classes(answers), correct, strict=True):
        if number >= 0:
            classes.setdefault(number, []).append(right)
    if not classes:
        return 0.0
    largest = max(map(len, classes.values()))
    shares: npt.NDArray[np.float64] = np.array([np.mean(g) for g in classes.values() if len(g) == largest])
    return float(shares.mean())

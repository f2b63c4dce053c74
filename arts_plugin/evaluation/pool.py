"""Selectors compared on one pool of independent traces: best-of-k, votes, oracle, over k-subsets.

Best-of-k and oracle are exact. Votes are exact where there are few subsets (`EXACT`), and means over a sample of them else.

Every figure is a mean over problems of a per-problem value, so that intervals and paired differences come from one
bootstrap over problems; a ratio (gap closed) is taken of the sums, never problem by problem.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from arts_plugin.answers import equality
from arts_plugin.evaluation.statistics import Estimate, oracle_at_k

Array = npt.NDArray[np.float64]
EXACT = 2048
"""Votes are taken of every k-subset of a problem's traces where there are at most so many: 4 of 16, 2 of 64."""
SUBSETS = 200
"""Distinct random k-subsets for votes where there are more; the same ones for every selector."""
RARE = (1 / 16, 1 / 8)
"""A question is rare if its share of right traces is between these (1 or 2 of 16; arXiv 2602.12846)."""


@dataclass(frozen=True, slots=True)
class PoolProblem:
    """One problem's n traces.

    Attributes:
        id: the problem's id.
        answers: extracted answers [n], None where there was none.
        correct: bool [n].
        scores: scorer -> score of each trace [n]; exp(score) is what a trace weighs in a vote.
    """

    id: str
    answers: tuple[str | None, ...]
    correct: npt.NDArray[np.bool_]
    scores: Mapping[str, Array]

    def classes(self) -> npt.NDArray[np.int64]:
        """[n]: which class of equal answers each trace votes for, -1 for none."""
        return np.array(equality.classes(self.answers), dtype=np.int64)


def best_of_k(scores: Array, correct: npt.NDArray[np.bool_], k: int) -> float:
    """Accuracy of the top-scored of k traces, averaged over all k-subsets of the n; exact, ties shared equally.

    The subset's best lies in a group of equal scores with `before` traces above it with probability
    [C(n - before, k) - C(n - before - size, k)] / C(n, k); within the group every trace is as likely as another.

    Raises:
        ValueError: k is not within 1..n.
    """
    n = len(scores)
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}; it must be between 1 and the {n} traces there are")
    order = np.argsort(-scores, kind="stable")
    ranked, right = scores[order], correct[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(ranked)) + 1])
    ends = np.append(starts[1:], n)
    left = _share_without(n, k)
    return float(((left[starts] - left[ends]) * np.add.reduceat(right.astype(float), starts) / (ends - starts)).sum())


@lru_cache(maxsize=256)
def _share_without(n: int, k: int) -> Array:
    """[n + 1]: the share of k-subsets that hold none of the first `i` of n."""
    return np.array([math.comb(n - i, k) / math.comb(n, k) for i in range(n + 1)])


def vote(
    classes: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_], log_weight: Array, subsets: npt.NDArray[np.int64]
) -> float:
    """Accuracy of the heaviest class of equal answers, averaged over `subsets` [s, k]; ties share equally.

    A subset in which nobody has an answer chooses nothing and is wrong.
    """
    n_classes = int(classes.max(initial=-1)) + 1
    if n_classes == 0:
        return 0.0
    voters = np.where(classes[subsets] >= 0, log_weight[subsets], -np.inf)
    # Relative to each subset's largest weight, so that flows of any size can be summed.
    largest = voters.max(axis=1, keepdims=True)
    weight = np.exp(voters - np.where(np.isfinite(largest), largest, 0.0))
    # Those without an answer weigh nothing, in whichever class.
    places = np.arange(len(subsets))[:, None] * n_classes + np.maximum(classes[subsets], 0)
    mass = np.bincount(places.ravel(), weight.ravel(), minlength=len(subsets) * n_classes).reshape(-1, n_classes)
    # A class's label is a mean: a task's own grader may tell apart what voting does not.
    voting = classes >= 0
    size = np.maximum(np.bincount(classes[voting], minlength=n_classes), 1)
    label = np.bincount(classes[voting], correct[voting], minlength=n_classes) / size
    top = mass.max(axis=1, keepdims=True)
    tied = (mass >= top * (1 - 1e-9)) & (top > 0)
    return float(np.mean((tied * label).sum(axis=1) / np.maximum(tied.sum(axis=1), 1)))


@lru_cache(maxsize=64)
def subsets_of(n: int, k: int, seed: int) -> npt.NDArray[np.int64]:
    """k-subsets of n traces, int64 [s, k]: all of them up to `EXACT`, else `SUBSETS` distinct random ones."""
    if math.comb(n, k) <= EXACT:
        return np.array(list(itertools.combinations(range(n), k)), dtype=np.int64)
    rng = np.random.default_rng([seed, n, k])
    found: dict[bytes, npt.NDArray[np.int64]] = {}
    while len(found) < SUBSETS:
        subset = np.sort(rng.permutation(n)[:k])
        found.setdefault(subset.tobytes(), subset)
    return np.array(list(found.values()), dtype=np.int64)


def is_rare(right: float | Array | npt.NDArray[np.int64], n: float | Array) -> Any:
    """Whether `right` of `n` traces are rarely many: bool, or [...] for arrays. Of 16 traces 1 or 2; of 64, 4 to 8; of fewer
    than 8, one is too many already."""
    share = np.asarray(right, dtype=np.float64) / np.maximum(n, 1)
    return (share >= RARE[0] - 1e-12) & (share <= RARE[1] + 1e-12)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Per-problem values of every selector: `values[selector][k]` is [problems].

    Selectors are `random`, `oracle`, `majority`, and for each scorer `best_of:NAME` and `vote:NAME`.
    """

    problems: tuple[str, ...]
    ks: tuple[int, ...]
    n: int
    values: dict[str, dict[int, Array]]
    n_correct: npt.NDArray[np.int64]
    auc: dict[str, Array]

    @property
    def rare(self) -> npt.NDArray[np.bool_]:
        """[problems]: 1/16 to 1/8 of the traces are right."""
        rare: npt.NDArray[np.bool_] = is_rare(self.n_correct, self.n)
        return rare


def compare(problems: Sequence[PoolProblem], ks: Sequence[int], seed: int = 0) -> Comparison:
    """Every selector on every problem.

    Raises:
        ValueError: problems have different numbers of traces, or k exceeds it.
    """
    sizes = {len(problem.answers) for problem in problems}
    if len(sizes) != 1:
        raise ValueError(f"problems have {sorted(sizes)} traces; a pool has as many for each")
    n = sizes.pop()
    if any(not 1 <= k <= n for k in ks):
        raise ValueError(f"k is one of {list(ks)}; it must be between 1 and the {n} traces there are")
    names = sorted(set.intersection(*(set(problem.scores) for problem in problems)))
    values: dict[str, dict[int, list[float]]] = {}

    def note(selector: str, k: int, value: float) -> None:
        values.setdefault(selector, {}).setdefault(k, []).append(value)

    auc: dict[str, list[float]] = {name: [] for name in names}
    for problem in problems:
        classes, right = problem.classes(), int(problem.correct.sum())
        for k in ks:
            subsets = subsets_of(n, k, seed)
            note("random", k, float(problem.correct.mean()))
            note("oracle", k, oracle_at_k(n, right, k))
            note("majority", k, vote(classes, problem.correct, np.zeros(n), subsets))
            for name in names:
                note(f"best_of:{name}", k, best_of_k(problem.scores[name], problem.correct, k))
                note(f"vote:{name}", k, vote(classes, problem.correct, problem.scores[name], subsets))
        for name in names:
            auc[name].append(auc_within(problem.scores[name], problem.correct))
    return Comparison(
        problems=tuple(problem.id for problem in problems),
        ks=tuple(ks),
        n=n,
        values={s: {k: np.array(v) for k, v in by_k.items()} for s, by_k in values.items()},
        n_correct=np.array([int(problem.correct.sum()) for problem in problems]),
        auc={name: np.array(v) for name, v in auc.items()},
    )


def auc_within(scores: Array, correct: npt.NDArray[np.bool_]) -> float:
    """Probability that a right trace outscores a wrong one; NaN where one kind is missing."""
    if correct.all() or not correct.any():
        return math.nan
    better = scores[correct][:, None] - scores[~correct][None, :]
    return float((better > 0).mean() + 0.5 * (better == 0).mean())


class Bootstrap:
    """One set of resamples over problems, for every figure: so differences are paired.

    Args:
        n: problems.

    Attributes:
        counts: how often each problem is drawn, uint8 [resamples, n]: a byte each, since 12,000 problems are 120 million.
    """

    def __init__(self, n: int, resamples: int = 10_000, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        shares = np.full(n, 1 / n)
        self.counts = np.empty((resamples, n), dtype=np.uint8)
        for part in _parts(*self.counts.shape):
            # A problem that is drawn 256 times in one resample has a chance of 1 / 256!.
            self.counts[part] = np.minimum(rng.multinomial(n, shares, size=part.stop - part.start), 255)

    def mean(self, values: Array, where: npt.NDArray[np.bool_] | None = None) -> Estimate:
        """The mean of per-problem values, over the problems of `where`; NaN values are left out as well."""
        use = ~np.isnan(values) if where is None else where & ~np.isnan(values)
        return self.ratio(np.where(use, values, 0.0), use.astype(np.float64))

    def ratio(self, numerator: Array, denominator: Array) -> Estimate:
        """sum(numerator) / sum(denominator). Resamples with an empty denominator are left out."""
        both = np.stack([numerator, denominator], axis=1)
        above, below = np.concatenate([self.counts[part] @ both for part in _parts(*self.counts.shape)]).T
        ok = np.abs(below) > 1e-12
        total = float(denominator.sum())
        if not ok.any() or abs(total) < 1e-12:
            return Estimate(math.nan, math.nan, math.nan)
        low, high = np.percentile(above[ok] / below[ok], [2.5, 97.5])
        return Estimate(float(numerator.sum()) / total, float(low), float(high))


def _parts(resamples: int, n: int) -> list[slice]:
    """Rows of resamples that fit a processor's cache once they are floats."""
    size = max(1, 400_000 // n)
    return [slice(start, min(resamples, start + size)) for start in range(0, resamples, size)]

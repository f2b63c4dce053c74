"""What one question's search is worth: the values that a task adds up over questions.

Independent traces (`best_of_n`, plain repeats) are a sample, so every k-subset of them stands for a smaller search. A
tree's trajectories share prefixes and are none: of a tree are told what each rule chooses, whether a right trajectory is
there at all, and both after the first k that were finished.

Every value is either a number, whose mean over questions is the metric, or a pair (numerator, denominator), whose
metric is the ratio of sums: a mean of ratios would let questions with nothing to gain decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arts_plugin.evaluation.pool import Array, PoolProblem, best_of_k, subsets_of, vote
from arts_plugin.evaluation.statistics import oracle_at_k
from arts_plugin.randomness import generator
from arts_plugin.search.select import RULES
from arts_plugin.tree import Trajectory

Pair = tuple[float, float]
Values = dict[str, float | Pair]
RARE = 1 / 8
"""A question is rare if some of its traces are right, and at most this share (1 or 2 of 16; arXiv 2602.12846)."""
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Scored:
    """One finished trajectory as a task sees it.

    Attributes:
        correct: whether the task's metric says that it is right.
        answer: what it votes for; None if it has no answer.
        log_flow: the verifier's score; None if there was no verifier.
        mean_logprob: of its tokens (nats); None for a plain string.
    """

    correct: bool
    answer: str | None
    log_flow: float | None = None
    mean_logprob: float | None = None


def pool_values(traces: Sequence[Scored], ks: Sequence[int], seed: int = 0) -> Values:
    """Metrics of n independent traces of one question; where n < k, all n are taken.

    `best_of@k_RULE`, `majority@k`, `weighted_vote@k` and `oracle@k` are means over k-subsets (votes: 200 random ones),
    `gap_closed_RULE` = (RULE@n - pass@1) / (oracle@n - pass@1) with n the largest k, `rare_RULE` RULE@n where traces
    are rarely right. RULE is `flow` (with a verifier), `logprob`, `weighted_vote` (by flow, or else by log-probability),
    and `majority`; plain strings have no scores.
    """
    n, right = len(traces), sum(trace.correct for trace in traces)
    correct = np.array([trace.correct for trace in traces], dtype=bool)
    problem = PoolProblem("", tuple(trace.answer for trace in traces), correct, {})
    classes = problem.classes()
    values: Values = {"pass@1": right / n if n else 0.0}
    scores = _scores(traces)
    chosen: dict[str, dict[int, float]] = {}
    oracle: dict[int, float] = {}
    for k in ks:
        take = min(k, n)
        subsets = subsets_of(n, take, seed) if n else np.empty((0, 0), dtype=np.int64)
        oracle[k] = oracle_at_k(n, right, take) if n else 0.0
        for rule, log_weight in _votes(n, scores).items():
            chosen.setdefault(rule, {})[k] = vote(classes, correct, log_weight, subsets) if n else 0.0
        for rule, score in scores.items():
            chosen.setdefault(rule, {})[k] = best_of_k(score, correct, take) if n else 0.0
    for rule, by_k in chosen.items():
        prefix = f"{rule}@" if rule in {"majority", "weighted_vote"} else "best_of@"
        suffix = "" if rule in {"majority", "weighted_vote"} else f"_{rule}"
        values.update({f"{prefix}{k}{suffix}": value for k, value in by_k.items() if k > 1})
    values.update({f"oracle@{k}": value for k, value in oracle.items() if k > 1})
    largest, base = max(ks), right / n if n else 0.0
    if largest > 1:
        rare = bool(right) and right / n <= RARE + 1e-12
        for rule, by_k in chosen.items():
            values[f"gap_closed_{rule}"] = (by_k[largest] - base, oracle[largest] - base)
            values[f"rare_{rule}"] = (by_k[largest] * rare, float(rare))
        values["rare_pass@1"] = (base * rare, float(rare))
    return values


def tree_values(traces: Sequence[Scored], ks: Sequence[int], rule: str, seed: int = 0) -> Values:
    """Metrics of one tree, its trajectories in the order in which they were finished.

    `choose_RULE` is what each selection rule would have chosen from the whole tree, `oracle` whether any trajectory is
    right, `anytime@k` and `anytime_oracle@k` the same after the first k finished ones, by the search's own `rule`.
    """
    rules = [name for name in RULES if name != "random"]
    if any(trace.log_flow is None for trace in traces):
        rules.remove("flow")
    values: Values = {f"choose_{name}": _choice(traces, name, seed) for name in rules}
    values["oracle"] = float(any(trace.correct for trace in traces))
    for k in ks:
        first = traces[:k]
        values[f"anytime@{k}"] = _choice(first, rule, seed)
        values[f"anytime_oracle@{k}"] = float(any(trace.correct for trace in first))
    return values


def _choice(traces: Sequence[Scored], rule: str, seed: int) -> float:
    if not traces:
        return 0.0
    candidates = [
        Trajectory(
            leaf=i, nodes=(), text="", token_ids=(0,), logprob=trace.mean_logprob or 0.0, log_flow=trace.log_flow,
            count=1, stop=None, answer=trace.answer, finished=True, order=i,
        )
        for i, trace in enumerate(traces)
    ]  # fmt: skip
    return float(traces[RULES[rule](candidates, generator("select", seed, "")).leaf].correct)


def _scores(traces: Sequence[Scored]) -> dict[str, Array]:
    found = {
        "flow": [trace.log_flow for trace in traces],
        "logprob": [trace.mean_logprob for trace in traces],
    }
    return {name: np.array(score, dtype=np.float64) for name, score in found.items() if None not in score}


def _votes(n: int, scores: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float64]]:
    weights = scores.get("flow", scores.get("logprob"))
    return {"majority": np.zeros(n)} if weights is None else {"majority": np.zeros(n), "weighted_vote": weights}


def ratio(items: Sequence[Pair]) -> float:
    """sum of numerators / sum of denominators; NaN where there is nothing to divide by."""
    top, bottom = np.asarray(items, dtype=np.float64).reshape(-1, 2).sum(axis=0)
    return float(top / bottom) if bottom else float("nan")


def ratio_stderr(items: Sequence[Pair]) -> float:
    """The standard error of `ratio`: the bootstrap's over questions. NaN for fewer than two that count."""
    pairs = np.asarray(items, dtype=np.float64).reshape(-1, 2)
    if np.count_nonzero(pairs.any(axis=1)) < 2:
        return float("nan")
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=_RESAMPLES)
    sums = counts @ pairs
    kept = sums[sums[:, 1] != 0]
    return float(np.std(kept[:, 0] / kept[:, 1], ddof=1)) if len(kept) > 1 else float("nan")

"""What one question's search is worth: the values that a task adds up over questions.

Independent traces (`best_of_n`, plain repeats) are a sample, so every k-subset of them stands for a smaller search. A
tree's trajectories share prefixes and are none: of a tree are told what each rule chooses, whether a right trajectory is
there at all, and both after the first k that were finished.

Every value is either a number, whose mean over questions is the metric, or a pair (numerator, denominator), whose
metric is the ratio of sums: a mean of ratios would let questions with nothing to gain decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from arts_plugin.evaluation.pool import Array, PoolProblem, best_of_k, is_rare, subsets_of, vote
from arts_plugin.evaluation.statistics import oracle_at_k
from arts_plugin.randomness import generator
from arts_plugin.search.select import RULES
from arts_plugin.tree import StopReason, Trajectory

Pair = tuple[float, float]
Values = dict[str, float | Pair]
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Scored:
    """One finished trajectory as a task sees it.

    Attributes:
        correct: whether the task's metric says that it is right.
        answer: what it votes for; None if it has no answer.
        log_flow: the verifier's score; None if there was no verifier.
        mean_logprob: of its tokens (nats); None for a plain string.
        count: how often it was drawn, where equal proposals were merged.
        stop: why it ended; one that ended in an error is chosen only where there are no others.
    """

    correct: bool
    answer: str | None
    log_flow: float | None = None
    mean_logprob: float | None = None
    count: int = 1
    stop: StopReason | None = None


def pool_values(traces: Sequence[Scored], ks: Sequence[int], seed: int = 0, *, judged: bool | None = None) -> Values:
    """Metrics of n independent traces of one question; where n < k, all n are taken.

    `best_of@k_RULE`, `majority@k`, `weighted_vote@k` and `oracle@k` are means over k-subsets (votes: over
    `arts_plugin.evaluation.pool.SUBSETS` random ones where there are more than `EXACT`). With all n traces, whatever `ks`
    lists: `gap_closed_RULE` = (RULE@n - pass@1) / (oracle@n - pass@1), and `rare_RULE` = RULE@n where 1/16 to 1/8 of them
    are right. RULE is `flow` (with a verifier), `logprob`, `weighted_vote` (by flow, or else by log-probability), and
    `majority`; plain strings have no scores.

    Args:
        judged: whether a verifier scored the run's traces, which a question without any does not show. Default: whether it
            scored all of these.
    """
    traces = [replace(trace, count=1) for trace in traces for _ in range(trace.count)]
    n, right = len(traces), sum(trace.correct for trace in traces)
    correct = np.array([trace.correct for trace in traces], dtype=bool)
    classes = PoolProblem("", tuple(trace.answer for trace in traces), correct, {}).classes()
    scores = _scores(traces, judged)
    votes = _votes(n, scores)

    def accuracies(k: int) -> dict[str, float]:
        if not n:
            return dict.fromkeys([*votes, *scores], 0.0)
        subsets = subsets_of(n, k, seed)
        found = {rule: vote(classes, correct, log_weight, subsets) for rule, log_weight in votes.items()}
        return found | {rule: best_of_k(score, correct, k) for rule, score in scores.items()}

    base = right / n if n else 0.0
    values: Values = {"pass@1": base}
    for k in ks:
        if k > 1:
            values.update({_at(rule, k): value for rule, value in accuracies(min(k, n)).items()})
            values[f"oracle@{k}"] = oracle_at_k(n, right, min(k, n)) if n else 0.0
    if max(ks) > 1:
        rare = float(is_rare(right, n))
        for rule, value in accuracies(n).items():
            values[f"gap_closed_{rule}"] = (value - base, float(right > 0) - base)
            values[f"rare_{rule}"] = (value * rare, rare)
        values["rare_pass@1"] = (base * rare, rare)
    return values


def _at(rule: str, k: int) -> str:
    return f"{rule}@{k}" if rule in {"majority", "weighted_vote"} else f"best_of@{k}_{rule}"


def tree_values(
    traces: Sequence[Scored],
    ks: Sequence[int],
    rule: str,
    seed: int = 0,
    *,
    judged: bool | None = None,
    problem: str = "",
) -> Values:
    """Metrics of one tree, its trajectories in the order in which they were finished.

    `choose_RULE` is what each selection rule would have chosen from the whole tree, `oracle` whether any trajectory is
    right, `anytime@k` and `anytime_oracle@k` the same after the first k finished ones, by the search's own `rule`. One that
    was drawn `count` times is as many of them.

    Args:
        judged: whether a verifier scored the run's trees, which a tree without trajectories does not show. Default:
            whether it scored all of these.
        problem: the tree's, which with `seed` decides between tied votes.
    """
    if judged is None:
        judged = all(trace.log_flow is not None for trace in traces)
    values: Values = {f"choose_{name}": choice(traces, name, seed, problem) for name in rules(judged)}
    values["oracle"] = float(any(trace.correct for trace in traces))
    for k in ks:
        first = first_drawn(traces, k)
        values[f"anytime@{k}"] = choice(first, rule, seed, problem)
        values[f"anytime_oracle@{k}"] = float(any(trace.correct for trace in first))
    return values


def rules(judged: bool) -> list[str]:
    """The selection rules that tell something of a run: without a verifier, flow is the log-probability."""
    return [name for name in RULES if name != "random" and (judged or name != "flow")]


def first_drawn(traces: Sequence[Scored], k: int) -> list[Scored]:
    """The first k draws."""
    first: list[Scored] = []
    for trace in traces:
        if k <= 0:
            break
        first.append(replace(trace, count=min(k, trace.count)))
        k -= trace.count
    return first


def choice(traces: Sequence[Scored], rule: str, seed: int = 0, problem: str = "") -> float:
    """1 if `rule` chooses a right one, else 0; as `arts_plugin.search.select.select` does."""
    usable = [trace for trace in traces if trace.stop != "error"] or list(traces)
    if not usable:
        return 0.0
    candidates = [
        Trajectory(
            leaf=i, nodes=(), text="", token_ids=(0,), logprob=trace.mean_logprob or 0.0, log_flow=trace.log_flow,
            count=trace.count, stop=trace.stop, answer=trace.answer, finished=True, order=i,
        )
        for i, trace in enumerate(usable)
    ]  # fmt: skip
    return float(usable[RULES[rule](candidates, generator("select", seed, problem)).leaf].correct)


def _scores(traces: Sequence[Scored], judged: bool | None) -> dict[str, Array]:
    found = {"logprob": [trace.mean_logprob for trace in traces]}
    if judged is not False:
        found = {"flow": [trace.log_flow for trace in traces], **found}
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

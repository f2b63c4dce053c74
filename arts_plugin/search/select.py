"""Which of the finished trajectories is the answer: an option of its own, whatever strategy grew the tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from arts_plugin.answers import equality
from arts_plugin.errors import unknown_name
from arts_plugin.randomness import generator
from arts_plugin.tree import ReasoningTree, Trajectory

PARTICLES = "particles"
"""Where a tree's `meta` says how often a trajectory counts (leaf -> number), if not as often as it was proposed."""
Weight = Callable[[Trajectory], float]


def select(tree: ReasoningTree, rule: str, *, seed: int = 0) -> int | None:
    """The id of the chosen leaf; None for a tree without steps.

    Where nothing is finished, the unfinished trajectory with the highest score is taken (its `finished` is False).
    Trajectories that ended in an error are taken only where there are no others. Draws and ties depend on (seed,
    problem) alone.

    Args:
        rule: flow (the highest terminal log F), weighted_vote (classes of equal answers weighed by the sum of
            exp(log F) times count), majority (by count), logprob (mean token log-probability), or random.

    Raises:
        UnknownNameError: no such rule.
    """
    if rule not in RULES:
        raise unknown_name("selection rule", rule, RULES)
    finished = tree.trajectories()
    candidates = [t for t in finished if t.stop != "error"] or finished
    if held := tree.meta.get(PARTICLES):
        candidates = [replace(t, count=held[str(t.leaf)]) for t in candidates if held.get(str(t.leaf))] or candidates
    if not candidates:
        partial = [tree.trajectory(node.id) for node in tree.leaves()]
        return max(partial, key=_score).leaf if partial else None
    return RULES[rule](candidates, generator("select", seed, tree.problem)).leaf


def _score(trajectory: Trajectory) -> float:
    score = trajectory.mean_logprob if trajectory.log_flow is None else trajectory.log_flow
    return -math.inf if math.isnan(score) else score


def _by_flow(candidates: Sequence[Trajectory], rng: np.random.Generator) -> Trajectory:
    return max(candidates, key=_score)


def _by_logprob(candidates: Sequence[Trajectory], rng: np.random.Generator) -> Trajectory:
    return max(candidates, key=lambda t: t.mean_logprob)


def _at_random(candidates: Sequence[Trajectory], rng: np.random.Generator) -> Trajectory:
    counts = np.array([t.count for t in candidates], dtype=float)
    return candidates[int(rng.choice(len(candidates), p=counts / counts.sum()))]


def _majority(candidates: Sequence[Trajectory], rng: np.random.Generator) -> Trajectory:
    return _vote(candidates, rng, lambda t: math.log(t.count))


def _weighted_vote(candidates: Sequence[Trajectory], rng: np.random.Generator) -> Trajectory:
    return _vote(candidates, rng, lambda t: _score(t) + math.log(t.count))


def _vote(candidates: Sequence[Trajectory], rng: np.random.Generator, log_weight: Weight) -> Trajectory:
    """The best-scored trajectory of the heaviest class of equal answers; ties between classes are drawn."""
    classes: dict[int, list[Trajectory]] = {}
    numbers = equality.classes([trajectory.answer for trajectory in candidates])
    for number, trajectory in zip(numbers, candidates, strict=True):
        if number >= 0:
            classes.setdefault(number, []).append(trajectory)
    if not classes:  # no trajectory has an answer to vote with
        return _by_flow(candidates, rng)
    weights = {answer: float(np.logaddexp.reduce([log_weight(t) for t in group])) for answer, group in classes.items()}
    heaviest = max(weights.values())
    tied = [answer for answer, weight in weights.items() if weight >= heaviest - 1e-9]
    return _by_flow(classes[tied[int(rng.integers(len(tied)))]], rng)


RULES: dict[str, Callable[[Sequence[Trajectory], np.random.Generator], Trajectory]] = {
    "flow": _by_flow,
    "weighted_vote": _weighted_vote,
    "majority": _majority,
    "logprob": _by_logprob,
    "random": _at_random,
}


RULE_OF = {"self_consistency": "majority", "smc": "majority"}
"""Strategies that are nothing without a rule of their own."""


def default_rule(has_verifier: bool) -> str:
    """`flow` (the paper's) with a verifier; `majority` while the score is only the model's own log-probability."""
    return "flow" if has_verifier else "majority"

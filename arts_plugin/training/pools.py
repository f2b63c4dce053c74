"""Pools of independent traces out of recorded trees, and their scores."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import PoolProblem
from arts_plugin.training.dataset import LabelledTree
from arts_plugin.tree import ReasoningTree

log = logging.getLogger(__name__)
INDEPENDENT = frozenset({"best_of_n", "sdf"})
"""Strategies whose main traces are independent draws; the traces of other trees share prefixes and are no pool."""


def main_leaves(tree: ReasoningTree) -> list[int]:
    """Leaves of the main traces: those that no fork led to, in the order of the traces."""
    found = []
    for node in tree.nodes:
        path = tree.path(node.id) if node.terminal else []
        if path and all(step.index == 0 for step in path[2:]):
            found.append((path[1].index, node.id))
    return [leaf for _, leaf in sorted(found)]


def pool_of(
    trees: Sequence[LabelledTree], extra: Mapping[str, Sequence[npt.NDArray[np.float64]]] | None = None
) -> list[PoolProblem]:
    """The independent traces of each problem, with the scores that the trees hold.

    `logprob` (mean token log-probability) is always among the scores. A problem with fewer traces than most is left
    out with a warning.

    Args:
        extra: scorer -> for each tree the scores of all its nodes [n_nodes].

    Raises:
        ArtsError: the trees are of a strategy whose traces are not independent.
    """
    made = []
    for number, item in enumerate(trees):
        if item.tree.strategy not in INDEPENDENT:
            raise ArtsError(
                f"problem {item.id} was searched with strategy={item.tree.strategy}: its traces share prefixes and are no "
                f"pool of independent ones; use {' or '.join(sorted(INDEPENDENT))}"
            )
        leaves = main_leaves(item.tree)
        nodes = [item.tree.nodes[leaf] for leaf in leaves]
        named = set.intersection(*(set(node.scores) for node in nodes)) if nodes else set()
        scores = {name: np.array([node.scores[name] for node in nodes]) for name in named}
        scores["logprob"] = np.array([item.tree.trajectory(leaf).mean_logprob for leaf in leaves])
        for name, values in (extra or {}).items():
            scores[name] = values[number][leaves]
        correct = np.array([item.correct.get(leaf, False) for leaf in leaves], dtype=bool)
        made.append(PoolProblem(item.id, tuple(node.answer for node in nodes), correct, scores))
    n = Counter(len(problem.answers) for problem in made).most_common(1)[0][0]
    odd = [problem.id for problem in made if len(problem.answers) != n]
    if odd:
        log.warning(
            "%d problems have not %d finished main traces and are left out: %s", len(odd), n, ", ".join(odd[:5])
        )
    return [problem for problem in made if len(problem.answers) == n]

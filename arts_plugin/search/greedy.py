"""Greedy decoding: one chain at temperature 0."""

from __future__ import annotations

from dataclasses import replace

from arts_plugin.search.best_of_n import BestOfN
from arts_plugin.search.budget import Budget
from arts_plugin.tree import ReasoningTree


class Greedy(BestOfN):
    """The single most likely continuation, token by token."""

    temperature = 0.0

    def __init__(self, tree: ReasoningTree, budget: Budget) -> None:
        super().__init__(tree, replace(budget, trajectories=1))

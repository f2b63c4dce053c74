"""Diverse verifier tree search: N / K beams of one state each (Beeching, Tunstall and Rush 2024, "Scaling test-time compute
with open models")."""

from __future__ import annotations

from arts_plugin.search.beam import Beam
from arts_plugin.search.budget import Budget
from arts_plugin.tree import ReasoningTree


class Dvts(Beam):
    """The beam in N / K independent parts: in each, the best of K proposals goes on, whatever the others have."""

    def __init__(self, tree: ReasoningTree, budget: Budget, *, beams: int, width: int = 2) -> None:
        super().__init__(tree, budget, beams=beams, width=width, groups=max(1, beams // width))

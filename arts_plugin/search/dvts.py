"""Diverse verifier tree search: N / K beams of one state each (Beeching, Tunstall and Rush 2024, "Scaling test-time compute
with open models"), which are independent searches by the beam search of Snell et al. 2024, arXiv 2408.03314."""

from __future__ import annotations

from arts_plugin.search.beam import Beam
from arts_plugin.search.budget import Budget
from arts_plugin.tree import ReasoningTree


class Dvts(Beam):
    """The beam in N / K independent parts: in each, the best of K proposals goes on, whatever the others have.

    Where K does not divide N there are floor(N / K) parts, some of which begin with more than K proposals; still one state
    of each goes on, with K at most. A part finishes no more trajectories than it has begun proposals.
    """

    def __init__(self, tree: ReasoningTree, budget: Budget, *, beams: int, width: int = 2) -> None:
        super().__init__(tree, budget, beams=beams, width=width, groups=max(1, beams // width))

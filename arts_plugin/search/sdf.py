"""Sparse Deep Fork: the trees that a flow verifier learns from (arXiv 2602.12846)."""

from __future__ import annotations

from arts_plugin.randomness import branch_key, mix, uniform
from arts_plugin.search.base import Proposal, Taken
from arts_plugin.search.best_of_n import BestOfN
from arts_plugin.search.budget import Budget
from arts_plugin.tree import ReasoningTree


class SparseDeepFork(BestOfN):
    """N main traces; each gets, with probability p, one more continuation from one of its intermediate states.

    The pivot is uniform over the states between the prompt and the end, so that a right and a wrong branch may share
    a prefix. About (1 + p) N terminal traces, all of them drawn from the proposer. A main trace of one step has no
    intermediate state and is not forked. Which state is a pivot depends on (seed, problem, number of the trace) alone.

    Args:
        traces: N.
        fork_probability: p.
        seed: with the tree's `problem`, seeds the pivots.
    """

    def __init__(
        self,
        tree: ReasoningTree,
        budget: Budget,
        *,
        traces: int,
        fork_probability: float = 0.5,
        seed: int = 0,
        slots: int = 16,
    ) -> None:
        self._key = branch_key(seed, int(tree.problem or "0", 16), (-2,))
        self._p = fork_probability
        self._main = {0}
        super().__init__(tree, budget, chains=traces, slots=slots)

    def _take_in(self, proposal: Proposal) -> Taken:
        taken = self.take(proposal, merge=False)
        node = taken.node
        if node is None:
            return taken
        main = proposal.expansion.node in self._main and (proposal.expansion.index == 0 or node.parent == 0)
        if main:
            self._main.add(node.id)
        if self.ended_by:
            return taken
        if not node.terminal:
            # A main trace's states are kept until it ends: any of them may become the pivot.
            self.launch(node.id, 1, keep=main)
            return taken
        if main:
            self._fork(node.id)
        self._start()
        return taken

    def _fork(self, leaf: int) -> None:
        path = self.tree.path(leaf)
        states = [node.id for node in path[1:-1]]
        key = mix(self._key, path[1].index)
        pivot = None
        if states and uniform(key, 0) < self._p:
            pivot = states[int(uniform(key, 1) * len(states))]
            if not self.launch(pivot, 1):
                pivot = None
        self.released += [state for state in states if state != pivot]

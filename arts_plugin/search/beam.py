"""Step-level beam search against a verifier (Snell et al. 2024, arXiv 2408.03314)."""

from __future__ import annotations

from collections.abc import Sequence

from arts_plugin.search.base import Proposal, Taken
from arts_plugin.search.budget import Budget
from arts_plugin.search.rounds import RoundStrategy
from arts_plugin.tree import Node, ReasoningTree


class Beam(RoundStrategy):
    """In rounds: N one-step proposals, of which the best N / K states go on with K proposals each.

    A trajectory that is finished stays, and the round that follows is smaller by it.

    Args:
        beams: N.
        width: K, proposals for each state that is kept.
        groups: parts of the beam that never compete with each other, in each of which one state goes on; see
            `arts_plugin.search.dvts`. None: one beam of as many states as K divides it into.
    """

    def __init__(
        self, tree: ReasoningTree, budget: Budget, *, beams: int, width: int = 2, groups: int | None = None
    ) -> None:
        super().__init__(tree, budget)
        self.beams, self.width, self.groups = beams, width, max(1, min(groups or 1, beams))
        self._most = beams if groups is None else 1  # states of a part that go on
        self._group: dict[int, int] = {}
        self.propose(0, beams)

    def take_in(self, proposal: Proposal) -> Taken:
        """Note which part it belongs to."""
        # Parts of the beam are searches of their own: what one finds is not another's.
        taken = self.take(proposal, merge=self.groups == 1)
        if taken.node and not taken.merged:
            parent, index = proposal.expansion.node, proposal.expansion.index
            self._group[taken.node.id] = self._group[parent] if parent else self._part(index)
        return taken

    def _part(self, index: int) -> int:
        """Of the root's `index`-th proposal."""
        return index * self.groups // self.beams

    def _share(self, group: int) -> int:
        """Proposals that a part begins with, and trajectories that it may finish."""
        return sum(self._part(index) == group for index in range(self.beams))

    def next_round(self, taken: Sequence[Taken]) -> None:
        """Choose the states that go on, part by part, best first; give the others up."""
        fresh = [t.node for t in taken if t.node and not t.merged and not t.node.terminal]
        for group in range(self.groups):
            inside = [node for node in fresh if self._group[node.id] == group]
            left = self._share(group) - sum(
                node.count for node in self.tree.nodes[1:] if node.terminal and self._group[node.id] == group
            )
            inside.sort(key=lambda node: -_flow(node))
            for place, node in enumerate(inside):
                # The last state may get fewer proposals, so that a round is never larger than what is left.
                width = 0 if self._nodes_spent() else min(self.width, left)
                if width > 0 and place < self._most:
                    self.propose(node.id, width)
                    left -= width
                else:
                    self.released.append(node.id)
        if not self._round:
            self.ended_by = "budget_nodes" if self._nodes_spent() else "exhausted"


def _flow(node: Node) -> float:
    return -float("inf") if node.log_flow is None else node.log_flow

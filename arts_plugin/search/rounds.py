"""Strategies that go in rounds: nothing is decided before every proposal of a round has come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from arts_plugin.search.base import Expansion, Proposal, Taken, TreeStrategy
from arts_plugin.search.budget import Budget
from arts_plugin.tree import EndedBy, ReasoningTree


class RoundStrategy(TreeStrategy):
    """Waits for a round's proposals and hands them on in the order in which they were asked for, so that a tree does not
    depend on the order in which they end."""

    def __init__(self, tree: ReasoningTree, budget: Budget) -> None:
        super().__init__(tree, budget)
        self._round: dict[tuple[int, int], Proposal | None] = {}

    def propose(self, node: int, width: int) -> list[Expansion]:
        """Queue proposals as part of the round; as many as the node budget allows."""
        asked = self.queued(node, width)
        self._round.update({(e.node, e.index): None for e in asked})
        return asked

    @abstractmethod
    def take_in(self, proposal: Proposal) -> Taken:
        """Put a proposal into the tree."""

    @abstractmethod
    def next_round(self, taken: Sequence[Taken]) -> None:
        """Ask for the next round, or set `ended_by`. Not called for a search that has ended."""

    def tell(self, proposals: Sequence[Proposal]) -> list[Taken]:
        """Keep results until the round is complete, then take all of them in and start the next."""
        for proposal in proposals:
            self._round[proposal.expansion.node, proposal.expansion.index] = proposal
        if None in self._round.values():
            return []
        taken = self._take_all()
        if not self.ended_by:
            self.next_round(taken)
        return taken

    def close(self, ended_by: EndedBy) -> list[Taken]:
        """Take in what was told of an unfinished round."""
        return self._take_all() + super().close(ended_by)

    def _take_all(self) -> list[Taken]:
        told = [proposal for proposal in self._round.values() if proposal is not None]
        self._round = {}
        return [self.take_in(proposal) for proposal in told]

"""N independent chains: sample traces, then select (self-consistency, best-of-N)."""

from __future__ import annotations

from collections.abc import Sequence

from arts_plugin.search.base import Expansion, Proposal, Taken, TreeStrategy
from arts_plugin.search.budget import Budget
from arts_plugin.tree import EndedBy, ReasoningTree


class BestOfN(TreeStrategy):
    """`budget_trajectories` chains from the root, each continued to its end; equal ones are never merged.

    At most `slots` chains are under way. Without a trajectory budget, new chains are started for as long as the other budgets
    last. Chain i draws the same numbers whatever N is, so the first k traces of a pool of N are the pool of k.

    Under a trajectory budget alone every chain runs to its end, so no result waits for another. Where tokens or nodes
    run out, the tree depends on which steps were asked for first; results are then taken in in the order in which
    they were asked for, as in `Arts`, so that it does not depend on what else is in the batch.

    Args:
        chains: their number, where it is not the trajectory budget's.

    Attributes:
        chains: whether nothing but its own end can end a chain; see `arts_plugin.backend.Generation`. A single one is followed
            step by step by whoever reads along.
    """

    def __init__(self, tree: ReasoningTree, budget: Budget, *, chains: int | None = None, slots: int = 16) -> None:
        super().__init__(tree, budget)
        self._limit = budget.trajectories if chains is None else chains
        self._in_order = budget.tokens is not None or budget.nodes is not None
        self.chains = not self._in_order and budget.seconds is None and self._limit != 1
        self._chains = 0
        self._pending: dict[tuple[int, int], None] = {}  # (node, index), in the order asked for
        self._told: dict[tuple[int, int], Proposal] = {}
        for _ in range(slots):
            self._start()

    def _start(self) -> None:
        if self._may_start():
            # The chain's number is its index at the root, so `last` cannot be known without a trajectory budget.
            self._queue.append(Expansion(0, self._chains, last=self._chains + 1 == self._limit))
            self._chains += 1
            self._launched += 1

    def _may_start(self) -> bool:
        return not self._nodes_spent() and (self._limit is None or self._chains < self._limit)

    def ask(self, free: int) -> list[Expansion]:
        """Steps of open chains, and new chains for those that have ended."""
        asked = super().ask(free)
        self._pending.update({(e.node, e.index): None for e in asked})
        return asked

    def tell(self, proposals: Sequence[Proposal]) -> list[Taken]:
        """Take in steps, continue their chains, and start new ones for those that have ended."""
        self._told.update({(p.expansion.node, p.expansion.index): p for p in proposals})
        taken = []
        for key in list(self._pending):
            if key in self._told:
                del self._pending[key]
                taken.append(self._take_in(self._told.pop(key)))
            elif self._in_order:
                break
        if not self.ended_by and not self._pending and not self._queue:
            self.ended_by = "budget_nodes" if self._nodes_spent() else "exhausted"
        return taken

    def _take_in(self, proposal: Proposal) -> Taken:
        taken = self.take(proposal, merge=False)
        if taken.node and not self.ended_by:
            if taken.node.terminal:
                self._start()
            else:
                self.launch(taken.node.id, 1)
        return taken

    def close(self, ended_by: EndedBy) -> list[Taken]:
        """Take in what was told out of turn, and number the nodes chain by chain, whatever the order of their ends."""
        taken = [self.take(self._told[key], merge=False) for key in self._pending if key in self._told]
        self._told.clear()
        order = [0]
        for child in sorted(self.tree.nodes[0].children, key=lambda i: self.tree.nodes[i].index):
            chain: list[int] = [child]
            while chain:
                order.append(chain.pop())
                chain += reversed(self.tree.nodes[order[-1]].children)
        self.tree.renumber(order)
        return taken + super().close(ended_by)

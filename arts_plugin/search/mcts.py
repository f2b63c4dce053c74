"""Monte Carlo tree search by PUCT with the flow as prior and value (Silver et al. 2017, AlphaGo Zero; values normalised
within the tree as in MuZero, Schrittwieser et al. 2020, arXiv 1911.08265)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from arts_plugin.search.base import Proposal, Taken
from arts_plugin.search.budget import Budget
from arts_plugin.search.rounds import RoundStrategy
from arts_plugin.tree import Node, ReasoningTree

EXPLORATION = 1.25
"""c of PUCT."""


class Mcts(RoundStrategy):
    """In rounds of max(1, slots // K) descents, each to a state that gets K one-step proposals.

    A descent goes, from the root, to the child with the largest

        q(child) + c P(child) sqrt(sum of the siblings' N) / (1 + N(child)),

    where P is F^beta normalised over the siblings (a merged proposal counts once), N counts descents, and q is the mean log F
    that descents through the child have found, scaled to 0..1 within the tree; a child that none has passed has its own
    log F. What a descent finds is the mean log F of the new children. A finished trajectory has nothing to be found
    again, so descents pass by it, and by states whose every branch is finished. Those of one round count at once, without a
    value (virtual losses: Chaslot et al. 2008).

    Args:
        width: K; the root gets max(K, slots).
        beta: exponent of the prior; 0 explores evenly.
    """

    def __init__(
        self,
        tree: ReasoningTree,
        budget: Budget,
        *,
        width: int = 2,
        slots: int = 16,
        beta: float = 1.0,
        exploration: float = EXPLORATION,
    ) -> None:
        super().__init__(tree, budget)
        self.width, self.descents = width, max(1, slots // width)
        self.beta, self.exploration = beta, exploration
        self.visits: dict[int, int] = {0: 0}
        self._worth: dict[int, float] = {}  # sum of what descents found
        self._valued: dict[int, int] = {}  # how many have
        self._closed: set[int] = set()
        self._range = (math.inf, -math.inf)
        self._expanded: list[int] = []
        self._expand(0, max(width, slots))

    def _expand(self, node: int, width: int) -> None:
        self.propose(node, width)
        self._expanded.append(node)
        at: int | None = node
        while at is not None:
            self.visits[at] = self.visits.get(at, 0) + 1
            at = self.tree.nodes[at].parent
        self._close(node)  # until its children are there

    def take_in(self, proposal: Proposal) -> Taken:
        """Equal proposals of one parent are one child."""
        return self.take(proposal, merge=True)

    def next_round(self, taken: Sequence[Taken]) -> None:
        """Back up what was found, and descend anew."""
        expanded, self._expanded = self._expanded, []
        for node in expanded:
            self._back_up(node)
        while len(self._expanded) < self.descents and not self._nodes_spent():
            leaf = self._descend()
            if leaf is None:
                break
            self._expand(leaf, self.width)
        if not self._expanded:
            self.ended_by = "budget_nodes" if self._nodes_spent() else "exhausted"

    def _back_up(self, node: int) -> None:
        children = [self.tree.nodes[child] for child in self.tree.nodes[node].children]
        if not children:
            return
        self._closed.update(child.id for child in children if child.terminal)
        known = [log_flow for child in children if (log_flow := _finite(child)) is not None]
        self._range = min([self._range[0], *known]), max([self._range[1], *known])
        found = sum(child.count * self._value(child) for child in children) / sum(child.count for child in children)
        at: int | None = node
        while at is not None:
            self._worth[at] = self._worth.get(at, 0.0) + found
            self._valued[at] = self._valued.get(at, 0) + 1
            at = self.tree.nodes[at].parent
        self._reopen(node)

    def _reopen(self, node: int) -> None:
        """Whether a descent can end below `node` has changed: tell those above."""
        at: int | None = node
        while at is not None and any(child not in self._closed for child in self.tree.nodes[at].children):
            self._closed.discard(at)
            at = self.tree.nodes[at].parent
        if at is not None:
            self._close(at)

    def _close(self, node: int) -> None:
        at: int | None = node
        while at is not None and all(child in self._closed for child in self.tree.nodes[at].children):
            self._closed.add(at)
            at = self.tree.nodes[at].parent

    def _descend(self) -> int | None:
        """The state that the next K proposals are for; None if there is none."""
        if 0 in self._closed:
            return None
        at = self.tree.nodes[0]
        while at.children:
            siblings = [self.tree.nodes[child] for child in at.children]
            priors = self._priors(siblings)
            total = math.sqrt(sum(self.visits.get(child.id, 0) for child in siblings))
            scores = {
                child.id: self._q(child) + self.exploration * prior * total / (1 + self.visits.get(child.id, 0))
                for child, prior in zip(siblings, priors, strict=True)
                if child.id not in self._closed
            }
            at = self.tree.nodes[max(scores, key=lambda child: (scores[child], -child))]
        return at.id

    def _priors(self, siblings: Sequence[Node]) -> list[float]:
        powers = [self.beta * self._value(child) for child in siblings]
        weights = [math.exp(power - max(powers)) for power in powers]
        return [weight / sum(weights) for weight in weights]

    def _value(self, node: Node) -> float:
        """log F; what is not finite counts as the lowest that was seen."""
        if (log_flow := _finite(node)) is not None:
            return log_flow
        return self._range[0] if math.isfinite(self._range[0]) else 0.0

    def _q(self, node: Node) -> float:
        low, high = self._range
        tried = self.visits.get(node.id, 0)
        if not tried:
            value = self._value(node)
        else:
            # A descent that has found nothing yet counts as the worst: the next one goes elsewhere.
            value = (self._worth.get(node.id, 0.0) + (tried - self._valued.get(node.id, 0)) * low) / tried
        return (value - low) / (high - low) if high > low else 0.5


def _finite(node: Node) -> float | None:
    return node.log_flow if node.log_flow is not None and math.isfinite(node.log_flow) else None

"""Flow-guided tree search: open states are drawn in proportion to F(s)^beta (arXiv 2602.12846; P(s'|s) ~ F(s'))."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arts_plugin.randomness import branch_key, mix
from arts_plugin.search.base import Proposal, Taken, TreeStrategy
from arts_plugin.search.budget import Budget
from arts_plugin.settings import Draw
from arts_plugin.tree import EndedBy, ReasoningTree


class Arts(TreeStrategy):
    """Amortized Reasoning Tree Search for one question.

    The root is expanded with max(K, slots) proposals. Then open states (unexpanded, not terminal) are drawn without
    replacement, P ~ F(s)^beta, and each gets K one-step proposals. Equal proposals of one parent become one child
    with a count. Up to `slots` proposals are in flight, and there is no barrier between rounds: a new state is drawn
    as soon as there is room for its K proposals.

    Steps end in an order that depends on what else is in the batch. So that the tree does not, results are taken in
    in the order in which they were asked for, like the retirement of out-of-order instructions; a draw therefore
    sees the same open states whatever runs beside it.

    Args:
        width: K.
        slots: proposals in flight, at most (but never fewer than one state's K).
        beta: exponent of the flow; 0 draws uniformly.
        seed: with the tree's `problem`, seeds the draws.
        draw: "multinomial" draws one state after another; "systematic" spaces several drawn at once evenly over
            the cumulative weights, which keeps the proportions with less variance.
    """

    def __init__(
        self,
        tree: ReasoningTree,
        budget: Budget,
        *,
        width: int = 2,
        slots: int = 16,
        beta: float = 1.0,
        seed: int = 0,
        draw: Draw = "multinomial",
    ) -> None:
        super().__init__(tree, budget)
        self.width, self.window, self.beta, self.draw = width, max(slots, width), beta, draw
        self._key = branch_key(seed, int(tree.problem or "0", 16), (-1,))
        self._draws = 0
        self._open: list[int] = []
        self._in_flight: deque[tuple[int, int]] = deque()  # (node, index), in the order asked for
        self._told: dict[tuple[int, int], Proposal] = {}
        self._expand(0, self.window)

    def _expand(self, node: int, width: int) -> None:
        self._propose(node, width)

    def _propose(self, node: int, width: int, keep: bool = False) -> int:
        """Queue proposals and remember their turn; how many there are."""
        asked = self.queued(node, width, keep)
        self._in_flight.extend((e.node, e.index) for e in asked)
        return len(asked)

    def tell(self, proposals: Sequence[Proposal]) -> list[Taken]:
        """Store results; take in those whose turn has come, and draw new states where there is room."""
        self._told.update({(p.expansion.node, p.expansion.index): p for p in proposals})
        taken: list[Taken] = []
        while self._in_flight and self._in_flight[0] in self._told:
            taken.append(self.take(self._told.pop(self._in_flight.popleft()), merge=True))
            self._opened(taken[-1])
            self._draw_states()
        if not self.ended_by and not self._in_flight:
            self.ended_by = "budget_nodes" if self._open else "exhausted"
        return taken

    def close(self, ended_by: EndedBy) -> list[Taken]:
        """Take in what was told out of turn, unless the search ended by its own count."""
        taken = [self.take(self._told[key], merge=True) for key in self._in_flight if key in self._told]
        self._told.clear()
        return taken + super().close(ended_by)

    def _opened(self, taken: Taken) -> None:
        """What can be drawn from now on."""
        if taken.node and not taken.merged and not taken.node.terminal:
            self._open.append(taken.node.id)

    def _draw_states(self) -> None:
        """Draw as many states as there is room for. The first draw waits for all of the root's proposals."""
        if self.ended_by or (self._in_flight and self._in_flight[0][0] == 0):
            return
        room = (self.window - len(self._in_flight)) // self.width
        count = min(room if self._in_flight else max(1, room), len(self._open))
        if count < 1 or self._nodes_spent():
            return
        weights = np.array([self._log_weight(node) for node in self._open])
        rng = np.random.Generator(np.random.PCG64(mix(self._key, self._draws)))
        self._draws += 1
        chosen = draw_without_replacement(weights, count, rng, systematic=self.draw == "systematic")
        for node in [self._open[i] for i in chosen]:
            if self._nodes_spent():
                break
            self._open.remove(node)
            self._expand(node, self.width)

    def _log_weight(self, node: int) -> float:
        log_flow = self.tree.nodes[node].log_flow
        return 0.0 if log_flow is None or self.beta == 0 else self.beta * log_flow


def draw_without_replacement(
    log_weights: npt.NDArray[np.float64], count: int, rng: np.random.Generator, systematic: bool = False
) -> list[int]:
    """`count` distinct indexes, drawn in proportion to exp(log_weights).

    Multinomial: one after another, each in proportion to what is left; done by adding Gumbel noise and taking the
    largest (Kool et al. 2019), which needs no exponentials. Systematic (Madow 1949): inclusion probability
    proportional to weight, with items too heavy for that taken for certain.
    """
    known = np.isfinite(log_weights)
    low, high = (log_weights[known].min(), log_weights[known].max()) if known.any() else (0.0, 0.0)
    # Infinite weights stand far beyond the others, and near enough to each other for the draw among them to be fair.
    finite = np.where(known, log_weights, np.where(log_weights > 0, high + 1e3, low - 1e3))
    if not systematic or count == 1:
        return [int(i) for i in np.argsort(-(finite + rng.gumbel(size=len(finite))), kind="stable")[:count]]
    chosen: list[int] = []
    rest = list(range(len(finite)))
    while len(chosen) < count:
        weights = np.exp(finite[rest] - finite[rest].max())
        shares = (count - len(chosen)) * weights / weights.sum()
        certain = [i for i, share in zip(rest, shares, strict=True) if share >= 1 - 1e-12]
        if not certain:
            ticks = rng.random() + np.arange(count - len(chosen))
            places = np.minimum(np.searchsorted(np.cumsum(shares), ticks, side="right"), len(rest) - 1)
            return chosen + [rest[int(place)] for place in places]
        chosen += certain[: count - len(chosen)]
        rest = [i for i in rest if i not in certain]
    return chosen

"""`arts` that comes back to states whose children do not yet carry the flow through them.

In a flow, F(s) is the sum of F over the children of s (Bengio et al. 2021, arXiv 2106.04399; arXiv 2602.12846). What the
children that were found so far leave over is flow through children that were not: it says where to widen, as the counts of
progressive widening do (Coulom 2007) without knowing what is missing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arts_plugin.search.arts import Arts
from arts_plugin.search.base import Taken

LEAST = 1e-3
"""A state is done with when its children leave over less than this share of its flow."""
LEAST_UNSEEN = 1 / 128
"""... or when a further proposal is less likely than this to be a new child."""
MOST = 256
"""... or after so many proposals."""


class Adaptive(Arts):
    """Draws in proportion to (flow that no child carries, times the chance that a proposal is a new child)^beta; of a state
    without children that is F(s)^beta, as in `arts`.

    The chance is estimated by Good (1953) and Turing: as many of n proposals will be new as there are children among them
    that came once. Flows that were learned need not fit: a state may be rated above all that can come of it, and would be
    drawn for ever; repeats say that nothing is to be found there.

    A state that was drawn gets K more proposals, and can be drawn again once all of them have come, by what is left. Its
    memory is given back when nothing is, when hardly a proposal would be new, or after 256 proposals.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._awaited: dict[int, int] = {}
        super().__init__(*arguments, **keywords)

    def _expand(self, node: int, width: int) -> None:
        self._awaited[node] = self._propose(node, width, keep=True)

    def _opened(self, taken: Taken) -> None:
        super()._opened(taken)
        parent = taken.proposal.expansion.node
        self._awaited[parent] -= 1
        if self._awaited[parent]:
            return
        del self._awaited[parent]
        if self.missing(parent) is not None and not self._known(parent):
            self._open.append(parent)
        else:
            self.released.append(parent)

    def _log_weight(self, node: int) -> float:
        missing = self.missing(node)
        return 0.0 if self.beta == 0 or missing is None else self.beta * (missing + math.log(self.unseen(node)))

    def _known(self, node: int) -> bool:
        proposals = sum(self.tree.nodes[child].count for child in self.tree.nodes[node].children)
        return proposals >= MOST or self.unseen(node) < LEAST_UNSEEN

    def unseen(self, node: int) -> float:
        """The chance, in (0, 1], that a proposal from `node` is none of its known children."""
        counts = [self.tree.nodes[child].count for child in self.tree.nodes[node].children]
        once = counts.count(1)
        # Where none came once the estimate is 0, which n proposals are too few to say.
        return once / sum(counts) if once else 1 / (1 + sum(counts))

    def missing(self, node: int) -> float | None:
        """log of the flow through `node` that its known children do not carry; None if (nearly) all is carried.

        Flows that are not finite tell nothing, and the state is not widened.
        """
        log_flow = self.tree.nodes[node].log_flow
        children = self.tree.nodes[node].children
        if not children:
            return log_flow
        known = [self.tree.nodes[child].log_flow for child in children]
        if log_flow is None or not math.isfinite(log_flow) or any(k is None or math.isnan(k) for k in known):
            return None
        share = math.exp(min(float(np.logaddexp.reduce(np.array(known, dtype=np.float64))) - log_flow, 1.0))
        return log_flow + math.log1p(-share) if share < 1 - LEAST else None

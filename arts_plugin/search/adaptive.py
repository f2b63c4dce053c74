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


class Adaptive(Arts):
    """Draws in proportion to (flow that no child carries)^beta; of a state without children that is F(s), as in `arts`.

    A state that was drawn gets K more proposals, and can be drawn again once all of them have come, by what is left. Its
    memory is given back when nothing is.
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
        if self.missing(parent) is not None:
            self._open.append(parent)
        else:
            self.released.append(parent)

    def _log_weight(self, node: int) -> float:
        missing = self.missing(node)
        return 0.0 if self.beta == 0 or missing is None else self.beta * missing

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

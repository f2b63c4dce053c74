"""What makes a question that is computed alone repeat exactly: cells in order, and batches of few rows.

A sum of floats depends on its order. llama.cpp's attention adds up cells in the order in which they lie, and for batches of
64 rows or more in tiles of cells; its matrix products choose kernels by the number of rows. So a token's logits depend on
where the tokens before it lie, and in which batches they were computed. Gaps between cells change nothing.

A question that begins while nothing else is computed therefore gets cells in order, and its prompt is computed in batches of a
fixed size, counted from its beginning. Whole batches of earlier prompts that were computed in this way may serve it; if the
cells have lost their order since, or have become too many, all of them are given up first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine
    from arts_plugin.engine.states import Point

RECENT_IN_ORDER = 16
"""Prompts kept while all cells lie in order: giving up one of them would leave a hole, which later tokens would fill."""


def is_alone(engine: BranchEngine) -> bool:
    """Whether nothing is being computed, nor rests between two steps."""
    return not (engine.running or engine.points or engine.priming)


def begin_alone(engine: BranchEngine, point: Point) -> None:
    """Have the cells in order for the prompt of `point`, which begins while nothing else is computed."""
    kv, limit = engine.kv, point.question.limit
    shared = kv.best_source(point.tokens, len(point.tokens) - 1)[1]
    # Attention passes over the cells of other prompts too: many of them cost more than they save.
    crowded = kv.used - shared > kv.n_cells // 4 or kv.free < limit - shared
    if crowded or not engine.in_order:
        while engine.recent:
            kv.drop(engine.recent.popleft())
        kv.clear()
        engine.in_order = True

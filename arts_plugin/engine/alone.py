"""What makes a question that is computed alone repeat exactly: the same cells, and batches of a fixed size.

A sum of floats depends on its order. llama.cpp's attention adds up cells in the order in which they lie, for batches of 64 rows
or more in tiles of cells, and for a single row in as many parts as there are threads; its matrix products choose kernels
by the number of rows. So a token's logits depend on where the tokens before it lie, and in which batches they were computed.

A question that begins while nothing else is computed therefore gets the first cells, and its prompt is computed in batches of a
fixed size, counted from its beginning. Of an earlier prompt that was computed in this way, whole batches serve it;
everything else is given up first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine
    from arts_plugin.engine.states import Point


def is_alone(engine: BranchEngine) -> bool:
    """Whether nothing is being computed, nor rests between two steps."""
    return not (engine.running or engine.points or engine.priming)


def begin_alone(engine: BranchEngine, point: Point, rows: int) -> None:
    """Leave nothing in the cache but what the prompt of `point` shares with the one in the first cells: whole batches of
    `rows` tokens."""
    kv, first = engine.kv, engine.first
    shared = 0
    if first is not None and kv.holds(first):
        # The last token of a prompt is computed by itself.
        common = min(kv.common(first, point.tokens), len(first) - 1, len(point.tokens) - 1)
        shared = common // rows * rows
        if not kv.is_whole(first, shared):
            shared = 0
    while engine.recent:
        sequence = engine.recent.popleft()
        if shared and sequence is first:
            kv.take_back(sequence, len(sequence) - shared)
        else:
            kv.drop(sequence)
    if shared and first is not None:
        engine.recent.append(first)
    else:
        kv.clear()

"""Who gives way when the KV cache is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine
    from arts_plugin.engine.states import Point


def make_room(
    engine: BranchEngine, cells: int, *, need_id: bool = False, keep: Point | None = None, pause: bool = False
) -> bool:
    """Free `cells` cells (and a sequence id); whether that could be done.

    In this order, and each only while there is need: prompts of finished questions, oldest first; idle points that
    no queued branch waits for, least flow first; idle points that one waits for. With `pause` also points that are
    about to be computed, and running branches, youngest first, but never the oldest: so something always advances.
    What is given up is computed again when it is wanted: nothing is lost but time, which is counted as refills.
    """
    kv = engine.kv
    while kv.free < cells or (need_id and not kv.has_free_id):
        if engine.recent:
            kv.drop(engine.recent.popleft())
        elif (point := _least_wanted(engine, keep, pause)) is not None:
            if point.priming:
                engine.priming.remove(point)
                point.priming = False
            engine.evict(point)
        elif pause and len(engine.running) > 1:
            engine.pause(engine.running[-1])
        else:
            return False
    return True


def _least_wanted(engine: BranchEngine, keep: Point | None, priming: bool) -> Point | None:
    idle = [p for p in engine.points if p is not keep and (priming or not p.priming)]
    return min(idle, key=lambda p: (p.priming, p.waiting > 0, p.priority), default=None)

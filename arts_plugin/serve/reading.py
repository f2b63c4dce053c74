"""Threads in which requests are read: parsed, tokenised, their grammars compiled, while others are served."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from arts_plugin.engine.guide_process import nobody_waits

_LARGE = 1 << 16
"""Bytes of a body from which on it waits for others like it, so that the small ones find a processor."""
_LARGE_AT_ONCE = 2
T = TypeVar("T")


class Reader:
    """Reads requests, each in a thread.

    Args:
        at_once: how many, at most.
    """

    def __init__(self, at_once: int) -> None:
        self._small = ThreadPoolExecutor(at_once, thread_name_prefix="arts-read")
        self._large = ThreadPoolExecutor(_LARGE_AT_ONCE, thread_name_prefix="arts-read-large")

    async def read(self, size: int, leaving: asyncio.Future[None], work: Callable[[], T]) -> T | None:
        """What `work` gives; None if the client leaves before, at which what can be given up is.

        Args:
            size: bytes of the request.
            leaving: done when its client has left.
        """
        gone, context = threading.Event(), copy_context()
        context.run(nobody_waits.set, gone.is_set)
        pool = self._large if size >= _LARGE else self._small
        # The event loop's own future would complain of an error that nobody waits for.
        working = pool.submit(context.run, work)
        done = asyncio.wrap_future(working)
        done.add_done_callback(_seen)
        try:
            either: set[asyncio.Future[Any]] = {done, leaving}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return done.result() if done.done() else None
        finally:
            gone.set()
            working.cancel()

    def close(self) -> None:
        """Begin nothing more."""
        for pool in (self._small, self._large):
            pool.shutdown(wait=False, cancel_futures=True)


def _seen(done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()

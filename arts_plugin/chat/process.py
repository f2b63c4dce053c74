"""Chat templates rendered in processes of their own, with limits of time, memory and length. For any thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from typing import Any

from arts_plugin.errors import ModelError

SECONDS = 2.0
"""Computing time of one rendering. A template takes milliseconds for a long chat."""
MEMORY = 1 << 30
"""Bytes of address space of a process that renders."""
CHARACTERS = 1 << 24
"""Characters of a rendered chat."""
_REMEDY = "give the model another chat template, or use chat=plain"
_PATIENCE = 60.0 if hasattr(signal, "setitimer") else SECONDS + 5
"""Seconds by the clock, for a process that is stopped or does not start; the system itself counts computing time."""
_IDLE = 4
"""Processes that are kept for the next renderings; as many as are asked for at once are started."""

_idle: list[_Worker] = []
_lock = threading.Lock()


def rendered(source: str, template: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> dict[str, Any]:
    """A rendered chat, or the template's error; see `arts_plugin.chat.worker.answer`.

    Args:
        source: whose template it is, for messages.

    Raises:
        ModelError: the template goes beyond a limit.
    """
    question = {"template": template, "messages": messages, "variables": variables}
    line = json.dumps({**question, "seconds": SECONDS, "characters": CHARACTERS})
    while True:
        with _lock:
            worker = _idle.pop() if _idle else None
        worker = worker or _Worker()
        try:
            told = worker.ask(line)
        except OSError:  # it has ended while it was idle
            worker.close()
            continue
        if told is not None and "limit" not in told:
            with _lock:
                if len(_idle) < _IDLE:
                    _idle.append(worker)
            return told
        status = worker.close(patience=1.0 if told is None else 0.0)  # one that has ended is given the time to say how
        raise ModelError(f"the chat template of {source} {_beyond(told, status)}; {_REMEDY}")


def _beyond(told: dict[str, Any] | None, status: int) -> str:
    """Which limit ended a rendering."""
    if told is None and status not in _OUT_OF_TIME:
        return f"ended the process that renders it (status {status})"
    return {
        "memory": f"was stopped: it takes more than {MEMORY >> 20} MiB of memory, which is the limit",
        "characters": f"was stopped: its text is longer than {CHARACTERS:,} characters, which is the limit",
        "seconds": f"was stopped: it computes for more than {SECONDS:g} s, which is the limit",
    }[told["limit"] if told is not None else "seconds"]


_OUT_OF_TIME = {-getattr(signal, name) for name in ("SIGPROF", "SIGKILL") if hasattr(signal, name)}
"""How a process ends that the system, or the clock of the one who waits, has stopped."""


class _Worker:
    """A process that answers one JSON line with another.

    Raises:
        ModelError: it cannot be started.
    """

    def __init__(self) -> None:
        # What this process can import, that one can; -P: and nothing that lies in the current folder by chance.
        path = os.pathsep.join(entry or str(os.curdir) for entry in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "arts_plugin.chat.worker", str(MEMORY)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="ascii",
                env={**os.environ, "PYTHONPATH": path, "ARTS_NO_AUTOLOAD": "1"},
                start_new_session=True,  # Ctrl-C is the parent's to hear
            )
        except OSError as error:
            raise ModelError(f"the process that renders chat templates cannot be started: {error}") from error
        self._end = weakref.finalize(self, _end, self._process, os.getpid())

    def ask(self, line: str) -> dict[str, Any] | None:
        """Its answer; None if it has ended on the way.

        Raises:
            OSError: it had ended before.
        """
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe is not None and answers is not None
        impatience = threading.Timer(_PATIENCE, self._process.kill)
        impatience.daemon = True
        impatience.start()
        try:
            pipe.write(line + "\n")
            pipe.flush()
            answer = answers.readline()
        finally:
            impatience.cancel()
        try:
            told: dict[str, Any] = json.loads(answer)
            return told
        except ValueError:  # a line that is not whole
            return None

    def close(self, patience: float = 0.0) -> int:
        """End it, unless it ends by itself within so many seconds; its exit status."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience)
        self._end()
        return self._process.wait()


def _end(process: subprocess.Popen[str], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork's copy: the process is its parent's
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def _forget() -> None:
    """In a forked child: the processes answer its parent."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)

"""The parent's side of `guide_worker`: one process a grammar, so that no grammar can end or hold up this one."""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from weakref import WeakValueDictionary

from arts_plugin.backend import Grammar
from arts_plugin.engine import guide_worker
from arts_plugin.engine.guide_worker import LENGTH, OPERATION, REPLY
from arts_plugin.errors import SettingsError

COMPILE_SECONDS = 5.0
"""CPU seconds in which a grammar must be compiled."""
MEMORY = 2 << 30
"""Bytes of address space of a grammar's process."""
_PATIENCE = 60.0
"""Seconds until a process that does not reply is killed, where its CPU cannot be limited or the machine is overloaded."""
_GLANCE = 0.05

nobody_waits: ContextVar[Callable[[], bool]] = ContextVar("nobody_waits", default=lambda: False)
"""Asked while a grammar is compiled in this context: whether to give up, because whoever wanted it has gone."""


class Followed:
    """A grammar that a process of its own follows. The process ends with the last reference to this.

    Args:
        pieces: the bytes of each token, as `packed` gives them.
        ends: tokens that end a generation.
        bank: CPU seconds that masks may take beyond 2 ms each.

    Raises:
        SettingsError: it is no grammar, no text follows it, or it takes too much to compile; or llguidance is not installed.
    """

    def __init__(self, grammar: Grammar, pieces: bytes, ends: Sequence[int], bank: float) -> None:
        folder = _library(grammar.kind)
        command = [sys.executable, "-I", "-S", str(Path(guide_worker.__file__)), folder]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._end = weakref.finalize(self, _end, self._process, os.getpid())
        self._operations: deque[bytes] = deque()  # appended to from wherever a guide is forgotten
        self._numbers = itertools.count(1)
        self._problem = ""
        setup = {"kind": grammar.kind, "text": grammar.text, "ends": list(ends)}
        limits = {"seconds": COMPILE_SECONDS, "bank": bank, "memory": MEMORY}
        first = json.dumps({**setup, **limits}).encode()
        self._write(LENGTH.pack(len(first)) + first + LENGTH.pack(len(pieces)))
        self._write(pieces)
        wrong, said = self._reply()
        if wrong:
            self._end()
            reason = said.decode("utf-8", "replace").strip()
            raise SettingsError(f"{grammar.kind} is not one that can be followed: {reason:.300}")

    @property
    def alive(self) -> bool:
        """Whether its guides can go on."""
        return not self._problem

    def fork(self, number: int) -> int:
        """The number of a new guide that stands where another does. 0 is the beginning."""
        made = next(self._numbers)
        self._operations.append(OPERATION.pack(b"f", number, made))
        return made

    def take(self, number: int, token: int) -> None:
        """Move a guide on by a token."""
        self._operations.append(OPERATION.pack(b"t", number, token))

    def drop(self, number: int) -> None:
        """Forget a guide."""
        self._operations.append(OPERATION.pack(b"d", number, 0))

    def masks(self, numbers: Sequence[int]) -> list[tuple[bytes, str]]:
        """(a bit a token, what is wrong) of each guide."""
        data = bytearray()
        while self._operations:
            data += self._operations.popleft()
        for number in numbers:
            data += OPERATION.pack(b"m", number, 0)
        self._write(bytes(data))
        replies = [self._reply() for _ in numbers]
        return [(b"", said.decode("utf-8", "replace").strip()) if wrong else (said, "") for wrong, said in replies]

    def _write(self, data: bytes) -> None:
        """Send it, unless the process has ended, which its reply tells."""
        assert self._process.stdin is not None
        left = memoryview(data)
        with suppress(OSError, ValueError):
            while left and not self._problem:
                left = left[self._process.stdin.write(left) or 0 :]

    def _reply(self) -> tuple[bool, bytes]:
        if self._problem:
            return True, self._problem.encode()
        try:
            wrong, size = REPLY.unpack(self._read(REPLY.size))
            return bool(wrong), self._read(size)
        except (EOFError, OSError, TimeoutError) as error:
            self._problem = _GIVEN_UP if isinstance(error, TimeoutError) else self._why_it_ended()
            self._end()
            return True, self._problem.encode()

    def _read(self, size: int) -> bytes:
        """
        Raises:
            EOFError: the process has ended.
            TimeoutError: it takes too long, or nobody waits for it any more.
        """
        assert self._process.stdout is not None
        number, data, until = self._process.stdout.fileno(), bytearray(), time.monotonic() + _PATIENCE
        while len(data) < size:
            if not _readable(number, until):
                raise TimeoutError
            part = os.read(number, size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _why_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        return _WHY.get(-(self._process.returncode or 0), "it could not be followed within its memory")


_GIVEN_UP = "it takes too long to follow"
_WHY: dict[int, str] = {
    getattr(signal, "SIGPROF", 0): "it takes too long to follow",
    signal.SIGSEGV: "it is nested too deeply to follow",
}


def _readable(number: int, until: float) -> bool:
    """Whether there is something to read before `until`, or before nobody waits any more."""
    if os.name == "nt":  # select knows sockets alone there
        return True
    gone = nobody_waits.get()
    poll = select.poll()
    poll.register(number, select.POLLIN)
    while time.monotonic() < until and not gone():
        if poll.poll(_GLANCE * 1000):
            return True
    return False


def _library(kind: str) -> str:
    """The folder that llguidance lies in."""
    found = find_spec("llguidance")
    if found is None or found.origin is None:
        raise SettingsError(f"{kind} needs llguidance, which is not installed: pip install 'arts-plugin[grammar]'")
    return str(Path(found.origin).parent.parent)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a copy of the one that started it
        return
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def packed(pieces: Sequence[bytes]) -> bytes:
    """The bytes of each token, as a worker reads them."""
    return b"".join(LENGTH.pack(len(piece)) + piece for piece in pieces)


@cache
def _bytes() -> bytes:
    """A vocabulary of bytes, and one token for the end."""
    return packed([*(bytes([byte]) for byte in range(256)), b""])


_SEEN: dict[Grammar, None] = {}
_MOST_SEEN = 64
_GATES: WeakValueDictionary[Grammar, threading.Lock] = WeakValueDictionary()


def gate(grammar: Grammar) -> threading.Lock:
    """Passed by one at a time of those who want the same grammar, so that it is compiled for all of them."""
    return _GATES.setdefault(grammar, threading.Lock())


def check_grammar(grammar: Grammar) -> None:
    """See that a grammar can be compiled.

    Raises:
        SettingsError: see `Followed`.
    """
    with gate(grammar):
        if grammar not in _SEEN:
            Followed(grammar, _bytes(), [256], bank=1.0)
            _SEEN[grammar] = None
            for old in list(_SEEN)[:-_MOST_SEEN]:
                _SEEN.pop(old, None)

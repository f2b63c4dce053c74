"""The value of an algebraic expression, by math-verify's parser, in a worker process that is killed when it takes too long."""

from __future__ import annotations

import json
import logging
import queue
import re
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from importlib.util import find_spec
from typing import Any

from arts_plugin.answers.reading import Value

log = logging.getLogger(__name__)
_KNOWN = 1 << 16
_DECIMAL = re.compile(r"(?<![\d.])(\d*)\.(\d+)")
_JOINED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What is no closed form, or only a bomb: towers of powers, factorials of factorials, exponents of five digits.
_REFUSED = re.compile(
    r"\\(?:int|oint|iint|sum|prod|lim|limsup|liminf)(?![A-Za-z])|\d\s*\^\s*\{[^{}]*\d\s*\}?\s*\^|\d\s*\^\s*\d+\s*\^"
    r"|\d{5,}\s*\)?\s*!|!\s*\)?\s*!|\^\s*\{?\s*-?\d{5,}"
)


class Algebra:
    """Values of expressions, which equal expressions share. They are asked for once each; the worker starts with the first.

    No time limit inside a process stops `9^{9^{9^9}}`: a worker that outlasts its limit is killed, the expression has
    no value, and the next one gets a new worker.

    Args:
        seconds: of processor time for one expression, on Windows of wall-clock time.
        startup_seconds: for the worker to import math-verify.
    """

    def __init__(self, seconds: int = 2, startup_seconds: float = 120.0) -> None:
        self.seconds, self.startup_seconds = seconds, startup_seconds
        self.killed = 0
        self._worker: _Worker | None = None
        self._known: OrderedDict[str, Value | None] = OrderedDict()
        self._lock = threading.Lock()
        self._broken = False

    @property
    def available(self) -> bool:
        """Whether math-verify is installed, and its worker starts."""
        return not self._broken and find_spec("math_verify") is not None

    def value(self, expression: str) -> Value | None:
        """The value; None where it cannot be told."""
        with self._lock:
            if expression not in self._known:
                self._known[expression] = self._ask(expression)
                if len(self._known) > _KNOWN:
                    self._known.popitem(last=False)
            return self._known[expression]

    def _ask(self, expression: str) -> Value | None:
        if _REFUSED.search(expression) or not self.available:
            return None
        if self._worker is None:
            self._worker = _Worker(self.seconds)
            if "ready" not in (self._worker.answer(self.startup_seconds) or {}):
                self._broken = True
                self.close()
                log.warning(
                    "the worker that compares expressions did not start (`%s -m arts_plugin.answers.worker 3` says why); they "
                    "are compared as text", sys.executable,
                )  # fmt: skip
                return None
        self._worker.ask(_exact(expression))
        # The worker keeps its own limit, of processor time; this one is for a worker that sleeps.
        found = self._worker.answer(10.0 * self.seconds)
        if found is None:
            self.killed += 1
            self.close()
            return None
        return _of(found)

    def close(self) -> None:
        """End the worker. The next expression starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


def _exact(expression: str) -> str:
    """Decimals as fractions: `0.5x` is exactly `\\frac{x}{2}`."""
    return _DECIMAL.sub(
        lambda found: f"\\frac{{{int((found[1] or '') + found[2])}}}{{{10 ** len(found[2])}}}",
        _JOINED.sub("", expression),
    )


def _of(found: dict[str, Any]) -> Value | None:
    if "number" in found:
        return ("number", str(found["number"]))
    return ("expression", str(found["value"])) if found.get("value") else None


class _Worker:
    """A child process that answers one JSON line with another."""

    def __init__(self, seconds: int) -> None:
        self._lines: queue.Queue[str | None] = queue.Queue()
        started: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        # Linux ends the worker with the thread that started it; so it is started by the thread that reads what it says.
        threading.Thread(target=_run, args=(seconds, started, self._lines), daemon=True).start()
        self._process = started.get()
        self.kill = weakref.finalize(self, _kill, self._process)

    def ask(self, question: str) -> None:
        """Send a line; a worker that is gone shows in `answer`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except OSError:
            self._lines.put(None)

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None when the time is up or the worker has died."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            return None
        return None if line is None else json.loads(line)


def _run(seconds: int, started: queue.Queue[subprocess.Popen[str]], lines: queue.Queue[str | None]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "arts_plugin.answers.worker", str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
    )
    started.put(process)
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue

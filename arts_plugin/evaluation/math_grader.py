"""Mathematical equality by math-verify, in a worker process that is killed when it takes too long."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import weakref
from typing import Any

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.extract import canonical
from arts_plugin.evaluation.grading import grade_numeric

MAX_LENGTH = 400
"""Characters of an answer that is still looked at: longer ones are no answers."""


class MathGrader:
    r"""Whether an answer equals the gold one as mathematics: `\frac12` is `0.5`, `x(x+1)` is `x^2+x`.

    Plain numbers are compared exactly and at once. Everything else goes to math-verify (SymPy underneath) in a worker
    of its own, because no time limit inside a process stops `9^{9^{9^9}}`: a comparison that outlasts
    `seconds` counts as unequal, its worker is killed, and the next one gets a new worker.

    math-verify drops units, compares to six decimals, and is not symmetric for intervals.

    Args:
        seconds: time limit of one comparison.

    Raises:
        ArtsError: math-verify is not installed.
    """

    def __init__(self, seconds: float = 5.0, startup_seconds: float = 120.0) -> None:
        self.seconds, self.startup_seconds = seconds, startup_seconds
        self.killed = 0
        self._worker: _Worker | None = None
        self._known: dict[tuple[str, str], bool] = {}

    def __call__(self, answer: str, gold: str) -> bool:
        if len(answer) > MAX_LENGTH or not answer.strip():
            return False
        plain = canonical(answer), canonical(gold)
        if plain[0] == plain[1] or grade_numeric(answer, gold):
            return True
        if all(text.lstrip("-").isdigit() for text in plain):
            return False
        if plain not in self._known:
            self._known[plain] = self._compare(answer, gold)
        return self._known[plain]

    def _compare(self, answer: str, gold: str) -> bool:
        if self._worker is None:
            self._worker = _Worker()
            ready = self._worker.answer(self.startup_seconds)
            if not ready or "ready" not in ready:
                self.close()
                raise ArtsError(
                    "the worker of the math grader did not start: is math-verify installed? "
                    "(pip install 'math-verify[antlr4_11_0]', or arts-plugin[train])"
                )
        self._worker.ask([answer, gold])
        result = self._worker.answer(self.seconds)
        if result is None:
            self.killed += 1
            self.close()
            return False
        return bool(result.get("equal"))

    def close(self) -> None:
        """End the worker. The next comparison starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


class _Worker:
    """A child process that answers one JSON line with another."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "arts_plugin.evaluation.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="backslashreplace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(self._process.stdout, self._lines), daemon=True).start()
        self.kill = weakref.finalize(self, _kill, self._process)

    def ask(self, question: list[str]) -> None:
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


def _read(stream: Any, lines: queue.Queue[str | None]) -> None:
    for line in stream:
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

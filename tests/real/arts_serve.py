"""`arts serve` as a process of its own, on the embedded model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.models import THREADS, smollm2

_PATIENCE = 120.0
SHORT = ("--n_ctx", "2048", "--max_gen_toks", "60", "--budget_trajectories", "3", "--verifier", "none")


@dataclass(slots=True)
class Command:
    """A running command, the URL that it printed, and what it has said."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")


@contextmanager
def arts_serve(log: Path, *options: str, files: int | None = None, **environment: str) -> Iterator[Command]:
    """Start it at a free port, and end it as a terminal does.

    Args:
        files: how many files it may have open.
    """
    threads = ("--n_threads", str(THREADS)) if THREADS else ()
    command = [sys.executable, "-m", "arts_plugin.cli", "serve", "--model", smollm2(), "--port", "0", *SHORT, *threads]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *options], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment}
        )
        try:
            yield Command(process, _address(process, log), log)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=60) == 0, log.read_text(encoding="utf-8")
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if found := re.search(r"^serving \S+ at (\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE):
            return found.group(1)
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise AssertionError(f"it does not serve: {log.read_text(encoding='utf-8')}")

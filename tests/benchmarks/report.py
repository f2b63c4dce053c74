"""How long a report takes, and how much memory: `python tests/benchmarks/report.py [PROBLEMS] [TRACES] [STEPS]`."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arts_plugin.report.page import write_report
from tests.report_runs import random_trees, write_run


def main(problems: int = 1000, traces: int = 64, steps: int = 12) -> None:
    """Make a run of that size, and report on it in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        write_run(run, *random_trees(problems, traces, steps=steps))
        size = sum(f.stat().st_size for f in run.iterdir())
        print(f"{problems} problems x {traces} traces x {steps} steps: {size / 1e6:.0f} MB on disk")
        subprocess.run([sys.executable, __file__, "measure", str(run)], check=True)


def measure(run: str) -> None:
    """Report on a run."""
    start = time.monotonic()
    write_report(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{time.monotonic() - start:.1f} s, {peak:.2f} GB at most")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2])
    else:
        main(*map(int, sys.argv[1:]))

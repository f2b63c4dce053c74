"""What an exported LoRA verifier says under llama.cpp beside what it said in transformers, over recorded states.

`python tests/benchmarks/export_agreement.py RUN VERIFIER EXPORTED [TREES] [THREADS]`: ranks, and the line that would turn one
into the other; a slope of 1 and an offset of 0 need no calibration.
"""

from __future__ import annotations

import itertools
import sys
import time

import numpy as np
from scipy.stats import spearmanr

from arts_plugin import checkpoint
from arts_plugin.run import read_trees
from arts_plugin.settings import Settings
from arts_plugin.verifier import close


def main(run: str, trained: str, exported: str, trees: int = 12, threads: int = 2) -> None:
    """Print it."""
    recorded = list(itertools.islice(read_trees(run), trees))
    found = []
    for place in (trained, exported):
        settings = Settings.of(n_ctx=16384, n_threads=threads, dtype="float32", device="cpu")
        verifier = checkpoint.load(place, settings).verifier
        start = time.perf_counter()
        found.append([np.asarray(verifier.score_recorded(tree)) for tree in recorded])
        print(f"{place}: {time.perf_counter() - start:.1f} s")
        close(verifier)
    ours, theirs = (np.concatenate(scores) for scores in found)
    slope, offset = np.polyfit(theirs, ours, 1)
    within = [spearmanr(a, b).statistic for a, b in zip(*found, strict=True)]
    print(f"{len(recorded)} trees, {len(ours)} states, log-flows from {ours.min():.2f} to {ours.max():.2f}")
    print(f"rank correlation {spearmanr(ours, theirs).statistic:.4f}, within a tree {np.mean(within):.4f} in the mean")
    print(f"trained = {slope:.3f} x exported {offset:+.3f}; mean difference {np.mean(theirs - ours):+.3f}, "
          f"largest {np.abs(theirs - ours).max():.3f}")  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))

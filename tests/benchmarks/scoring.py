"""What scoring costs: a value head's share of a search's time.

    python tests/benchmarks/scoring.py MODEL.gguf ROWS.jsonl [--verifier FOLDER] [--questions 8] [--threads 2]

The clock runs inside `score`: gathering the hidden states, the state feature and the matrix products, for every state.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arts_plugin import Arts
from arts_plugin.verifier import StateView


class Timed:
    """A verifier and the seconds that it took."""

    def __init__(self, verifier: Any) -> None:
        self.verifier, self.seconds, self.states, self.calls = verifier, 0.0, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.verifier, name)

    def score(self, states: Sequence[StateView]) -> Any:
        """Scores, timed."""
        began = time.perf_counter()
        scores = self.verifier.score(states)
        self.seconds += time.perf_counter() - began
        self.states += len(states)
        self.calls += 1
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--verifier", default="auto")
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with Path(args.rows).open(encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file][: args.questions]
    for strategy in ("best_of_n", "arts"):
        with Arts(model=args.model, verifier=args.verifier, strategy=strategy, n_threads=args.threads) as arts:
            if arts.verifier is None:
                raise SystemExit("no verifier matches this model; name one with --verifier")
            timed = arts.__dict__["verifier"] = Timed(arts.verifier)
            arts.solve_many(questions)
            stats = arts.backend.stats
            whole = stats.decode_seconds + stats.prefill_seconds
            print(
                f"{strategy:>10}: {timed.states} states in {timed.calls} calls, {timed.seconds:.2f} s of scoring, "
                f"{whole:.1f} s of generation: {timed.seconds / whole:.2%}"
            )


if __name__ == "__main__":
    main()

"""Log-likelihoods of multiple-choice rows: one context at a time against all contexts at once, in one process.

    python tests/benchmarks/likelihood.py ROWS.jsonl [--model FILE.gguf] [--backend llama_cpp] [--rows 200] [--context 60]
        [--choices 4] [--rounds 3] [--threads 2] [--flash_attn false]

A row is a question's first tokens and the beginnings of other questions as choices, one to five tokens long. `one` asks for
one context's choices at a time and forgets what it computed, `all` for everything in one call. Rounds alternate.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from arts_plugin import Arts
from arts_plugin.backend import Pair, Scored


def pairs_of(backend: Any, questions: list[str], rows: int, length: int, choices: int) -> list[Pair]:
    """`choices` continuations for each of `rows` contexts of at most `length` tokens."""
    n_bos = len(backend.encode("").token_ids)
    texts = [backend.encode(question).token_ids for question in questions]
    made: list[Pair] = []
    for row in range(rows):
        context = texts[row % len(texts)][:length]
        for choice in range(choices):
            other = texts[(row + choice + 1) % len(texts)][n_bos:]
            made.append((context, other[: 1 + (row + choice) % 5]))
    return made


def one_context_at_a_time(backend: Any, pairs: list[Pair]) -> list[Scored]:
    """Scores, each context's by themselves."""
    return [score for _, alike in groupby(pairs, key=lambda pair: pair[0]) for score in backend.loglikelihood([*alike])]


def timed(work: Callable[[], list[Scored]]) -> tuple[float, list[Scored]]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions")
    parser.add_argument("--model")
    parser.add_argument("--backend", default="llama_cpp")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--context", type=int, default=60)
    parser.add_argument("--choices", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash_attn", default=None)
    args = parser.parse_args()
    with Path(args.questions).open(encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file][: args.rows + args.choices]
    settings = {"model": args.model, "backend": args.backend, "n_threads": args.threads, "flash_attn": args.flash_attn}
    with Arts(**settings, verifier="none") as arts:
        backend = arts.backend
        pairs = pairs_of(backend, questions, args.rows, args.context, args.choices)
        backend.loglikelihood(pairs[: 8 * args.choices])  # the first batches of a process are slower
        seconds: dict[str, list[float]] = {"one": [], "all": []}
        for _ in range(args.rounds):
            took, apart = timed(lambda: one_context_at_a_time(backend, pairs))
            seconds["one"].append(took)
            took, together = timed(lambda: backend.loglikelihood(pairs))
            seconds["all"].append(took)
        off = [abs(a - b) / len(end) for (a, _), (b, _), (_, end) in zip(apart, together, pairs, strict=True)]
    one, all_ = (statistics.median(seconds[name]) for name in ("one", "all"))
    print(f"{len(pairs)} continuations of {args.rows} contexts: one context at a time {one:.1f} s, all {all_:.1f} s")
    print(
        f"{one / all_:.2f} times as fast; nats a token apart: {max(off):.3f} at most, {statistics.mean(off):.4f} mean"
    )


if __name__ == "__main__":
    main()

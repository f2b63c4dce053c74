"""The engine against a bare llama_decode loop and against one completion after another, side by side in one run.

    python tests/benchmarks/decode.py MODEL.gguf ROWS.jsonl [--rounds 4] [--threads 2]

ROWS are JSON lines with `question`. Every round runs each contestant once, in turn, on the same question; the first
round warms up and is not counted. Decode time only: prefill is left out everywhere. Needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np

from arts_plugin import Arts
from arts_plugin.prompts import question_text
from arts_plugin.value_head import ValueHead, ValueHeadVerifier
from tests.benchmarks.bare import Bare, Shape


def random_head(n_embd: int, hidden: int = 512) -> ValueHeadVerifier:
    """A head of a real one's size: what it says does not matter to what it costs."""
    rng = np.random.default_rng(0)
    w1 = rng.normal(size=(hidden, n_embd)).astype(np.float32) / np.sqrt(n_embd).astype(np.float32)
    w2 = rng.normal(size=hidden).astype(np.float32) / np.float32(hidden)
    return ValueHeadVerifier(ValueHead(w1, np.zeros(hidden, np.float32), w2, 0.0))


class Engine:
    """One strategy on the engine, with a value head on its hidden states."""

    def __init__(self, args: argparse.Namespace, strategy: str, n_embd: int, **settings: object) -> None:
        self.arts = Arts(
            model=args.model,
            strategy=strategy,
            n_threads=args.threads,
            slots=args.branches,
            max_gen_toks=args.tokens,
            scorer=random_head(n_embd),
            **settings,
        )

    def round(self, questions: list[str]) -> tuple[float, float]:
        """Tokens/s of decode time over the whole round, and until the last question was admitted (0: at once)."""
        stats = self.arts.backend.stats
        stats.reset()
        marks: list[tuple[int, int, float]] = []
        for _ in self.arts.stream(questions):
            marks.append((self.arts.driver.admission.decodes, stats.decoded_tokens, stats.decode_seconds))
        rate = stats.decoded_tokens / stats.decode_seconds
        last = self.arts.driver.admission.decodes
        steady = [(tokens, seconds) for decodes, tokens, seconds in marks if decodes < last]
        return rate, steady[-1][0] / steady[-1][1] if steady else 0.0


def sequential(model: str, prompt: str, args: argparse.Namespace) -> float:
    """Tokens/s of `Llama.create_completion`, one trace after another, prompt cached by llama-cpp-python itself."""
    from llama_cpp import Llama

    llama = Llama(model, n_ctx=2048, n_threads=args.threads, n_threads_batch=args.threads, verbose=False)
    llama.create_completion(prompt, max_tokens=4)
    made, began = 0, time.perf_counter()
    for seed in range(3):
        answer = llama.create_completion(
            prompt, max_tokens=args.tokens, temperature=0.6, top_p=0.95, top_k=50, min_p=0.0, seed=seed
        )
        made += answer["usage"]["completion_tokens"]  # type: ignore[index]
    rate = made / (time.perf_counter() - began)
    llama.close()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--questions", type=int, default=6, help="questions in a round of `arts`")
    args = parser.parse_args()
    with Path(args.rows).open(encoding="utf-8") as file:
        rows = [json.loads(line)["question"] for line in file][: args.questions * (args.rounds + 1)]

    with Arts(model=args.model, verifier="none") as probe:
        n_embd = probe.backend.info.n_embd
    best = Engine(args, "best_of_n", n_embd, budget_trajectories=args.branches)
    arts = Engine(args, "arts", n_embd, budget_trajectories=None, budget_tokens=args.branches * args.tokens // 4)
    prompt = best.arts.prompt(rows[0])
    bare = Bare(args.model, prompt.token_ids, Shape(args.branches, args.tokens, args.threads))
    text = best.arts.backend.encode_chat([{"role": "user", "content": question_text(rows[0])}]).text

    table: dict[str, list[float]] = {
        name: [] for name in ("bare loop", "best_of_n", "arts", "arts, steady", "sequential")
    }
    for number in range(args.rounds + 1):
        start = args.questions * number
        whole, steady = arts.round(rows[start : start + args.questions])
        figures = (bare.round(), best.round(rows[:1])[0], whole, steady, sequential(args.model, text, args))
        print(
            f"round {number}{' (warm-up)' if number == 0 else ''}: " + ", ".join(f"{f:.1f}" for f in figures),
            flush=True,
        )
        if number:
            for name, figure in zip(table, figures, strict=True):
                table[name].append(figure)
    base, slow = statistics.median(table["bare loop"]), statistics.median(table["sequential"])
    for name, values in table.items():
        median = statistics.median(values)
        print(
            f"{name:>14} {median:7.1f} tokens/s, {median / base:5.2f} of the bare loop, {median / slow:5.2f} x sequential"
        )
    busy = arts.arts.driver.admission.occupancy(args.branches)
    print(f"arts: occupancy {busy:.3f} until the last of {args.questions} questions was admitted")


if __name__ == "__main__":
    main()

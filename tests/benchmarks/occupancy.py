"""The engine's own books over twenty questions: slots, prefill, KV cells.

    python tests/benchmarks/occupancy.py MODEL.gguf ROWS.jsonl [--threads 2] [--questions 20]

ROWS are JSON lines with `question` and `solution`. Counts, not times: a noisy machine does not matter.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from arts_plugin import Arts, ReasoningTree
from arts_plugin.search.job import Job


def distinct(prompts: list[tuple[int, ...]]) -> int:
    """Tokens of the prefix tree of all prompts: what must be computed if nothing is computed twice."""
    return len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})


def run(arts: Arts, texts: list[str], chat: bool, **overrides: object) -> list[ReasoningTree]:
    """Search all texts; print the books."""
    backend = arts.backend
    backend.stats.reset()
    prompts = [arts.prompt(text) if chat else backend.encode(text) for text in texts]
    settings = arts.settings.with_(overrides)
    jobs: list[Job] = [arts.job(prompt, settings, stops=("\nQuestion:",)) for prompt in prompts]
    trees = [event.tree for event in arts.events(jobs) if event.kind == "finished"]
    stats = backend.stats
    busy = arts.driver.admission.occupancy(stats.slots)
    print(f"{settings.strategy}, {len(texts)} questions{'' if chat else ', 5-shot'}:")
    print(
        f"  slots busy until the last question was admitted: {100 * busy:.1f} % (to the end: {100 * stats.occupancy:.1f} %)"
    )
    total, needed = sum(len(prompt.token_ids) for prompt in prompts), distinct([prompt.token_ids for prompt in prompts])
    print(
        f"  prompt tokens: {total} in all, {needed} distinct, {stats.prefilled_tokens} prefilled, {stats.refills} refills"
    )
    branches = max(sum(t.cost.decoded_tokens for t in trees), 1)
    print(f"  tokens decoded: {branches}; KV cells at the peak: {stats.peak_cells}")
    slots = stats.slots
    longest = max(len(t.token_ids) + tree.cost.prompt_tokens for tree in trees for t in tree.trajectories())
    print(f"  {slots} branches x the longest trace with its prompt would be {slots * longest} cells")
    return trees


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96)
    args = parser.parse_args()
    with Path(args.rows).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: args.questions + 5]
    questions = [row["question"] for row in rows[5:]]
    shots = "\n\n".join(f"Question: {r['question']}\nAnswer: {r['solution']}\n#### {r['answer']}" for r in rows[:5])
    with Arts(model=args.model, n_threads=args.threads, max_gen_toks=args.tokens, verifier="none", n_ctx=16384) as arts:
        run(arts, questions, True, strategy="best_of_n", budget_trajectories=8)
        run(arts, questions, True, strategy="arts", budget_trajectories=8)
        few = [f"{shots}\n\nQuestion: {question}\nAnswer:" for question in questions]
        run(arts, few, False, strategy="best_of_n", budget_trajectories=4)


if __name__ == "__main__":
    main()

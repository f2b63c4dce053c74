"""Greedy, pass@1, majority@N and oracle@N of one model on the same questions, with paired intervals.

    python tests/benchmarks/gsm8k_accuracy.py MODEL.gguf ROWS.jsonl --rows 200 --out RUNS [--threads 2]

ROWS are JSON lines with `question` and `answer`. RUNS keeps one run folder for each strategy: stop it at any time and
start it again. `pass@1` and `oracle@N` are over the N independent traces of `best_of_n`; `arts` is the chosen answer
of a tree of N trajectories, whose traces share prefixes and are no independent pool.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from tqdm import tqdm

from arts_plugin import Arts, ReasoningTree
from arts_plugin.answers.graders import grade_numeric
from arts_plugin.evaluation.statistics import bootstrap, majority, oracle_at_k


def search(args: argparse.Namespace, strategy: str, questions: list[str]) -> list[ReasoningTree]:
    """The trees of one strategy, from its run folder as far as they are there."""
    settings = dict(pair.split("=", 1) for pair in args.set)
    arts = Arts(
        model=args.model,
        strategy=strategy,
        n_threads=args.threads,
        budget_trajectories=args.n,
        trace=str(Path(args.out) / strategy),
        verifier="none",
        **settings,
    )
    trees: dict[int, ReasoningTree] = {}
    with arts, tqdm(total=len(questions), desc=strategy) as bar:
        for event in arts.stream(questions):
            if event.kind == "finished":
                trees[event.job.meta["question"]] = event.tree
                stats = arts.backend.stats
                bar.update()
                bar.set_postfix_str(f"{stats.decoded_tokens / max(stats.decode_seconds, 1e-9):.0f} tokens/s")
    return [trees[i] for i in range(len(questions))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows")
    parser.add_argument("--rows", dest="count", type=int, default=200)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--strategies", default="greedy,best_of_n,arts")
    parser.add_argument("--set", action="append", default=[], help="a setting, like temperature=0.8")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with Path(args.rows).open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][args.skip : args.skip + args.count]
    questions, gold = [row["question"] for row in rows], [row["answer"] for row in rows]

    table: dict[str, list[float]] = {}
    for strategy in args.strategies.split(","):
        trees = search(args, strategy, questions)
        table[strategy] = [float(grade_numeric(t.answer or "", g)) for t, g in zip(trees, gold, strict=True)]
        if strategy == "best_of_n":
            answers = [[t.answer for t in tree.trajectories()] for tree in trees]
            right = [[grade_numeric(a or "", g) for a in group] for group, g in zip(answers, gold, strict=True)]
            table["pass@1"] = [sum(r) / len(r) for r in right]
            table[f"majority@{args.n}"] = [majority(a, r) for a, r in zip(answers, right, strict=True)]
            table[f"oracle@{args.n}"] = [oracle_at_k(len(r), sum(r), args.n) for r in right]
            del table["best_of_n"]
        cost = sum(t.cost.decoded_tokens for t in trees) / len(trees)
        length = [len(x.token_ids) for t in trees for x in t.trajectories()]
        cut = sum(x.stop == "length" for t in trees for x in t.trajectories())
        print(
            f"{strategy}: {cost:.0f} tokens a question, {sum(length) / len(length):.0f} a trace, {cut}/{len(length)} cut"
        )
    print(f"\n{len(rows)} questions, {Path(args.model).name}; percent, 95 % bootstrap interval over questions")
    for name, values in table.items():
        print(f"{name:>24} {bootstrap(values)}")
    for name in table:
        if "greedy" in table and name not in ("greedy", "pass@1"):
            difference = [a - b for a, b in zip(table[name], table["greedy"], strict=True)]
            print(f"{name + ' - greedy':>24} {bootstrap(difference)}")


if __name__ == "__main__":
    main()

"""Run folders made of numbers, for what reads runs: graded trees whose every figure is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from arts_plugin.randomness import digest
from arts_plugin.training.grades import Graded, GradesFile
from arts_plugin.tree import Cost, ReasoningTree


def chain_tree(
    name: str,
    answers: list[str],
    flows: list[float],
    *,
    steps: int = 2,
    strategy: str = "best_of_n",
    chosen: int = 0,
    **more: Any,
) -> ReasoningTree:
    """A tree of independent chains, one an answer; flows at the leaves."""
    tree = ReasoningTree(
        prompt=f"prompt of {name}", problem=name, strategy=strategy, select="flow", scorer="rfm",
        ended_by="budget_trajectories", meta={"key": f"{digest(name):016x}", "id": name, "question": f"question {name}"},
        cost=Cost(prompt_tokens=5, decoded_tokens=3 * steps * len(answers), seconds=2.0), **more,
    )  # fmt: skip
    leaves = []
    for i, (answer, flow) in enumerate(zip(answers, flows, strict=True)):
        at = 0
        for step in range(steps):
            last = step == steps - 1
            node = tree.add(
                at, index=i if step == 0 else 0, text=f"step {step}\n", token_ids=[1, 2, 3], logprob=-0.5 * (i + 1),
                log_flow=flow if last else 0.0, scores={"rfm": flow if last else 0.0}, terminal=last,
                stop="eos" if last else "delimiter", answer=answer if last else None,
            )  # fmt: skip
            at = node.id
        leaves.append(at)
    tree.chosen = leaves[chosen] if leaves else None
    return tree


def write_run(folder: Path, trees: list[ReasoningTree], gold: dict[str, str], **settings: Any) -> Path:
    """`gold`: problem id -> right answer."""
    folder.mkdir(parents=True)
    model = {"name": "model", "digest": "sha256:1"}
    record = {
        "version": 1,
        "settings": {"delimiter": "\n", "chat": "auto", "seed": 0, **settings},
        "model": model,
        "verifier": {},
    }
    (folder / "run.json").write_text(json.dumps(record))
    grades = GradesFile(folder)
    with (folder / "trees.jsonl").open("w", encoding="ascii") as file:
        for number, tree in enumerate(trees):
            file.write(tree.to_json() + "\n")
            right = {n.id: n.answer == gold[tree.meta["id"]] for n in tree.nodes if n.terminal}
            grades.put(
                Graded(tree.meta["key"], tree.meta["id"], gold[tree.meta["id"]], "exact", right, f"subject {number % 2}", str(number % 3))
            )  # fmt: skip
    grades.close()
    return folder


def random_trees(n: int, traces: int, seed: int = 0, steps: int = 2) -> tuple[list[ReasoningTree], dict[str, str]]:
    """Right answers are "1"; flows know a little of it."""
    rng = np.random.default_rng(seed)
    trees = []
    for i in range(n):
        answers = [str(a) for a in rng.choice([1, 2, 3], size=traces, p=[0.3, 0.4, 0.3])]
        flows = [float(rng.normal() + (a == "1")) for a in answers]
        trees.append(chain_tree(f"p{i}", answers, flows, steps=steps, chosen=int(np.argmax(flows))))
    return trees, {f"p{i}": "1" for i in range(n)}

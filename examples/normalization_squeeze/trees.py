"""Trees of a model with the project's own engine: Sparse Deep Fork to learn from, independent traces to choose among."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from task import ENDS, STEPS, Task

from arts_plugin.api import Arts
from arts_plugin.training.grades import read_grades
from arts_plugin.training.sdf import Problem, make_trees
from arts_plugin.tree import Trajectory

SAMPLING: dict[str, Any] = {
    "backend": "hf",
    "device": "cpu",
    "dtype": "float32",
    "n_threads": 1,
    "chat": "plain",
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "delimiter": "\n",
    "extract": r"regex:=(\d\d)",
    "max_gen_toks": 3 * STEPS + 4,
    "n_ctx": 16384,
    "slots": 256,
}
"""The whole distribution, so that what is sampled has the probabilities that `routes` enumerates."""


def problems(arts: Arts, tasks: Sequence[Task]) -> list[Problem]:
    """The tasks for `make_trees`. A trace is right if it ends by itself, in every line, and at a goal."""

    def one(task: Task) -> Problem:
        def grade(trajectory: Trajectory) -> bool:
            return trajectory.stop == "eos" and task.is_right(trajectory.text)

        return Problem(
            task.id,
            task.prompt,
            arts.backend.encode(task.prompt),
            " or ".join(f"{end:02d}" for end in ENDS[task.tag]),
            grade,
        )

    return [one(task) for task in tasks]


def pool(
    model: Path, out: Path, tasks: Sequence[Task], traces: int, *, forks: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """`traces` independent traces of each task, graded, with hidden states, in the run folder `out`; what they cost.

    Args:
        forks: the probability that a trace gets a second continuation from one of its states (Sparse Deep Fork).
    """
    began = time.perf_counter()
    with Arts(
        model=str(model), strategy="sdf", width=traces, budget_trajectories=2 * traces, fork_probability=forks,
        trace=str(out), features=True, verifier="none", seed=seed, **SAMPLING,
    ) as arts:  # fmt: skip
        *_, (_, progress) = make_trees(arts, problems(arts, tasks), "route")
        made = {
            "problems": progress.problems,
            "traces": progress.traces,
            "right": progress.correct,
            "tokens": progress.fresh_tokens,
        }
    return {**made, "seconds": round(time.perf_counter() - began, 1)}


def search(
    model: Path, out: Path, tasks: Sequence[Task], verifier: Path, seed: int = 0, **settings: Any
) -> dict[str, Any]:
    """`strategy=arts` on each task, guided by a trained verifier: what it chose and what it found, task by task."""
    began = time.perf_counter()
    with Arts(
        model=str(model), strategy="arts", trace=str(out), verifier=str(verifier), seed=seed,
        **{**SAMPLING, "select": "flow", **settings},
    ) as arts:  # fmt: skip
        trees = {str(tree.meta["id"]): tree for tree, _ in make_trees(arts, problems(arts, tasks), "route")}
    grades = read_grades(out)
    ordered = [trees[task.id] for task in tasks]
    graded = [grades[str(tree.meta["key"])].correct for tree in ordered]
    return {
        "chosen": [
            int(tree.chosen is not None and right.get(tree.chosen, False))
            for tree, right in zip(ordered, graded, strict=True)
        ],
        "oracle": [int(any(right.values())) for right in graded],
        "finished": sum(map(len, graded)) / len(graded),
        "tokens": sum(tree.cost.decoded_tokens + tree.cost.refilled_tokens for tree in ordered) / len(ordered),
        "verifier_tokens": sum(tree.cost.verifier_tokens for tree in ordered) / len(ordered),
        "seconds": round(time.perf_counter() - began, 1),
    }

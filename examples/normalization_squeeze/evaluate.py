"""One seed's figures: exact route probabilities, pools of traces under every selector, and guided search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import closed_form
import model as models
import numpy as np
from routes import log_probabilities, right_mass
from safetensors.numpy import load_file
from task import Task

from arts_plugin import checkpoint
from arts_plugin.settings import Settings
from arts_plugin.training.dataset import LabelledTree, read_runs
from arts_plugin.training.pools import pool_of
from arts_plugin.training.train import on_pool


def exact(folders: dict[str, Path], tasks: Sequence[Task]) -> dict[str, Any]:
    """For each model the probability that a trace is right, problem by problem, the entropy over routes (nats), and the
    probability of text that is no route, both averaged."""
    words, found = models.tokenizer(), {}
    for name, folder in folders.items():
        log_p = log_probabilities(models.load(folder), words, tasks)
        p = np.exp(log_p)
        found[name] = {
            "right": [_short(x) for x in right_mass(log_p, tasks)],
            "entropy": _short(-(p * log_p).sum(axis=1).mean()),
            "no_route": _short(1 - p.sum(axis=1).mean()),
        }
    return found


def in_order(run: Path, tasks: Sequence[Task]) -> list[LabelledTree]:
    """A run's trees in the order of the tasks."""
    trees = {tree.id: tree for tree in read_runs([run], with_features=False)[0]}
    return [trees[task.id] for task in tasks]


def selectors(run: Path, tasks: Sequence[Task], verifiers: dict[str, Path]) -> dict[str, Any]:
    """Every selector's accuracy with all traces of a pool, problem by problem, and each scorer's mean AUC."""
    trees = in_order(run, tasks)
    settings = Settings.of(device="cpu", dtype="float32", n_threads=1)
    comparison = on_pool(trees, {name: checkpoint.load(folder, settings) for name, folder in verifiers.items()})
    assert list(comparison.problems) == [task.id for task in tasks]
    return {
        "values": {name: [_short(x) for x in by_k[comparison.n]] for name, by_k in comparison.values.items()},
        "auc": {name: _short(np.nanmean(values)) for name, values in comparison.auc.items()},
        "right": comparison.n_correct.tolist(),
        "traces": comparison.n,
    }


def pool_counts(run: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """Of another model's pool: right traces of each problem, and what the majority says."""
    from arts_plugin.evaluation.pool import compare

    pool = pool_of(in_order(run, tasks))
    comparison = compare(pool, [len(pool[0].answers)])
    return {
        "right": comparison.n_correct.tolist(),
        "majority": [_short(x) for x in comparison.values["majority"][comparison.n]],
    }


def decay(track: Path, tasks: Sequence[Task]) -> dict[str, Any]:
    """The closed form against what was recorded while tuning."""
    kept = load_file(track)
    return closed_form.measure(kept["log_p"], kept["sampled"], tasks)


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")

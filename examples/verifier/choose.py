"""Which feature, loss and head? Cross-validation over the problems of a training run; the test pool is not touched.

    python choose.py runs/qwen-train features
    python choose.py runs/qwen-train losses --feature mean_last
    python choose.py runs/qwen-train heads --feature mean_last --loss rfm_mean

Every problem is scored by heads that never saw it: five folds, a fifth of each fold's training problems for early
stopping. A line a choice: AUC within a problem, best-of-n and the weighted vote over the main traces, in percent, with
the standard error of the difference to the first line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arts_plugin.evaluation.pool import Comparison, compare
from arts_plugin.training.dataset import LabelledTree, read_runs
from arts_plugin.training.losses import LOSSES, make_loss
from arts_plugin.training.pools import pool_of
from arts_plugin.training.trainer import TrainingSettings, fit
from arts_plugin.value_head import ValueHeadVerifier

FOLDS = 5


def cross_validate(
    trees: list[LabelledTree], loss: str, settings: TrainingSettings, stop_gradient: bool = True
) -> Comparison:
    """Selectors on all problems, each scored by heads trained on the other folds."""
    objective = make_loss(loss, stop_gradient=stop_gradient)
    order = np.random.default_rng(0).permutation(len(trees))
    scores: list[Any] = [None] * len(trees)
    for fold in range(FOLDS):
        held = [int(i) for j, i in enumerate(order) if j % FOLDS == fold]
        rest = [trees[i] for j, i in enumerate(order) if j % FOLDS != fold]
        watch, training = rest[::5], [tree for k, tree in enumerate(rest) if k % 5]
        head, _ = fit(training, watch, objective, settings)
        made = ValueHeadVerifier(head, feature=settings.feature, aggregate=objective.aggregate, link=objective.link)
        for i in held:
            scores[i] = made.score_tree(np.asarray(trees[i].features), trees[i].parents)
    pool = pool_of(trees, {"x": scores})
    return compare(pool, [len(pool[0].answers)])


def grid(what: str, loss: str, base: TrainingSettings) -> Iterator[tuple[str, str, TrainingSettings, bool]]:
    """(label, loss, settings, stop_gradient) of each choice; the first is what the others are compared with."""
    if what == "features":
        for feature in ("last", "mean", "shift", "mean_last"):
            for name in ("leaf", "rfm", "rfm_mean"):
                yield f"{feature} {name}", name, replace(base, feature=feature), True  # type: ignore[arg-type]
    elif what == "losses":
        yield f"{loss}", loss, base, True
        for name in LOSSES:
            if name != loss:
                yield name, name, base, True
        for name in ("rfm", "rfm_mean", "subtb"):
            yield f"{name}, full gradient", name, base, False
    else:
        yield "as given", loss, base, True
        for key, values in (
            ("hidden", (32, 512)),
            ("dropout", (0.3, 0.5)),
            ("weight_decay", (0.1, 1.0)),
            ("learning_rate", (3e-4, 3e-3)),
            ("batch_problems", (4, 64)),
            ("reward_wrong", (1.0, 0.01)),
            ("heads", (1, 8)),
        ):
            for value in values:
                yield f"{key} {value}", loss, replace(base, **{key: value}), True  # type: ignore[arg-type]


def main() -> None:
    """Print the table, and keep it beside the run if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("what", choices=["features", "losses", "heads"])
    parser.add_argument("--feature", default="mean_last")
    parser.add_argument("--loss", default="rfm_mean")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    trees, _ = read_runs([arguments.run])
    base = TrainingSettings(feature=arguments.feature, heads=arguments.heads)
    first: Comparison | None = None
    for label, loss, settings, stop_gradient in grid(arguments.what, arguments.loss, base):
        began = time.time()
        found = cross_validate(trees, loss, settings, stop_gradient)
        first = first or found
        n = found.n
        record: dict[str, Any] = {
            "choice": label,
            "problems": len(found.problems),
            "seconds": round(time.time() - began),
        }
        record["auc"] = round(float(np.nanmean(found.auc["x"])), 4)
        line = f"{label:28s} AUC {record['auc']:.3f}"
        for selector in ("best_of:x", "vote:x"):
            values = found.values[selector][n]
            difference = values - first.values[selector][n]
            error = float(difference.std() / np.sqrt(len(difference)))
            record[selector] = [round(float(values.mean()), 4), round(float(difference.mean()), 4), round(error, 4)]
            line += f"  {selector[:-2]} {100 * values.mean():.1f} ({100 * difference.mean():+.1f} +- {100 * error:.1f})"
        if found is first:
            fixed = {name: round(float(found.values[name][n].mean()), 4) for name in ("random", "majority", "oracle")}
            print("  ".join(f"{name} {100 * value:.1f}" for name, value in fixed.items()))
            record.update(fixed)
        print(f"{line}  {record['seconds']} s", flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

"""Every number of a report, as plain values: pictures, tables and the page are made from these and nothing else.

Intervals are 95 % bootstrap percentiles over questions, from one set of resamples, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arts_plugin.evaluation import table
from arts_plugin.evaluation.pool import Array, Bootstrap, Comparison, auc_within, compare
from arts_plugin.evaluation.search_metrics import RARE, tree_values
from arts_plugin.evaluation.statistics import Estimate
from arts_plugin.report.data import Question, Run, common, even

BINS = 10
Plain = dict[str, Any]


def analyse(run: Run, others: Sequence[Run] = (), against: Run | None = None) -> Plain:
    """All of a report.

    Args:
        others: runs whose chosen answers are put beside this one's, at what they cost.
        against: the run in which questions may be extinct (no right trace among all its traces).

    Raises:
        ArtsError: runs have no question in common.
    """
    questions, notes = even(run) if run.independent else (run.questions, [])
    boot = Bootstrap(len(questions))
    made: Plain = {
        "run": _facts(run),
        "questions": len(questions),
        "left_out": [*run.left_out, *notes],
        "independent": run.independent,
        "chosen": _plain(boot.mean(_chosen(questions))),
        "cost": {
            "tokens": float(np.mean([q.decoded for q in questions])),
            "seconds": run.seconds,
        },
    }
    if run.independent:
        comparison = compare([question.pool() for question in questions], _ks(questions[0].n))
        rows = table.rows(comparison, boot)
        made["traces"] = comparison.n
        made["rare"] = int(comparison.rare.sum())
        made["table"] = [_row(row, comparison.n) for row in rows]
        made["curves"] = _pool_curves(comparison, boot, questions, run)
        n = comparison.n
        made["extinct"] = _extinct(
            run, against, questions, {row.selector: (row.label, comparison.values[row.selector][n]) for row in rows}
        )
    else:
        values: list[dict[str, Any]] = [dict(tree_values(q.scored(run.scorer), _ks(64), run.select)) for q in questions]
        made["traces"] = max(question.n for question in questions)
        made["rare"] = sum(0 < q.pass_at_1 <= RARE for q in questions)
        rules = [name for name in values[0] if name.startswith("choose_") or name == "oracle"]
        per_rule = {name: np.array([float(value[name]) for value in values]) for name in rules}
        made["table"] = [
            {"label": _tree_label(name), "selector": name, "all": _plain(boot.mean(v))} for name, v in per_rule.items()
        ]
        made["curves"] = _tree_curves(values, boot, questions, run.seconds)
        made["extinct"] = _extinct(run, against, questions, {n: (_tree_label(n), v) for n, v in per_rule.items()})
    made["points"] = [_point(other) for other in others]
    made["calibration"] = {
        name: _calibration(questions, name, boot)
        for name in sorted(set.intersection(*(set(q.scores) for q in questions)))
    }
    made["groups"] = {
        kind: _groups(questions, [getattr(question, kind) for question in questions]) for kind in ("level", "subject")
    }
    made["against"] = None if against is None else _facts(against)
    return made


def _facts(run: Run) -> Plain:
    settings = run.info.settings
    kept = ("temperature", "top_p", "top_k", "min_p", "seed", "delimiter", "max_gen_toks", "budget_trajectories",
            "budget_tokens", "budget_seconds", "budget_nodes", "width", "beta", "slots")  # fmt: skip
    return {
        "path": run.path.name,
        "model": run.info.model.get("name"),
        "digest": run.info.model.get("digest"),
        "strategy": run.strategy,
        "select": run.select,
        "scorer": run.scorer,
        "settings": {name: settings.get(name) for name in kept if settings.get(name) is not None},
    }


def _ks(n: int) -> list[int]:
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < n} | {n})


def _chosen(questions: Sequence[Question]) -> Array:
    return np.array([q.chosen_right for q in questions])


def _row(row: table.Row, n: int) -> Plain:
    return {
        "label": row.label,
        "selector": row.selector,
        "at": {str(k): _plain(e) for k, e in row.accuracy.items()},
        "all": _plain(row.accuracy[n]),
        "gap_closed": _plain(row.gap_closed),
        "rare": _plain(row.rare),
        "auc": _plain(row.auc),
        "over_majority": _plain(row.over_majority),
    }


def _pool_curves(comparison: Comparison, boot: Bootstrap, questions: Sequence[Question], run: Run) -> list[Plain]:
    """Accuracy of k of the n traces, at k / n of what all of them cost. What is not `shown` would crowd a picture: the
    scorers beside the run's own."""
    shown = {"random", "majority", "oracle", f"best_of:{run.scorer}", f"vote:{run.scorer}", "best_of:logprob"}
    tokens = float(np.mean([q.decoded for q in questions])) / comparison.n
    seconds = run.seconds / comparison.n
    return [
        {
            "label": label,
            "selector": selector,
            "shown": selector in shown,
            "k": list(comparison.ks),
            "accuracy": [_plain(boot.mean(comparison.values[selector][k])) for k in comparison.ks],
            "tokens": [k * tokens for k in comparison.ks],
            "seconds": [k * seconds for k in comparison.ks],
        }
        for selector, label in table.labels(comparison)
    ]


def _tree_label(name: str) -> str:
    return "oracle" if name == "oracle" else f"chosen by {name.removeprefix('choose_')}"


def _tree_curves(
    values: Sequence[dict[str, Any]], boot: Bootstrap, questions: Sequence[Question], seconds: float
) -> list[Plain]:
    """What the search would have answered after its first k finished trajectories, at what it had generated by then."""
    most = max(question.n for question in questions)
    ks = [k for k in _ks(64) if k <= most] or [1]
    tokens = [float(np.mean([q.spent[min(k, q.n) - 1] if q.n else q.decoded for q in questions])) for k in ks]
    total = float(np.mean([q.decoded for q in questions]))
    return [
        {
            "label": label,
            "selector": name,
            "shown": True,
            "k": ks,
            "accuracy": [_plain(boot.mean(np.array([v[f"{name}@{k}"] for v in values]))) for k in ks],
            "tokens": tokens,
            "seconds": [seconds * min(1.0, t / total) if total else 0.0 for t in tokens],
        }
        for name, label in (("anytime", "the search's answer"), ("anytime_oracle", "oracle"))
    ]


def _point(other: Run) -> Plain:
    boot = Bootstrap(len(other.questions))
    return {
        "label": other.name,
        "accuracy": _plain(boot.mean(_chosen(other.questions))),
        "tokens": float(np.mean([q.decoded for q in other.questions])),
        "seconds": other.seconds,
        "questions": len(other.questions),
    }


def _calibration(questions: Sequence[Question], scorer: str, boot: Bootstrap) -> Plain:
    """How often trajectories of like score are right, in bins of as many trajectories; and the AUC within a question."""
    scores = np.concatenate([q.scores[scorer] for q in questions])
    correct = np.concatenate([q.correct for q in questions]).astype(np.float64)
    owner = np.repeat(np.arange(len(questions)), [q.n for q in questions])
    order = np.argsort(scores, kind="stable")
    bins = []
    for part in np.array_split(order, min(BINS, len(order))):
        right = np.bincount(owner[part], correct[part], minlength=len(questions)).astype(np.float64)
        size = np.bincount(owner[part], minlength=len(questions)).astype(np.float64)
        bins.append(
            {"score": float(scores[part].mean()), "right": _plain(boot.ratio(right, size)), "traces": len(part)}
        )
    auc = np.array([auc_within(q.scores[scorer], q.correct) for q in questions])
    return {"bins": bins, "auc": _plain(boot.mean(auc)), "mixed": int(np.sum(~np.isnan(auc)))}


def _groups(questions: Sequence[Question], names: Sequence[str]) -> list[Plain]:
    """Per level or subject: the chosen answer, a random trace, and whether any is right. Nothing if all are alike."""
    if len(set(names)) < 2:
        return []
    boot = Bootstrap(len(questions))
    what: dict[str, Callable[[Question], float]] = {
        "pass@1": lambda q: q.pass_at_1,
        "chosen": lambda q: q.chosen_right,
        "oracle": lambda q: float(q.correct.any()),
    }
    values = {name: np.array([value(q) for q in questions]) for name, value in what.items()}
    found = []
    for group in sorted(set(names)):
        inside = np.array([name == group for name in names])
        found.append(
            {
                "group": group or "(not said)",
                "questions": int(inside.sum()),
                **{name: _plain(boot.mean(array, inside)) for name, array in values.items()},
            }
        )
    return found


def _extinct(
    run: Run, against: Run | None, questions: Sequence[Question], rules: dict[str, tuple[str, Array]]
) -> Plain | None:
    """Questions that no trace of the other run gets right, and some trace of this one does (arXiv 2602.12846)."""
    if against is None:
        return None
    mine, theirs = common([run, against])
    solved = {question.id for question, other in zip(mine, theirs, strict=True) if not other.correct.any()}
    inside = np.array([q.id in solved and bool(q.correct.any()) for q in questions])
    boot = Bootstrap(len(questions))
    return {
        "shared": len(mine),
        "theirs_without_right": len(solved),
        "questions": int(inside.sum()),
        "ids": [q.id for q, extinct in zip(questions, inside.tolist(), strict=True) if extinct],
        "pass@1": _plain(boot.mean(np.array([q.pass_at_1 for q in questions]), inside)),
        "rows": [
            {"label": label, "accuracy": _plain(boot.mean(v, inside))}
            for name, (label, v) in rules.items()
            if name not in {"random", "oracle"}
        ],
    }


def _plain(estimate: Estimate | None) -> list[float] | None:
    """[mean, low, high], None where there is nothing to tell."""
    if estimate is None or math.isnan(estimate.mean):
        return None
    return [estimate.mean, estimate.low, estimate.high]

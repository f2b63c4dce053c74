"""What the comparison says: accuracies, paired differences, where who wins, and what each cost. Plain values only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arts_plugin import clock
from arts_plugin.bench.methods import GREEDY, SAMPLES, Method
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import Array, Bootstrap, best_of_k, vote
from arts_plugin.evaluation.search_metrics import rules
from arts_plugin.evaluation.statistics import Estimate
from arts_plugin.report.data import Question, Run, common, in_order, read_run

Plain = dict[str, Any]
MAJORITY, RANDOM = "majority", "one sample"
BANDS = (("none right", 0.0), ("up to 1/8", 1 / 8), ("up to 1/2", 1 / 2), ("more", 1.0))
"""Questions by the share of the pool's traces that are right: difficulty, as this model sees it."""


def compare_methods(methods: Sequence[Method], out: Path) -> Plain:
    """The numbers of all methods on the questions that all of them have.

    A pool stands for several contestants, one a selection rule: it was paid once for all of them.

    Raises:
        ArtsError: a run cannot be used, or they have no question in common.
    """
    runs = {method.name: read_run(method.folder(out)) for method in methods}
    questions, notes = common(list(runs.values()))
    shared = dict(zip(runs, questions, strict=True))
    boot = Bootstrap(len(next(iter(shared.values()))))
    rows: list[Plain] = []
    values: dict[str, Array] = {}
    for name, run in runs.items():
        for rule, found in _contestants(name, run, shared[name]).items():
            values[rule] = found
            rows.append({"label": rule, "method": name, "accuracy": _plain(boot.mean(found))})
    for row in rows:
        row["minus_majority"] = _plain(boot.mean(values[row["label"]] - values[MAJORITY]))
        wins, losses = values[row["label"]] > values[MAJORITY], values[row["label"]] < values[MAJORITY]
        row["wins"], row["losses"] = int(wins.sum()), int(losses.sum())
    chosen = [rule for rule in values if "oracle" not in rule]
    own = [row["label"] for row in rows if row["label"] in runs and row["label"] not in {GREEDY, SAMPLES}]
    best = [rule for rule in chosen if rule.startswith(("best by", "vote by"))]
    pool = shared[SAMPLES]
    return {
        "questions": len(pool),
        "model": runs[SAMPLES].info.model.get("name"),
        "scorer": runs[SAMPLES].scorer,
        "traces": max(question.n for question in pool),
        "rows": rows,
        "cost": [_cost(name, run, shared[name]) for name, run in runs.items()],
        "differences": [
            {"left": left, "right": right, "difference": _plain(boot.mean(values[left] - values[right]))}
            for left in own
            for right in [GREEDY, MAJORITY, *best]
        ],
        "values": [
            {"id": question.id, "task": question.task, "right": {rule: float(v[i]) for rule, v in values.items()}}
            for i, question in enumerate(pool)
        ],
        "where": _where(pool, {rule: values[rule] for rule in chosen}, boot),
        "left_out": [*(f"{name}: {reason}" for name, run in runs.items() for reason in run.left_out), *notes],
    }


def _contestants(name: str, run: Run, questions: Sequence[Question]) -> dict[str, Array]:
    """Contestant -> per-question values [questions]."""
    if name == SAMPLES:
        return _pool(run, questions)
    if name == GREEDY:
        return {GREEDY: _chosen(questions)}
    found = {name: _chosen(questions)}
    for rule in ("majority", "weighted_vote", "flow"):
        if rule != run.select and rule in rules(run.judged):
            found[f"{name}, chosen by {rule}"] = np.array([question.chosen_by[rule] for question in questions])
    found[f"{name}, oracle"] = np.array([question.oracle for question in questions])
    return found


def _pool(run: Run, questions: Sequence[Question]) -> dict[str, Array]:
    scorers = list(dict.fromkeys(s for s in (run.scorer, "logprob") if all(s in q.scores for q in questions)))
    found: dict[str, list[float]] = {}

    def note(rule: str, value: float) -> None:
        found.setdefault(rule, []).append(value)

    for question in questions:
        classes, everyone = question.pool().classes(), np.arange(question.n)[None, :]
        note(RANDOM, float(question.correct.mean()))
        note(MAJORITY, vote(classes, question.correct, np.zeros(question.n), everyone))
        for scorer in scorers:
            score = question.scores[scorer]
            note(f"best by {scorer}", best_of_k(score, question.correct, question.n))
            note(f"vote by {scorer}", vote(classes, question.correct, score, everyone))
        note("oracle of the samples", float(question.correct.any()))
    return {rule: np.array(values) for rule, values in found.items()}


def _chosen(questions: Sequence[Question]) -> Array:
    return np.array([q.chosen_right for q in questions])


def _cost(name: str, run: Run, questions: Sequence[Question]) -> Plain:
    return {
        "method": name,
        "tokens": float(np.mean([q.decoded for q in questions])),
        "verifier_tokens": float(np.mean([q.judged for q in questions])),
        "traces": float(np.mean([q.drawn for q in questions])),
        # Of the whole run, since its questions share the machine.
        "seconds": None if clock.seconds(run.path) is None else run.seconds,
    }


def _where(pool: Sequence[Question], values: dict[str, Array], boot: Bootstrap) -> list[Plain]:
    """Every contestant's accuracy among questions of a kind: by how hard they are for one sample, task, level, subject."""
    share = np.array([q.correct.mean() for q in pool])
    kinds = [("right in the pool", label, _band(share, number)) for number, (label, _) in enumerate(BANDS)]
    for kind in ("task", "level", "subject"):
        names = [getattr(question, kind) for question in pool]
        if len(set(names)) > 1:
            kinds += [(kind, name or "(not said)", np.array([n == name for n in names])) for name in in_order(names)]
    return [
        {
            "kind": kind,
            "group": label,
            "questions": int(inside.sum()),
            "accuracy": {rule: _plain(boot.mean(found, inside)) for rule, found in values.items()},
        }
        for kind, label, inside in kinds
        if inside.any()
    ]


def _band(share: Array, number: int) -> Any:
    below = BANDS[number][1]
    return share <= below + 1e-12 if number == 0 else (share > BANDS[number - 1][1] + 1e-12) & (share <= below + 1e-12)


def _plain(estimate: Estimate) -> list[float]:
    return [estimate.mean, estimate.low, estimate.high]


def verdicts(result: Plain) -> list[str]:
    """Who wins, a sentence each: a difference is one if its interval leaves out 0."""
    said = []
    for item in result["differences"]:
        mean, low, high = (100 * v for v in item["difference"])
        word = "beats" if low > 0 else "loses to" if high < 0 else "does not measurably differ from"
        said.append(f"{item['left']} {word} {item['right']}: {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    if not said:
        raise ArtsError("there is no search to say something of")
    return said

"""Every number of a report, as plain values: pictures, tables and the page are made from these and nothing else.

Intervals are 95 % bootstrap percentiles over questions, from one set of resamples, so that differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation import table
from arts_plugin.evaluation.pool import Array, Bootstrap, Comparison, auc_within, compare, is_rare
from arts_plugin.evaluation.search_metrics import choice, first_drawn, rules
from arts_plugin.evaluation.statistics import Estimate
from arts_plugin.report.beside import Resamples, points
from arts_plugin.report.data import Question, Run, common, even, in_order

BINS = 10
Plain = dict[str, Any]
Values = dict[str, Array]


def analyse(run: Run, others: Sequence[Run] = (), against: Run | None = None) -> Plain:
    """All of a report.

    Its `per_question` holds a record a question, from which every other figure can be computed again.

    Args:
        others: runs whose chosen answers are put beside this one's, at what they cost.
        against: the run in which questions may be extinct (no right trace among all its traces).

    Raises:
        ArtsError: the run is of several tasks, or runs have no question in common.
    """
    if len(run.tasks) > 1:
        raise ArtsError(
            f"{run.path} is of several tasks ({', '.join(run.tasks)}), which do not go into one figure; name one: --task "
            f"{run.tasks[0]}"
        )
    questions, notes = even(run) if run.independent else (run.questions, [])
    run = replace(run, questions=questions, left_out=[*run.left_out, *notes])
    resamples = Resamples()
    boot = resamples(len(questions))
    per_question: list[Plain] = [_record(question) for question in questions]
    made: Plain = {
        "run": _facts(run),
        "questions": len(questions),
        "left_out": run.left_out,
        "independent": run.independent,
        "chosen": _plain(boot.mean(_chosen(questions))),
        "cost": {
            "tokens": float(np.mean([q.decoded for q in questions])) if run.costed else None,
            "seconds": run.seconds if run.costed else None,
        },
    }
    figures = _pool_figures if run.independent else _tree_figures
    found, accuracies = figures(run, boot, per_question)
    made.update(found)
    made["extinct"], notes = _extinct(run, against, accuracies, boot)
    made["points"], more = points(run, others, resamples, per_question)
    made["left_out"] = [*made["left_out"], *notes, *more]
    made["calibration"] = {name: _calibration(questions, name, boot) for name in _scorers(questions)}
    made["groups"] = {
        kind: _groups(questions, [getattr(question, kind) for question in questions], boot)
        for kind in ("level", "subject")
    }
    made["against"] = None if against is None else _facts(against)
    made["per_question"] = per_question
    return made


def _facts(run: Run) -> Plain:
    settings = run.info.settings
    kept = ("temperature", "top_p", "top_k", "min_p", "seed", "delimiter", "max_gen_toks", "budget_trajectories",
            "budget_tokens", "budget_seconds", "budget_nodes", "width", "beta", "slots")  # fmt: skip
    return {
        "path": run.path.name,
        "model": run.info.model.get("name"),
        "digest": run.info.model.get("digest"),
        "task": run.tasks[0] if run.tasks else None,
        "strategy": run.strategy,
        "select": run.select,
        "scorer": run.scorer,
        "settings": {name: settings.get(name) for name in kept if settings.get(name) is not None},
    }


def _record(question: Question) -> Plain:
    return {
        "id": question.id,
        "task": question.task,
        "level": question.level,
        "subject": question.subject,
        "correct": question.correct.astype(int).tolist(),
        "counts": question.counts.tolist(),
        "scores": {name: values.tolist() for name, values in question.scores.items()},
        "chosen": question.chosen_right,
        "tokens": question.decoded,
        "verifier_tokens": question.judged,
        "seconds": question.seconds,
    }


def _ks(n: int) -> list[int]:
    return sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128, 256) if k < n} | {n})


def _chosen(questions: Sequence[Question]) -> Array:
    return np.array([q.chosen_right for q in questions])


# A pool of independent traces.
def _pool_figures(run: Run, boot: Bootstrap, per_question: Sequence[Plain]) -> tuple[Plain, Values]:
    """(what is told of a pool; label -> accuracy with all traces [questions], of the ways of choosing)"""
    questions = run.questions
    comparison = compare([question.pool() for question in questions], _ks(questions[0].n))
    rows = table.rows(comparison, boot)
    for number, record in enumerate(per_question):
        record["values"] = {
            selector: {str(k): float(values[number]) for k, values in by_k.items()}
            for selector, by_k in comparison.values.items()
        }
    found = {
        "traces": comparison.n,
        "rare": int(comparison.rare.sum()),
        "table": [_row(row, comparison.n) for row in rows],
        "curves": _pool_curves(comparison, boot, run),
    }
    ways = {row.label: comparison.values[row.selector][comparison.n] for row in rows}
    return found, {label: v for label, v in ways.items() if label not in {rows[0].label, rows[-1].label}}


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


def _pool_curves(comparison: Comparison, boot: Bootstrap, run: Run) -> list[Plain]:
    """Accuracy of k of the n traces, at k / n of what all of them cost. What is not `shown` would crowd a picture: the
    scorers beside the run's own."""
    shown = {"random", "majority", "oracle", f"best_of:{run.scorer}", f"vote:{run.scorer}", "best_of:logprob"}
    tokens = float(np.mean([q.decoded for q in run.questions])) / comparison.n
    seconds = run.seconds / comparison.n
    return [
        {
            "label": label,
            "selector": selector,
            "shown": selector in shown,
            "k": list(comparison.ks),
            "accuracy": [_plain(boot.mean(comparison.values[selector][k])) for k in comparison.ks],
            "tokens": [k * tokens for k in comparison.ks] if run.costed else None,
            "seconds": [k * seconds for k in comparison.ks] if run.costed else None,
        }
        for selector, label in table.labels(comparison)
    ]


# A tree.
def _tree_figures(run: Run, boot: Bootstrap, per_question: Sequence[Plain]) -> tuple[Plain, Values]:
    """(what is told of trees; label -> accuracy [questions], of the ways of choosing)"""
    questions = run.questions
    ways = {
        f"choose_{rule}": np.array([question.chosen_by[rule] for question in questions]) for rule in rules(run.judged)
    }
    oracle = np.array([question.oracle for question in questions])
    per_rule = {**ways, "oracle": oracle}
    most = max(question.drawn for question in questions)
    ks = _ks(max(most, 1))
    curves = _anytime(run, ks)
    for number, record in enumerate(per_question):
        record["values"] = {
            **{name: float(values[number]) for name, values in per_rule.items()},
            **{
                name: {str(k): v for k, v in zip(ks, by_k[number].tolist(), strict=True)}
                for name, by_k in curves.items()
            },
        }
    found = {
        "traces": most,
        "rare": sum(bool(is_rare(q.pass_at_1 * q.drawn, q.drawn)) for q in questions),
        "table": [
            {"label": _tree_label(name), "selector": name, "all": _plain(boot.mean(v))} for name, v in per_rule.items()
        ],
        "curves": _tree_curves(run, boot, ks, curves),
    }
    return found, {_tree_label(name): values for name, values in ways.items()}


def _tree_label(name: str) -> str:
    return "oracle" if name == "oracle" else f"chosen by {name.removeprefix('choose_')}"


def _anytime(run: Run, ks: Sequence[int]) -> Values:
    """What a search would have answered after its first k finished trajectories, by its own rule and answers, and whether a
    right one was among them: [questions, ks]. With all of them it is what it did answer."""
    seed = int(run.info.settings.get("seed") or 0)
    answered, any_right = [], []
    for question in run.questions:
        first = [first_drawn(question.searched, k) for k in ks]
        answered.append(
            [
                choice(found, run.select, seed, question.problem) if k < question.drawn else question.chosen_right
                for k, found in zip(ks, first, strict=True)
            ]
        )
        any_right.append([float(any(trace.correct for trace in found)) for found in first])
    return {"anytime": np.array(answered), "anytime_oracle": np.array(any_right)}


def _tree_curves(run: Run, boot: Bootstrap, ks: Sequence[int], values: Values) -> list[Plain]:
    """The anytime figures, at what the search had generated by then."""
    tokens = [float(np.mean([_spent(question, k) for question in run.questions])) for k in ks]
    total = float(np.mean([q.decoded for q in run.questions]))
    return [
        {
            "label": label,
            "selector": name,
            "shown": True,
            "k": list(ks),
            "accuracy": [_plain(boot.mean(values[name][:, place])) for place in range(len(ks))],
            "tokens": tokens,
            "seconds": [run.seconds * min(1.0, t / total) if total else 0.0 for t in tokens],
        }
        for name, label in (("anytime", "the search's answer"), ("anytime_oracle", "oracle"))
    ]


def _spent(question: Question, k: int) -> int:
    """Tokens when the k-th trajectory was finished; a search that finished no more has cost all that it did."""
    if k >= question.drawn:
        return question.decoded
    return int(question.spent[np.searchsorted(np.cumsum(question.counts), k)])


# Of both.
def _scorers(questions: Sequence[Question]) -> list[str]:
    """Those that scored every question's trajectories."""
    named = [set(question.scores) for question in questions if question.n]
    return sorted(set.intersection(*named)) if named else []


def _calibration(questions: Sequence[Question], scorer: str, boot: Bootstrap) -> Plain:
    """How often trajectories of like score are right, in bins of as many trajectories; and the AUC within a question."""
    nothing: Array = np.empty(0)
    by_question = [question.scores.get(scorer, nothing) for question in questions]
    scores = np.concatenate(by_question)
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
    auc = np.array([auc_within(found, q.correct) for found, q in zip(by_question, questions, strict=True)])
    return {"bins": bins, "auc": _plain(boot.mean(auc)), "mixed": int(np.sum(~np.isnan(auc)))}


def _groups(questions: Sequence[Question], names: Sequence[str], boot: Bootstrap) -> list[Plain]:
    """Per level or subject: the chosen answer, a random trace, and whether any is right. Nothing if all are alike."""
    if len(set(names)) < 2:
        return []
    what: dict[str, Callable[[Question], float]] = {
        "pass@1": lambda q: q.pass_at_1,
        "chosen": lambda q: q.chosen_right,
        "oracle": lambda q: q.oracle,
    }
    values = {name: np.array([value(q) for q in questions]) for name, value in what.items()}
    found = []
    for group in in_order(names):
        inside = np.array([name == group for name in names])
        found.append(
            {
                "group": group or "(not said)",
                "questions": int(inside.sum()),
                **{name: _plain(boot.mean(array, inside)) for name, array in values.items()},
            }
        )
    return found


def _extinct(run: Run, against: Run | None, ways: Values, boot: Bootstrap) -> tuple[Plain | None, list[str]]:
    """Questions that no trace of the other run gets right, and some trace of this one does (arXiv 2602.12846); and who was
    left out of the pairs."""
    if against is None:
        return None, []
    (mine, theirs), notes = common([run, against])
    solved = {question.id for question, other in zip(mine, theirs, strict=True) if not other.correct.any()}
    inside = np.array([q.id in solved and bool(q.correct.any()) for q in run.questions])
    drawn = sorted(question.drawn for question in theirs)
    found = {
        "shared": len(mine),
        "theirs_without_right": len(solved),
        "their_traces": [drawn[0], drawn[-1]],
        "questions": int(inside.sum()),
        "ids": [q.id for q, extinct in zip(run.questions, inside.tolist(), strict=True) if extinct],
        "pass@1": _plain(boot.mean(np.array([q.pass_at_1 for q in run.questions]), inside)),
        "rows": [{"label": label, "accuracy": _plain(boot.mean(v, inside))} for label, v in ways.items()],
    }
    return found, notes


def _plain(estimate: Estimate | None) -> list[float] | None:
    """[mean, low, high], None where there is nothing to tell."""
    if estimate is None or math.isnan(estimate.mean):
        return None
    return [estimate.mean, estimate.low, estimate.high]

"""What lm-eval logs of an arts_* task, whatever model answered: `results_*.json` and `samples_*.jsonl` (--log_samples).

A log knows what each trace votes for, whether it is right, and its scores where there are any. It knows no cost, unless it
is that of a search by this package, and no trees.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arts_plugin.errors import ArtsError
from arts_plugin.lines import loads, read_lines, read_object
from arts_plugin.report.data import Question, Run, odd_score, read_run
from arts_plugin.run import RUN_FILE, RunInfo

log = logging.getLogger(__name__)
Plain = dict[str, Any]
_MOST_TRACES = 100_000
"""Of a question, far above what anybody draws."""
_COST = ("proposer_tokens", "verifier_tokens", "seconds")
_SAMPLES = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")


def read_any(path: str | Path, task: str | None = None) -> Run:
    """A run folder, or the log of an lm-eval run: its output folder, or the model's folder in that.

    Args:
        task: of several tasks, the one whose questions are kept. Without it all are.

    Raises:
        ArtsError: neither is there, or what is there cannot be used.
    """
    folder = Path(path)
    if (folder / RUN_FILE).exists():
        return read_run(path, task)
    below = sorted(child for child in folder.glob("*") if child.is_dir())
    found = [place for place in (folder, *below) if _logs(place)]
    if len(found) > 1 and found[0] != folder:
        raise ArtsError(f"{folder} has logs of several models ({', '.join(place.name for place in found)}); name one")
    return read_log(found[0], task) if found else read_run(path, task)


def _logs(folder: Path) -> dict[str, Path]:
    """Task -> its last log."""
    found = sorted(
        (match[2], match[1], file) for file in folder.glob("samples_*") if (match := _SAMPLES.fullmatch(file.name))
    )
    return {task: file for _, task, file in found}


def read_log(folder: Path, task: str | None = None) -> Run:
    """The questions of the last log of each task in a folder. A line that cannot be used is named, and the rest are kept.

    Raises:
        ArtsError: nothing can be used, it is of other tasks, or its trajectories are no independent traces.
    """
    logs = _logs(folder)
    if task is not None and task not in logs:
        raise ArtsError(f"{folder} has no question of task {task!r}; it has those of {', '.join(sorted(logs))}")
    wanted = logs if task is None else {task: logs[task]}
    questions: dict[str, Question] = {}
    asked: dict[str, str] = {}
    left_out: list[str] = []
    for name, file in wanted.items():
        for place, record in _records(file, _filter_of(folder, file, name), left_out):
            try:
                question = _question(name, record)
                if question.id in questions:
                    raise ArtsError(f"question {question.id} was there before")
                if (other := asked.setdefault(question.asked, question.id)) != question.id:
                    raise ArtsError(f"question {question.id} asks what {other} asks, word for word")
                questions[question.id] = question
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
                left_out.append(f"{place}: not an answer of an arts_* task: {error!r:.300}")
            except ArtsError as error:
                left_out.append(f"{place}: {error}")
    for reason in left_out:
        log.warning("%s: left out: %s", folder, reason)
    if not questions:
        raise ArtsError(f"{folder} has no answer that can be used" + (f": {left_out[0]}" if left_out else ""))
    listed = list(questions.values())
    scorers = set.intersection(*(set(question.scores) for question in listed))
    return Run(
        path=folder,
        info=RunInfo({}, _model(folder, next(iter(wanted.values())))),
        strategy="samples",
        select="lm-eval",
        scorer=next((name for name in ("flow", "logprob") if name in scorers), ""),
        independent=True,
        seconds=float(np.mean([question.seconds for question in listed])),
        questions=listed,
        left_out=left_out,
        costed=all(question.decoded for question in listed),
    )


def _records(file: Path, chosen: str | None, left_out: list[str]) -> Iterator[tuple[str, Plain]]:
    """(place, record) of the lines of one filter: the task's own, or else the first. What a search cost stands in the first
    filter's lines, which come first."""
    costs: dict[Any, Plain] = {}
    for number, line in read_lines(file):
        place = f"{file.name}, line {number}"
        try:
            record = loads(line)
            name, number_of_doc = str(record["filter"]), record["doc_id"]
            cost = {key: record[key] for key in _COST if key in record}
            costs.setdefault(number_of_doc, cost)
        except (ValueError, KeyError, TypeError) as error:
            left_out.append(f"{place}: not a line of a log: {error!r:.300}")
            continue
        chosen = chosen or name
        if name == chosen:
            yield place, {**costs[number_of_doc], **record}


def _results(folder: Path, file: Path) -> Plain:
    """What was written beside a log; nothing where it is gone or damaged."""
    match = _SAMPLES.fullmatch(file.name)
    try:
        return read_object(folder / f"results_{match[2] if match else ''}.json")
    except (OSError, ValueError):
        return {}


def _filter_of(folder: Path, file: Path, task: str) -> str | None:
    """The filter that says what is right in a task, where the results say which it is."""
    config = _part(_part(_results(folder, file), "configs"), task)
    found = config.get("filter")
    return found if isinstance(found, str) else None


def _part(record: Plain, name: str) -> Plain:
    """An object inside of another; empty where there is none."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _model(folder: Path, file: Path) -> Plain:
    results = _results(folder, file)
    return {"name": results.get("model_name") or _part(results, "config").get("model") or folder.name}


def _question(task: str, record: Plain) -> Question:
    if any(str(name).startswith("anytime@") for name in record):
        raise ArtsError("its trajectories are a tree's; report on the run folder that trace= names")
    logged = record["filtered_resps"][0]
    if logged and isinstance(
        logged[0], list
    ):  # from lm-eval 0.5 on, what a filter makes of a question is always a list
        logged = logged[0]
    entries = [loads(text) for text in logged]
    if (drawn := sum(int(entry["count"]) for entry in entries)) > _MOST_TRACES:
        raise ValueError(f"it has {drawn} traces")
    entries = [entry for entry in entries for _ in range(int(entry["count"]))]
    doc = record["doc"]
    name = f"{task}/{doc.get('id') or record['doc_id']}"
    if any(entry["correct"] is None for entry in entries):
        raise ArtsError(f"question {name} is not graded")
    if not entries:
        raise ArtsError(f"question {name} has no finished trace")
    # What a model that is not ours answers has no scores; without a verifier, the log-probability stands in for flow.
    judged = any("flow" in str(key) for key in record)
    scores = {
        scorer: np.array([float(entry[key]) for entry in entries])
        for scorer, key, wanted in (("flow", "log_flow", judged), ("logprob", "mean_logprob", True))
        if wanted and all(entry[key] is not None for entry in entries)
    }
    if odd := odd_score(scores):
        raise ArtsError(f"question {name}: {odd}")
    tokens = np.array([int(entry["tokens"] or 0) for entry in entries], dtype=np.int64)
    prompt = str(record["arguments"]["gen_args_0"]["arg_0"])
    return Question(
        id=name,
        task=task,
        subject=str(doc.get("subject") or ""),
        level=str(doc.get("level") or ""),
        gold=str(record["target"]),
        asked=hashlib.blake2b(prompt.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        answers=tuple(None if entry["vote"] is None else str(entry["vote"]) for entry in entries),
        correct=np.array([bool(entry["correct"]) for entry in entries], dtype=bool),
        scores=scores,
        counts=np.ones(len(entries), dtype=np.int64),
        spent=tokens,
        chosen_right=_chosen(entries),
        chosen_by={},
        searched=(),
        problem="",
        decoded=int(record.get("proposer_tokens") or tokens.sum()),
        judged=int(record.get("verifier_tokens") or 0),
        seconds=float(record.get("seconds") or 0.0),
    )


def _chosen(entries: Sequence[Plain]) -> float:
    return float(next((bool(entry["correct"]) for entry in entries if entry["chosen"]), False))

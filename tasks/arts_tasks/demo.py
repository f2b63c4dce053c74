"""The questions of `arts_demo`, read from the package, and how its answers are compared."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from arts_plugin.evaluation.extract import extract_auto
from arts_plugin.evaluation.grading import grade_numeric
from arts_plugin.prompts import question_text


def load(**metadata: Any) -> dict[str, Any]:
    """The data set as lm-eval wants it: a dict of splits. `metadata` is what lm-eval passes to every loader."""
    from datasets import Dataset

    text = files("arts_tasks").joinpath("arts_demo.jsonl").read_text(encoding="utf-8")
    return {"test": Dataset.from_list([json.loads(line) for line in text.splitlines()])}


def doc_to_text(doc: dict[str, Any]) -> str:
    """The question in the format that `arts solve` uses as well."""
    return question_text(doc["question"])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last boxed or stated number of the answer is the right one."""
    answer = extract_auto(str(results[0]))
    return {"acc": float(answer is not None and grade_numeric(answer, doc["answer"]))}

"""The questions of `arts_demo`, read from the package."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from arts_plugin.prompts import question_text


def load(**metadata: Any) -> dict[str, Any]:
    """The data set as lm-eval wants it: a dict of splits. `metadata` is what lm-eval passes to every loader."""
    from datasets import Dataset

    text = files("arts_tasks").joinpath("arts_demo.jsonl").read_text(encoding="utf-8")
    return {"test": Dataset.from_list([json.loads(line) for line in text.split("\n") if line])}


def doc_to_text(doc: dict[str, Any]) -> str:
    """The question in the format that `arts solve` uses as well."""
    return question_text(doc["question"])

"""How the answers of our own tasks are compared."""

from __future__ import annotations

from typing import Any

from arts_plugin.answers.expressions import extract_compact, extract_expression, reaches
from arts_plugin.answers.extract import extract_auto
from arts_plugin.answers.graders import grade_numeric


def number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last boxed or stated number is the right one."""
    answer = extract_auto(str(results[0]))
    return {"acc": float(answer is not None and grade_numeric(answer, doc["answer"]))}


def expression(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the last expression uses each number exactly once and is exactly the target."""
    return {"acc": float(reaches(extract_expression(str(results[0])), doc["numbers"], doc["target"]))}


def expression_vote(doc: dict[str, Any], response: str) -> str | None:
    """Traces vote for expressions as they are written, as with the extractor `expression`."""
    return extract_compact(str(response))

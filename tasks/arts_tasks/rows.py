"""Rows of local JSON lines (`id, question, answer, solution, subject, level, ...`) as documents of the stock tasks."""

from __future__ import annotations

import re
from typing import Any

Row = dict[str, Any]


def gsm8k(row: Row) -> Row:
    """The stock data set ends a solution with `#### answer`."""
    return {"question": row["question"], "answer": f"{row['solution']}\n#### {row['answer']}", **_notes(row)}


def math(row: Row) -> Row:
    """hendrycks_math's names. Its answer is what stands boxed in the solution."""
    solution = row["solution"] or f"\\boxed{{{row['answer']}}}"
    return {"problem": row["question"], "solution": solution, "answer": row["answer"], **_notes(row)}


def aime24(row: Row) -> Row:
    """Maxwell-Jia/AIME_2024's names."""
    return {"Problem": row["question"], "Answer": row["answer"], **_notes(row)}


def aime25(row: Row) -> Row:
    """math-ai/aime25's names."""
    return {"problem": row["question"], "answer": row["answer"], **_notes(row)}


def word_problem(row: Row) -> Row:
    """SVAMP's and MultiArith's.

    Raises:
        ValueError: the answer is no number.
    """
    answer = str(row["answer"]).replace(",", "")
    if not re.fullmatch(r"-?\d+(\.\d+)?(/\d+)?", answer):
        raise ValueError(f"answer is {row['answer']!r}; it must be a number")
    return {"question": row["question"], "answer": answer, **_notes(row)}


def numbers(row: Row) -> Row:
    """Game of 24 and Countdown: the numbers to use and the target to reach."""
    return {
        "question": row["question"],
        "numbers": [int(n) for n in row["numbers"]],
        "target": int(row["target"]),
        **_notes(row),
    }


def mmlu_pro(row: Row) -> Row:
    """TIGER-Lab/MMLU-Pro's names; `answer` is a letter."""
    return {
        "question": row["question"],
        "options": list(row["options"]),
        "answer": str(row["answer"]),
        "cot_content": row.get("cot_content") or "",
        "category": row.get("category") or row.get("subject") or "",
        **_notes(row),
    }


def _notes(row: Row) -> Row:
    return {name: str(row.get(name) or "") for name in ("id", "subject", "level")}

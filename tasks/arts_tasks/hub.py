"""Data sets of a hub in the form of our rows; rows that have it already pass through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
_PROBLEM = ("question", "answer")
_PUZZLE = ("question", "numbers", "target")
"""What rows of ours have; those of a hub lack at least one of them."""


def _mapped(dataset: Any, columns: tuple[str, ...], ours: tuple[str, ...], read: Callable[[Row], Row]) -> Any:
    """`dataset` with `read` applied to its rows, unless they have the columns of `ours`.

    Raises:
        ValueError: it has neither the hub's columns nor ours.
    """
    found = set(dataset.column_names)
    if set(ours) <= found:
        return dataset
    if set(columns) <= found:
        return dataset.map(read, remove_columns=[c for c in dataset.column_names if c not in {"question", "answer"}])
    raise ValueError(f"the data set has the columns {dataset.column_names}; {', '.join(columns)} were expected")


def svamp(dataset: Any) -> Any:
    """ChilleD/SVAMP."""
    return _mapped(
        dataset,
        ("Body", "Question", "Answer"),
        _PROBLEM,
        lambda row: {"question": f"{row['Body'].strip()} {row['Question'].strip()}", "answer": _number(row["Answer"])},
    )


def multiarith(dataset: Any) -> Any:
    """ChilleD/MultiArith."""
    return _mapped(
        dataset,
        ("question", "final_ans"),
        _PROBLEM,
        lambda row: {"question": row["question"].strip(), "answer": _number(row["final_ans"])},
    )


def countdown(dataset: Any) -> Any:
    """Jiayi-Pan/Countdown-Tasks-3to4, whose one split is `train`."""
    return _mapped(dataset, ("target", "nums"), _PUZZLE, lambda row: _puzzle(list(row["nums"]), int(row["target"])))


def game24(dataset: Any) -> Any:
    """nlile/24-game."""
    return _mapped(dataset, ("numbers",), _PUZZLE, lambda row: _puzzle(list(row["numbers"]), 24))


def _puzzle(numbers: list[int], target: int) -> Row:
    listed = " ".join(map(str, numbers))
    return {
        "question": f"Use each of the numbers {listed} exactly once with + - * / and parentheses to make {target}.",
        "numbers": [int(n) for n in numbers],
        "target": target,
    }


def _number(text: Any) -> str:
    value = str(text).strip().replace(",", "")
    return value.removesuffix(".0")

"""Rows of local files and of hubs: one form for the tasks, and nothing of a row is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets")

import datasets

from arts_plugin.lm_eval.stock import local_splits
from arts_tasks import hub, rows

PUZZLE = {"question": "Use 1 2 3 4.", "numbers": [1, 2, 3, 4], "target": 24}
NOTES = {"id": "x1", "subject": "sum", "level": "3"}


@pytest.mark.parametrize("read", [hub.game24, hub.countdown])
def test_puzzles_of_ours_keep_what_they_have(read: Callable[[Any], Any]) -> None:
    """The hub's rows of Game of 24 have `numbers` as well."""
    (row,) = read(datasets.Dataset.from_list([rows.numbers({**PUZZLE, **NOTES})]))
    assert row == {**PUZZLE, **NOTES}


@pytest.mark.parametrize("read", [hub.svamp, hub.multiarith])
def test_word_problems_of_ours_keep_what_they_have(read: Callable[[Any], Any]) -> None:
    (row,) = read(datasets.Dataset.from_list([rows.word_problem({"question": "1 + 1?", "answer": "2", **NOTES})]))
    assert row == {"question": "1 + 1?", "answer": "2", **NOTES}


@pytest.mark.parametrize(
    ("read", "theirs", "expected"),
    [
        (hub.game24, {"numbers": [4, 4, 6, 8], "solutions": ["x"]}, {"numbers": [4, 4, 6, 8], "target": 24}),
        (hub.countdown, {"nums": [4, 5, 6], "target": 26}, {"numbers": [4, 5, 6], "target": 26}),
        (hub.svamp, {"Body": " A. ", "Question": "B?", "Answer": "3.0"}, {"question": "A. B?", "answer": "3"}),
        (hub.multiarith, {"question": " Q? ", "final_ans": "1,000"}, {"question": "Q?", "answer": "1000"}),
    ],
)
def test_rows_of_a_hub(read: Callable[[Any], Any], theirs: dict[str, Any], expected: dict[str, Any]) -> None:
    (row,) = read(datasets.Dataset.from_list([theirs]))
    assert {name: row[name] for name in expected} == expected and "solutions" not in row
    with pytest.raises(ValueError, match="were expected"):
        read(datasets.Dataset.from_list([{"other": 1}]))


def test_equal_words_with_other_options_are_other_questions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """MMLU-Pro asks "Which statement is true?" often; what is the same but for its id and solution is left out."""
    made = [
        {"question": "Which is true?", "options": options, "answer": "A", "category": subject, "cot_content": cot, "id": str(i)}
        for i, (options, subject, cot) in enumerate(
            [(["a", "b"], "law", ""), (["c", "d"], "law", ""), (["a", "b"], "physics", ""), (["a", "b"], "law", "So A.")]
        )
    ]  # fmt: skip
    (tmp_path / "mmlu_pro.jsonl").write_text("\n".join(map(json.dumps, made)))
    kept = local_splits(str(tmp_path), {"test": "mmlu_pro.jsonl"}, rows.mmlu_pro, {})["test"]
    assert kept["id"] == ["0", "1", "2"]
    assert "line 4 asks what line 1 asks: left out" in caplog.text

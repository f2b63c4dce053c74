"""The math grader: equality as mathematics, bombs, and agreement with labels that others made."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation import math_grader
from arts_plugin.evaluation.extract import extract_auto
from arts_plugin.evaluation.grading import grade_choice, grade_numeric
from arts_plugin.evaluation.math_grader import MathGrader


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    made = MathGrader(seconds=3)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (r"\frac12", "0.5", True),
        (r"\frac{3}{4}", r"\dfrac{3}{4}", True),
        ("x(x+1)", "x^2+x", True),
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        (r"(1,\infty)", r"(1, \infty)", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("1,000", "1000", True),
        ("$70,000", "70000", True),
        (r"\frac13", "0.5", False),
        ("x+1", "x+2", False),
        ("", "5", False),
        ("5", "6", False),
        ("nonsense text", "5", False),
        (r"\frac{1}{", "1", False),
    ],
)
def test_equality(grader: MathGrader, answer: str, gold: str, equal: bool) -> None:
    assert grader(answer, gold) is equal


@pytest.mark.parametrize(
    "gold",
    [
        r"\frac{1}{2}",
        r"x \in [-2,7]",
        r"\left( 3, \frac{\pi}{2} \right)",
        "p - q",
        r"3\sqrt{13}",
        "6 - 5i",
        r"\text{Evelyn}",
    ],
)
def test_a_gold_answer_equals_itself(grader: MathGrader, gold: str) -> None:
    assert grader(gold, gold)


def test_bombs_cost_their_time_limit_and_nothing_else(grader: MathGrader) -> None:
    """The worker is killed and the next comparison gets another; this process never evaluates anything."""
    grader("x", "y")
    killed = grader.killed
    for bomb in (r"9^{9^{9^{9^9}}}", r"(10^{10^{9}})!"):
        began = time.perf_counter()
        assert grader(bomb, "7") is False
        assert time.perf_counter() - began < 30
        assert grader("x(x+1)", "x^2+x")
    assert grader.killed > killed
    assert grader("9" * 401, "7") is False, "too long to be looked at"


def test_hostile_text_is_data(grader: MathGrader, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for text in (f"__import__('os').system('touch {mark}')", f"\\input{{|touch {mark}}}", f"open('{mark}', 'w')"):
        assert grader(text, "5") is False
        assert grader("5", text) is False
    assert not mark.exists()


def test_a_worker_that_is_killed_by_others_is_replaced(grader: MathGrader) -> None:
    grader("a+b", "c")
    assert grader._worker is not None
    grader._worker._process.kill()
    grader._worker._process.wait()
    assert grader("y+z", "z+y+1") is False
    assert grader(r"z+y", "y+z")


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math_grader.sys, "executable", "/bin/false")
    with pytest.raises(ArtsError, match="is math-verify installed"):
        MathGrader()("a", "b")


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("(B)", "B", True), ("b.", "B", True), ("B) 12 apples", "B", True), (r"\text{B}", "(B)", True),
        ("answer: B", "B", True), ("C", "B", False), ("Because", "B", False), ("", "B", False), ("12", "B", False),
    ],
)  # fmt: skip
def test_choices(answer: str, gold: str, equal: bool) -> None:
    assert grade_choice(answer, gold) is equal


@pytest.mark.parametrize("name", ["numeric", "math"])
def test_labels_of_model_samples(grader: MathGrader, name: str) -> None:
    """The labels of four older models' GSM8K solutions, which others graded."""
    data = os.environ.get("ARTS_TEST_DATA")
    if not data:
        if os.environ.get("ARTS_REQUIRE_MODELS"):
            pytest.fail("ARTS_TEST_DATA is not set")
        pytest.skip("ARTS_TEST_DATA is not set")
    compare = grade_numeric if name == "numeric" else grader
    with (Path(data) / "gsm8k_model_samples.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) > 2000
    for find in (lambda row: row["final"], lambda row: extract_auto(row["solution"])):
        assert [row["id"] for row in rows if compare(find(row) or "", row["answer"]) is not row["is_correct"]] == []

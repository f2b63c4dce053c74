"""Expressions in model text: found where they are, worked out exactly, never run."""

from __future__ import annotations

import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from arts_plugin.answers.equality import classes
from arts_plugin.answers.expressions import extract_expression, reaches, work_out
from arts_plugin.plugins import Plugins
from arts_tasks.grade import expression_vote


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so (1 + 1) * 12 = 24", "(1 + 1) * 12"),
        (r"\boxed{(8 - 4) \times (7 - 1)} which is 24", "(8 - 4) * (7 - 1)"),
        (r"$\frac{6}{1 - \frac{3}{4}}$", "((6)/(1 - ((3)/(4))))"),
        (r"\frac 6{(1 - 3)} + 1", None),  # a fraction that cannot be unfolded
        (r"\boxed{\frac{8}{4} + 22}", "((8)/(4)) + 22"),
        ("First 2 + 3 = 5.\nThen 5 * 4 + 4 = 24.", "5 * 4 + 4"),
        ("[10 - 4] \u00d7 {8 \u00f7 2}", "(10 - 4) * (8 / 2)"),
        ("the answer is 24", None),
        ("", None),
        (r"\boxed{24}: from 4 * 6", "4 * 6"),
    ],
)
def test_where_the_expression_is(text: str, found: str | None) -> None:
    assert extract_expression(text) == found


@pytest.mark.parametrize(
    "text",
    [
        r"\( (10-4)*(6-2) = 24 \)", r"\[ (10-4) \times (6-2) = 24 \]", r"\((10-4)*(6-2)=24\)", "$(10-4)$ * $(6-2)$ = 24",
        "**(10-4)*(6-2)** = 24", "**(10-4)*(6-2) = 24**", "**(10-4)** * **(6-2)** = 24", r"(10-4) \* (6-2) = 24",
        "1. (10-4)*(6-2) = 24", "2) (10-4)*(6-2) = 24", "(3) (10-4)*(6-2) = 24", "- (10-4)*(6-2)", "**4.** (10-4)*(6-2)",
        "(10-4)*(6-2) = 6*4 = 24", "24 = 6*4 = (10-4)*(6-2)", "(10-4)*(6-2)\n = 6*4\n = 24",
        r"\begin{aligned}(10-4)*(6-2) &= 6*4 \\ &= 24\end{aligned}", "So (with them all, (10-4)*(6-2) = 24",
        "6 - 2 = 4. (10-4)*(6-2) = 24.", "I use 10 4 6 2 (10-4)*(6-2) = 24", "(10-4)(6-2) = 24", "((10-4)*(6-2) = 24)",
        r"$\left(10-4\right)\cdot(6-2)=24$", "(10 - 4) \u22c5 (6 - 2)", "(10-4)*(6-2) = 24 (10 - 4 = 6)",
    ],
)  # fmt: skip
def test_what_stands_around_an_expression(text: str) -> None:
    """Marks of lists, emphasis and mathematics, what a chain comes down to, brackets that are never closed."""
    assert reaches(extract_expression(text), [10, 4, 6, 2], 24), extract_expression(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2**3 + 1", None),  # a power
        ("7 + 9**2", None),
        ("24 = -4 + 28", "-4 + 28"),
        ("6 4 2 10", None),
        ("1.5 + 2", None),
        ("(4) * 6", "(4) * 6"),
    ],
)
def test_what_is_not_to_be_taken_for_marks(text: str, found: str | None) -> None:
    assert extract_expression(text) == found


def test_votes_are_for_expressions_without_their_spaces() -> None:
    """And by the search as by the task."""
    extract = Plugins().make("extractor", "expression")
    assert extract("so ( 1 + 1 ) * 12 = 24") == expression_vote({}, "so (1 + 1)*12 = 24") == "(1+1)*12"
    assert extract("the answer is 24") is None
    assert classes(["(1+1)*12", "4*6", "(1+1)*12", None, "(8-4)*6"]) == [0, 1, 0, -1, 2]
    assert classes(["9+9", "18", "3/4", "6/8"]) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "text", ["( ", "1 ", "\n ", "**(", "*(1", "((1 + 2) ", "1+1=", r"\frac{1", r"\frac{1}{", "{", "1.", "\n="]
)
def test_long_text_costs_no_more_than_its_length(text: str) -> None:
    """A hundredth of a second for a thousand characters would be slow: what is quadratic takes minutes here."""
    started = time.perf_counter()
    extract_expression(text * (200_000 // len(text)))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "hostile",
    [
        "__import__('os').system('true')", "9**9**9", "9//2", "(" * 5000 + ")" * 5000, "1e9", "0x10", "1_000", "True+1",
        "lambda: 1", "a+1", "1/0", "1+", "9" * 500, "0123 + 1", "1 if 2 else 3", "[1][0]", "-" * 150 + "1" * 60,
    ],
)  # fmt: skip
def test_what_is_no_arithmetic(hostile: str) -> None:
    assert work_out(hostile) is None


def test_exact() -> None:
    assert work_out("8 / (3 - 8 / 3)") == (Fraction(24), [8, 3, 8, 3])
    assert work_out("-3 + +1") == (Fraction(-2), [3, 1])
    assert reaches("8/(3-8/3)", [3, 3, 8, 8], 24)
    assert not reaches("8 * 3", [3, 3, 8, 8], 24)  # not all of them
    assert not reaches("(3 * 8) * (8 / 8)", [3, 3, 8, 8], 24)  # one of them once too often
    assert not reaches(None, [1], 1)


def test_random_expressions_against_fractions() -> None:
    """Built with their values beside them."""
    rng = random.Random(0)
    for _ in range(300):
        text, value, numbers = _grown(rng, 4)
        if len(text) > 200:
            continue
        found = work_out(text)
        assert (found is None) == (value is None), text
        if found is not None:
            assert found == (value, numbers), text


def _grown(rng: random.Random, depth: int) -> tuple[str, Fraction | None, list[int]]:
    if depth == 0 or rng.random() < 0.2:
        n = rng.randrange(0, 20)
        return str(n), Fraction(n), [n]
    (a, x, left), (b, y, right) = _grown(rng, depth - 1), _grown(rng, depth - 1)
    sign = rng.choice("+-*/")
    if x is None or y is None or (sign == "/" and y == 0):
        value = None
    else:
        value = {"+": x + y, "-": x - y, "*": x * y, "/": x / y if y else x}[sign]
    return f"({a} {sign} {b})", value, left + right


@pytest.mark.parametrize("name", ["game24", "countdown"])
def test_the_sets_own_solutions(name: str) -> None:
    """Every solution that comes with the data is found in its own sentence and reaches its target."""
    folder = os.environ.get("ARTS_TEST_DATA")
    if not folder:
        pytest.skip("ARTS_TEST_DATA is not set")
    rows = [json.loads(line) for line in (Path(folder) / f"{name}.jsonl").read_text().splitlines()]
    for row in rows:
        assert reaches(extract_expression(f"So {row['solution']}"), row["numbers"], row["target"]), row["id"]


def test_what_a_model_said() -> None:
    """Every answer of GPT-4 is judged as those judged it who collected them."""
    folder = os.environ.get("ARTS_TEST_DATA")
    if not folder:
        pytest.skip("ARTS_TEST_DATA is not set")
    lines = (Path(folder) / "game24_gpt4_samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    wrong = [r["id"] for r in rows if reaches(extract_expression(r["solution"]), r["numbers"], 24) != r["is_correct"]]
    assert not wrong and sum(row["is_correct"] for row in rows) > 50

"""Answers in many spellings: what is found in a text, what votes together, and what is graded right."""

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.answers import equality
from arts_plugin.answers.expressions import extract_expression, reaches
from arts_plugin.answers.extract import extract_auto
from arts_plugin.answers.reading import read
from arts_plugin.evaluation.pool import PoolProblem
from arts_plugin.evaluation.statistics import majority
from arts_plugin.hookspecs import Grader
from arts_plugin.plugins import Plugins
from arts_plugin.search.select import select
from arts_plugin.tree import ReasoningTree
from arts_tasks import grade

EXAMPLES = Path(__file__).parents[2] / "examples"


@lru_cache
def grader(name: str) -> Grader:
    made: Grader = Plugins().make("grader", name)
    return made


def rows(name: str) -> list[Any]:
    lines = (Path(__file__).parent / "answers" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [pytest.param(row, id=ascii(" | ".join(map(str, row.values())))[1:-1]) for row in map(json.loads, lines)]


@pytest.mark.parametrize("row", rows("extract"))
def test_what_is_found(row: dict[str, Any]) -> None:
    found = extract_auto(row["text"])
    assert found is not None
    assert equality.same(found, row["right"]), found


@pytest.mark.parametrize("row", rows("word_problems"))
def test_the_metric_of_word_problems(row: dict[str, Any]) -> None:
    assert grade.number({"answer": row["gold"]}, [row["text"]]) == {"acc": float(row["right"])}, extract_auto(
        row["text"]
    )


@pytest.mark.parametrize("row", rows("expressions"))
def test_expressions_of_puzzles(row: dict[str, Any]) -> None:
    found = extract_expression(row["text"])
    assert reaches(found, row["numbers"], row["target"]) is row["right"], found


@pytest.mark.parametrize("row", rows("choice"))
def test_the_letter_that_is_chosen(row: dict[str, Any]) -> None:
    found = extract_auto(row["text"])
    assert grader("choice")(found or "", row["gold"]) is row["right"], found


@pytest.mark.parametrize("row", rows("equal"))
def test_what_is_equal(row: dict[str, Any]) -> None:
    answer, gold = row["answer"], row["gold"]
    for left, right in ((answer, gold), (gold, answer)):
        assert grader("math")(left, right) is row["right"]
        assert equality.classes([left, right]) == [0, int(not row["right"])]
    for one in (answer, gold):
        assert equality.same(one, one)


@pytest.mark.parametrize("row", rows("votes"))
def test_what_votes_together(row: dict[str, Any]) -> None:
    """Two for one answer and three for another; where they are equal the outvoted one is in the majority."""
    a, b = (extract_auto(f"The final answer is ${row[name]}$.") for name in "ab")
    answers, correct = [a, a, b, b, b], [True, True, False, False, False]
    tree = ReasoningTree(problem="1")
    for answer, right in zip(answers, correct, strict=True):
        tree.add(0, terminal=True, token_ids=[1], stop="eos", answer=answer, logprob=0.0 if right else -1.0)
    leaf = select(tree, "majority")
    assert leaf is not None
    assert correct[leaf - 1] is row["same"]
    assert majority(answers, correct) == pytest.approx(0.4 if row["same"] else 0.0)
    assert len(set(PoolProblem("1", tuple(answers), None, {}).classes())) == 2 - row["same"]  # type: ignore[arg-type]


def test_an_empty_answer_is_never_right() -> None:
    for name in ("exact", "math", "numeric", "choice"):
        assert not grader(name)("", "")


def recorded_answers() -> Iterator[set[str]]:
    """The different answers of each question in recorded pools of independent traces."""
    for name in ("bench/pools/svamp-samples", "bench/pools/gsm8k15-samples", "verifier/pools/smol-test"):
        for line in gzip.decompress((EXAMPLES / name / "trees.jsonl.gz").read_bytes()).splitlines():
            yield {node["answer"] for node in json.loads(line)["nodes"] if node["answer"] is not None}


def test_votes_and_grades_agree() -> None:
    """A vote merges two answers exactly if a grade calls one right where the other is the gold answer.

    Over the cases, mixed, and over the recorded pools. Of the cases those that name a unit or a variable are left to the test
    below: `5` is graded equal to `5 km` and to `5 m`, which cannot all vote together.
    """
    graded = grader("math")
    rng = random.Random(0)
    cases = [parameter.values[0] for parameter in rows("equal")]
    spellings = {row[name] for row in cases for name in ("answer", "gold")}
    spellings = sorted(text for text in spellings if read(text).unit is None and read(text).variable is None)
    questions = [set(rng.sample(spellings, 8)) for _ in range(60)]
    recorded = [answers for answers in recorded_answers() if len(answers) > 1]
    assert len(recorded) > 250
    for answers in (*questions, *recorded):
        listed = sorted(answers)
        numbers = dict(zip(listed, equality.classes(listed), strict=True))
        for one, other in itertools.product(listed, repeat=2):
            assert graded(one, other) is (numbers[one] == numbers[other]), (one, other, listed)


def test_what_names_no_unit_or_variable_means_what_most_do() -> None:
    assert equality.classes(["5 km", "5", "5 cm", "5 cm"]) == [0, 1, 1, 1]
    assert equality.classes(["5 km", "5 km", "5", r"5\text{ m}"]) == [0, 0, 0, 1]
    assert equality.classes(["x=1", "1", "y=1", None, "y = 1"]) == [0, 1, 1, -1, 1]
    assert equality.classes(["5 cm", "5 apples", "5"]) == [0, 0, 0]


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are still exact, and algebra is compared as it is written."""
    monkeypatch.setattr(equality, "_ALGEBRA", equality.Algebra())
    monkeypatch.setattr("arts_plugin.answers.algebra.find_spec", lambda name: None)
    assert equality.same(r"\frac{1}{2}", "0.5")
    assert equality.same("x (x+1)", "x(x + 1)")
    assert not equality.same("x(x+1)", "x^2+x")
    with pytest.raises(Exception, match="math-verify"):
        Plugins().make("grader", "math")

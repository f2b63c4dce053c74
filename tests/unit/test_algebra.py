"""Equality as mathematics: expressions, bombs, the worker's end, and agreement with labels that others made."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arts_plugin.answers import algebra, equality
from arts_plugin.answers.algebra import Algebra
from arts_plugin.answers.extract import extract_auto
from arts_plugin.answers.graders import grade_choice, grade_exact, grade_numeric, math_grader


@pytest.fixture
def worker() -> Iterator[Algebra]:
    made = Algebra(seconds=1)
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
def test_equality(answer: str, gold: str, equal: bool) -> None:
    assert math_grader()(answer, gold) is equal


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
def test_a_gold_answer_equals_itself(gold: str) -> None:
    assert grade_exact(gold, gold)


@pytest.mark.parametrize("bomb", [r"9^{9^{9^{9^9}}}", r"(10^{10^{9}})!", "(99999!)!", "2^{99999999999}"])
def test_bombs_are_not_asked_about(worker: Algebra, bomb: str) -> None:
    assert worker.value(bomb) is None
    assert worker._worker is None
    assert not grade_exact(bomb, "7")
    assert not grade_exact("7", bomb)


def test_what_takes_too_long_costs_its_limit_and_nothing_else(worker: Algebra) -> None:
    """The worker ends, and the next expression gets another; this process never works anything out."""
    slow = "x + (((2^{9999})^{9999})^{9999})"
    assert worker.value(slow) is None
    assert worker.killed == 1
    assert worker.value("x(x+1)") == worker.value("x^2+x") is not None
    assert worker.killed == 1
    assert not grade_exact("9" * 401, "7"), "too long to be looked at"


def test_hostile_text_is_data(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for text in (f"__import__('os').system('touch {mark}')", f"\\input{{|touch {mark}}}", f"open('{mark}', 'w')"):
        assert grade_exact(text, "5") is False
        assert grade_exact("5", text) is False
    assert not mark.exists()


def test_a_worker_that_is_killed_by_others_is_replaced(worker: Algebra) -> None:
    worker.value("a+b")
    assert worker._worker is not None
    worker._worker._process.kill()
    worker._worker._process.wait()
    assert worker.value("y+z") is None
    assert worker.value("a+c") is not None


def test_a_worker_that_does_not_start_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, worker: Algebra
) -> None:
    monkeypatch.setattr(algebra.sys, "executable", "/bin/false")
    assert worker.value("a+b") is None
    assert worker.value("a+c") is None
    assert [record.getMessage() for record in caplog.records if "did not start" in record.getMessage()][1:] == []
    assert not worker.available


PARENT = """
import threading
from arts_plugin.answers.algebra import Algebra
made = Algebra(seconds=600)
made.value("x+1")
print(made._worker._process.pid, flush=True)
made._worker.ask("9^{9^{9^9}}")
threading.Event().wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_worker_does_not_outlive_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _running(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not _running(child):
            break
        time.sleep(0.1)
    assert not _running(child)


def test_the_worker_ends_itself_when_its_time_is_up() -> None:
    """Where nothing ends it with its parent: it is asked, and nobody waits for it."""
    command = [sys.executable, "-m", "arts_plugin.answers.worker", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert "ready" in worker.stdout.readline()
        worker.stdin.write(json.dumps("9^{9^{9^9}}") + "\n")
        worker.stdin.flush()
        assert worker.wait(timeout=120) != 0
        assert worker.stdout.read() == ""


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_votes_and_grades_share_a_worker() -> None:
    assert equality.classes([r"a(b+c)", "ab+ac", r"\sqrt{a}"]) == [0, 0, 1]
    assert equality.algebra()._worker is not None


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
def test_labels_of_model_samples(name: str) -> None:
    """The labels of four older models' GSM8K solutions, which others graded."""
    data = os.environ.get("ARTS_TEST_DATA")
    if not data:
        if os.environ.get("ARTS_REQUIRE_MODELS"):
            pytest.fail("ARTS_TEST_DATA is not set")
        pytest.skip("ARTS_TEST_DATA is not set")
    compare = grade_numeric if name == "numeric" else math_grader()
    with (Path(data) / "gsm8k_model_samples.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) > 2000
    for find in (lambda row: row["final"], lambda row: extract_auto(row["solution"])):
        assert [row["id"] for row in rows if compare(find(row) or "", row["answer"]) is not row["is_correct"]] == []

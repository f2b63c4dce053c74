"""The comparison at equal cost, from runs whose figures are known."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arts_plugin import clock
from arts_plugin.bench.methods import GREEDY, SAMPLES, Method, methods
from arts_plugin.bench.page import text, write
from arts_plugin.bench.result import compare_methods, verdicts
from arts_plugin.errors import ArtsError, SettingsError, UnknownNameError
from arts_plugin.plugins import plugins
from arts_plugin.settings import Settings
from arts_plugin.training.grades import GradesFile
from tests.report_runs import chain_tree, random_trees, write_run

N, TRACES = 24, 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trees, gold = random_trees(N, TRACES)
    write_run(tmp_path / SAMPLES, trees, gold)
    first = [chain_tree(f"p{i}", [t.nodes[2].answer or ""], [0.0], strategy="greedy") for i, t in enumerate(trees)]
    write_run(tmp_path / GREEDY, first, gold)
    searched = []
    for i, tree in enumerate(trees):
        # The first question's search ended before anything was finished; the last one's failed and is not there.
        answers = [] if i == 0 else ["1" if i % 2 else "2", tree.nodes[2].answer or ""]
        if i < N - 1:
            searched.append(chain_tree(f"p{i}", answers, [1.0, 0.0][: len(answers)], strategy="arts"))
    write_run(tmp_path / "arts", searched, gold)
    return tmp_path


def three() -> list[Method]:
    return [Method(GREEDY, {}), Method(SAMPLES, {}), Method("arts", {}, matched=True)]


def test_figures_are_those_of_the_trees(folder: Path) -> None:
    result = compare_methods(three(), folder)
    assert result["questions"] == N - 1
    rows = {row["label"]: row for row in result["rows"]}
    trees, _ = random_trees(N, TRACES)
    trees = trees[:-1]
    answers = [[node.answer for node in tree.nodes if node.terminal] for tree in trees]
    right = [[answer == "1" for answer in found] for found in answers]
    assert rows["one sample"]["accuracy"][0] == pytest.approx(np.mean(right))
    assert rows[GREEDY]["accuracy"][0] == pytest.approx(np.mean([found[0] for found in right]))
    assert rows["oracle of the samples"]["accuracy"][0] == pytest.approx(np.mean([any(found) for found in right]))
    flows = [[node.log_flow for node in tree.nodes if node.terminal] for tree in trees]
    best = [found[int(np.argmax(flow))] for found, flow in zip(right, flows, strict=True)]
    assert rows["best by rfm"]["accuracy"][0] == pytest.approx(np.mean(best))
    # Ties of a vote are shared equally.
    votes = []
    for found in answers:
        counts = {answer: found.count(answer) for answer in set(found)}
        top = [answer for answer, count in counts.items() if count == max(counts.values())]
        votes.append(("1" in top) / len(top))
    assert rows["majority"]["accuracy"][0] == pytest.approx(np.mean(votes))
    # A search that finished nothing chose nothing right.
    own = [0.0, *(float(i % 2) for i in range(1, N - 1))]
    assert rows["arts"]["accuracy"][0] == pytest.approx(np.mean(own))
    difference = next(d for d in result["differences"] if d["right"] == "majority")
    assert difference["difference"][0] == pytest.approx(np.mean(np.array(own) - votes))
    assert rows["arts"]["wins"] == sum(mine > vote for mine, vote in zip(own, votes, strict=True))
    assert result["left_out"] == []


def test_where_adds_up(folder: Path) -> None:
    """Bands of difficulty part the questions, and so do subjects; their figures add up to the whole."""
    result = compare_methods(three(), folder)
    whole = {row["label"]: row["accuracy"][0] for row in result["rows"]}
    for _, found in itertools.groupby(result["where"], key=lambda item: item["kind"]):
        groups = list(found)
        assert sum(group["questions"] for group in groups) == N - 1
        for rule in groups[0]["accuracy"]:
            total = sum(group["questions"] * group["accuracy"][rule][0] for group in groups)
            assert total / (N - 1) == pytest.approx(whole[rule])
    none = result["where"][0]
    assert none["group"] == "none right" and none["accuracy"]["majority"][0] == 0


def test_cost(folder: Path) -> None:
    """Tokens are the trees' own; seconds those that were kept, an unfinished line passed over."""
    (folder / SAMPLES / clock.FILE).write_text(
        '{"question": "p0", "seconds": 30.0}\n{"question": "p1", "seconds": 18.0}\n{"que'
    )
    result = compare_methods(three(), folder)
    cost = {item["method"]: item for item in result["cost"]}
    assert cost[SAMPLES]["tokens"] == 3 * 2 * TRACES
    assert cost[SAMPLES]["seconds"] == pytest.approx(48 / N)
    assert cost["arts"]["seconds"] is None
    assert cost["arts"]["traces"] == pytest.approx(2 * (N - 2) / (N - 1))


def test_what_is_written(folder: Path) -> None:
    result = compare_methods(three(), folder)
    page = write(result, folder)
    assert page.read_text() == text(result) + "\n"
    values = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert json.loads((folder / "bench.json").read_text()) | {"values": values} == result
    # What is on the page follows from what each question says.
    assert len({value["id"] for value in values}) == len(values) == result["questions"]
    for row in result["rows"]:
        assert np.mean([value["right"][row["label"]] for value in values]) == pytest.approx(row["accuracy"][0])
    assert (folder / "bench.png").stat().st_size > 5000
    assert f"- {verdicts(result)[0]}" in page.read_text()


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.1, 0.02, 0.2), "beats"),
        ((-0.1, -0.2, -0.02), "loses to"),
        ((0.1, 0.0, 0.2), "does not measurably differ from"),
    ],
)
def test_a_difference_is_one_if_its_interval_leaves_out_0(interval: tuple[float, ...], word: str) -> None:
    (said,) = verdicts({"differences": [{"left": "arts", "right": "majority", "difference": list(interval)}]})
    assert said.startswith(f"arts {word} majority: ")


def test_without_a_verifier_rules_are_the_runs_own(folder: Path, tmp_path: Path) -> None:
    """Also where the first question's search finished nothing."""
    gold = {f"q{i}": "1" for i in range(4)}
    for strategy in (SAMPLES, GREEDY, "arts"):
        trees = []
        for name in gold:
            answers = {SAMPLES: ["1", "2"], GREEDY: ["1"], "arts": [] if name == "q0" else ["2", "1"]}[strategy]
            tree = chain_tree(name, answers, [0.0] * len(answers), strategy=strategy.replace(SAMPLES, "best_of_n"))
            tree.scorer, tree.select = "logprob", "majority"
            for node in tree.nodes:
                node.scores, node.log_flow = {"logprob": -1.0}, -1.0
                node.count = 3 if strategy == "arts" and node.answer == "1" else 1
            trees.append(tree)
        write_run(tmp_path / "bare" / strategy, trees, gold)
    result = compare_methods(three(), tmp_path / "bare")
    rows = {row["label"]: row["accuracy"][0] for row in result["rows"]}
    assert rows["arts, chosen by weighted_vote"] == 0.75 and "arts, chosen by flow" not in rows
    assert {item["method"]: item["traces"] for item in result["cost"]}["arts"] == 3.0  # merged ones as often as drawn


def test_several_tasks_are_told_apart(folder: Path) -> None:
    for name in (GREEDY, SAMPLES, "arts"):
        file = GradesFile(folder / name)
        for graded in list(file.known.values()):
            file.put(replace(graded, task=f"task {int(graded.id[1:]) % 2}"))
        file.close()
    found = [item for item in compare_methods(three(), folder)["where"] if item["kind"] == "task"]
    assert [(item["group"], item["questions"]) for item in found] == [("task 0", 12), ("task 1", 11)]


def test_no_question_in_common(folder: Path, tmp_path: Path) -> None:
    write_run(folder / "other", [chain_tree("elsewhere", ["1"], [0.0], strategy="arts")], {"elsewhere": "1"})
    with pytest.raises(ArtsError, match="no question in common"):
        compare_methods([*three(), Method("other", {}, matched=True)], folder)


def test_methods() -> None:
    made = methods(["arts", "arts,width=4,beta=2"], 8, Settings(), plugins())
    assert [method.name for method in made] == [GREEDY, SAMPLES, "arts", "arts width=4 beta=2"]
    assert made[1].changes == {"strategy": "best_of_n", "budget_trajectories": 8}
    assert made[3].changes["width"] == "4" and made[3].matched and not made[1].matched
    # What is as wide as its budget of trajectories is as wide as the pool, unless it is said otherwise.
    wide = methods(["smc", "dvts,budget_trajectories=4", "mcts"], 8, Settings(), plugins())[2:]
    assert [int(method.changes["budget_trajectories"]) for method in wide] == [8, 4, 512]
    # Nor does a question take all branches of a wide engine for its root, unless it is said.
    for slots, most in ((64, 8), (4, 4), (0, 8)):
        bound = methods(["mcts", "mcts,slots=32"], 8, Settings.of(slots=slots or "auto"), plugins())[2:]
        assert [int(method.changes["slots"]) for method in bound] == [most, 32]


@pytest.mark.parametrize(
    ("search", "error", "match"),
    [
        ("art", UnknownNameError, "did you mean 'arts'"),
        ("best_of_n", SettingsError, "no search that a token budget"),
        ("arts,width", SettingsError, "'width' is not setting=value"),
        ("arts,widht=2", SettingsError, "did you mean 'width'"),
        ("arts,width=0", SettingsError, "width is '?0"),
        ("arts,budget_tokens=5", SettingsError, "budget_tokens must be the same for all"),
        ("arts,model=x", SettingsError, "model must be the same for all"),
    ],
)
def test_searches_that_cannot_be_compared(search: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        methods([search], 8, Settings(), plugins())
    with pytest.raises(SettingsError, match="twice"):
        methods(["arts", "arts"], 8, Settings(), plugins())


def test_the_clock_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 2.0, 5.0, 100.0, 103.0])
    monkeypatch.setattr("arts_plugin.clock.time.perf_counter", lambda: next(now))
    first = clock.Clock(tmp_path)
    first.tick("a")
    first.tick("b")
    again: Any = clock.Clock(tmp_path)
    again.tick("c")
    assert clock.seconds(tmp_path) == 8.0
    assert clock.seconds(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "name",
    [
        "arts delimiter=/",
        "arts extract=regex:/../../x",
        "arts delimiter=..",
        "arts delimiter=\0",
        "arts " + "x" * 300,
        "..",
    ],
)
def test_a_methods_folder_is_in_the_comparisons(tmp_path: Path, name: str) -> None:
    """Its name is what a user wrote, settings and all; others may differ by what no file name can hold."""
    place = Method(name, {}).folder(tmp_path)
    assert place.parent == tmp_path and place.name not in {".", ".."}
    place.mkdir()
    assert Method(name + "?", {}).folder(tmp_path) != place
    assert Method("arts width=4 beta=0.5", {}).folder(tmp_path) == tmp_path / "arts width=4 beta=0.5"

"""What a report takes from a run folder: whose trees, whose answers, what was chosen, and which runs go together."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from arts_plugin.cli import main
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.search_metrics import rules
from arts_plugin.report.analysis import analyse
from arts_plugin.report.data import common, in_order, read_run
from arts_plugin.report.page import write_report
from arts_plugin.search.select import PARTICLES, select
from arts_plugin.training.grades import Graded, GradesFile
from arts_plugin.tree import ReasoningTree
from tests.report_runs import chain_tree, random_trees, write_run


def regrade(run: Path, change: Callable[[Graded], Graded]) -> Path:
    """The run with other grades."""
    old = GradesFile(run)
    old.close()
    old.path.unlink()
    new = GradesFile(run)
    for graded in old.known.values():
        new.put(change(graded))
    new.close()
    return run


def named(path: Path, answers: dict[str, list[str]], **more: Any) -> Path:
    """A run of questions with these trajectories; "1" is right everywhere."""
    trees = [chain_tree(name, found, [float(-i) for i in range(len(found))], **more) for name, found in answers.items()]
    return write_run(path, trees, dict.fromkeys(answers, "1"))


def unjudged(tree: ReasoningTree) -> ReasoningTree:
    """The tree as a search without a verifier leaves it."""
    tree.scorer = "logprob"
    tree.select = "majority"
    for node in tree.nodes:
        node.scores, node.log_flow = {"logprob": -1.0}, -1.0
    return tree


# What was chosen.
def searched(seed: int, **more: Any) -> ReasoningTree:
    """A tree with merged proposals, a trajectory that ended in an error, and ties."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    answers, flows = [str(a) for a in rng.integers(1, 4, size=n)], rng.integers(3, size=n).astype(float).tolist()
    tree = chain_tree(f"q{seed}", answers, flows, strategy="arts", **more)
    leaves = [node for node in tree.nodes if node.terminal]
    for node in leaves:
        node.count = int(rng.integers(1, 4))
    leaves[-1].stop = "error"
    return tree


@pytest.mark.parametrize("rule", rules(True))
@pytest.mark.parametrize("particles", [False, True])
def test_rules_choose_what_the_search_would(tmp_path: Path, rule: str, particles: bool) -> None:
    """With counts, particles, errors and ties; the report's own figure is that of the chosen leaf, and so is its curve's end."""
    trees = [searched(seed) for seed in range(40)]
    for number, tree in enumerate(trees):
        tree.select = rule
        leaves = [node.id for node in tree.nodes if node.terminal]
        if particles:
            tree.meta[PARTICLES] = {str(leaf): 1 + (leaf * number) % 5 for leaf in leaves[::2]}
        tree.chosen = select(tree, rule, seed=7)
    run = read_run(write_run(tmp_path / "run", trees, {tree.meta["id"]: "1" for tree in trees}, seed=7))
    right = [float(tree.nodes[tree.chosen or 0].answer == "1") for tree in trees]
    assert [question.chosen_right for question in run.questions] == right
    assert [question.chosen_by[rule] for question in run.questions] == right
    made = analyse(run)
    assert made["chosen"][0] == made["curves"][0]["accuracy"][-1][0] == pytest.approx(np.mean(right))
    assert made["curves"][0]["k"][-1] == made["traces"] == max(question.drawn for question in run.questions)
    assert made["curves"][0]["tokens"][-1] == made["cost"]["tokens"]
    assert next(row for row in made["table"] if row["selector"] == f"choose_{rule}")["all"] == made["chosen"]


@pytest.mark.parametrize("rule", rules(True))
def test_curves_are_what_the_search_would_have_answered(tmp_path: Path, rule: str) -> None:
    """Had it ended after k draws: chosen from the tree as it was then."""
    trees = [searched(seed) for seed in range(40)]
    for tree in trees:
        tree.select = rule
        tree.chosen = select(tree, rule, seed=7)
    run = write_run(tmp_path / "run", trees, {tree.meta["id"]: "1" for tree in trees}, seed=7)
    curve = analyse(read_run(run))["curves"][0]
    for tree in trees:
        left = 4
        for node in tree.nodes:
            if node.terminal and node.stop != "error":
                node.count, left = min(node.count, left), max(0, left - node.count)
                node.terminal = node.count > 0
        tree.chosen = select(tree, rule, seed=7)
    right = [tree.chosen is not None and tree.nodes[tree.chosen].answer == "1" for tree in trees]
    assert curve["accuracy"][curve["k"].index(4)][0] == pytest.approx(np.mean(right))


def test_a_fork_that_was_chosen(tmp_path: Path) -> None:
    """It is no trace of the pool, and its grade counts all the same."""
    tree = chain_tree("q", ["2", "2"], [0.0, 0.0], strategy="sdf")
    fork = tree.add(1, index=1, text="x", token_ids=[1], log_flow=5.0, scores={"rfm": 5.0}, terminal=True, answer="1")
    tree.chosen = fork.id
    (question,) = read_run(write_run(tmp_path / "run", [tree], {"q": "1"})).questions
    assert question.chosen_right == 1.0 and question.n == 2 and not question.correct.any()
    assert question.decoded == 12  # of the two traces; the tree's cost has the fork in it


def test_a_pool_costs_what_was_decoded(tmp_path: Path) -> None:
    """End-of-generation tokens, which no trace holds, and what was computed again."""
    tree = chain_tree("q", ["1", "2"], [0.0, 0.0])
    tree.cost.decoded_tokens, tree.cost.refilled_tokens = 14, 3
    (question,) = read_run(write_run(tmp_path / "run", [tree], {"q": "1"})).questions
    assert question.decoded == 17


@pytest.mark.parametrize("place", [0, 3])
def test_a_question_that_finished_nothing(tmp_path: Path, place: int) -> None:
    """Without a verifier, wherever it stands: rules are the run's."""
    answers = {f"q{i}": [] if i == place else ["1", "2"] for i in range(4)}
    trees = [unjudged(chain_tree(n, a, [0.0] * len(a), strategy="arts")) for n, a in answers.items()]
    run = write_run(tmp_path / "run", trees, dict.fromkeys(answers, "1"))
    made = analyse(read_run(run))
    assert [row["selector"] for row in made["table"]] == [
        "choose_weighted_vote", "choose_majority", "choose_logprob", "oracle",
    ]  # fmt: skip
    assert made["table"][-1]["all"][0] == 0.75 and sum(b["traces"] for b in made["calibration"]["logprob"]["bins"]) == 6


def test_a_scorer_of_all_but_what_finished_nothing(tmp_path: Path) -> None:
    made = analyse(read_run(named(tmp_path / "run", {"q0": [], "q1": ["1", "2"], "q2": ["2"]}, strategy="arts")))
    assert sum(b["traces"] for b in made["calibration"]["rfm"]["bins"]) == 3


def test_a_run_that_finished_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = named(tmp_path / "run", {"q0": [], "q1": []}, strategy="arts")
    _, made = write_report(run)
    assert made["chosen"] == [0.0, 0.0, 0.0] and made["traces"] == 0


# Whose answers.
@pytest.mark.parametrize("strategy", ["best_of_n", "arts"])
def test_votes_are_the_task_s(tmp_path: Path, strategy: str) -> None:
    """Where it was asked for them; the search itself saw other answers, and chose by those."""
    tree = chain_tree("q", ["x", "x", "x"], [0.0, 0.0, 0.0], strategy=strategy)
    leaves = [node.id for node in tree.nodes if node.terminal]
    run = write_run(tmp_path / "run", [tree], {"q": "1"})
    votes: dict[int, str | None] = dict(zip(leaves, ["2", "1", "1"], strict=True))
    regrade(run, lambda graded: replace(graded, correct={k: v == "1" for k, v in votes.items()}, votes=votes))
    (question,) = read_run(run).questions
    assert question.answers == ("2", "1", "1") and question.chosen_right == 0.0
    table = {row["selector"]: row["all"][0] for row in analyse(read_run(run))["table"]}
    assert table["majority" if strategy == "best_of_n" else "choose_majority"] == 1.0
    regrade(run, lambda graded: replace(graded, votes=dict.fromkeys(leaves)))
    assert read_run(run).questions[0].answers == (None, None, None)


# Whose trees.
def test_trees_of_another_model_are_left_out(tmp_path: Path) -> None:
    trees, gold = random_trees(3, 4)
    trees[0].meta["model"], trees[1].meta["model"] = "sha256:1", "sha256:2"  # and the third is older
    run = read_run(write_run(tmp_path / "run", trees, gold))
    assert [question.id for question in run.questions] == ["p0", "p2"]
    assert run.left_out == ["trees.jsonl, line 2: question p1 is of another model (sha256:2) than the run (sha256:1)"]
    for tree in trees:
        tree.meta["model"] = "sha256:2"
    with pytest.raises(ArtsError, match=r"no graded tree that can be used: .* of another model"):
        read_run(write_run(tmp_path / "none", trees, gold))


@pytest.mark.parametrize("told", [True, False])
def test_several_tasks_are_not_one_figure(tmp_path: Path, told: bool) -> None:
    """Named in the grades, or in the ids that lm-eval's documents have there."""
    pytest.importorskip("matplotlib")
    trees, gold = random_trees(6, 4)
    ids = {f"p{i}": ("gsm8k", "svamp")[i % 2] for i in range(6)}
    run = write_run(tmp_path / "run", trees, gold)
    for tree in trees if not told else []:
        del tree.meta["id"]
    (run / "trees.jsonl").write_text("".join(tree.to_json() + "\n" for tree in trees))
    if told:
        regrade(run, lambda graded: replace(graded, task=ids[graded.id]))
    else:
        regrade(run, lambda graded: replace(graded, id=f"{ids[graded.id]}/{graded.id}"))
    assert read_run(run).tasks == ["gsm8k", "svamp"]
    with pytest.raises(ArtsError, match=r"of several tasks \(gsm8k, svamp\).*--task gsm8k"):
        analyse(read_run(run))
    done = CliRunner().invoke(main, ["report", str(run), "--task", "svamp"], catch_exceptions=False)
    assert done.exit_code == 0 and "3 questions" in done.output
    assert json.loads((run / "report" / "report.json").read_text())["run"]["task"] == "svamp"
    with pytest.raises(ArtsError, match=r"no question of task 'math'; it has those of gsm8k, svamp"):
        read_run(run, "math")


def test_slashes_in_ids_name_no_task(tmp_path: Path) -> None:
    """A data set's own ids may have them."""
    run = named(tmp_path / "run", {"algebra/1": ["1"], "geometry/1": ["2"]})
    assert read_run(run).tasks == [] and analyse(read_run(run))["questions"] == 2


def test_a_prompt_that_was_asked_twice(tmp_path: Path) -> None:
    trees, gold = random_trees(3, 4)
    trees[2].prompt = trees[0].prompt
    run = read_run(write_run(tmp_path / "run", trees, gold))
    assert [question.id for question in run.questions] == ["p0", "p1"]
    assert run.left_out == ["trees.jsonl, line 3: question p2 asks what p0 asks, word for word"]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_scores_that_are_no_numbers(tmp_path: Path, value: str) -> None:
    trees, gold = random_trees(3, 4)
    trees[1].nodes[4].scores["rfm"] = float(value)
    run = read_run(write_run(tmp_path / "run", trees, gold))
    assert [question.id for question in run.questions] == ["p0", "p2"]
    assert run.left_out[0].endswith(f"rfm of trajectory 4 is {value.replace('nan', 'NaN')}")


# Which runs go together.
def test_questions_are_paired_by_id_where_they_are_the_same(tmp_path: Path) -> None:
    one = read_run(named(tmp_path / "one", {"a": ["1"], "b": ["1"], "c": ["1"]}))
    two = named(tmp_path / "two", {"c": ["1"], "b": ["2"], "d": ["1"]})
    (mine, theirs), notes = common([one, read_run(two)])
    assert [q.id for q in mine] == [q.id for q in theirs] == ["b", "c"] and not notes
    regrade(two, lambda graded: replace(graded, gold="5" if graded.id == "b" else graded.gold))
    (mine, theirs), notes = common([one, read_run(two)])
    assert [q.id for q in theirs] == ["c"]
    assert notes == ["1 questions have other gold answers in two than in one, b first"]
    regrade(two, lambda graded: replace(graded, gold="5"))
    with pytest.raises(ArtsError, match=r"no question in common .*2 questions have other gold answers"):
        common([one, read_run(two)])


def test_questions_are_paired_by_their_prompts_where_no_id_is_shared(tmp_path: Path) -> None:
    """A run of lm-eval and one of `arts bench` name the same question differently."""
    one = read_run(named(tmp_path / "one", {"a": ["1"], "b": ["1"]}))
    trees = [chain_tree(name, ["2"], [0.0]) for name in ("x", "y")]
    trees[0].prompt = "prompt of b"
    two = read_run(write_run(tmp_path / "two", trees, {"x": "1", "y": "1"}))
    (mine, theirs), notes = common([one, two])
    assert ([q.id for q in mine], [q.id for q in theirs], notes) == (["b"], ["x"], [])
    trees[0].prompt = "something else"
    with pytest.raises(ArtsError, match="have no question in common"):
        common([one, read_run(write_run(tmp_path / "three", trees, {"x": "1", "y": "1"}))])


def test_runs_beside_a_tree_are_of_its_questions(tmp_path: Path) -> None:
    """Greedy decoding, one sample of a pool, and its majority, on the axes of a search."""
    mine = read_run(named(tmp_path / "arts", {"a": ["1", "2"], "b": ["2", "1"]}, strategy="arts"))
    greedy = read_run(named(tmp_path / "greedy", {"b": ["1"], "z": ["2"]}, strategy="greedy"))
    pool = read_run(named(tmp_path / "samples", {"a": ["2", "1", "1", "2"], "b": ["1", "1", "1", "2"], "z": ["2"] * 4}))
    made = analyse(mine, [greedy, pool])
    points = {point["label"]: point for point in made["points"]}
    assert {label: (p["questions"], p["accuracy"][0], p["tokens"]) for label, p in points.items()} == {
        "greedy: greedy": (1, 1.0, 6.0),
        "samples: best_of_n": (2, 0.5, 24.0),
        "samples: pass@1": (2, 0.625, 6.0),
        "samples: majority": (2, 0.75, 24.0),
    }
    assert points["samples: pass@1"]["seconds"] == points["samples: majority"]["seconds"] / 4
    assert made["left_out"] == ["greedy has 1 of these 2 questions"]
    with pytest.raises(ArtsError, match="have no question in common"):
        analyse(mine, [read_run(named(tmp_path / "else", {"y": ["1"]}))])


def test_levels_are_in_the_order_of_their_numbers() -> None:
    assert in_order(["10", "9", "1", "9", "2.5"]) == ["1", "2.5", "9", "10"]
    assert in_order(["10 steps", "9 steps", "1 steps", ""]) == ["", "1 steps", "9 steps", "10 steps"]
    assert in_order(["easy", "hard", "3"]) == ["3", "easy", "hard"]


def test_the_extinction_zone_says_how_hard_the_other_run_tried(tmp_path: Path) -> None:
    mine = read_run(named(tmp_path / "mine", {"a": ["1", "2"], "b": ["1", "2"]}))
    theirs = read_run(named(tmp_path / "theirs", {"a": ["2"] * 3, "b": ["2"] * 5}, strategy="arts"))
    assert analyse(mine, against=theirs)["extinct"]["their_traces"] == [3, 5]


@pytest.mark.parametrize("strategy", ["best_of_n", "arts"])
def test_every_figure_can_be_computed_again(tmp_path: Path, strategy: str) -> None:
    """From the records of the questions beside the report."""
    pytest.importorskip("matplotlib")
    trees, gold = random_trees(20, 8)
    for tree in trees:
        tree.strategy = strategy
    run = write_run(tmp_path / "run", trees, gold)
    greedy = named(tmp_path / "greedy", {f"p{i}": [str(1 + i % 2)] for i in range(12)}, strategy="greedy")
    _, made = write_report(run, [greedy])
    records = [json.loads(line) for line in (run / "report" / "questions.jsonl").read_text().splitlines()]
    assert "per_question" not in json.loads((run / "report" / "report.json").read_text())

    def mean(of: Callable[[Any], float | None]) -> float:
        return float(np.mean([value for value in map(of, records) if value is not None]))

    assert len(records) == made["questions"] and mean(lambda r: r["chosen"]) == pytest.approx(made["chosen"][0])
    assert mean(lambda r: r["tokens"]) == pytest.approx(made["cost"]["tokens"])
    for row in made["table"]:
        if strategy == "best_of_n":
            for k, (value, _, _) in row["at"].items():
                assert mean(lambda r, s=row["selector"], k=k: r["values"][s][k]) == pytest.approx(value)  # type: ignore[misc]
        else:
            assert mean(lambda r, s=row["selector"]: r["values"][s]) == pytest.approx(row["all"][0])  # type: ignore[misc]
    for curve in made["curves"]:
        for k, (value, _, _) in zip(curve["k"], curve["accuracy"], strict=True):
            assert mean(lambda r, c=curve, k=k: r["values"][c["selector"]][str(k)]) == pytest.approx(value)  # type: ignore[misc]
    assert mean(lambda r: r.get("points", {}).get("0")) == pytest.approx(made["points"][0]["accuracy"][0])
    for row in made["groups"]["level"]:
        inside = [record for record in records if record["level"] == row["group"]]
        assert len(inside) == row["questions"]
        assert np.mean([np.mean(record["correct"]) for record in inside]) == pytest.approx(row["pass@1"][0])
    scores = sorted((s, c) for r in records for s, c in zip(r["scores"]["rfm"], r["correct"], strict=True))
    first = made["calibration"]["rfm"]["bins"][0]
    assert np.mean([c for _, c in scores[: first["traces"]]]) == pytest.approx(first["right"][0])

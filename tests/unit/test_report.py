"""`arts report`: its numbers against enumeration, its files against each other, hostile text, damaged runs."""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from arts_plugin.cli import main
from arts_plugin.errors import ArtsError
from arts_plugin.report.analysis import analyse
from arts_plugin.report.data import read_run
from arts_plugin.training.grades import GradesFile, read_grades
from arts_plugin.tree import ReasoningTree
from tests.report_runs import chain_tree, random_trees, write_run

pytest.importorskip("matplotlib")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", *random_trees(30, 8))


def report(*arguments: Any) -> str:
    done = CliRunner().invoke(main, ["report", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_numbers_against_the_trees(run: Path) -> None:
    """Each as it is defined, from the trees themselves."""
    trees = [ReasoningTree.from_json(line) for line in (run / "trees.jsonl").read_bytes().splitlines()]
    right = np.array([[n.answer == "1" for n in t.nodes if n.terminal] for t in trees])
    flows = np.array([[n.log_flow for n in t.nodes if n.terminal] for t in trees], dtype=float)
    made = analyse(read_run(run))
    table = {row["selector"]: row for row in made["table"]}
    base, oracle = right.mean(), right.any(axis=1).mean()
    best = right[np.arange(30), flows.argmax(axis=1)].mean()
    assert table["random"]["all"][0] == pytest.approx(base)
    assert table["oracle"]["all"][0] == pytest.approx(oracle)
    assert table["best_of:rfm"]["all"][0] == pytest.approx(best)
    assert table["best_of:rfm"]["gap_closed"][0] == pytest.approx((best - base) / (oracle - base))
    assert made["chosen"][0] == pytest.approx(best)  # the run chose by flow
    rare = (right.sum(axis=1) == 1).nonzero()[0]
    assert made["rare"] == len(rare)
    if len(rare):
        assert table["best_of:rfm"]["rare"][0] == pytest.approx(right[rare, flows[rare].argmax(axis=1)].mean())
    for row in made["table"]:
        mean, low, high = row["all"]
        assert low <= mean <= high
    curve = next(c for c in made["curves"] if c["selector"] == "best_of:rfm")
    assert curve["tokens"] == [6.0 * k for k in curve["k"]] and made["cost"]["tokens"] == 48.0
    assert curve["seconds"][-1] == pytest.approx(2.0)


def test_calibration(run: Path) -> None:
    """Bins hold as many trajectories; the flow knows something here, and the log-probability nothing."""
    made = analyse(read_run(run))["calibration"]
    bins = made["rfm"]["bins"]
    assert len(bins) == 10 and sum(b["traces"] for b in bins) == 240
    assert [b["score"] for b in bins] == sorted(b["score"] for b in bins)
    assert made["rfm"]["auc"][0] > 0.6
    trees = [ReasoningTree.from_json(line) for line in (run / "trees.jsonl").read_bytes().splitlines()]
    right = sum(node.answer == "1" for tree in trees for node in tree.nodes)
    assert sum(b["right"][0] * b["traces"] for b in bins) == pytest.approx(right)


def test_levels_and_subjects(run: Path) -> None:
    groups = analyse(read_run(run))["groups"]
    assert [row["group"] for row in groups["level"]] == ["0", "1", "2"]
    assert [row["questions"] for row in groups["subject"]] == [15, 15]


def test_the_extinction_zone(tmp_path: Path) -> None:
    """Questions that the other run never gets right and this one does: 0 and 1 here, of the three in common."""
    mine = [chain_tree(f"q{i}", ["1", "2"], [1.0, 0.0]) for i in range(3)] + [chain_tree("q9", ["1"] * 2, [0.0, 1.0])]
    theirs = [chain_tree(f"q{i}", ["2", "1" if i == 2 else "3"], [1.0, 0.0]) for i in range(3)]
    gold = {f"q{i}": "1" for i in range(10)}
    a, b = write_run(tmp_path / "a", mine, gold), write_run(tmp_path / "b", theirs, gold)
    found = analyse(read_run(a), against=read_run(b))["extinct"]
    assert found["ids"] == ["q0", "q1"] and found["shared"] == 3 and found["pass@1"][0] == 0.5
    assert next(r for r in found["rows"] if r["label"] == "best_of@k, rfm")["accuracy"][0] == 1.0
    out = tmp_path / "out"
    report(a, "--against", b, "--out", out)
    assert (out / "extinct.png").exists() and "extinction zone" in (out / "report.html").read_text()
    c = write_run(tmp_path / "c", [chain_tree("other", ["1"], [0.0])], {"other": "1"})
    with pytest.raises(ArtsError, match="have no question in common"):
        analyse(read_run(a), against=read_run(c))


def test_trees_have_no_subsets(tmp_path: Path) -> None:
    """A tree's figures: what each rule chooses, and the curves of what was finished first."""
    trees = [chain_tree(f"q{i}", ["2", "1", "1"], [0.0, 2.0, 1.0], strategy="arts", chosen=1) for i in range(4)]
    made = analyse(read_run(write_run(tmp_path / "run", trees, {f"q{i}": "1" for i in range(4)})))
    assert not made["independent"] and {row["selector"] for row in made["table"]} == {
        "choose_flow", "choose_weighted_vote", "choose_majority", "choose_logprob", "oracle",
    }  # fmt: skip
    anytime = made["curves"][0]
    assert anytime["k"] == [1, 2, 3] and [a[0] for a in anytime["accuracy"]] == [0.0, 1.0, 1.0]
    assert anytime["tokens"] == [6.0, 12.0, 18.0]


def test_files_say_the_same(run: Path, tmp_path: Path) -> None:
    """The page, the tables and the JSON; and the same run gives the same bytes."""
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        report(run, run, "--out", out)
    names = sorted(p.name for p in outs[0].iterdir())
    assert {"report.html", "report.json", "table.md", "table.csv", "accuracy.png", "accuracy.svg", "cost.png",
            "calibration.svg", "level.png", "subject.png"} <= set(names)  # fmt: skip
    for name in names:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes(), name
    made = json.loads((outs[0] / "report.json").read_text())
    rows = list(csv.DictReader((outs[0] / "table.csv").open()))
    for row in made["table"]:
        for k, values in row["at"].items():
            (line,) = [r for r in rows if (r["selector"], r["k"], r["figure"]) == (row["selector"], k, "accuracy")]
            assert [float(line[x]) for x in ("value", "low", "high")] == values
    page = (outs[0] / "report.html").read_text()
    for line in (outs[0] / "table.md").read_text().splitlines()[2:]:
        for cell in line.strip("| ").split(" | "):
            assert cell in page
    assert "run: best_of_n" in page  # the run beside it


def test_nothing_leaves_the_page_or_runs_in_it(tmp_path: Path) -> None:
    """What a data set or a model wrote is text: in names, subjects and settings."""
    evil = "</td><script>alert(1)</script><img src=x onerror=alert(1)>"
    run = write_run(tmp_path / "run", *random_trees(4, 4), delimiter=evil, chat="auto")
    file = GradesFile(run)
    for graded in list(file.known.values())[:2]:
        file.put(type(graded)(**{**{k: getattr(graded, k) for k in graded.__slots__}, "subject": evil + "$x_{$"}))
    file.close()
    report(run, "--out", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page) and "http" not in re.sub(
        r"data:[^\"]*", "", page
    ).replace("http-equiv", "")
    assert "<script" not in (tmp_path / "out" / "subject.svg").read_text()


def test_what_is_damaged_is_named_and_left_out(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = (run / "trees.jsonl").read_text().splitlines()
    broken = json.loads(lines[5])
    broken["nodes"][2]["scores"]["rfm"] = "nan"
    broken["nodes"][2]["log_flow"] = "nan"
    lines[5] = json.dumps(broken)
    lines[7] = "{"
    lines[9] = lines[8]
    ungraded = json.loads(lines[11])
    ungraded["meta"]["key"] = "0" * 16
    lines[11] = json.dumps(ungraded)
    (run / "trees.jsonl").write_text("\n".join(lines[:20]) + "\n" + lines[20][:50])
    with caplog.at_level(logging.WARNING):
        found = read_run(run)
    assert len(found.questions) == 16
    said = "\n".join(found.left_out)
    assert "line 6: question p5: rfm of trajectory 2 is NaN" in said
    assert "line 8: not a reasoning tree" in said
    assert "line 10: question p8 was there before" in said
    assert "line 12: it has no grades" in said
    assert "line 21: the line is not complete" in said
    assert "graded questions have no tree" in said
    assert all(reason in caplog.text for reason in found.left_out)
    assert analyse(found)["left_out"] == found.left_out


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    trees, gold = random_trees(3, 4)
    with pytest.raises(ArtsError, match=r"run\.json cannot be read"):
        read_run(tmp_path)
    mixed = [*trees, chain_tree("x", ["1"] * 4, [0.0] * 4, strategy="arts")]
    with pytest.raises(ArtsError, match=r"mixes searches .*p0: strategy=best_of_n.*x: strategy=arts"):
        read_run(write_run(tmp_path / "mixed", mixed, {**gold, "x": "1"}))
    empty = write_run(tmp_path / "empty", trees, gold)
    (empty / "trees.jsonl").write_text("")
    with pytest.raises(ArtsError, match="no graded tree that can be used"):
        read_run(empty)
    (empty / "grades.jsonl").unlink()
    with pytest.raises(ArtsError, match="arts_\\* tasks under lm-eval"):
        read_grades(empty)
    done = CliRunner().invoke(main, ["report", str(empty)])
    assert done.exit_code == 1 and "has no grades.jsonl" in done.output and "Traceback" not in done.output


def test_questions_with_fewer_traces_are_left_out_of_pools(tmp_path: Path) -> None:
    trees, gold = random_trees(5, 4)
    run = write_run(tmp_path / "run", [*trees, chain_tree("short", ["1"], [0.0])], {**gold, "short": "1"})
    made = analyse(read_run(run))
    assert made["questions"] == 5 and made["left_out"] == ["1 questions have not 4 finished traces, short first"]

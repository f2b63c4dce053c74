"""`arts view`: what is in the page, what cannot get out of it, and what is left out."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from arts_plugin.cli import main
from arts_plugin.errors import ArtsError
from arts_plugin.report.view import tree_record, write_view
from arts_plugin.search.select import select
from arts_plugin.training.grades import Graded
from arts_plugin.tree import ReasoningTree
from tests.report_runs import chain_tree, random_trees, write_run

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<!--<script>",
    "javascript:window.hacked=1",
    "\u2028\u2029\u202e drow \u202c\u200b",
    "lone \ud800 surrogate \x00 nul \x1b[31m escape",
    "]]>&lt;b&gt;&amp;",
    "${window.hacked=1}`'\"\\",
]


def parts(page: str) -> tuple[dict[str, Any], list[Any]]:
    """The index and the trees, as the page's script finds them."""
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', page, re.DOTALL)
    index, blocks = (json.loads(text) for _, text in found)
    return index, [json.loads(gzip.decompress(base64.b64decode(block))) for block in blocks]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", *random_trees(6, 5))


def test_the_page_holds_the_trees(run: Path) -> None:
    done = CliRunner().invoke(main, ["view", str(run)])
    assert done.exit_code == 0 and f"6 trees in {run / 'view.html'}" in done.output.replace("\n", "")
    index, trees = parts((run / "view.html").read_text())
    originals = [ReasoningTree.from_json(line) for line in (run / "trees.jsonl").read_bytes().splitlines()]
    for entry, shown, tree in zip(index["trees"], trees, originals, strict=True):
        right = [n.answer == "1" for n in tree.nodes if n.terminal]
        assert (entry["n"], entry["right"], entry["id"]) == (5, sum(right), tree.meta["id"])
        assert shown["parent"] == [n.parent for n in tree.nodes]
        assert shown["text"] == [n.text for n in tree.nodes]
        assert shown["flow"] == [None if n.log_flow is None else round(n.log_flow, 5) for n in tree.nodes]
        assert [r for r in shown["right"] if r is not None] == [int(r) for r in right]
        for rule in shown["rules"]:
            assert rule["leaf"] == select(tree, rule["rule"])
        assert {rule["rule"] for rule in shown["rules"]} == {"flow", "weighted_vote", "majority", "logprob"}


def test_votes_are_the_task_s(tmp_path: Path) -> None:
    """Where it was asked for them, rules choose by these; ties are the run's to draw."""
    tree = chain_tree("q", ["x", "x", "y"], [0.0, 0.0, 0.0])
    leaves = [node.id for node in tree.nodes if node.terminal]
    votes: dict[int, str | None] = dict(zip(leaves, ["a", "b", "b"], strict=True))
    graded = Graded("key-q", "q", "b", "exact", {leaf: votes[leaf] == "b" for leaf in leaves}, votes=votes)
    rules = {rule["rule"]: rule for rule in tree_record(tree, graded)["rules"]}
    assert rules["majority"]["answer"] == "b" and rules["majority"]["right"] == 1
    for seed in range(8):
        tied = {
            rule["rule"]: rule["leaf"]
            for rule in tree_record(chain_tree("q", ["1", "2"], [0.0] * 2), None, seed)["rules"]
        }
        assert tied["majority"] == select(chain_tree("q", ["1", "2"], [0.0] * 2), "majority", seed=seed)


def test_the_page_is_one_file_that_may_do_nothing(run: Path) -> None:
    """A policy by hash: its own script and style, and no source of anything else."""
    page = write_view(run)[0].read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None and policy[1].startswith("default-src 'none'; script-src 'sha256-")
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(script) == len(style) == 1
    for text in (script[0], style[0]):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy[1]
    assert not re.search(r"<(?:link|img|iframe|object|base)\b|\bsrc=|\bhref=", page)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|fetch\(|XMLHttp", script[0]
    )


def test_text_is_data(tmp_path: Path) -> None:
    """Nothing that a model, a question or an id says can end a script element or begin one; all of it is still there."""
    trees = [chain_tree(f"{text} {i}", [text, "1"], [1.0, 0.0]) for i, text in enumerate(HOSTILE)]
    for tree, text in zip(trees, HOSTILE, strict=True):
        tree.prompt = tree.meta["question"] = tree.nodes[1].text = text
    run = write_run(tmp_path / "run", trees, {tree.meta["id"]: "1" for tree in trees})
    page = write_view(run)[0].read_text()
    assert len(re.findall("<script", page)) == 3 and len(re.findall("</script", page)) == 3
    assert "onerror" not in page.replace("\\u003cimg src=x onerror=", "") and "<!--" not in page
    index, shown = parts(page)
    assert [tree["text"][1] for tree in shown] == HOSTILE and [tree["question"] for tree in shown] == HOSTILE
    assert index["trees"][0]["id"].startswith(HOSTILE[0])


def test_what_is_odd(run: Path, tmp_path: Path) -> None:
    """Damaged and repeated lines are named; scores that are not finite are none; refused and ungraded trees are shown."""
    lines = (run / "trees.jsonl").read_text().splitlines()
    broken = json.loads(lines[0])
    broken["nodes"][2]["log_flow"], broken["nodes"][2]["scores"] = "nan", {"rfm": "inf"}
    refused = ReasoningTree(prompt="long", error="the prompt is too long", meta={"key": "f" * 16, "id": "r"})
    (run / "trees.jsonl").write_text(
        "\n".join([json.dumps(broken), "{", lines[2], lines[2], refused.to_json(), lines[3][:40]])
    )
    page, head = write_view(run)
    assert [entry["id"] for entry in head["trees"]] == ["p0", "p2", "r"]
    said = "\n".join(head["left_out"])
    assert "line 2: not a reasoning tree" in said and "line 4: question p2 was there before" in said
    assert "line 6: the line is not complete" in said
    _, shown = parts(page.read_text())
    assert shown[0]["flow"][2] is None and shown[0]["scores"]["rfm"][2] is None
    assert (
        shown[2]["error"] == "the prompt is too long" and shown[2]["rules"] == [] and head["trees"][2]["right"] is None
    )
    (run / "grades.jsonl").unlink()
    page, head = write_view(run, tmp_path / "deep" / "view.html", limit=1)
    assert len(head["trees"]) == 1 and not head["graded"] and "nothing is marked right or wrong" in head["left_out"][-1]
    (run / "trees.jsonl").write_text("{\n")
    with pytest.raises(ArtsError, match=r"no tree that can be shown: trees.jsonl, line 1: not a reasoning tree"):
        write_view(run)

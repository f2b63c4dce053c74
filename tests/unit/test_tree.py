"""The tree on disk and in memory."""

import json
import math
from typing import Any

import pytest

from arts_plugin.errors import ArtsError
from arts_plugin.tree import Cost, ReasoningTree

HOSTILE = ["\ud800 alone", "\u2028\u2029\x85", '\x00\n\r\t"\\', "\U0001f600é", "NaN", ""]


def grown() -> ReasoningTree:
    """0 -> (1 -> (2, 3 finished), 4), with every odd value that a search can produce."""
    tree = ReasoningTree(prompt=HOSTILE[0], problem="ff" * 8, strategy="arts", select="flow", scorer="oracle")
    tree.add(
        0, text=HOSTILE[1], token_ids=[5, 6], logprob=-1.5, log_flow=-math.inf, scores={"a": math.inf}, stop="delimiter"
    )
    tree.add(
        1,
        index=1,
        text=HOSTILE[2],
        token_ids=[7],
        logprob=0.1 + 0.2,
        log_flow=math.nan,
        scores={"b": math.nan},
        stop="length",
    )
    tree.add(
        1, text=HOSTILE[3], token_ids=[8, 9], logprob=-math.inf, log_flow=5e-324, terminal=True, stop="stop",
        count=3, cut_chars=2, cut_tokens=1, answer=HOSTILE[4],
    )  # fmt: skip
    tree.add(0, index=2, text=HOSTILE[5], log_flow=None, stop="error")
    tree.chosen, tree.ended_by, tree.error = 3, "budget_nodes", None
    tree.cost = Cost(1, 2, 3, 4, 5, 0.25)
    tree.meta = {"doc": 7, "nested": {"list": [1, None, HOSTILE[1]]}}
    return tree


def test_json_is_lossless() -> None:
    tree = grown()
    line = tree.to_json()
    # NaN is unequal to itself, so trees are compared by what they print.
    assert repr(ReasoningTree.from_json(line)) == repr(tree)
    assert repr(ReasoningTree.from_json(line.encode())) == repr(tree)
    assert ReasoningTree.from_json(line).to_json() == line


def test_json_is_one_line_of_strict_ascii() -> None:
    line = grown().to_json()
    assert line.isascii()
    assert len(line.splitlines()) == 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(line, parse_constant=refuse)


def test_an_empty_tree_survives() -> None:
    assert ReasoningTree.from_json(ReasoningTree().to_json()) == ReasoningTree()


def test_children_are_rebuilt() -> None:
    loaded = ReasoningTree.from_json(grown().to_json())
    assert [node.children for node in loaded.nodes] == [[1, 4], [2, 3], [], [], []]
    assert '"children"' not in grown().to_json()


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_version_is_refused_by_name(version: object) -> None:
    record = json.loads(grown().to_json())
    record["version"] = version
    with pytest.raises(ArtsError, match=f"format {version!r} is not 1"):
        ReasoningTree.from_json(json.dumps(record))


DAMAGE: dict[str, Any] = {
    "no nodes": lambda record: record.update(nodes=[]),
    "nodes missing": lambda record: record.pop("nodes"),
    "nodes null": lambda record: record.update(nodes=None),
    "node a number": lambda record: record.update(nodes=[3]),
    "node a list": lambda record: record["nodes"].insert(1, []),
    "cost missing": lambda record: record.pop("cost"),
    "cost a number": lambda record: record.update(cost=3),
    "unknown field": lambda record: record.update(colour="red"),
    "unknown node field": lambda record: record["nodes"][1].update(colour="red"),
    "unknown stop": lambda record: record["nodes"][1].update(stop="tired"),
    "no root": lambda record: record.update(nodes=record["nodes"][1:]),
    "two roots": lambda record: record["nodes"][2].update(parent=None),
    "own parent": lambda record: record["nodes"][2].update(parent=2),
    "later parent": lambda record: record["nodes"][1].update(parent=3),
    "negative parent": lambda record: record["nodes"][1].update(parent=-1),
    "parent a string": lambda record: record["nodes"][1].update(parent="0"),
    "wrong id": lambda record: record["nodes"][2].update(id=7),
    "scores a list": lambda record: record["nodes"][1].update(scores=[1]),
    "scores null": lambda record: record["nodes"][1].update(scores=None),
    "score a word": lambda record: record["nodes"][1].update(scores={"a": "high"}),
    "flow a word": lambda record: record["nodes"][1].update(log_flow="high"),
    "chosen out of range": lambda record: record.update(chosen=5),
    "chosen negative": lambda record: record.update(chosen=-1),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_refused(damage: Any) -> None:
    record = json.loads(grown().to_json())
    damage(record)
    with pytest.raises(ArtsError, match="damaged reasoning tree"):
        ReasoningTree.from_json(json.dumps(record))


NO_TREES = ["", "{", "null", "3", '"text"', "[]", "{}", '["version"]', b"\xff\xfe", "[" * 100_000]


@pytest.mark.parametrize("line", NO_TREES, ids=[repr(line[:12]) for line in NO_TREES])
def test_what_is_no_tree_is_refused(line: str | bytes) -> None:
    with pytest.raises(ArtsError, match="not a reasoning tree") as error:
        ReasoningTree.from_json(line)
    assert len(str(error.value)) < 1000


def test_half_a_line_is_refused() -> None:
    line = grown().to_json()
    for length in range(0, len(line), 7):
        with pytest.raises(ArtsError):
            ReasoningTree.from_json(line[:length])


def test_a_trajectory_is_cut_across_steps() -> None:
    """The stop string began in the step before: its end takes text and tokens of that step back."""
    tree = ReasoningTree()
    first = tree.add(0, text="one\n", token_ids=[1, 2, 3], logprob=-1.0, stop="delimiter")
    second = tree.add(first.id, text="Qu", token_ids=[4, 5], logprob=-2.0, stop="delimiter")
    end = tree.add(second.id, logprob=-4.0, terminal=True, stop="stop", cut_chars=3, cut_tokens=3)
    other = tree.add(second.id, text="x", token_ids=[6], logprob=-8.0, terminal=True, stop="eos")
    cut = tree.trajectory(end.id)
    assert (cut.text, cut.token_ids) == ("one", (1, 2))
    assert cut.nodes == (0, 1, 2, 3)
    # What the sibling shares with it is not cut.
    assert tree.trajectory(other.id).text == "one\nQux"
    assert tree.trajectory(other.id).token_ids == (1, 2, 3, 4, 5, 6)
    assert tree.trajectory(second.id).text == "one\nQu"


def test_a_trajectory_sums_its_steps() -> None:
    tree = grown()
    unfinished, finished = tree.trajectory(2), tree.trajectory(3)
    assert unfinished.logprob == math.fsum([-1.5, 0.1 + 0.2])
    assert unfinished.mean_logprob == unfinished.logprob / 3
    assert (unfinished.finished, unfinished.order, unfinished.stop) == (False, -1, "length")
    assert (finished.finished, finished.order, finished.count, finished.answer) == (True, 0, 3, "NaN")
    assert finished.text == (HOSTILE[1] + HOSTILE[3])[:-2]
    assert finished.token_ids == (5, 6, 8)
    assert tree.trajectory(0).mean_logprob == 0
    assert tree.text == finished.text
    assert tree.answer == "NaN"


def test_counts_and_orders() -> None:
    tree = grown()
    late = tree.add(4, text="z", terminal=True, count=2)
    assert [t.leaf for t in tree.trajectories()] == [3, late.id]
    assert [t.order for t in tree.trajectories()] == [0, 1]
    assert tree.n_finished == 5
    assert tree.n_proposals == 1 + 1 + 3 + 1 + 2
    assert [node.id for node in tree.leaves()] == [2, 3, late.id]
    assert late.step == 2


def test_renumbering_keeps_every_path() -> None:
    tree = grown()
    before = {node.text: [above.text for above in tree.path(node.id)] for node in tree.nodes}
    chosen = tree.nodes[tree.chosen or 0].text
    tree.renumber([0, 4, 1, 3, 2])
    assert [node.id for node in tree.nodes] == list(range(5))
    assert {node.text: [above.text for above in tree.path(node.id)] for node in tree.nodes} == before
    assert tree.nodes[tree.chosen or 0].text == chosen
    assert [node.children for node in tree.nodes] == [[1, 2], [], [3, 4], [], []]
    assert repr(ReasoningTree.from_json(tree.to_json())) == repr(tree)

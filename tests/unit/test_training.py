"""From recorded trees to a verifier: data that cannot be used, splits, training, resuming, rescoring, comparing."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arts_plugin import checkpoint
from arts_plugin.errors import ArtsError, UnknownNameError
from arts_plugin.features import load as load_features
from arts_plugin.run import RunFolder, read_trees
from arts_plugin.settings import Settings
from arts_plugin.training.compare import compare_runs
from arts_plugin.training.dataset import LabelledTree, describe, read_labelled, read_runs
from arts_plugin.training.grades import Graded, GradesFile
from arts_plugin.training.losses import ReasoningFlowMatching
from arts_plugin.training.pools import main_leaves, pool_of
from arts_plugin.training.rescore import rescore
from arts_plugin.training.train import train
from arts_plugin.training.trainer import Head as TorchHead
from arts_plugin.training.trainer import TrainingSettings, _join, examples, fit, split, within_problem_auc
from arts_plugin.tree import ReasoningTree

N_EMBD, TRACES = 16, 6
QUICK = TrainingSettings(hidden=16, heads=2, epochs=12, learning_rate=5e-3)


def grown(number: int, share: float | None = None) -> tuple[ReasoningTree, dict[int, bool]]:
    """A Sparse-Deep-Fork tree whose hidden states tell, through noise, which way a trace is going."""
    rng = np.random.default_rng(number)
    tree = ReasoningTree(
        prompt=f"<user>question {number}<end>", problem=f"{number:016x}", strategy="sdf", select="majority",
        scorer="logprob", meta={"id": f"p{number}", "question": f"question {number}", "key": f"{number:016x}"},
    )  # fmt: skip
    tree.nodes[0].feature = rng.normal(size=N_EMBD).astype(np.float32)
    tree.nodes[0].token_ids = [1, 2, 3]
    ease, correct = rng.uniform(0.2, 0.8) if share is None else share, {}

    def chain(at: int, index: int, right: bool, steps: int) -> None:
        for step in range(steps):
            last = step == steps - 1
            node = tree.add(
                at, index=index, text="s\n", token_ids=[5, 6], logprob=-1.0, terminal=last,
                stop="eos" if last else "delimiter", answer=("42" if right else str(rng.integers(3))) if last else None,
                scores={"logprob": -0.5},
            )  # fmt: skip
            signal = np.zeros(N_EMBD)
            signal[0] = 1.5 if right else -1.5
            node.feature = (signal + rng.normal(size=N_EMBD)).astype(np.float32)
            at, index = node.id, 0
        correct[at] = right

    for trace in range(TRACES):
        before = len(tree.nodes)
        chain(0, trace, bool(rng.random() < ease), 3)
        if trace % 2:
            chain(before, 1, bool(rng.random() < ease), 2)
    tree.chosen = min(correct)
    return tree, correct


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "run", range(60))


def write(folder: Path, numbers: range, digest: str = "sha256:1", share: float | None = None, **settings: str) -> Path:
    model = {"name": "model", "digest": digest, "general.name": "model"}
    trees = RunFolder(folder, Settings.of(strategy="sdf", trace=str(folder), **settings), model)
    grades = GradesFile(folder)
    for number in numbers:
        tree, correct = grown(number, share)
        trees.put(tree.meta["key"], tree)
        grades.put(Graded(tree.meta["key"], tree.meta["id"], "42", "numeric", correct))
    trees.close()
    grades.close()
    return folder


# Reading.


def test_features_lie_beside_the_tree_and_come_back(run: Path) -> None:
    tree = next(read_trees(run))
    rows = load_features(run, tree.meta["key"], tree, "sha256:1")
    expected = np.stack([node.feature for node in grown(0)[0].nodes])
    np.testing.assert_allclose(rows, expected, atol=2e-3)
    assert tree.nodes[1].feature is None, "they are no part of the JSON"
    with pytest.raises(ArtsError, match="of another model"):
        load_features(run, tree.meta["key"], tree, "sha256:2")
    tree.add(0)
    with pytest.raises(ArtsError, match="and the tree has"):
        load_features(run, tree.meta["key"], tree)


def test_what_cannot_be_used_is_named_with_its_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "run", range(6))
    lines = (folder / "trees.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "trees.jsonl").write_bytes(b"".join([lines[0], b"[]\n", *lines[1:5], lines[5][:100]]))
    (folder / "features" / f"{2:016x}.safetensors").unlink()
    (folder / "features" / f"{3:016x}.safetensors").write_bytes(b"junk")
    grades = (folder / "grades.jsonl").read_text().splitlines()
    (folder / "grades.jsonl").write_text("\n".join([grades[0], "{}", *grades[2:]]) + '\n{"key"')
    found = read_labelled(folder)
    assert [tree.id for tree in found] == ["p0", "p4"]
    said = caplog.text
    for line, fact in (
        (2, "not a reasoning tree"), (3, "no grades"), (4, "does not exist"), (5, "cannot be read"), (7, "not complete"),
    ):  # fmt: skip
        assert any(f"line {line} is left out" in part and fact in part for part in said.splitlines()), (line, said)
    assert "grades.jsonl, line 2 is passed over" in said


def test_features_that_are_not_finite(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "run", range(2))
    tree, _ = grown(0)
    tree.nodes[2].feature[3] = np.inf
    from arts_plugin import features

    features.save(folder, tree.meta["key"], tree, "sha256:1")
    assert [item.id for item in read_labelled(folder)] == ["p1"]
    assert "not finite, node 2 first" in caplog.text


def test_nothing_to_learn_from(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ArtsError, match="no run at"):
        read_labelled(tmp_path)
    for share, kind in ((0.0, "right"), (1.0, "wrong")):
        folder = write(tmp_path / kind, range(20), share=share)
        with pytest.raises(ArtsError, match=f"not one {kind} leaf"):
            train([folder], tmp_path / "out", settings=QUICK, say=lambda line: None)
    one = write(tmp_path / "one", range(1))
    with pytest.raises(ArtsError, match="too few to hold any out"):
        train([one], tmp_path / "out", settings=QUICK, say=lambda line: None)
    other = write(tmp_path / "other", range(70, 72), digest="sha256:2")
    with pytest.raises(ArtsError, match="do not go together: the model"):
        read_runs([run, other])
    split_otherwise = write(tmp_path / "blank", range(70, 72), delimiter="\n\n")
    with pytest.raises(ArtsError, match="do not go together: delimiter"):
        read_runs([run, split_otherwise])


def test_a_problem_that_is_there_twice_counts_once(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = write(tmp_path / "more", range(58, 63))
    trees, _ = read_runs([run, more])
    assert len(trees) == 63
    assert caplog.text.count("was in an earlier run") == 2


def test_features_of_another_size(run: Path) -> None:
    trees, _ = read_runs([run])
    odd = LabelledTree("odd", trees[0].tree, trees[0].correct, np.zeros((len(trees[0].tree.nodes), 5), np.float32))
    with pytest.raises(ArtsError, match="odd has hidden states of size 5, others 16"):
        examples([*trees, odd], QUICK)


def test_description_of_trees(run: Path, tmp_path: Path) -> None:
    trees, _ = read_runs([run])
    assert "60 problems, 540 finished traces" in next(describe(trees))
    lazy = read_labelled(write(tmp_path / "sure", range(3), share=1.0))
    assert any("3 problems have no wrong trace" in line for line in describe(lazy))


# Training.


def test_split_depends_on_ids_alone(run: Path) -> None:
    trees, _ = read_runs([run])
    first, second = split(trees, 0.25, 0), split(trees[::-1][:40], 0.25, 0)
    assert {t.id for t in second[1]} <= {t.id for t in first[1]}
    assert 5 <= len(first[1]) <= 25
    assert {t.id for t in split(trees, 0.25, 1)[1]} != {t.id for t in first[1]}


@pytest.mark.parametrize("feature", ["last", "mean", "shift", "mean_last"])
def test_a_head_learns_what_there_is_to_learn(run: Path, feature: str) -> None:
    trees, _ = read_runs([run])
    settings = TrainingSettings(hidden=16, heads=2, epochs=25, learning_rate=5e-3, feature=feature)
    training, held_out = split(trees, 0.3, 0)
    head, curves = fit(training, held_out, ReasoningFlowMatching(), settings)
    assert len(curves) == 2
    for curve in curves:
        assert curve.rows[curve.best][2] == max(row[2] for row in curve.rows)
    assert curves[0].rows[-1][0] < curves[0].rows[0][0]
    assert max(row[2] for row in curves[0].rows) > 0.85
    again, _ = fit(training, held_out, ReasoningFlowMatching(), settings)
    np.testing.assert_array_equal(head.w1, again.w1)


def test_joined_heads_are_their_mean() -> None:
    torch.manual_seed(0)
    heads = [TorchHead(N_EMBD, 8, 0.1).eval() for _ in range(3)]
    mean, deviation = torch.randn(N_EMBD), torch.rand(N_EMBD) + 0.5
    x = torch.randn(50, N_EMBD) * 3
    with torch.no_grad():
        expected = torch.stack([head((x - mean) / deviation) for head in heads]).mean(0)
    np.testing.assert_allclose(_join(heads, mean, deviation)(x.numpy()), expected.numpy(), atol=1e-5)


def test_auc_counts_ties_as_half() -> None:
    tree, correct = grown(1, 0.5)
    item = LabelledTree("x", tree, correct)
    right = np.array(list(correct.values()), dtype=float)
    assert within_problem_auc([item], [right]) == 1.0
    assert within_problem_auc([item], [np.zeros(len(right))]) == 0.5
    assert within_problem_auc([item], [-right]) == 0.0
    assert math.isnan(within_problem_auc([], []))


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("verifier") / "v"
    train([run], out, baselines=["prm", "leaf", "pairwise"], settings=QUICK, name="mine", say=lambda line: None)
    return out


def test_a_verifiers_folder(trained: Path) -> None:
    made = checkpoint.load(trained)
    assert made.card.name == "mine"
    assert made.card.prompt == ("<user>", "<end>")
    assert made.card.proposer.family == "model"
    assert made.card.is_flow
    figures = json.loads((trained / "validation.json").read_text())
    assert made.card.validation == figures
    assert {"best_of:rfm", "vote:prm", "random", "majority", "oracle", "best_of:logprob"} <= figures["accuracy"].keys()
    assert (trained / "curves.png").read_bytes().startswith(b"\x89PNG")
    prm = checkpoint.load(trained / "baselines" / "prm")
    assert (prm.card.aggregate, prm.card.link, prm.card.is_flow) == ("min", "log_sigmoid", False)
    assert not [path for path in trained.rglob("*") if path.suffix in {".pt", ".pth", ".pkl", ".bin"}]


def test_training_again_resumes(run: Path, trained: Path) -> None:
    """What was finished is kept; a scorer that is missing, or was made otherwise, is trained."""
    before = checkpoint.load(trained).identity()
    (trained / "baselines" / "leaf" / "arts_verifier.json").unlink()
    said: list[str] = []
    train([run], trained, baselines=["prm", "leaf", "pairwise"], settings=QUICK, name="mine", say=said.append)
    kept = [line.split(":")[0] for line in said if "is kept" in line]
    assert kept == ["rfm", "prm", "pairwise"]
    assert any(line.startswith("leaf, head 1") for line in said)
    assert checkpoint.load(trained).identity() == before
    said.clear()
    other = TrainingSettings(hidden=12, heads=1, epochs=2)
    train([run], trained.parent / "other", settings=other, say=said.append)
    assert not any("is kept" in line for line in said)


def test_a_training_that_diverges_is_no_verifier(run: Path, trained: Path, tmp_path: Path) -> None:
    """Scores that are no numbers compare with nothing, so no epoch is better than none; what the folder held before is
    not passed off as this training's."""
    shutil.copytree(trained, tmp_path / "v")
    wild = replace(QUICK, learning_rate=1e30)
    with pytest.raises(ArtsError, match="training diverged: no epoch has a held-out loss that is a number; lower"):
        train([run], tmp_path / "v", settings=wild, name="mine", say=lambda line: None)
    assert not (tmp_path / "v" / checkpoint.CARD_FILE).exists()
    with pytest.raises(ArtsError):
        checkpoint.load(tmp_path / "v")
    assert checkpoint.load(tmp_path / "v" / "baselines" / "prm").card.name == "prm"


# Rescoring and comparing.


def test_rescored_trees(run: Path, trained: Path, tmp_path: Path) -> None:
    found = rescore(run, tmp_path / "r", [str(trained), str(trained / "baselines" / "prm")], "flow")
    assert found.trees == found.graded == 60
    assert found.right_after > found.right_before + 10
    verifier = checkpoint.load(trained).verifier
    for old, new in zip(read_trees(run), read_trees(tmp_path / "r"), strict=True):
        rows = load_features(run, old.meta["key"], old)
        expected = verifier.score_tree(rows, [node.parent for node in old.nodes])
        assert [node.log_flow for node in new.nodes] == expected.tolist()
        assert {"mine", "prm", "logprob"} <= new.nodes[1].scores.keys()
        assert new.scorer == "mine"
        best = max(new.trajectories(), key=lambda t: t.log_flow)
        assert new.chosen == best.leaf
        assert [node.text for node in new.nodes] == [node.text for node in old.nodes]
    with pytest.raises(ArtsError, match="holds a run already"):
        rescore(run, tmp_path / "r", [str(trained)])


def test_another_rule_alone(run: Path, tmp_path: Path) -> None:
    found = rescore(run, tmp_path / "r", [], "majority")
    assert found.trees == 60
    assert {tree.select for tree in read_trees(tmp_path / "r")} == {"majority"}
    with pytest.raises(UnknownNameError, match="did you mean 'majority'"):
        rescore(run, tmp_path / "s", [], "majorty")
    with pytest.raises(UnknownNameError, match="unknown verifier 'nobody'"):
        rescore(run, tmp_path / "s", ["nobody"])


def test_pool_holds_the_main_traces_alone(run: Path) -> None:
    trees = read_labelled(run, with_features=False)
    pool = pool_of(trees)
    assert {len(problem.answers) for problem in pool} == {TRACES}
    item = trees[0]
    assert len(item.correct) == TRACES + TRACES // 2
    assert [item.tree.nodes[leaf].answer for leaf in main_leaves(item.tree)] == list(pool[0].answers)


def test_trees_of_a_guided_search_are_no_pool(run: Path) -> None:
    trees = read_labelled(run, with_features=False)
    trees[3].tree.strategy = "arts"
    with pytest.raises(ArtsError, match="share prefixes"):
        pool_of(trees)


def test_comparison_of_runs(run: Path, trained: Path, tmp_path: Path) -> None:
    rescore(run, tmp_path / "r", [str(trained), str(trained / "baselines" / "prm")])
    text = compare_runs([tmp_path / "r"], out=tmp_path / "c")
    assert "best_of@k, mine" in text and "best_of@6 - prm" in text and "vote@6 - majority@6" in text
    record = json.loads((tmp_path / "c" / "compare.json").read_text())
    by_name = {row["selector"]: row for row in record["rows"]}
    accuracy = by_name["best_of:mine"]["accuracy"]["6"]["mean"]
    assert math.isclose(accuracy, np.mean(record["values"]["best_of:mine"]["6"]))
    assert accuracy > by_name["random"]["accuracy"]["6"]["mean"] + 0.1
    assert (tmp_path / "c" / "compare.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ArtsError, match="no scorer 'nobody'"):
        compare_runs([tmp_path / "r"], scorer="nobody")
    with pytest.raises(ArtsError, match="between 1 and the 6"):
        compare_runs([tmp_path / "r"], ks=[9])


def test_every_message_of_a_run_without_grades(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", range(2))
    (folder / "grades.jsonl").unlink()
    with pytest.raises(ArtsError, match="arts sdf"):
        read_labelled(folder)


def damaged(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_damaged_run_file(tmp_path: Path) -> None:
    folder = damaged(write(tmp_path / "run", range(2)), lambda record: record.pop("model"))
    with pytest.raises(ArtsError, match="is damaged"):
        read_labelled(folder)


def test_a_packed_run_is_a_run_again(run: Path, tmp_path: Path) -> None:
    """The example's script; whole lines only, and no path of this machine."""
    script = Path(__file__).parents[2] / "examples" / "verifier" / "pools.py"
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("trees.jsonl", "grades.jsonl", "run.json"):
        copy.joinpath(name).write_bytes((run / name).read_bytes())
    damaged(copy, lambda record: record["model"].update(file="model.gguf"))
    with (copy / "trees.jsonl").open("a") as file:
        file.write('{"half')
    subprocess.run([sys.executable, script, "--pack", copy, tmp_path / "pool"], check=True)
    subprocess.run([sys.executable, script, tmp_path / "pool", tmp_path / "again"], check=True)
    assert (tmp_path / "again" / "trees.jsonl").read_bytes() == (run / "trees.jsonl").read_bytes()
    assert len(read_labelled(tmp_path / "again", with_features=False)) == 60
    assert str(tmp_path) not in (tmp_path / "again" / "run.json").read_text()
    assert subprocess.run([sys.executable, script, tmp_path / "pool", tmp_path / "again"], check=False).returncode

"""`arts sdf`, `features`, `train`, `rescore`, `compare` as a user types them, on the embedded model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from arts_plugin import Arts, UnknownNameError, checkpoint
from arts_plugin.cli import main
from arts_plugin.errors import ArtsError
from arts_plugin.features import file_of
from arts_plugin.features import load as load_features
from arts_plugin.run import read_trees
from arts_plugin.testing import cosine
from arts_plugin.training.grades import read_grades
from arts_plugin.training.pools import main_leaves
from arts_tasks.demo import load as demo
from tests.models import THREADS, smollm2

TRACES, LIMIT = 4, 10
SHORT = ["--n_ctx", "4096", "--max_gen_toks", "48", *(["--n_threads", str(THREADS)] if THREADS else [])]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Problems whose gold answers are what the model is likely to say, so that there is something to learn."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    docs = list(demo()["test"])[:LIMIT]
    numbers = [{"id": f"d{i}", "question": doc["question"], "answer": doc["answer"]} for i, doc in enumerate(docs)]
    bad = [
        "not json",
        json.dumps({"question": "no answer?"}),
        json.dumps({"question": "Words?", "answer": "a plumber"}),
    ]
    file.write_text("\n".join([*(json.dumps(row) for row in numbers), *bad]) + "\n")
    return file


def command(rows: Path, out: Path) -> list[str]:
    return ["sdf", "--data", str(rows), "--out", str(out), "--traces", str(TRACES), "--model", smollm2(), *SHORT]


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by a process that was killed twice with SIGKILL on the way."""
    out = tmp_path_factory.mktemp("sdf") / "run"
    arguments = [sys.executable, "-m", "arts_plugin.cli", *command(rows, out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    trees, seen = out / "trees.jsonl", 0
    for _ in range(2):
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 200
        while not trees.exists() or trees.read_bytes().count(b"\n") <= seen:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        seen = trees.read_bytes().count(b"\n")
    assert 0 < seen < LIMIT, "killed on the way"
    before = trees.read_bytes()
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert trees.read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "what was finished is not made again"
    assert f"{LIMIT} problems" in done.stdout
    for line, fact in ((LIMIT + 1, "Expecting value"), (LIMIT + 2, "no 'answer'"), (LIMIT + 3, "'a plumber'")):
        assert any(f"line {line}" in part and fact in part for part in done.stderr.splitlines()), done.stderr
    return out


def test_a_run_that_was_killed_is_whole_and_repeats_nothing(run: Path) -> None:
    trees, grades = list(read_trees(run)), read_grades(run)
    assert sorted(tree.meta["id"] for tree in trees) == sorted(f"d{i}" for i in range(LIMIT))
    assert {tree.meta["key"] for tree in trees} == grades.keys()
    for tree in trees:
        assert len(main_leaves(tree)) == TRACES
        assert grades[tree.meta["key"]].correct.keys() == {t.leaf for t in tree.trajectories()}
        assert tree.meta["question"] in tree.prompt
        assert "gold" not in tree.to_json()
    forks = sum(len(node.children) > 1 for tree in trees for node in tree.nodes[1:])
    assert forks > 0
    assert json.loads((run / "run.json").read_text())["model"]["digest"].startswith("sha256:")


def test_features_derived_from_tokens_are_those_of_the_search(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "features")
    done = CliRunner().invoke(main, ["features", str(copy), *(["--n_threads", str(THREADS)] if THREADS else [])])
    assert done.exit_code == 0, done.output
    alike = []
    for tree in read_trees(run):
        seen, derived = (load_features(folder, tree.meta["key"], tree) for folder in (run, copy))
        alike += [cosine(a, b) for a, b in zip(seen, derived, strict=True)]
        assert np.isfinite(derived).all()
    assert min(alike) > 0.99
    assert float(np.median(alike)) > 0.999


def test_the_whole_walk(run: Path, tmp_path: Path) -> None:
    def typed(*arguments: object) -> str:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.output

    labels = read_grades(run)
    if not any(right for graded in labels.values() for right in graded.correct.values()):
        pytest.skip("the model solved nothing in this setting")
    out = tmp_path / "verifier"
    said = typed("train", run, "--out", out, "--validation", "0.4", "--epochs", "3", "--hidden", "8", "--heads", "1")
    assert "held-out problems" in said and "best_of:rfm" in said
    card = (out / "README.md").read_text()
    assert "smollm2" in card.lower() and "arts train" in card
    said = typed("rescore", run, "--verifier", out, "--out", tmp_path / "rescored")
    assert f"{LIMIT} trees" in said and "right:" in said
    said = typed("compare", tmp_path / "rescored", "--out", tmp_path / "figures")
    assert "best_of@k, rfm" in said and "paired differences of rfm" in said
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"compare.json", "compare.md", "compare.png"}


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verifier of random weights with an honest card."""
    from arts_plugin.run import RunInfo
    from arts_plugin.value_head import ValueHead

    tree, info = next(read_trees(run)), RunInfo.read(run)
    place, rng = tmp_path_factory.mktemp("verifier") / "random", np.random.default_rng(0)
    n_embd = load_features(run, tree.meta["key"], tree).shape[1]
    weights = [rng.normal(size=size).astype(np.float32) / n_embd**0.5 for size in ((8, n_embd), 8, 8)]
    checkpoint.Card(
        name="random", proposer=checkpoint.Proposer("smollm2", info.model["digest"], n_embd),
        prompt=checkpoint.prompt_format(tree.prompt, tree.meta["question"]), delimiter="\n", feature="mean",
        aggregate="terminal", link="identity", is_flow=True,
    ).save(place)  # fmt: skip
    ValueHead(*weights, 0.0).save(place / "value_head.safetensors")
    return place


SETTINGS = {"budget_trajectories": 3, "max_gen_toks": 40, "n_ctx": 2048, "n_threads": THREADS}


def test_search_with_a_verifier_from_a_folder(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No warning where it fits; flows of the search are those of the recorded tree."""
    trace = tmp_path / "run"
    with Arts(model=smollm2(), verifier=str(folder), features=True, trace=str(trace), **SETTINGS) as arts:
        tree = arts.solve("Tom has 3 pens and buys 2. How many has he?")
        verifier = arts.trained.verifier
        assert tree.scorer == "random"
        assert tree.select == "flow"
    assert "verifier" not in caplog.text
    rows = load_features(trace, tree.meta["key"], tree)
    assert file_of(trace, tree.meta["key"]).exists()
    found = [node.log_flow for node in tree.nodes]
    np.testing.assert_allclose(found, verifier.score_tree(rows, [node.parent for node in tree.nodes]), atol=5e-3)
    record = json.loads((trace / "run.json").read_text())
    assert record["verifier"]["name"] == "random"
    with (
        pytest.raises(ArtsError, match="the trained verifier was 'random' and is 'none'"),
        Arts(model=smollm2(), verifier="none", trace=str(trace), **SETTINGS) as other,
    ):
        other.solve("Tom has 3 pens and buys 2. How many has he?")


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"delimiter": ". "}, "its steps ended at"), ({"chat": "plain"}, "prompts of another format")],
)
def test_a_verifier_used_otherwise_says_so(
    folder: Path, settings: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Arts(model=smollm2(), verifier=str(folder), **SETTINGS, **settings) as arts:
        arts.solve("What is 2 + 2?", budget_trajectories=1)
        arts.solve("What is 2 + 3?", budget_trajectories=1)
    assert caplog.text.count(said) == 1
    caplog.clear()
    with Arts(model=smollm2(), verifier=str(folder), strategy="greedy", **SETTINGS, **settings) as arts:
        arts.solve("What is 2 + 2?")
    assert said not in caplog.text, "it has nothing to choose"


def test_a_verifier_nobody_knows() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown verifier 'logprop'.*did you mean 'logprob'"):
        Arts(model=smollm2(), verifier="logprop")


def test_training_trees_of_an_lm_eval_task(tmp_path: Path) -> None:
    """The task's own prompt, filters and metric; a task without a training split is refused for training."""
    arguments = ["sdf", "--tasks", "arts_demo", "--limit", "2", "--traces", "2", "--model", smollm2(), *SHORT]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 1
    assert "has no training split" in done.output
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run"), "--split", "test"])
    assert done.exit_code == 0, done.output
    trees, grades = list(read_trees(tmp_path / "run")), read_grades(tmp_path / "run")
    assert {tree.meta["id"] for tree in trees} == {"arts_demo-0", "arts_demo-1"}
    assert {graded.grader for graded in grades.values()} == {
        "arts_demo: acc, none"
    }  # what its labels say under lm-eval
    assert all("<|im_start|>" in tree.prompt for tree in trees)

"""`arts bench` as a user types it, on the embedded model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from arts_plugin.cli import main
from arts_plugin.run import read_trees
from tests.models import THREADS, smollm2

LIMIT, TRACES = 4, 4
SHORT = ["--n_ctx", "4096", *(["--n_threads", str(THREADS)] if THREADS else [])]


def command(out: Path, *more: str) -> list[str]:
    return [
        *("bench", "--tasks", "arts_demo", "--limit", str(LIMIT), "--traces", str(TRACES), "--out", str(out)),
        *("--search", "arts,slots=2", "--search", "arts,slots=2,width=1", "--model", smollm2(), *SHORT, *more),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench")
    done = CliRunner().invoke(main, command(out))
    assert done.exit_code == 0, done.output
    assert f"{LIMIT} questions" in done.output and "| arts slots=2 |" in done.output
    return out


def test_a_search_spends_what_the_pool_spent(folder: Path) -> None:
    """Question by question, and never more."""
    trees = read_trees(folder / "samples")
    spent = {t.meta["id"]: t.cost.decoded_tokens + t.cost.refilled_tokens for t in trees}
    assert len(spent) == LIMIT
    for name in ("arts slots=2", "arts slots=2 width=1"):
        trees = list(read_trees(folder / name))
        assert {tree.meta["id"] for tree in trees} == spent.keys()
        for tree in trees:
            cost = tree.cost.decoded_tokens + tree.cost.refilled_tokens
            assert cost <= spent[tree.meta["id"]]
            # A search ends early only where a token too few is left for a step, or nothing is open.
            assert tree.ended_by in {"budget_tokens", "exhausted"}
    cost = {item["method"]: item for item in json.loads((folder / "bench.json").read_text())["cost"]}
    assert cost["samples"]["traces"] == TRACES and cost["greedy"]["traces"] == 1
    assert all(item["seconds"] > 0 for item in cost.values())


def test_what_is_there_is_compared_without_a_model(folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.glob("*/trees.jsonl")}
    (folder / "bench.md").unlink()
    searches = ["--search", "arts,slots=2", "--search", "arts,slots=2,width=1"]
    done = CliRunner().invoke(
        main, ["bench", "--only_compare", "--out", str(folder), *searches, "--model", "/nowhere.gguf"]
    )
    assert done.exit_code == 0, done.output
    assert f"{LIMIT} questions" in done.output and (folder / "bench.md").exists()
    assert {file: file.read_bytes() for file in folder.glob("*/trees.jsonl")} == before


def test_started_again_it_makes_nothing_twice(folder: Path) -> None:
    """What a kill left unfinished is made; the rest stays as it is, and so does its time."""
    trees = folder / "arts slots=2" / "trees.jsonl"
    whole = trees.read_bytes()
    lines = whole.splitlines(keepends=True)
    trees.write_bytes(b"".join(lines[:-1]) + lines[-1][:100])
    kept = {name: (folder / name / "trees.jsonl").read_bytes() for name in ("greedy", "samples")}
    clocks = {name: (folder / name / "clock.jsonl").read_bytes() for name in kept}
    done = CliRunner().invoke(main, command(folder))
    assert done.exit_code == 0, done.output
    assert trees.read_bytes().startswith(b"".join(lines[:-1]))
    assert len(trees.read_bytes().splitlines()) == LIMIT
    assert {name: (folder / name / "trees.jsonl").read_bytes() for name in kept} == kept
    assert {name: (folder / name / "clock.jsonl").read_bytes() for name in kept} == clocks

    other = CliRunner().invoke(main, command(folder, "--seed", "5"))
    assert other.exit_code == 1
    assert "seed was 0 and is 5" in other.output


def test_the_pool_is_an_lm_eval_run_as_well(folder: Path, tmp_path: Path) -> None:
    """The same prompts, stops and settings: lm-eval finds every tree and generates nothing."""
    before = (folder / "samples" / "trees.jsonl").read_bytes()
    arguments = (
        f"model={smollm2()},strategy=best_of_n,budget_trajectories={TRACES},n_ctx=4096,trace={folder / 'samples'}"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "arts", "--model_args", arguments, "--tasks", "arts_demo"),
            *("--limit", str(LIMIT), "--output_path", str(tmp_path)),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "samples" / "trees.jsonl").read_bytes() == before
    (file,) = tmp_path.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]["arts_demo"]
    rows = {row["label"]: row for row in json.loads((folder / "bench.json").read_text())["rows"]}
    assert results["pass@1,none"] == pytest.approx(rows["one sample"]["accuracy"][0])
    assert results[f"majority@{TRACES},none"] == pytest.approx(rows["majority"]["accuracy"][0])
    assert results[f"oracle@{TRACES},none"] == pytest.approx(rows["oracle of the samples"]["accuracy"][0])


def test_the_run_folders_are_runs(folder: Path) -> None:
    for arguments in (
        ["report", str(folder / "samples"), str(folder / "arts slots=2")],
        ["view", str(folder / "arts slots=2")],
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--data", "{rows}", "--tasks", "arts_demo"], "either --data or --tasks"),
        (["--tasks", "arts_demo", "--metadata", "[1]"], "must be a JSON object"),
        (["--tasks", "arts_demo", "--metadata", "{"], "is no JSON"),
        (["--tasks", "arts_dmo"], "arts_dmo"),
        (["--tasks", "arts_demo", "--search", "beem"], "unknown strategy 'beem'"),
    ],
)
def test_bad_input(arguments: list[str], match: str, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    filled = [part.replace("{rows}", str(rows)) for part in arguments]
    done = CliRunner().invoke(main, ["bench", "--out", str(tmp_path / "out"), "--model", smollm2(), *filled])
    assert done.exit_code != 0
    assert match in done.output

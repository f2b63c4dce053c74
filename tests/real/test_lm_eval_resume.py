"""A run that is killed, and started again: `trace=` under `lm_eval`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.errors import RunFolderError
from arts_plugin.run import RunFolder, read_trees
from arts_plugin.settings import Settings
from arts_tasks.demo import load
from arts_tasks.grade import number
from tests.models import THREADS, smollm2

LIMIT = 6


def command(folder: Path, name: str, **settings: Any) -> list[str]:
    """One question at a time, in steps of a few tokens, so that there is a middle to be killed in."""
    arguments = {"n_threads": THREADS, "n_ctx": 2048, "slots": 2, "budget_trajectories": 2, "max_step_tokens": 16}
    arguments |= {"model": smollm2(), "trace": folder / "run", **settings}
    model_args = ",".join(f"{key}={value}" for key, value in arguments.items() if value is not None)
    return [
        *(sys.executable, "-m", "lm_eval", "--model", "arts", "--tasks", "arts_demo", "--limit", str(LIMIT)),
        *("--model_args", model_args, "--gen_kwargs", "max_gen_toks=48", "--output_path", str(folder / name)),
    ]


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300)


def wait_for_a_tree(process: subprocess.Popen[str], trees: Path) -> None:
    until = time.monotonic() + 200
    while not (trees.exists() and b"\n" in trees.read_bytes()):
        if process.poll() is not None:
            pytest.fail(f"it ended by itself: {process.communicate()[1]}")
        assert time.monotonic() < until, "no tree was written"
        time.sleep(0.01)


def keys(trees: Path) -> list[str]:
    return [json.loads(line)["meta"]["key"] for line in trees.read_bytes().splitlines()]


def accuracy(folder: Path) -> float:
    (file,) = folder.rglob("results_*.json")
    value: float = json.loads(file.read_text())["results"]["arts_demo"]["acc,none"]
    return value


def test_killed_and_started_again(tmp_path: Path) -> None:
    trees = tmp_path / "run" / "trees.jsonl"
    with started(command(tmp_path, "killed")) as process:
        wait_for_a_tree(process, trees)
        with pytest.raises(RunFolderError, match="is being written by another process"):
            RunFolder(tmp_path / "run", Settings(), {"digest": "another"})
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    before = trees.read_bytes()
    whole = before[: before.rindex(b"\n") + 1]
    assert 1 <= whole.count(b"\n") < LIMIT
    with trees.open("ab") as file:
        file.write(b'{"version":1,"prompt":"half a li')
    assert len(list(read_trees(tmp_path / "run"))) == whole.count(b"\n")

    resumed = finished(command(tmp_path, "resumed"))
    assert resumed.returncode == 0, resumed.stderr
    after = trees.read_bytes()
    assert after.startswith(whole) and after.endswith(b"\n")
    assert len(keys(trees)) == len(set(keys(trees))) == LIMIT

    docs = load()["test"]
    found = [number(docs[tree.meta["request"]], [tree.text])["acc"] for tree in read_trees(tmp_path / "run")]
    assert accuracy(tmp_path / "resumed") == sum(found) / LIMIT

    # Once more: nothing is searched, and the scores are those of the trees.
    again = finished(command(tmp_path, "again"))
    assert again.returncode == 0, again.stderr
    assert trees.read_bytes() == after
    assert accuracy(tmp_path / "again") == accuracy(tmp_path / "resumed")

    other = finished(command(tmp_path, "other", width=3, seed=5))
    assert other.returncode != 0
    assert "width was 2 and is 3" in other.stderr and "seed was 0 and is 5" in other.stderr
    assert trees.read_bytes() == after


def test_interrupted(tmp_path: Path) -> None:
    trees = tmp_path / "run" / "trees.jsonl"
    with started(command(tmp_path, "interrupted")) as process:
        wait_for_a_tree(process, trees)
        process.send_signal(signal.SIGINT)
        try:
            _, errors = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            pytest.fail("Ctrl-C did not end it")
    if process.returncode != 0:
        assert "KeyboardInterrupt" in errors and "Segmentation" not in errors
        assert process.returncode in {1, 130, -signal.SIGINT}
    found = list(read_trees(tmp_path / "run"))
    assert found and all(tree.ended_by != "cancelled" and tree.n_finished == 2 for tree in found)
    assert trees.read_bytes().endswith(b"\n")

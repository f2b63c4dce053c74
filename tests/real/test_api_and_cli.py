"""The Python API, the command and the examples on the embedded model."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from arts_plugin import Arts, ModelError, ReasoningTree, SettingsError, UnknownNameError, hookimpl
from arts_plugin.cli import main
from arts_plugin.plugins import Plugins
from tests.models import THREADS, model, smollm2

QUESTIONS = ["What is 3 + 4?", "Tom has 3 pens and buys 2. How many has he?", "What is 6 times 7?"]
SHORT = {"max_gen_toks": 40, "budget_trajectories": 3, "n_ctx": 2048, "verifier": "none", "n_threads": THREADS}


@pytest.fixture(scope="module")
def arts() -> Iterator[Arts]:
    with Arts(model=smollm2(), **SHORT) as made:
        yield made


def shape(tree: ReasoningTree) -> list[tuple[object, ...]]:
    return [(n.parent, n.index, n.count, n.terminal, n.stop) for n in tree.nodes]


def test_solve_many_is_batched_and_in_order(arts: Arts) -> None:
    trees = arts.solve_many(QUESTIONS)
    for question, tree in zip(QUESTIONS, trees, strict=True):
        assert question in tree.prompt
        assert tree.n_finished == 3
        assert tree.ended_by == "budget_trajectories"
        assert tree.text == tree.trajectory(tree.chosen or 0).text
        assert ReasoningTree.from_json(tree.to_json()).to_json() == tree.to_json()
    assert arts.backend.n_active == 0


def test_events_come_as_steps_do(arts: Arts) -> None:
    seen: list[int] = []
    tree = arts.solve(QUESTIONS[0], on_event=lambda event: seen.extend(node.id for node in event.nodes))
    assert set(seen) == set(range(1, len(tree.nodes)))
    kinds = [event.kind for event in arts.stream(QUESTIONS[:1])]
    assert kinds[-1] == "finished"
    assert kinds.count("expanded") > 1


def test_leaving_a_stream_early_cancels_what_runs(arts: Arts) -> None:
    stream = arts.stream(QUESTIONS)
    next(stream)
    assert arts.backend.n_active > 0
    stream.close()  # type: ignore[attr-defined]
    assert arts.backend.n_active == 0
    assert arts.solve(QUESTIONS[0]).n_finished == 3


def test_overrides_hold_for_one_call(arts: Arts) -> None:
    assert arts.solve(QUESTIONS[0], strategy="best_of_n", budget_trajectories=2).n_finished == 2
    assert arts.settings.budget_trajectories == 3
    with pytest.raises(SettingsError, match="budget_trajectories"):
        arts.solve(QUESTIONS[0], budget_trajectories=0)


def test_temperature_zero_is_said_once_and_makes_one_trajectory(arts: Arts, caplog: pytest.LogCaptureFixture) -> None:
    trees = arts.solve_many(QUESTIONS[:2], temperature=0)
    assert [tree.n_finished for tree in trees] == [1, 1]
    assert sum("temperature is 0" in record.message for record in caplog.records) == 1


def test_no_verifier_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with Arts(model=model("gemma3"), **{**SHORT, "verifier": "auto"}) as arts:
        arts.solve_many(QUESTIONS[:2])
    assert sum("no trained verifier" in record.message for record in caplog.records) == 1


def test_a_delimiter_that_never_occurs_is_said_after_the_first_question(caplog: pytest.LogCaptureFixture) -> None:
    with Arts(model=smollm2(), **SHORT, delimiter="\0") as arts:
        arts.solve_many(QUESTIONS[:2])
    assert sum("did not occur" in record.message for record in caplog.records) == 1


def test_one_bad_question_does_not_lose_the_others(arts: Arts) -> None:
    trees = arts.solve_many([QUESTIONS[0], "word " * 3000, QUESTIONS[1]])
    assert [tree.error is None for tree in trees] == [True, False, True]
    assert "n_ctx=2048" in str(trees[1].error)
    assert (trees[1].ended_by, trees[1].chosen) == ("refused", None)


def test_run_folder_answers_without_generating(tmp_path: Path) -> None:
    with Arts(model=smollm2(), **SHORT, trace=str(tmp_path / "run")) as first:
        trees = first.solve_many(QUESTIONS[:2])
    with Arts(model=smollm2(), **SHORT, trace=str(tmp_path / "run")) as second:
        again = second.solve_many(QUESTIONS[:2])
        assert second.backend.stats.decoded_tokens == 0
    assert [tree.to_json() for tree in again] == [tree.to_json() for tree in trees]


def test_names_are_checked_before_the_model_is_loaded() -> None:
    for wrong in ({"strategy": "artss"}, {"select": "flowy"}, {"extract": "boxd"}, {"backend": "llama"}):
        with pytest.raises(UnknownNameError, match="did you mean"):
            Arts(model="nowhere.gguf", **wrong)
    with pytest.raises(UnknownNameError, match="logprob"):
        Arts(model="nowhere.gguf", verifier="logprobs")
    with pytest.raises(ModelError, match=r"nowhere\.gguf"):
        _ = Arts(model="nowhere.gguf").backend


def test_observers_see_the_search() -> None:
    class Counter:
        def __init__(self) -> None:
            self.counts = {"expanded": 0, "scored": 0, "finished": 0}

        @hookimpl
        def arts_expanded(self, tree: ReasoningTree, nodes: list[object]) -> None:
            self.counts["expanded"] += len(nodes)

        @hookimpl
        def arts_scored(self, nodes: list[object]) -> None:
            self.counts["scored"] += len(nodes)

        @hookimpl
        def arts_finished(self, tree: ReasoningTree) -> None:
            self.counts["finished"] += 1

    registry, counter = Plugins(), Counter()
    registry.register(counter, "counter")
    with Arts(model=smollm2(), registry=registry, **SHORT) as arts:
        tree = arts.solve(QUESTIONS[0])
    assert counter.counts["finished"] == 1
    assert counter.counts["expanded"] == counter.counts["scored"] == tree.n_proposals


def threads() -> list[str]:
    return ["--n_threads", str(THREADS)] if THREADS else []


def test_command_solve(tmp_path: Path) -> None:
    command = [
        "solve",
        QUESTIONS[0],
        "--model",
        smollm2(),
        "--max-gen-toks",
        "40",
        "--budget-trajectories",
        "2",
        *threads(),
    ]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "2 finished trajectories" in done.output
    as_json = CliRunner().invoke(main, [*command, "--json"])
    tree = ReasoningTree.from_json(next(line for line in as_json.output.splitlines() if line.startswith("{")))
    assert tree.n_finished == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["solve", "x", "--model", "none.gguf"], "no model file"),
        (["solve", "x", "--strategy", "artz"], "did you mean 'arts'"),
        (["solve", "x", "--budget-tokens", "-1"], "must be at least 1"),
        (["solve", "  "], "the question is empty"),
        (["solve", "x", "--max_tokens", "3"], "No such option"),
    ],
)
def test_command_errors_have_no_traceback(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code != 0
    assert message in done.output
    assert "Traceback" not in done.output


def test_command_doctor_and_plugins() -> None:
    done = CliRunner().invoke(main, ["doctor", "--model", smollm2(), "--no-speed"])
    assert done.exit_code == 0, done.output
    assert "SmolLM2" in done.output
    broken = CliRunner().invoke(main, ["doctor", "--model", "none.gguf"])
    assert broken.exit_code == 1
    assert "FAIL" in broken.output and "none.gguf" in broken.output
    infos = json.loads(CliRunner().invoke(main, ["plugins", "--json"]).output)
    assert {"builtin", "llama_cpp"} <= {info["name"] for info in infos}


def test_example_solve(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "solve.py"
    monkeypatch.setattr(sys, "argv", [str(example), smollm2()])
    if THREADS:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(THREADS)), raising=False)
    runpy.run_path(str(example), run_name="__main__")
    out = capsys.readouterr().out
    assert "step 1, score" in out
    assert "4 finished" in out

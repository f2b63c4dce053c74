"""Backend `server` on servers that fail: what passes leaves no mark; other failures end the run with what is finished kept."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from server_searches import QUESTIONS, Make, Serve, found, reference

from arts_plugin.errors import ModelError
from arts_server.faults import ServerError

pytestmark = pytest.mark.usefixtures("impatient")

PASSING = [
    *("500", "503", "429", "garbage", "half", "list", "error body", "no choices", "drop", "short"),
    *("no ids", "nan", "duplicate"),
]


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_leaves_no_mark(fault: str, serve: Serve, arts: Make) -> None:
    server = serve()
    server.faults.extend([None, fault, None, None, fault, fault])
    with arts(server) as search:
        trees = search.solve_many(QUESTIONS)
    assert not server.faults
    assert all(tree.error is None and "errors" not in tree.meta for tree in trees)
    assert found(trees) == reference(serve, arts)


def test_a_storm_of_429(serve: Serve, arts: Make) -> None:
    server = serve()
    server.faults.extend(["429"] * 12)
    with arts(server, max_retries=0, slots=4) as search:
        trees = search.solve_many(QUESTIONS[:1])
    assert found(trees) == reference(serve, arts)[:1]


def test_a_reply_that_trickles(serve: Serve, arts: Make) -> None:
    server = serve()
    server.faults.append("loris")
    with arts(server, timeout=1.0) as search:
        trees = search.solve_many(QUESTIONS)
    assert found(trees) == reference(serve, arts)


def test_a_server_that_stays_broken_ends_the_run(serve: Serve, arts: Make) -> None:
    server = serve()
    server.faults.extend(["500"] * 50)
    with arts(server, max_retries=1) as search, pytest.raises(ServerError, match=r"500.*max_retries=1"):
        search.solve_many(QUESTIONS)


def test_redirects_are_not_followed(serve: Serve, arts: Make) -> None:
    server = serve()
    server.faults.append("redirect")
    with (
        arts(server) as search,
        pytest.raises(ServerError, match=r"redirects to http://127.0.0.1:9/v1.*give that address"),
    ):
        search.solve("one")


def test_a_refused_question_costs_the_others_nothing(serve: Serve, arts: Make) -> None:
    server = serve()
    server.refuse = lambda prompt: "[user] two" in prompt
    with arts(server) as search:
        trees = search.solve_many(QUESTIONS)
    expected = reference(serve, arts)
    assert found([trees[0], trees[2]]) == [expected[0], expected[2]]
    assert "this prompt is refused" in trees[1].meta["errors"][0]


def test_one_of_two_replicas_dies(serve: Serve, arts: Make) -> None:
    first, second = serve(), serve()
    first.delay = second.delay = 0.02
    with arts(first, second, budget_trajectories=6) as search:
        trees = []
        for event in search.stream(QUESTIONS * 2):
            if event.kind == "finished":
                trees.append(event)
            elif len(first.completions) >= 3 and first._http.socket.fileno() >= 0:
                first.kill()
    by_question = {event.job.meta["number"]: event.tree for event in trees}
    assert len(trees) == len(by_question) == 6
    expected = reference(serve, arts)
    assert found([by_question[i] for i in range(3)]) == expected
    assert found([by_question[i] for i in range(3, 6)]) == expected


def test_a_run_goes_on_where_a_dead_server_left_it(serve: Serve, arts: Make, tmp_path: Path) -> None:
    server = serve()
    server.delay = 0.02
    folder = tmp_path / "run"
    done = 0
    with arts(server, trace=str(folder), max_retries=1, slots=6) as search, pytest.raises(ServerError):
        for event in search.stream(QUESTIONS):
            if event.kind == "finished":
                done += 1
                if done == 1:
                    server.kill()
    assert 1 <= done < 3
    again = serve()
    with arts(again, trace=str(folder), slots=6) as search:
        trees = search.solve_many(QUESTIONS)
    assert found(trees) == reference(serve, arts)
    assert len((folder / "trees.jsonl").read_text().splitlines()) == 3
    asked = {bytes(body["prompt"]).decode().split("\n")[0] for body in again.completions}
    assert len(asked) == 3 - done


@pytest.mark.parametrize("traced", [True, False])
def test_what_a_run_that_ends_in_an_error_leaves_is_said(
    traced: bool, serve: Serve, arts: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the error goes up, for whoever runs it: how much is kept, where, and how to go on."""
    folder = {"trace": str(tmp_path / "run")} if traced else {}
    said = (
        "question(s) were finished and are kept in trace=" if traced else "finished question(s) had found; trace=FOLDER"
    )
    questions = [f"question {number}" for number in range(12)]
    before = 0
    for _ in range(2 if traced else 1):
        caplog.clear()
        server, done = serve(), 0
        server.delay = 0.02
        with arts(server, slots=6, max_retries=0, **folder) as search, pytest.raises(ServerError):
            for event in search.stream(questions):
                done += event.kind == "finished"
                if done == before + 1:
                    server.kill()
        assert before < done < len(questions)
        assert f"{done} {said}" in caplog.text, "what an earlier run has finished is kept as well"
        before = done


def test_down_at_start(arts: Make, serve: Serve) -> None:
    server = serve()
    server.kill()
    with arts(server) as search, pytest.raises(ServerError, match=rf"{server.port}.*Is it running"):
        search.solve("one")


def test_a_replica_that_is_down_at_start_is_said(serve: Serve, arts: Make, caplog: pytest.LogCaptureFixture) -> None:
    dead, alive = serve(), serve()
    dead.kill()
    with arts(dead, alive) as search:
        trees = search.solve_many(QUESTIONS)
    assert found(trees) == reference(serve, arts)
    assert f"going on without a replica for now: http://127.0.0.1:{dead.port}" in caplog.text


def test_a_model_that_it_has_not(serve: Serve, arts: Make) -> None:
    with (
        arts(serve(), model="other") as search,
        pytest.raises(ModelError, match="no model 'other'; it has scripted"),
    ):
        search.solve("one")


def test_replicas_of_two_models(serve: Serve, arts: Make) -> None:
    with arts(serve(), serve(model="other")) as search, pytest.raises(ModelError, match="not alike"):
        search.solve("one")


def test_a_key_comes_from_the_environment_and_goes_nowhere_else(
    serve: Serve,
    arts: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("ARTS_API_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    server = serve()
    server.faults.append("401")
    folder = tmp_path / "run"
    with (
        arts(server, trace=str(folder)) as search,
        pytest.raises(ServerError, match=r"401.*set ARTS_API_KEY") as error,
    ):
        search.solve("one")
    assert server.keys == {"Bearer sk-very-secret"}
    written = "".join(file.read_text() for file in folder.rglob("*") if file.is_file())
    assert "secret" not in str(error.value) + caplog.text + written

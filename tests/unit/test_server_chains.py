"""Backend `server` on chains that go on whatever comes: a request each, handed out step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripted_completions import STEPS
from scripted_server import ScriptedServer
from server_searches import Make, Serve

from arts_plugin.backend import Generation, Prompt
from arts_plugin.settings import Settings
from arts_plugin.testing import run
from arts_plugin.tree import ReasoningTree
from arts_server.backend import ServerBackend

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def search(serve: Serve, arts: Make) -> Callable[..., tuple[ReasoningTree, ScriptedServer]]:
    """A tree, and the server that was asked."""

    def solve(**settings: Any) -> tuple[ReasoningTree, ScriptedServer]:
        server = serve()
        with arts(server, **settings) as found:
            return found.solve("one"), server

    return solve


Search = Callable[..., tuple[ReasoningTree, ScriptedServer]]


def texts(tree: ReasoningTree) -> list[str]:
    return [trajectory.text for trajectory in tree.trajectories()]


def test_a_chain_is_a_request(search: Search) -> None:
    """All of it, its own (others need not wait for the longest), and its steps are those of any other tree."""
    tree, server = search()
    assert len(server.completions) == 6
    for body in server.completions:
        assert "n" not in body and "stop" not in body and "stream" not in body
        assert body["max_tokens"] == 512
    assert tree.n_finished == 6
    assert all(len(tree.path(t.leaf)) == 1 + STEPS + 1 for t in tree.trajectories())
    assert [node.stop for node in tree.path(tree.trajectories()[0].leaf)[1:]] == ["delimiter"] * STEPS + ["eos"]
    assert tree.cost.decoded_tokens == sum(len(t.token_ids) + 1 for t in tree.trajectories())


@pytest.mark.parametrize(
    ("changes", "longest"),
    [({}, 64), ({"max_step_tokens": 5}, 5), ({"delimiter": "regex:\\d"}, 64), ({"delimiter": " "}, 64)],
)
def test_what_is_handed_out_is_what_was_generated(changes: dict[str, Any], longest: int, serve: Serve) -> None:
    """The traces are those that come as one step, token for token, however they are cut."""
    server = serve()
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
    prompt = Prompt("q", tuple(b"q\n"))
    whole = run(backend, prompt, Generation(delimiter="never", chains=True), range(6))
    cut = run(backend, prompt, Generation(**changes, chains=True), range(6))
    backend.close()
    assert all(len(trace.steps) == 1 for trace in whole)
    assert all(len(trace.steps) > 2 for trace in cut)
    assert [trace.text for trace in cut] == [trace.text for trace in whole]
    assert [trace.tokens for trace in cut] == [trace.tokens for trace in whole]
    assert [trace.logprob for trace in cut] == pytest.approx([trace.logprob for trace in whole])
    assert max(len(step.token_ids) for trace in cut for step in trace.steps) <= longest
    assert len(server.completions) == 12
    assert not any("stream" in body for body in server.completions)


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_tokens": 10_000},
        {"budget_nodes": 100},
        {"budget_seconds": 60.0},
        {"budget_trajectories": 1},
        {"strategy": "greedy"},
        {"strategy": "arts"},
        {"strategy": "beam"},
    ],
)
def test_what_may_end_or_be_read_along_goes_step_by_step(changes: dict[str, Any], search: Search) -> None:
    """A budget must not be overdrawn by what nobody will ask for, and a single chain is shown as it grows."""
    _, server = search(**changes)
    assert all(body["stop"] == ["\n"] for body in server.completions)


def test_the_limit_of_a_trace(search: Search) -> None:
    tree, server = search(max_gen_toks=12)
    assert {body["max_tokens"] for body in server.completions} == {12}
    assert {len(t.token_ids) for t in tree.trajectories()} == {12}
    assert {t.stop for t in tree.trajectories()} == {"length"}


def test_stop_strings_of_a_task(serve: Serve) -> None:
    server = serve()
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
    found = run(backend, Prompt("q", tuple(b"q\n")), Generation(stops=("answer",), chains=True), range(3))
    backend.close()
    assert [body["stop"] for body in server.completions] == [["answer"]] * 3
    assert all(trace.text.endswith("The ") and trace.text.count("\n") == STEPS for trace in found)


def test_only_the_first_branch_goes_on_with_what_was_generated(search: Search) -> None:
    """Sparse Deep Fork: the fork from a state that a main trace has passed is drawn anew."""
    tree, server = search(strategy="sdf", width=6, fork_probability=1.0, budget_trajectories=12)
    assert tree.n_finished == 12
    assert len(server.completions) == 12
    again = [bytes(body["prompt"]).decode().split("[assistant] ")[1] for body in server.completions]
    assert sum(bool(above) for above in again) == 6  # the forks', from within
    assert len({body["seed"] for body in server.completions}) == 12
    assert len(set(texts(tree))) > 6


def test_a_failure_costs_a_chain_nothing(search: Search, serve: Serve, arts: Make) -> None:
    whole, _ = search()
    server = serve()
    server.faults.extend(["half", "503", None, "garbage"])
    with arts(server) as failing:
        tree = failing.solve("one")
    assert not server.faults
    assert texts(tree) == texts(whole)


@pytest.mark.parametrize("dialect", ["text", "vllm"])
@pytest.mark.parametrize("budget", [20, 25, 30, 33])
def test_streams_that_break_off_spend_no_more_than_the_budget(
    dialect: str, budget: int, serve: Serve, arts: Make
) -> None:
    """What a try has cost is spent, and the next one asks for what is left."""
    server = serve(dialect=dialect)
    server.faults.extend(["cut stream", None] * 20)
    with arts(server, budget_tokens=budget, slots=1, chat="plain", delimiter="regex:\n") as search:
        tree = search.solve("one")
    assert tree.ended_by == "budget_tokens"
    kept = sum(len(node.token_ids) for node in tree.nodes[1:])
    assert kept < tree.cost.decoded_tokens == budget
    assert not tree.meta.get("errors")


@pytest.mark.parametrize("settings", [{}, {"budget_nodes": 100}, {"budget_tokens": 10_000}])
def test_whole_replies_that_do_not_come_are_counted_once(
    settings: dict[str, Any], search: Search, serve: Serve, arts: Make
) -> None:
    """Nobody knows how much of them was generated."""
    whole, _ = search(**settings)
    server = serve()
    server.faults.extend(["half", "drop", "nan", None, "garbage", "no ids"])
    with arts(server, **settings) as failing:
        tree = failing.solve("one")
    assert not server.faults
    assert tree.cost.decoded_tokens == whole.cost.decoded_tokens

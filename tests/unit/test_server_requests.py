"""What backend `server` asks of a server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from server_searches import QUESTIONS, Make, Serve

from arts_plugin.backend import Generation, Prompt, Sampling
from arts_plugin.errors import ArtsError, PromptTooLongError, SettingsError
from arts_plugin.settings import Settings
from arts_plugin.testing import run
from arts_server.backend import ServerBackend
from arts_server.dialect import Dialect, payload

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize(
    "changes", [{"json_schema": {"type": "object"}}, {"frequency_penalty": 0.1}, {"presence_penalty": 0.1}]
)
def test_what_depends_on_earlier_steps_is_refused(changes: dict[str, Any], serve: Serve) -> None:
    with pytest.raises(SettingsError, match="begin them anew with every step"):
        ServerBackend(Settings.of(backend="server", base_url=serve().url, **changes))


def test_biases_and_penalties_are_asked_for() -> None:
    sampling = Sampling(repetition_penalty=1.2, logit_bias=((5, -100.0),))
    body = payload(Dialect("m"), "text", 1, 5, sampling, 0, ())
    assert (body["repetition_penalty"], body["logit_bias"]) == (1.2, {"5": -100.0})
    body = payload(Dialect("m", tokenizer="llama-server"), "text", 1, 5, sampling, 0, ())
    assert (body["repeat_penalty"], body["repeat_last_n"]) == (1.2, 1 << 16)
    assert "logit_bias" not in payload(Dialect("m"), "text", 1, 5, Sampling(), 0, ())


def test_a_step_is_a_request_and_siblings_are_one(serve: Serve, arts: Make) -> None:
    server = serve()
    with arts(server, budget_nodes=100) as search:
        tree = search.solve("one")
    first, *others = server.completions
    assert first["n"] == 6
    assert first["stop"] == ["\n"]
    assert bytes(first["prompt"]).decode().endswith("[assistant] ")
    assert all("n" not in body for body in others)
    steps = [node for node in tree.nodes[1:] if node.parent is not None]
    assert [bytes(node.token_ids).decode() for node in steps] == [node.text for node in steps]
    assert len(others) == 6 * 2  # each trace goes on twice: a line and the answer
    for body in others:
        above = bytes(body["prompt"]).decode().split("[assistant] ")[1]
        assert above.count("\n") in {1, 2}


def test_siblings_draw_the_same_alone_and_together(serve: Serve) -> None:
    prompt = Prompt("q\n", tuple(b"q\n"))
    seen = []
    for many in (True, False):
        server = serve() if many else serve(dialect="vllm")
        backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
        if not many:
            backend.dialect = backend.reader.dialect = _without_n(backend)
        seen.append([trace.text for trace in run(backend, prompt, Generation(), range(4))])
        assert any(body.get("n") == 4 for body in server.completions) == many
        backend.close()
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 1


def test_greedy_siblings_are_requests_of_their_own(serve: Serve) -> None:
    server = serve()
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
    run(backend, Prompt("q", tuple(b"q\n")), Generation(Sampling(temperature=0.0)), range(3))
    assert all("n" not in body for body in server.completions)
    backend.close()


def test_stop_strings_of_a_task(serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve().url, slots=4))
    (trace,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(stops=("answer",)))
    assert trace.text.endswith("The ")
    assert trace.steps[-1].stop == "stop"
    assert bytes(trace.tokens).decode() == trace.text
    (trace,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(stops=("0\nThe", "1\nThe", "2\nThe", "\nThe")))
    assert trace.steps[-1].cut_chars >= 1
    assert not trace.text.endswith("\n")
    backend.close()


def test_limits(serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve().url, slots=4))
    prompt = Prompt("q", tuple(b"q\n"))
    (trace,) = run(backend, prompt, Generation(max_step_tokens=4, max_gen_toks=10))
    assert next(len(step.token_ids) for step in trace.steps) == 4
    assert next(step.stop for step in trace.steps) == "length"
    assert len(trace.tokens) == 10
    assert trace.steps[-1].terminal
    with pytest.raises(PromptTooLongError, match="5000 tokens and the server's context 4096"):
        backend.open(Prompt("long", (65,) * 5000), Generation(), 1)
    backend.close()


def test_an_expression_as_delimiter_is_streamed(serve: Serve) -> None:
    server = serve()
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
    (trace,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(delimiter=r"regex:\d\n"))
    (whole,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(delimiter="\n"))
    assert trace.text == whole.text
    assert [step.text for step in trace.steps] == [step.text for step in whole.steps]
    assert sum(bool(body.get("stream")) for body in server.completions) == len(trace.steps)
    backend.close()


def test_no_more_branches_than_slots(serve: Serve, arts: Make) -> None:
    server = serve()
    server.delay = 0.01
    with arts(server, slots=5) as search:
        search.solve_many(QUESTIONS * 2)
    assert 1 < server.most <= 5


def test_a_question_stays_on_its_replica(serve: Serve, arts: Make) -> None:
    first, second = serve(), serve()
    with arts(first, second, slots=12) as search:
        search.solve_many(QUESTIONS[:2])
    homes = Counter(
        (server.port, bytes(body["prompt"]).decode().split("\n")[0])
        for server in (first, second)
        for body in server.completions
    )
    assert len({question for _, question in homes}) == len({port for port, _ in homes}) == len(homes) == 2, homes


def test_cost(serve: Serve, arts: Make) -> None:
    server = serve()
    with arts(server) as search:
        tree = search.solve("one")
    sent = sum(len(body["prompt"]) for body in server.completions)
    assert tree.cost.cached_tokens == 3 * len(server.completions)
    assert tree.cost.prefilled_tokens == sent - tree.cost.cached_tokens
    assert tree.cost.decoded_tokens == sum(len(t.token_ids) + 1 for t in tree.trajectories())  # and its end


def test_what_is_cancelled_is_closed(serve: Serve) -> None:
    server = serve()
    server.delay = 0.5
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
    root = backend.open(Prompt("q", tuple(b"q\n")), Generation(delimiter=r"regex:\n"), 1)
    state = backend.fork(root, 0)
    backend.submit(state, 20)
    backend.poll()
    backend.cancel(state)
    assert backend.n_active == 0
    _until(lambda: server.abandoned == 1)
    assert server.running == 0
    with pytest.raises(ArtsError, match="has ended"):
        backend.submit(state, 5)
    backend.close()


def _without_n(backend: ServerBackend) -> Any:
    from dataclasses import replace

    return replace(backend.dialect, many=False)


def _until(met: Callable[[], bool]) -> None:
    gate = threading.Event()
    for _ in range(200):
        if met():
            return
        gate.wait(0.05)
    raise AssertionError("it did not come about in ten seconds")

"""What goes wrong behind `arts serve`: whoever asked is told, in OpenAI's form, and the others are served on."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from scripted import Oracle
from scripted_server import ScriptedServer
from served import HTTP, Serve, Served, ask, events, request_head, serving, until

from arts_plugin import RunFolderError, SettingsError
from arts_plugin.backend import Grammar
from arts_plugin.engine import guide_process
from arts_plugin.engine.guide_process import Followed, nobody_waits
from arts_plugin.plugins import Plugins
from arts_plugin.run import RunFolder, read_trees
from arts_plugin.serve import answers, app, protocol
from arts_plugin.serve.decided import Teller
from arts_plugin.serve.protocol import Limits, read
from arts_plugin.serve.service import News, Ready, Service
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


@pytest.fixture
def upstream(impatient: None) -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.kill()


def behind(serve: Serve, upstream: ScriptedServer, **settings: Any) -> Served:
    """A server in front of another."""
    own = {"backend": "server", "base_url": upstream.url, "strategy": "best_of_n", "max_retries": 1}
    return serve(**{**own, **settings})


def strict(text: str) -> Any:
    """JSON without the words that are none."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


class TestOneRequestAlone:
    """A failure of one request's own."""

    @pytest.mark.parametrize("stream", [False, True])
    def test_an_answer_that_cannot_be_given(
        self, stream: bool, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        served = serve(trace=str(tmp_path / "run"), slow=0.005, max_gen_toks=150)
        put = RunFolder.put

        def fail(folder: RunFolder, key: str, tree: ReasoningTree) -> None:
            if tree.answer == "3":
                raise OSError("the disk is full")
            put(folder, key, tree)

        monkeypatch.setattr(RunFolder, "put", fail)
        other: list[int] = []
        beside = threading.Thread(target=lambda: other.append(served.chat("for ever").status_code))
        beside.start()
        until(lambda: served.backend.n_active > 0)
        reply = served.chat("one way", stream=stream)
        assert "the disk is full" in reply.text
        assert stream or reply.status_code == 503
        beside.join()
        assert other == [200]
        assert served.get("/health").json()["waiting"] == 0

    def test_a_choice_against_what_was_said(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        served = serve(slow=0.01)
        rest, failed = Teller.rest, []

        def once(self: Teller, tree: Any) -> Iterator[str]:
            if not failed:
                failed.append(True)
                raise ValueError("out of the question before")
            return rest(self, tree)

        monkeypatch.setattr(Teller, "rest", once)
        assert "out of the question before" in served.chat("one way", stream=True).text
        assert events(served.chat("one way", stream=True))[-1]["arts"]["answer"] == "3"

    def test_a_step_that_cannot_be_told(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        served = serve(slow=0.01, max_gen_toks=190)
        with monkeypatch.context() as patch:
            patch.setattr(Teller, "more", lambda *_: 1 / 0)
            assert "division by zero" in served.chat("for ever", stream=True).text
        until(lambda: served.backend.n_active == 0)
        assert served.chat("one way", stream=True).status_code == 200

    def test_what_nobody_expected(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        served = serve()
        monkeypatch.setattr(answers, "answer", lambda *_: 1 / 0)
        reply = served.chat("one way")
        assert (reply.status_code, reply.json()["error"]["message"]) == (500, "the server failed: ZeroDivisionError")


class TestEngine:
    """The model's own failures."""

    @pytest.mark.parametrize("worth", [-math.inf, math.nan, math.inf])
    def test_scores_that_are_no_numbers(self, worth: float, serve: Serve) -> None:
        served = serve(scorer=Oracle(lambda text: worth))
        whole = served.chat("one way")
        assert whole.status_code == 200
        assert strict(whole.text)["arts"]["log_flow"] is None
        lines = [line[6:] for line in served.chat("one way", stream=True).text.splitlines() if line[:7] == "data: {"]
        assert [strict(line) for line in lines][-1]["arts"]["log_flow"] is None

    def test_every_trajectory_ends_in_an_error(self, serve: Serve, upstream: ScriptedServer, tmp_path: Path) -> None:
        served = behind(serve, upstream, trace=str(tmp_path / "run"))
        upstream.refuse = lambda prompt: "two" in prompt
        reply = served.chat("two")
        assert reply.status_code == 502
        assert "this prompt is refused" in reply.json()["error"]["message"]
        assert "this prompt is refused" in served.chat("two", stream=True).text
        with pytest.raises(openai.InternalServerError, match="this prompt is refused"):
            served.client().chat.completions.create(model="", messages=[{"role": "user", "content": "two"}])
        upstream.refuse = lambda prompt: False
        assert served.chat("two").status_code == 200  # the failure was not kept
        assert len(list(read_trees(tmp_path / "run"))) == 1

    def test_an_engine_that_is_down_while_a_prompt_is_read(self, serve: Serve, upstream: ScriptedServer) -> None:
        served = behind(serve, upstream)
        assert served.chat("one").status_code == 200
        upstream.kill()
        for stream in (False, True):
            reply = served.chat("five", stream=stream)
            assert (reply.status_code, reply.json()["error"]["type"]) == (503, "server_error")
            assert "retry-after" in reply.headers

    @pytest.mark.parametrize("limit", [40, 77, 5000])
    @pytest.mark.parametrize("strategy", ["best_of_n", "arts"])
    def test_tokens_of_whole_traces_are_within_the_limit(
        self, strategy: str, limit: int, serve: Serve, upstream: ScriptedServer
    ) -> None:
        """A chain is asked for whole, and counts whole before it is asked for."""
        served = behind(serve, upstream, strategy=strategy, limits=Limits(tokens=limit))
        generated: list[int] = []
        upstream.alter = lambda choice: generated.append(len(choice["token_ids"]))
        reply = served.chat("q", arts={"budget_trajectories": 30}).json()
        assert 0 < reply["usage"]["completion_tokens"] <= sum(generated) <= limit
        assert reply["arts"]["ended_by"] == ("budget_tokens" if limit < 5000 else "budget_trajectories")

    def test_half_a_character(self, serve: Serve, upstream: ScriptedServer) -> None:
        """It can be sent nowhere; those whose requests are under way do not suffer for it."""
        upstream.delay = 0.3
        served = behind(serve, upstream)
        other: list[int] = []
        beside = threading.Thread(target=lambda: other.append(served.chat("three").status_code))
        beside.start()
        until(lambda: upstream.running > 0)
        for body in (ask(stop="\ud800"), ask(arts={"delimiter": "\ud800"}), ask(arts={"think_end_token": "a\udfff"})):
            assert served.send(body).status_code == 400
        upstream.delay = 0
        assert served.send(ask(messages=[{"role": "user", "content": "cut \ud83d"}])).status_code == 200
        beside.join()
        assert other == [200]


class TestRunFolder:
    """`arts serve --trace`."""

    def test_of_other_settings(self, serve: Serve, tmp_path: Path) -> None:
        """The command fails at its start, not its clients' requests."""
        serve(trace=str(tmp_path / "run"), seed=1).service.stop()
        with pytest.raises(RunFolderError, match="seed was 1 and is 2"):
            serve(trace=str(tmp_path / "run"), seed=2)

    def test_a_question_is_searched_once(self, serve: Serve, tmp_path: Path) -> None:
        served = serve(trace=str(tmp_path / "run"))
        first = served.chat("one way")
        decoded = served.backend.stats.decoded_tokens
        again = served.chat("one way")
        assert again.json()["choices"] == first.json()["choices"]
        assert again.json()["arts"] == first.json()["arts"]
        streamed = events(served.chat("one way", stream=True))
        said = [event["choices"][0]["delta"].get("content") for event in streamed]
        assert "".join(filter(None, said)) == first.json()["choices"][0]["message"]["content"]
        assert streamed[-1]["arts"] == first.json()["arts"]
        assert served.backend.stats.decoded_tokens == decoded
        served.chat("one way", seed=4)
        assert len(list(read_trees(tmp_path / "run"))) == 2

    def test_two_who_ask_the_same_at_once(self, serve: Serve, tmp_path: Path) -> None:
        served = serve(trace=str(tmp_path / "run"), slow=0.01)
        clients = [threading.Thread(target=served.chat, args=("one way",)) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert len(list(read_trees(tmp_path / "run"))) == 1


def test_who_asks_while_the_server_stops_is_told(serve: Serve) -> None:
    served = serve(slow=0.01, max_gen_toks=190)
    heard: list[News] = []

    def put(service: Service) -> None:
        (asked,) = read("text", {"prompt": "for ever"}, "scripted", Settings(slots=8), app.Limits())
        service.put(Ready(asked, None), heard.append)

    for _ in range(12):  # four more than can be searched at once
        put(served.service)
    until(lambda: served.backend.n_active > 0)
    served.service.stop()
    assert len(heard) == 12
    put(served.service)
    assert [(news.kind, news.text) for news in heard] == [("failed", "the server is stopping")] * 13


def test_a_grammar_that_has_ended_since_it_was_read_is_not_compiled_beside_the_searches(serve: Serve) -> None:
    served, heard = serve(), list[News]()
    (asked,) = read("text", {"prompt": "one way"}, "scripted", Settings(slots=8), app.Limits())
    followed = Followed(Grammar("grammar", 'root ::= "a"'), guide_process.packed([b"a", b""]), [1], bank=1.0)
    followed._process.kill()
    followed.masks([0])
    served.service.put(Ready(asked, None, followed), heard.append)
    until(lambda: bool(heard))
    assert (heard[0].kind, heard[0].text.startswith("the grammar")) == ("refused", True)


def test_who_leaves_while_a_request_is_read_is_not_worked_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    served = serve()
    begun, given_up = threading.Event(), threading.Event()

    def slowly(*arguments: Any, **more: Any) -> Any:
        begun.set()
        until(nobody_waits.get())  # as the wait for a grammar's process does
        given_up.set()
        raise SettingsError("nobody waits for it")

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "read", slowly)
        with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
            client.sendall(request_head(2) + b"{}")
            until(begun.is_set)
        until(given_up.is_set)
    until(lambda: served.get("/health").json()["waiting"] == 0)
    assert served.chat("one way").status_code == 200


class TestStreams:
    """When a stream begins, and ends."""

    def test_it_begins_before_the_first_step(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "_BREATH", 0.1)
        served = serve(slow=0.15)
        body = ask(messages=[{"role": "user", "content": "one way"}], stream=True)
        with HTTP.stream("POST", f"{served.url}/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            first = next(lines)
            rest = [line for line in lines if line]
        assert json.loads(first[6:])["choices"][0]["delta"]["role"] == "assistant"
        assert rest[0] == ": searching"  # the first step takes three tokens, of 0.15 s each
        assert rest[-1] == "data: [DONE]"
        assert sum("role" in line for line in rest) == 0

    def test_what_goes_wrong_later_is_said_in_it(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(app, "_BREATH", 0.05)
        served = serve()

        def fail() -> None:
            time.sleep(0.3)
            served.backend.on_poll = None
            raise RuntimeError("the device is gone")

        served.backend.on_poll = fail
        said = []
        with pytest.raises(openai.APIError, match="the device is gone"):
            for chunk in served.client().chat.completions.create(
                model="scripted", messages=[{"role": "user", "content": "one way"}], stream=True
            ):
                said.append(chunk)
        assert len(said) == 1
        assert served.chat("one way", stream=True).status_code == 200

    def test_a_client_that_leaves_as_the_stream_begins(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its leave may be heard in the same turn of the loop as its first step."""
        served = serve(slow=0.01, max_gen_toks=190, budget_trajectories=64)
        house = app.App(served.service, "scripted", app.Limits(), None)
        sent: list[str] = []

        async def visit() -> None:
            gone = asyncio.Event()
            body = json.dumps(ask(messages=[{"role": "user", "content": "for ever"}], stream=True)).encode()
            parts = [{"type": "http.request", "body": body, "more_body": False}]

            def pass_on(loop: Any, heard: Any, news: News) -> None:  # which raises once the loop is closed
                loop.call_soon_threadsafe(lambda: (heard.put_nowait(news), gone.set()))

            async def receive() -> Any:
                if parts:
                    return parts.pop(0)
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message["type"])

            monkeypatch.setattr(app, "_pass_on", pass_on)
            scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
            scope |= {"method": "POST", "path": "/v1/chat/completions", "raw_path": b"", "query_string": b""}
            scope |= {"scheme": "http", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1)}
            headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
            await house.asgi()({**scope, "headers": headers}, receive, send)  # type: ignore[arg-type]

        asyncio.run(visit())
        assert house._waiting == 0
        until(lambda: served.backend.n_active == 0)

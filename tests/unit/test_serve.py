"""`arts serve` over real HTTP, with a scripted proposer behind it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from scripted import ScriptedBackend, random_script
from served import Serve, ask, events, request_head, serving, until

from arts_plugin.plugins import Plugins
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.serve.decided import Teller, decided
from arts_plugin.serve.protocol import Limits, read
from arts_plugin.settings import Settings


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


class TestAnswers:
    """What a client gets."""

    def test_whole(self, serve: Serve) -> None:
        served = serve()
        reply = served.chat("q", model="scripted").json()
        (choice,) = reply["choices"]
        assert reply["object"] == "chat.completion"
        assert choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] == "stop"
        assert reply["arts"]["finished"] == 4
        assert reply["usage"]["completion_tokens"] == reply["arts"]["cost"]["decoded_tokens"] > 4
        text = served.post("/v1/completions", prompt="q").json()
        assert text["object"] == "text_completion"
        assert text["choices"][0]["text"] == choice["message"]["content"]  # the same prompt, settings and seed

    @pytest.mark.parametrize("strategy", ["arts", "greedy", "best_of_n", "beam", "smc"])
    def test_streamed_is_what_is_answered_whole(self, strategy: str, serve: Serve) -> None:
        served = serve()
        own = {"strategy": strategy}
        whole = served.chat("q", arts=own).json()
        response = served.chat("q", arts=own, stream=True, stream_options={"include_usage": True})
        assert response.headers["content-type"].startswith("text/event-stream")
        first, *parts, last, closing = events(response)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        said = "".join(part["choices"][0]["delta"]["content"] for part in parts)
        assert said == whole["choices"][0]["message"]["content"]
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["arts"]["answer"] == whole["arts"]["answer"]
        assert closing["choices"] == []
        assert closing["usage"] == whole["usage"]
        assert len({event["id"] for event in (first, *parts, last, closing)}) == 1

    def test_steps_come_as_they_are_certain(self, serve: Serve) -> None:
        served = serve(slow=0.05)
        came: list[tuple[float, str]] = []
        body = {"messages": [{"role": "user", "content": "one way"}], "stream": True, "arts": {"strategy": "greedy"}}
        with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=30) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"].get("content")
                    if delta:
                        came.append((time.monotonic(), delta))
        assert [text for _, text in came] == ["first\n", "second\n", "the answer is 3"]
        assert came[1][0] - came[0][0] > 0.08  # three tokens of a twentieth of a second lie between them
        assert came[2][0] - came[1][0] > 0.08

    def test_thinking_whose_end_comes_in_two_pieces(self, serve: Serve) -> None:
        served = serve(think_end_token="</think>")
        message = served.chat("thinks").json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Is it 4? ", "It is 5")
        deltas = [event["choices"][0]["delta"] for event in events(served.chat("thinks", stream=True))]
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Is it 4? "
        assert "".join(delta.get("content", "") for delta in deltas) == "It is 5"

    def test_the_official_client(self, serve: Serve) -> None:
        client = serve().client()
        assert [model.id for model in client.models.list()] == ["scripted"]
        assert client.models.retrieve("scripted").owned_by == "arts-plugin"
        messages: Any = [{"role": "user", "content": "q"}]
        whole = client.chat.completions.create(model="scripted", messages=messages, seed=5)
        stream = client.chat.completions.create(model="scripted", messages=messages, seed=5, stream=True)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert said == whole.choices[0].message.content
        assert client.completions.create(model="scripted", prompt="q", seed=5).choices[0].text == said
        with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
            client.chat.completions.create(model="other", messages=messages)
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")

    def test_settings_of_a_request(self, serve: Serve) -> None:
        served = serve()
        own = {"strategy": "best_of_n", "budget_trajectories": 2, "select": "logprob"}
        about = served.chat("q", arts=own).json()["arts"]
        assert (about["strategy"], about["finished"], about["chosen_by"]) == ("best_of_n", 2, "logprob")
        assert served.chat("q", temperature=0).json()["arts"]["strategy"] == "greedy"
        short = served.chat("one way", max_tokens=4).json()
        assert short["choices"][0]["finish_reason"] == "length"
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "way"}]
        assert served.post(messages=[{"role": "user", "content": parts}]).json()["arts"]["answer"] == "3"


def test_what_a_request_may_constrain() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = ask(
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
        logit_bias={"5": -100},
        frequency_penalty=0.5,
        presence_penalty=-0.5,
        repetition_penalty=1.1,
    )
    made = read("chat", body, "scripted", Settings(), Limits())[0].settings
    assert json.loads(made.json_schema or "") == schema
    assert (made.logit_bias, made.frequency_penalty, made.presence_penalty) == ("5:-100", 0.5, -0.5)
    assert made.repetition_penalty == 1.1
    loose = read("chat", ask(response_format={"type": "json_object"}), "scripted", Settings(), Limits())[0].settings
    assert json.loads(loose.json_schema or "") == {"type": "object"}


class TestBadInput:
    """Each is refused with its reason, and the server goes on."""

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (b"{", "no JSON"),
            (b"[" * 100_000, "no JSON"),
            (b"\xff\xfe", "no JSON"),
            ([1], "no JSON object"),
            ({}, "messages is a list"),
            ({"messages": []}, "at least one"),
            ({"messages": ["hi"]}, "role is one of"),
            ({"messages": [{"role": "robot", "content": "q"}]}, "'robot'"),
            ({"messages": [{"role": "user", "content": None}]}, "content of a message (role user) is text"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "images"),
            (ask(n=2), "n and best_of"),
            (ask(tools=[{"type": "function"}]), "tools cannot be called"),
            (ask(response_format={"type": "xml"}), "response_format is text, json_object"),
            (ask(response_format={"type": "json_schema", "json_schema": {}}), "with a schema"),
            (ask(grammar="/etc/passwd"), "not a file"),
            (ask(arts={"json_schema": "/etc/passwd"}), "not a file"),
            (ask(arts={"grammar": 5}), "grammar is text of its own"),
            (ask(grammar="root ::= x"), "grammar is not one that can be followed"),
            (ask(logit_bias={"x": 1}), "logit_bias has 'x:1'"),
            (ask(repetition_penalty=0), "repetition_penalty is 0"),
            (ask(repetition_penalty=1e308), "repetition_penalty is 1e+308"),
            (ask(frequency_penalty=-1e308), "frequency_penalty is -1e+308"),
            (ask(presence_penalty=1e308), "presence_penalty is 1e+308"),
            (ask(logit_bias={"5": 1e308}), "logit_bias has '5:1e+308'; a bias lies between"),
            (ask(logprobs=True), "log-probabilities"),
            (ask(stream="yes"), "stream is true or false"),
            (ask(stop=[1]), "stop is a string"),
            (ask(temperature=-1), "temperature is -1"),
            (ask(temperature="hot"), "temperature is 'hot'"),
            (ask(max_tokens=-5), "max_tokens is -5"),
            (ask(arts=3), "arts is an object"),
            (ask(arts={"budget_trajectories": -1}), "budget_trajectories is -1"),
            (ask(arts={"budget_trajectories": 1e9}), "budget_trajectories is 1000000000; it must be at most"),
            (ask(arts={"budget_trajectories": None, "budget_tokens": 5}), "allows 256 at most"),
            (ask(arts={"budget_token": 3}), "did you mean 'budget_tokens'"),
            (ask(arts={"model": "/etc/passwd"}), "arts.model is the same for all"),
            (ask(arts={"trace": "/tmp/x"}), "arts.trace is the same for all"),
            (ask(arts={"strategy": "magic"}), "unknown strategy 'magic'"),
            (ask(messages=[{"role": "user", "content": "q" * 300}]), "300 tokens and the context 200"),
        ],
    )
    def test_refused(self, body: Any, said: str, serve: Serve) -> None:
        served = serve()
        for more in ({}, {"stream": True}):
            response = served.send({**body, **more} if isinstance(body, dict) and "stream" not in body else body)
            assert response.status_code == 400, response.text
            assert said in response.json()["error"]["message"]
        assert served.chat("one way").status_code == 200

    def test_too_large(self, serve: Serve) -> None:
        served = serve(limits=Limits(body=1000))
        assert served.chat("q" * 1000).status_code == 413
        many = (b"x" * 100 for _ in range(1000))
        headers = {"content-type": "application/json"}
        assert httpx.post(f"{served.url}/v1/chat/completions", content=many, headers=headers).status_code == 413

    def test_other_paths(self, serve: Serve) -> None:
        served = serve()
        assert "error" in served.get("/v1/nothing").json()
        assert served.get("/v1/chat/completions").status_code == 405

    def test_a_key(self, serve: Serve) -> None:
        served = serve(key="sk-right")
        assert served.chat("q").status_code == 401
        assert served.chat("q", headers={"authorization": "Bearer sk-wrong"}).status_code == 401
        assert served.get("/v1/models").status_code == 401
        assert served.chat("one way", headers={"authorization": "Bearer sk-right"}).status_code == 200
        assert served.get("/health").status_code == 200

    def test_another_name(self, serve: Serve) -> None:
        """A page that has its own name resolve to this machine reaches nothing."""
        served = serve()
        assert served.chat("one way", headers={"host": "evil.example"}).status_code == 400
        assert served.chat("one way", headers={"host": "localhost:1"}).status_code == 200

    def test_rate(self, serve: Serve) -> None:
        served = serve(limits=Limits(rate=2))
        codes = [served.chat("one way").status_code for _ in range(3)]
        assert codes == [200, 200, 429]


class TestManyClients:
    """Who waits, who leaves, and what becomes of the others."""

    def test_a_hundred_at_once(self, serve: Serve) -> None:
        served = serve(limits=Limits(waiting=100))
        own = {"strategy": "best_of_n", "select": "logprob"}  # which finds the same in whatever order
        alone = {seed: served.chat("q", seed=seed, arts=own).json()["choices"] for seed in range(5)}
        assert len({str(choices) for choices in alone.values()}) > 1
        with ThreadPoolExecutor(100) as pool:
            replies = list(pool.map(lambda i: served.chat("q", seed=i % 5, arts=own), range(100)))
        assert [reply.status_code for reply in replies] == [200] * 100
        assert all(reply.json()["choices"] == alone[i % 5] for i, reply in enumerate(replies))

    def test_one_too_many(self, serve: Serve) -> None:
        served = serve(limits=Limits(waiting=2), slow=0.005, max_gen_toks=150)
        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(lambda _: served.chat("for ever"), range(6)))
        codes = sorted(reply.status_code for reply in replies)
        assert codes[0] == 200
        assert codes[-1] == 429
        assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 429)

    def test_who_comes_late_with_little_does_not_wait_for_who_wants_much(self, serve: Serve) -> None:
        served = serve(slow=0.002, max_gen_toks=150)
        ended: list[str] = []

        def post(name: str, question: str, **own: Any) -> None:
            assert served.chat(question, arts=own).status_code == 200
            ended.append(name)

        much = threading.Thread(
            target=post, args=("much", "for ever"), kwargs={"strategy": "best_of_n", "budget_trajectories": 64}
        )
        much.start()
        until(lambda: served.backend.n_active == 8)
        post("little", "one way", budget_trajectories=1)
        much.join()
        assert ended == ["little", "much"]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves(self, stream: bool, serve: Serve) -> None:
        served = serve(slow=0.01, max_gen_toks=190, budget_trajectories=64)
        body = json.dumps({**ask(messages=[{"role": "user", "content": "for ever"}]), "stream": stream}).encode()
        head = request_head(len(body))
        with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
            client.sendall(head + body)
            until(lambda: served.backend.n_active > 0)
        until(lambda: served.backend.n_active == 0)
        assert served.get("/health").json()["waiting"] == 0
        assert served.chat("one way").status_code == 200

    def test_an_engine_that_fails(self, serve: Serve) -> None:
        served = serve(max_gen_toks=150)

        def fail() -> None:
            served.backend.on_poll = None
            raise RuntimeError("the device is gone")

        served.backend.on_poll = fail
        reply = served.chat("for ever")
        assert reply.status_code == 503
        assert "the device is gone" in reply.json()["error"]["message"]
        assert served.chat("one way").status_code == 200


@contextmanager
def _told(plugins: Plugins, job: Job, backend: ScriptedBackend) -> Iterator[tuple[list[str], Callable[[], str]]]:
    driver = SearchDriver(backend, plugins)
    teller, pieces, final = Teller(job.stops), [], []
    for event in driver.events([job]):
        if event.kind == "expanded":
            pieces += list(teller.more(event.tree, driver.growing(event.job)))
            assert decided(event.tree, driver.growing(event.job))[0] == 0
        else:
            before = len(pieces)
            pieces += list(teller.rest(event.tree))
            final.append((event.tree.text, before))
    yield pieces, lambda: str(final[0][0])


@pytest.mark.parametrize("strategy", ["arts", "adaptive", "beam", "dvts", "mcts", "smc", "best_of_n", "greedy"])
def test_nothing_that_was_said_is_taken_back(strategy: str, plugins: Plugins) -> None:
    """Over many scripts and orders of completion: the pieces make the chosen trajectory's text."""
    for seed in range(25):
        backend = ScriptedBackend(random_script(seed % 5, fan=1 + seed % 3), slots=4, jitter=0.4, order=seed)
        settings = Settings.of(
            strategy=strategy, budget_trajectories=3, budget_tokens=None if seed % 4 else 30, slots=4, seed=seed
        )
        with _told(plugins, Job(backend.encode("q"), settings), backend) as (pieces, text):
            assert "".join(pieces) == text()


@pytest.mark.parametrize("strategy", ["arts", "adaptive", "mcts", "self_consistency"])
def test_results_that_wait_for_their_turn_may_still_be_chosen(strategy: str, plugins: Plugins) -> None:
    """Proposals that have come before their turn have neither a state nor a flight, and their parents grow nevertheless."""
    shapes = [(seed, *shape) for seed in range(25, 75) for shape in ((2, 4, 2, 6), (3, 2, 2, 3), (2, 3, 1, 5))]
    for seed, fan, slots, width, trajectories in shapes:
        script = random_script(seed % 40, fan=fan, depth=2 + seed % 4)
        backend = ScriptedBackend(script, slots=slots, jitter=0.5, order=seed)
        settings = Settings.of(
            strategy=strategy,
            budget_trajectories=trajectories,
            budget_tokens=None if seed % 3 else 40,
            slots=slots,
            width=width,
            seed=seed,
            select=["random", "logprob", "majority", "flow"][seed % 4],
        )
        with _told(plugins, Job(backend.encode("q"), settings), backend) as (pieces, text):
            assert "".join(pieces) == text()

"""`arts serve` with `think_end_token`: what is content and what is thinking, whole and streamed; and what is too long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import Serve, Served, events, serving

from arts_plugin.plugins import Plugins

WAY = "first\nsecond\nthe answer is 3"


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


def both(served: Served, question: str, **body: Any) -> tuple[str, str, str]:
    """(content, reasoning_content, finish_reason) of a reply, which is the same when it is streamed."""
    (choice,) = served.chat(question, **body).json()["choices"]
    whole = choice["message"]["content"], choice["message"].get("reasoning_content", ""), choice["finish_reason"]
    found = [event["choices"][0] for event in events(served.chat(question, stream=True, **body))]
    deltas = [choice["delta"] for choice in found]
    content, thinking = ("".join(d.get(key, "") for d in deltas) for key in ("content", "reasoning_content"))
    assert (content, thinking, found[-1]["finish_reason"]) == whole
    return whole


@pytest.mark.parametrize("end", ["</think>", "[/THINK]", "<|END_THINKING|>", "END", "<|channel|>final<|message|>"])
@pytest.mark.parametrize("strategy", ["greedy", "best_of_n"])
def test_a_reply_without_thinking_is_content(end: str, strategy: str, serve: Serve) -> None:
    served = serve(think_end_token=end, strategy=strategy)
    assert both(served, "one way") == (WAY, "", "stop")
    assert served.post("/v1/completions", prompt="one way").json()["choices"][0]["text"] == WAY


def test_it_is_streamed_as_it_comes(serve: Serve) -> None:
    served = serve(think_end_token="</think>", strategy="greedy")
    deltas = [event["choices"][0]["delta"].get("content") for event in events(served.chat("one way", stream=True))]
    assert [delta for delta in deltas if delta] == ["first\n", "second\n", "the answer is 3"]


def test_thinking_goes_beside_it(serve: Serve) -> None:
    assert both(serve(think_end_token="</think>"), "thinks") == ("It is 5", "Is it 4? ", "stop")


def test_stop_strings_of_a_reply_without_thinking(serve: Serve) -> None:
    """The scripted engine, like any other while a model might think, lets them pass."""
    served = serve(think_end_token="</think>", strategy="greedy")
    assert both(served, "one way", stop=["answer", "cond"]) == ("first\nse", "", "stop")
    assert both(served, "thinks", stop="it 4") == ("It is 5", "Is it 4? ", "stop")
    for stream in (False, True):
        reply = served.post("/v1/completions", prompt="one way", stop="cond", stream=stream)
        found = events(reply) if stream else [reply.json()]
        assert "".join(event["choices"][0]["text"] for event in found) == "first\nse"


def test_an_id_that_is_no_control_token(serve: Serve) -> None:
    reply = serve().chat("q", arts={"think_end_token": 7})
    assert reply.status_code == 400 and "think_end_token is 7" in reply.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_prompt_that_is_too_long(kind: str, stream: bool, serve: Serve) -> None:
    served, long = serve(), "q" * 201
    path = "/v1/completions" if kind == "text" else "/v1/chat/completions"
    body = {"prompt": long} if kind == "text" else {"messages": [{"role": "user", "content": long}]}
    reply = served.post(path, stream=stream, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["type"]) == (
        400,
        "context_length_exceeded",
        "invalid_request_error",
    )
    assert "201 tokens and the context 200" in error["message"]
    assert served.chat("q").status_code == 200

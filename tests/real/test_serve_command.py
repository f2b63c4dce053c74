"""The command `arts serve` in a process of its own, with the official client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.real.arts_serve import Command, arts_serve

QUESTION: Any = [{"role": "user", "content": "Count from one to five, one number a line."}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    log = tmp_path_factory.mktemp("serve") / "log"
    with arts_serve(log, "--name", "smol", ARTS_SERVE_KEY=" sk-test ") as command:
        yield command


def client(served: Command, key: str = "sk-test") -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key=key, max_retries=0, timeout=300)


def test_the_official_client_streams_steps(served: Command) -> None:
    asked = {"model": "smol", "messages": QUESTION, "temperature": 0, "extra_body": {"arts": {"delimiter": " "}}}
    whole = client(served).chat.completions.create(**asked)
    text = whole.choices[0].message.content
    stream = client(served).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == text
    assert len(pieces) > 2
    assert all(" " in piece for piece in pieces[:-1])  # a step each
    usage = chunks[-1].usage
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens > 0
    assert usage.model_extra == {"verifier_tokens": 0}


def test_a_request_at_temperature_0_repeats_its_answer(served: Command) -> None:
    """One request after another, whatever the server answered between them."""

    def answered(text: str) -> tuple[str | None, float]:
        message: Any = [{"role": "user", "content": text}]
        reply = client(served).chat.completions.create(model="smol", messages=message, temperature=0, max_tokens=24)
        assert reply.model_extra is not None
        return reply.choices[0].message.content, reply.model_extra["arts"]["log_flow"]

    asked = "Tell me a story about a bear and a fox who live in a wood by the river."
    others = ["Name four rivers.", asked + " One day they find gold.", "Count to five.", asked[:30], "What is 2 + 2?"]
    first = answered(asked)
    for other in others:
        answered(other)
        assert answered(asked) == first
    assert answered(asked) == first


def test_a_search(served: Command) -> None:
    own = {"arts": {"strategy": "best_of_n", "budget_trajectories": 2}}
    reply = client(served).chat.completions.create(model="", messages=QUESTION, extra_body=own)
    assert reply.model_extra is not None
    assert (reply.model_extra["arts"]["finished"], reply.model_extra["arts"]["strategy"]) == (2, "best_of_n")
    assert reply.model == "smol"


def test_the_key(served: Command) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(served, "sk-wrong").models.list()
    assert [model.id for model in client(served).models.list()] == ["smol"]


def test_names_and_the_address(served: Command) -> None:
    port = served.url.split(":")[2].removesuffix("/v1")
    assert served.url == f"http://127.0.0.1:{port}/v1"
    assert int(port) > 0
    health = f"http://127.0.0.1:{port}/health"
    assert httpx.get(health).status_code == 200
    assert httpx.get(health, headers={"host": f"localhost:{port}"}).status_code == 200
    assert httpx.get(health, headers={"host": "evil.example"}).status_code == 400
    assert "anybody who can reach" not in served.said


def test_an_ipv6_address(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("there is no IPv6 here")
    with arts_serve(tmp_path / "log", "--host", "::1") as command:
        assert command.url.startswith("http://[::1]:")
        assert httpx.get(f"{command.url}/models").json()["data"][0]["object"] == "model"


def test_any_interface(tmp_path: Path) -> None:
    with arts_serve(tmp_path / "log", "--host", "0.0.0.0") as command:
        assert "anybody who can reach 0.0.0.0 may use this server" in command.said
        url = command.url.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{url}/models", headers={"host": "a.name.of.its.own"}).status_code == 200


def test_a_run_folder_of_other_settings(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    with arts_serve(tmp_path / "log", "--trace", folder) as command:
        for _ in range(2):
            assert client(command).chat.completions.create(model="", messages=QUESTION, temperature=0)
    assert len((tmp_path / "run" / "trees.jsonl").read_text().splitlines()) == 1
    with (
        pytest.raises(AssertionError, match="holds a run with other settings: seed was 0 and is 5"),
        arts_serve(tmp_path / "log", "--trace", folder, "--seed", "5"),
    ):
        pass

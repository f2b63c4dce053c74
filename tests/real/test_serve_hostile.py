"""Requests that would end `arts serve` or hold up everybody, on the real model, while somebody else is answered."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real.arts_serve import Command, arts_serve

pytest.importorskip("llguidance")
HTTP = httpx.Client(timeout=120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with arts_serve(tmp_path_factory.mktemp("serve") / "log", "--max_gen_toks", "8", "--strategy", "greedy") as command:
        yield command


def chat(served: Command, content: str = "Say hello.", **more: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], **more}
    return HTTP.post(f"{served.url}/chat/completions", json=body)


def nested(rules: int, depth: int, end: str, root: str = "a0") -> str:
    names = [*(f"a{i}" for i in range(1, rules)), '"x"']
    made = (f"a{i} ::= {'(' * depth}{name}" + f' "b"){end}' * depth for i, name in enumerate(names))
    return "\n".join([f"root ::= {root}", *made])


@pytest.mark.parametrize(
    "grammar",
    [
        nested(200, 24, "?"),
        nested(480, 8, "*"),
        nested(100, 8, "*", '[a-zA-Z]+ "," a0 | "z"'),
        "root ::= " + "(" * 10_000 + '"a"' + ")" * 10_000,
        "root ::= root",
    ],
    ids=["groups", "stars", "later", "parentheses", "unsatisfiable"],
)
def test_a_grammar(grammar: str, served: Command) -> None:
    """It is followed, or refused as the client's own fault, and the server goes on."""
    reply = chat(served, grammar=grammar, logit_bias={"28": 100})  # a comma, where the grammar allows one
    assert reply.status_code in {200, 400}, reply.text
    if reply.status_code == 400:
        assert "grammar" in reply.json()["error"]["message"]
        assert len(reply.text) < 700
    assert chat(served).status_code == 200
    assert served.process.poll() is None


@pytest.mark.parametrize(
    "content", ["\ue000" * 340_000, "<|im_end|>" * 100_000, "<|im_start|>a" * 75_000, "<" * 1_000_000, "1" * 1_000_000]
)
def test_a_prompt_of_a_megabyte(content: str, served: Command) -> None:
    reply = chat(served, content)
    assert reply.status_code == 400
    assert "no room for an answer" in reply.json()["error"]["message"]
    assert chat(served).status_code == 200


def test_others_are_answered_meanwhile(served: Command) -> None:
    """Several small requests are answered, one after the other, before the large ones are."""
    ends: list[str] = []

    def large(content: str) -> None:
        assert chat(served, content).status_code == 400
        ends.append("large")

    def small() -> None:
        for _ in range(2):
            assert chat(served).status_code == 200
            ends.append("small")

    with ThreadPoolExecutor(9) as pool:
        waited = [pool.submit(large, "漢字" * 160_000) for _ in range(8)]
        waited.append(pool.submit(small))
        for work in waited:
            work.result()
    assert ends.index("small") < 8  # and not behind all of them


def test_half_requests_shut_nobody_out(tmp_path: Path) -> None:
    """More of them than the process may have files."""
    heads = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx: "
    bodies = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    bodies += b"content-length: 1000\r\n\r\n{"
    with arts_serve(tmp_path / "log", "--max_gen_toks", "8", files=256) as command:
        port = int(command.url.split(":")[2].removesuffix("/v1"))
        for sent in (heads, bodies):
            with ExitStack() as open_ones:
                for _ in range(300):
                    client = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
                    client.sendall(sent)
                assert chat(command).status_code == 200


def test_token_ids_are_prompts(served: Command) -> None:
    text = HTTP.post(f"{served.url}/completions", json={"prompt": "The capital of France is", "temperature": 0}).json()
    ids = [504, 3575, 282, 4649, 314]
    both = HTTP.post(f"{served.url}/completions", json={"prompt": [ids, ids], "temperature": 0})
    assert both.status_code == 200, both.text
    assert json.loads(both.text)["usage"]["prompt_tokens"] == 2 * text["usage"]["prompt_tokens"]
    assert [choice["text"] for choice in both.json()["choices"]] == [text["choices"][0]["text"]] * 2
    odd = HTTP.post(f"{served.url}/completions", json={"prompt": [49152]})
    assert (odd.status_code, "49152" in odd.json()["error"]["message"]) == (400, True)

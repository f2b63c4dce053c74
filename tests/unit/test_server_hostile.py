"""Backend `server` and verifier `reward` on servers that mean harm, or are badly broken: nothing of theirs costs more than a try."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from scripted_completions import EOS, STEPS, Completions
from scripted_faults import Faults
from scripted_server import Handler, ScriptedServer
from server_searches import QUESTIONS, Make, Serve, found, reference

from arts_plugin.backend import Generation, Prompt
from arts_plugin.errors import ArtsError
from arts_plugin.settings import Settings
from arts_plugin.testing import run
from arts_server import transport
from arts_server.backend import ServerBackend
from arts_server.dialect import Dialect, read_choice
from arts_server.faults import RetryError, parse, shown
from arts_server.features import _rows
from arts_server.keys import redact_after
from arts_server.likelihood import _read, _read_echo
from arts_server.llama_server import Mender
from arts_server.reward import _numbers
from arts_server.transport import _lines
from arts_server.values import count

pytestmark = pytest.mark.usefixtures("impatient")

KEY = "sk-very-secret-0123"
HUGE = 10**400
NOT_LOGPROBS = [HUGE, -HUGE, 1.0, 1e300, float("inf"), float("-inf"), float("nan"), "x", "-1", None, True, [-1.0], {}]


class TestReplies:
    """What is refused before it is unpacked or kept."""

    def test_nothing_is_unpacked(self, serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        """Gigabytes fit into a few packed bytes."""
        asked: set[str | None] = set()
        packed = gzip.compress(gzip.compress(b" " * 1_000_000))

        def fail(self: Faults, fault: str, body: dict[str, Any]) -> bool:
            asked.add(self.headers.get("accept-encoding"))
            self.answer(packed, **{"content-encoding": fault})
            return True

        monkeypatch.setattr(Handler, "fail", fail)
        server = serve()
        server.faults.extend(["gzip", "gzip, gzip", "deflate", "br", "zstd", "GZIP"])
        monkeypatch.setattr(httpx.Response, "aiter_bytes", None)  # the one that unpacks
        with arts(server, max_retries=10) as search:
            trees = search.solve_many(QUESTIONS)
        assert not server.faults and asked == {"identity"}
        monkeypatch.undo()
        assert found(trees) == reference(serve, arts)

    def test_a_packed_error_still_has_its_status(
        self, serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Faults, fault: str, body: dict[str, Any]) -> bool:
            self.answer(gzip.compress(b"no"), 401, **{"content-encoding": "gzip"})
            return True

        monkeypatch.setattr(Handler, "fail", fail)
        server = serve()
        server.faults.append("401")
        with arts(server) as search, pytest.raises(ArtsError, match="answers 401: nothing; set ARTS_API_KEY"):
            search.solve("one")

    def test_no_cookie_is_kept(self, serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        cookies: list[str | None] = []
        answer = Handler.answer

        def baked(self: Handler, reply: Any, status: int = 200, **headers: str) -> None:
            cookies.append(self.headers.get("cookie"))
            answer(self, reply, status, **{"set-cookie": "who=you; Path=/; Max-Age=99999", **headers})

        monkeypatch.setattr(Handler, "answer", baked)
        with arts(serve()) as search:
            search.solve("one")
        assert len(cookies) > 2 and set(cookies) == {None}

    def test_a_line_without_end(self) -> None:
        """Is refused as soon as it is too long, and a long one costs no more than its length."""
        sent = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal sent
            for _ in range(1 << 14):
                sent += 1 << 12
                yield b"x" * (1 << 12)

        async def read() -> None:
            async for _ in _lines(httpx.Response(200, content=chunks()), "http://a"):
                pass

        with pytest.raises(RetryError, match="a line of more than 4 MiB"):
            asyncio.run(read())
        assert sent <= transport.LONGEST_LINE + (1 << 12)

    def test_lines_are_put_together(self) -> None:
        text = b"first\r\n\nsecond \xe2\x80\xa8 and\rmore\nlast"

        async def chunks(size: int) -> AsyncIterator[bytes]:
            for at in range(0, len(text), size):
                yield text[at : at + size]

        async def read(size: int) -> list[bytes]:
            return [line async for line in _lines(httpx.Response(200, content=chunks(size)), "http://a")]

        expected = [b"first", b"", "second \u2028 and\rmore".encode(), b"last"]
        assert all(asyncio.run(read(size)) == expected for size in range(1, len(text) + 1))


class TestNumbers:
    """What is no log-probability, count or token is a reply that makes no sense."""

    FULL = Dialect("m", ids=True, many=True, whole=True, logprobs=True)

    @pytest.mark.parametrize("value", NOT_LOGPROBS)
    def test_log_probabilities(self, value: Any) -> None:
        told = {"text": "a", "token_ids": [1], "logprobs": {"tokens": ["a"], "token_logprobs": [value]}}
        listed = {"text": "a", "logprobs": {"content": [{"id": 1, "token": "a", "logprob": value}]}}
        for raw in (told, listed):
            with pytest.raises(RetryError):
                read_choice(raw, self.FULL)
        with pytest.raises(RetryError):
            _read({"choices": [{"prompt_logprobs": [{"1": {"logprob": value, "rank": 1}}]}]}, [1], 1)
        echo = {"token_logprobs": [value], "top_logprobs": [{"a": -1.0}]}
        with pytest.raises(RetryError):
            _read_echo({"choices": [{"logprobs": echo}]}, [1], 1)

    def test_what_rounding_leaves_is_certainty(self) -> None:
        told = {"text": "a", "token_ids": [1], "logprobs": {"tokens": ["a"], "token_logprobs": [1e-6]}}
        assert read_choice(told, self.FULL).logprobs == (0.0,)

    @pytest.mark.parametrize("token", [HUGE, 1 << 31, -1, 1.0, "1", True, None])
    def test_tokens(self, token: Any) -> None:
        with pytest.raises(RetryError):
            read_choice({"text": "a", "token_ids": [token]}, self.FULL)

    def test_counts(self) -> None:
        assert [count(value) for value in (7, 0, -1, HUGE, 1.5, True, "7", None)] == [7, 0, *[None] * 6]

    def test_far_more_than_was_asked_for(self) -> None:
        raw = {"text": "a" * 50_000, "token_ids": [1] * 50_000, "logprobs": {"tokens": ["a"] * 50_000}}
        with pytest.raises(RetryError, match="where 8 tokens were asked for"):
            read_choice(raw, self.FULL, 8)

    @pytest.mark.parametrize("value", [HUGE, -HUGE, "x", None, True, {}])
    def test_rewards(self, value: Any) -> None:
        with pytest.raises(RetryError):
            _numbers({"data": [{"probs": [value]}]}, "/classify")

    @pytest.mark.parametrize(
        "data",
        [
            [{"embedding": [HUGE, 1.0]}, {"embedding": [1.0, 1.0]}],
            [{"embedding": [1.0]}, {"embedding": [1.0, 2.0]}],
            [{"embedding": [[1.0]]}, {"embedding": [[1.0]]}],
            [{"embedding": []}, {"embedding": []}],
            [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
            [{"index": "0", "embedding": [1.0]}, {"index": 1, "embedding": [1.0]}],
            [{"embedding": "AAA"}, {"embedding": "AAAA"}],
            [{"embedding": None}, {}],
            [7, 8],
        ],
    )
    def test_hidden_states(self, data: list[Any]) -> None:
        with pytest.raises(RetryError):
            _rows({"data": data}, 2)

    def test_hidden_states_of_another_size(self) -> None:
        data = [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": [1.0, 2.0]}]
        np.testing.assert_array_equal(_rows({"data": data}, 2, 2), [[1, 2], [3, 4]])
        with pytest.raises(RetryError, match="had 3 numbers before"):
            _rows({"data": data}, 2, 3)

    def test_what_is_nested_deeply_can_be_shown(self) -> None:
        deep: Any = "x"
        for _ in range(5000):
            deep = [deep]
        assert "nested" in shown(deep)
        for depth in (300, 900, 990, 100_000):
            with pytest.raises(RetryError):
                parse(b"[" * depth + b"]" * depth, "http://a")

    @pytest.mark.parametrize("value", [HUGE, 2.0, float("inf")])
    def test_a_search_goes_on(self, value: Any, serve: Serve, arts: Make) -> None:
        """One such reply is asked for again."""
        server, spoilt = serve(), [0]

        def alter(choice: dict[str, Any]) -> None:
            if choice["finish_reason"] and len(spoilt) < 4 and "line" in choice["text"]:
                spoilt.append(1)
                choice["logprobs"]["token_logprobs"][0] = value

        server.alter = alter
        with arts(server) as search:
            trees = search.solve_many(QUESTIONS)
        assert len(spoilt) == 4
        server.alter = lambda choice: None
        assert found(trees) == reference(serve, arts)


@pytest.fixture
def leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that write the key, which they know, into what the model says."""
    monkeypatch.setenv("ARTS_API_KEY", KEY)

    def tokens(self: Completions, body: dict[str, Any], index: int) -> Iterator[int]:
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
        written = re.split(r"boxed\{\}\.\n|^q\n", text)[-1]
        said = [*written.split("\n")[:-1], ""]
        rest = "".join([f"Bearer {KEY} {line}\n" for line in range(STEPS)][len(said) - 1 :]) + f"The answer is {KEY}"
        yield from rest.removeprefix(written.split("\n")[-1]).encode()
        yield EOS

    monkeypatch.setattr(Handler, "tokens", tokens)


@pytest.mark.parametrize("dialect", ["vllm", "llama-server", "text"])
@pytest.mark.usefixtures("leaky")
def test_a_key_in_the_answer_is_kept_nowhere(
    dialect: str, serve: Serve, arts: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither as text nor as tokens, which spell it as well."""
    caplog.set_level(logging.DEBUG)
    with arts(serve(dialect=dialect), chat="plain", trace=str(tmp_path / "run")) as search:
        tree = search.solve("one\n")
    assert tree.n_finished == 6 and "Bearer ***" in tree.text and "The answer is ***" in tree.text
    assert KEY not in tree.to_json() and KEY not in caplog.text
    if dialect != "text":
        assert all(KEY.encode() not in bytes(node.token_ids) for node in tree.nodes)
        assert [bytes(node.token_ids).decode() for node in tree.nodes[1:]] == [node.text for node in tree.nodes[1:]]
    for file in (tmp_path / "run").iterdir():
        assert KEY not in file.read_text()


@pytest.mark.usefixtures("leaky")
def test_a_key_over_two_steps(serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve().url))
    for delimiter in ("-", "secret", "regex:[a-z]-"):
        (trace,) = run(backend, Prompt("q\n", tuple(b"q\n")), Generation(delimiter=delimiter))
        assert KEY not in trace.text and "***" in trace.text
        assert KEY.encode() not in bytes(trace.tokens)
    backend.close()


def test_words_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """`EMPTY`, which some set where a server wants any key at all, may be written."""
    monkeypatch.setenv("ARTS_API_KEY", "EMPTY")
    monkeypatch.setenv("ARTS_REWARD_API_KEY", KEY)
    assert redact_after("", f"EMPTY {KEY}") == "EMPTY ***"
    assert redact_after(f"a {KEY[:6]}", f"{KEY[6:]} b {KEY}") == "*** b ***"
    assert redact_after(f"a {KEY}", "b") == "b"


def test_a_model_that_is_named_by_the_key(serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTS_API_KEY", KEY)
    with arts(serve(model=f"m-{KEY}")) as search, pytest.raises(ArtsError, match="names a model by the key") as error:
        search.solve("one")
    assert KEY not in str(error.value)


def test_tokens_without_text_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama-server tells them before it is known what comes of them; there is a limit to that."""
    monkeypatch.setattr("arts_server.llama_server._MOST_SILENT", 10)

    async def silent() -> AsyncIterator[Any]:
        while True:
            yield read_choice({"text": "", "token_ids": [1], "logprobs": {"tokens": [""]}}, Dialect("m", ids=True))

    async def read() -> None:
        replica: Any = type("Replica", (), {"root": "http://a"})()
        mender: Any = Mender(None)  # type: ignore[arg-type]
        async for _ in mender.mended(replica, silent()):
            pass

    with pytest.raises(RetryError, match="more than 10 tokens without text"):
        asyncio.run(read())


@pytest.mark.parametrize("kind", ["reward", "features"])
def test_a_reply_that_trickles_from_beside(kind: str, serve: Serve, arts: Make) -> None:
    """The time of a request bounds it, whatever it is for."""
    server = serve(rewards="/classify")
    slow: ScriptedServer = serve(rewards="/classify")
    extra: dict[str, Any] = {"verifier": "reward", "reward_url": slow.url}
    if kind == "features":
        backend = ServerBackend(
            Settings.of(backend="server", base_url=server.url, features_url=slow.url, timeout=1), features=True
        )
        slow.other_faults.append("loris")
        assert backend.tree_features([[1, 2], [3]], [None, 0], [0, 0]).shape == (2, 8)
        backend.close()
    else:
        with arts(server, timeout=1, **extra) as search:
            assert search.verifier is not None
            slow.faults.append("loris")
            assert search.solve("one").n_finished == 6
    assert not slow.faults and not slow.other_faults


def test_json_of_the_replies_that_are_tried() -> None:
    """What the tests above send is JSON that Python's own parser takes."""
    assert json.loads(json.dumps([HUGE, float("inf")])) == [HUGE, float("inf")]

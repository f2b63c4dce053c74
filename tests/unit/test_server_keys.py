"""Backend `server` and verifier `reward`: which server gets which key, and that nothing shows one; what JSON cannot hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Handler, ScriptedServer
from server_searches import Make, Serve

from arts_plugin.backend import Generation, Prompt
from arts_plugin.errors import ArtsError
from arts_plugin.settings import Settings
from arts_plugin.testing import run
from arts_server.backend import ServerBackend
from arts_server.dialect import Dialect, read_choice, read_choices
from arts_server.faults import RetryError, shown
from arts_server.features import _rows
from arts_server.keys import Keys
from arts_server.likelihood import _read
from arts_server.pieces import pieces
from arts_server.reward import RewardServer, _numbers
from arts_server.vocabulary import _token_list, whole

pytestmark = pytest.mark.usefixtures("impatient")

KEY = "sk-'very\\secret\""


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTS_API_KEY", KEY)
    monkeypatch.delenv("ARTS_FEATURES_API_KEY", raising=False)
    monkeypatch.delenv("ARTS_REWARD_API_KEY", raising=False)


ECHO = {"headers": {"authorization": f"Bearer {KEY}"}}
DIALECT = Dialect("m", ids=True, whole=True, logprobs=True)
READERS: dict[str, Callable[[], Any]] = {
    "choice": lambda: read_choices({"choices": [f"Bearer {KEY}"]}, 1, DIALECT),
    "text": lambda: read_choice({"text": ECHO}, DIALECT),
    "logprob": lambda: read_choice(
        {"text": "a", "token_ids": [1], "logprobs": {"tokens": ["a"], "token_logprobs": [KEY]}}, DIALECT
    ),
    "id": lambda: read_choice({"text": "a", "token_ids": [KEY], "logprobs": {"tokens": ["a"]}}, DIALECT),
    "rows": lambda: _rows(ECHO, 1),
    "row": lambda: _rows({"data": [{"embedding": [f"Bearer {KEY}"]}]}, 1),
    "prompt_logprobs": lambda: _read({"choices": [{"prompt_logprobs": ECHO}]}, [1], 1),
    "prompt_logprob": lambda: _read({"choices": [{"prompt_logprobs": [{"1": {"logprob": KEY}}]}]}, [1], 1),
    "rewards": lambda: _numbers(ECHO, "/classify"),
    "tokens": lambda: _token_list(ECHO),
    "pieces": lambda: pieces([], f"Bearer {KEY}"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_reply_that_echoes_the_request_shows_no_key(reader: str) -> None:
    with pytest.raises(RetryError) as error:
        READERS[reader]()
    chained: BaseException | None = error.value
    while chained is not None:
        assert "secret" not in str(chained)
        chained = chained.__cause__


@pytest.mark.parametrize("dialect", ["vllm", "llama-server", "text"])
def test_a_server_that_only_echoes(
    dialect: str, serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.answer({"sent": dict(self.headers)}))
    monkeypatch.setattr("arts_server.dialect._PAUSES", ())
    with arts(serve(dialect=dialect), max_retries=0) as search, pytest.raises(ArtsError) as error:
        search.solve("one")
    assert "completes no text" in str(error.value)
    assert "***" in str(error.value)
    assert "secret" not in str(error.value) + caplog.text


def test_what_is_shown_is_cut_after_the_key_was_taken_out() -> None:
    for length in range(270, 320):
        assert "sk-" not in shown("a" * length + KEY)


class TestWhoGetsIt:
    """A key is for its own hosts."""

    def test_hosts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = ["http://gpu:8000", "https://api.example/x"]
        mine = {"authorization": f"Bearer {KEY}"}
        assert Keys(base=base).headers("https://anywhere") == mine
        for option, variable in (("features_url", "ARTS_FEATURES_API_KEY"), ("reward_url", "ARTS_REWARD_API_KEY")):
            made = Keys(option, base)
            assert made.headers("http://gpu:8001") == made.headers("https://api.example:444") == mine
            for other in ("http://gpu2:8000", "http://api.example", "https://example", "http://gpu.example:8000"):
                assert made.headers(other) == {}
            monkeypatch.setenv(variable, "own")
            assert made.headers("http://gpu:8001") == made.headers("http://other") == {"authorization": "Bearer own"}

    def test_features(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        server, pooling = serve(), serve()
        elsewhere = pooling.url.replace("127.0.0.1", "localhost")
        for url, key in ((pooling.url, f"Bearer {KEY}"), (elsewhere, None)):
            pooling.keys.clear()
            ServerBackend(Settings(backend="server", base_url=server.url, features_url=url), features=True).close()
            assert pooling.keys == {key}
        monkeypatch.setenv("ARTS_FEATURES_API_KEY", "own")
        pooling.keys.clear()
        ServerBackend(Settings(backend="server", base_url=server.url, features_url=elsewhere), features=True).close()
        assert pooling.keys == {"Bearer own"}
        assert server.keys == {f"Bearer {KEY}"}

    def test_rewards(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        judge = serve(rewards="/classify")

        def asked(**settings: Any) -> set[str | None]:
            judge.keys.clear()
            RewardServer(Settings.of(verifier="reward", reward_url=judge.url, **settings)).close()
            return judge.keys

        assert asked() == {None}
        assert asked(backend="server", base_url="http://127.0.0.1:9/v1") == {f"Bearer {KEY}"}
        assert asked(backend="server", base_url="http://gpu:9/v1") == {None}
        monkeypatch.setenv("ARTS_REWARD_API_KEY", "own")
        assert asked() == asked(backend="server", base_url="http://127.0.0.1:9/v1") == {"Bearer own"}

    def test_a_refusal_names_the_right_variable(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        judge = serve(rewards="/classify")
        judge.faults.extend(["401"] * 4)
        with pytest.raises(ArtsError, match="set ARTS_REWARD_API_KEY in the environment"):
            RewardServer(Settings.of(verifier="reward", reward_url=judge.url, max_retries=0))


HALF = "what is \ud83d?"


@pytest.fixture(params=["vllm", "llama-server", "text"])
def server(request: pytest.FixtureRequest) -> Iterator[ScriptedServer]:
    made = ScriptedServer(request.param)
    yield made
    made.kill()


@pytest.mark.parametrize("chat", ["plain", "template"])
def test_half_a_surrogate_pair_fails_nobody(chat: str, server: ScriptedServer, arts: Make, tmp_path: Path) -> None:
    """A browser cuts a text amid a character, and JSON can hold the half; UTF-8 cannot."""
    settings: dict[str, Any] = {"chat": chat, "trace": str(tmp_path / "run")}
    if server.dialect == "text" and chat == "template":
        settings["chat_template"] = str(tmp_path / "chat.jinja")
        (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}\n[assistant] ")
    with arts(server, **settings) as search:
        trees = search.solve_many(["one", HALF, "two"])
    assert [tree.n_finished for tree in trees] == [6, 6, 6]
    assert not any(tree.error or tree.meta.get("errors") for tree in trees)


def test_half_a_surrogate_pair_is_judged(serve: Serve, arts: Make) -> None:
    server = serve(rewards="/classify")
    with arts(server, verifier="reward", reward_url=server.url) as search:
        assert search.solve(HALF).n_finished == 6


def test_json_that_utf_8_cannot_hold_is_escaped(serve: Serve) -> None:
    """Whoever else sends such a text: the engine does not end."""
    server = serve()
    backend = ServerBackend(Settings(backend="server", base_url=server.url))
    server.refuse = lambda prompt: True
    with pytest.raises(ArtsError, match="refused"):
        backend.transport.do(backend.transport.post("/v1/completions", {"model": server.model, "prompt": "a\ud83d"}))
    backend.close()


def test_whole_texts() -> None:
    assert whole("a\ud83d\ude00b\ud83d") == "a\U0001f600b\ufffd"
    assert whole("\ufeffplain \U0001f600") == "\ufeffplain \U0001f600"


def test_half_a_surrogate_pair_as_a_stop_string(server: ScriptedServer) -> None:
    """It can never occur."""
    backend = ServerBackend(Settings(backend="server", base_url=server.url, max_retries=0))
    (trace,) = run(backend, Prompt("q\n", tuple(b"q\n")), Generation(stops=("\ud83d", "never")))
    assert "The answer is" in trace.text
    backend.close()

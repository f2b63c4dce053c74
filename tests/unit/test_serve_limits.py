"""What anybody may ask `arts serve` for is bounded."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from served import HTTP, Serve, ask, events, request_head, serving, until

from arts_llama_cpp import plugin as llama_cpp
from arts_plugin import Arts, SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.serve import protocol
from arts_plugin.serve.protocol import BadRequestError, Limits, read
from arts_plugin.settings import Settings


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


def settings_of(limits: Limits | None = None, own: Settings | None = None, **body: Any) -> Settings:
    return read("chat", ask(**body), "scripted", own or Settings(), limits or Limits())[0].settings


class TestWhatIsRead:
    """Before anything is searched."""

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({"arts": {"width": 257}}, "width is 257; this server allows 256 at most"),
            ({"arts": {"width": 1e9}}, "width is 1000000000"),
            ({"arts": {"budget_trajectories": 257}}, "budget_trajectories is 257"),
            ({"arts": {"extract": "regex:(a+)+$"}}, "extract: a request takes no regular expressions"),
            ({"arts": {"delimiter": "regex:(a+)+$"}}, "delimiter: a request takes no regular expressions"),
            ({"arts": {"delimiter": r"\x72egex:(a+)+$"}}, "delimiter: a request takes no regular expressions"),
            ({"arts": {"delimiter": "x" * 1001}}, "delimiter has 1001 characters"),
            ({"arts": {"x" * 1000: 1}}, "unknown setting"),
            ({"arts": {"think_end_token": "x" * 100_000}}, "think_end_token has 100000 characters"),
            ({"stop": ["x" * 1001]}, "a stop string is text of at most 1000"),
            ({"grammar": "root ::= " + " | ".join(f'"{i}"' for i in range(80_000))}, "this server allows 32768"),
            ({"arts": {"json_schema": {"enum": ["x" * 40_000]}}}, "json_schema has 40014 characters"),
            ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [1] * 20_000}}}}, "32768"),
            ({"arts": {"grammar": 5}}, "not a file"),
            ({"logit_bias": {str(i): 1 for i in range(10_000)}}, "logit_bias has"),
            ({"model": []}, "there is no model []"),
            ({"model": {"a": 1}}, "there is no model"),
            ({"messages": [{"role": [], "content": "q"}]}, "role is one of"),
            ({"messages": [{"role": {}, "content": "q"}]}, "role is one of"),
            ({"stop": "\ud800"}, "a stop string is text"),
            ({"arts": {"delimiter": "\ud800"}}, "half a surrogate pair"),
        ],
    )
    def test_refused(self, body: dict[str, Any], said: str) -> None:
        began = time.monotonic()
        with pytest.raises(BadRequestError) as refused:
            settings_of(**body)
        assert said in str(refused.value)
        assert len(str(refused.value)) < 300
        assert time.monotonic() - began < 1

    def test_the_least_of_both_holds(self) -> None:
        limits = Limits(tokens=1000, seconds=20)
        wanted = {"budget_tokens": 5000, "budget_nodes": 10**12, "budget_seconds": 1e9}
        made = settings_of(limits, arts=wanted, max_tokens=10**9)
        assert (made.budget_tokens, made.budget_nodes, made.budget_seconds) == (1000, 1000, 20)
        assert made.max_gen_toks == 1000
        less = settings_of(limits, arts={"budget_tokens": 50, "budget_nodes": 7, "budget_seconds": 0.5}, max_tokens=9)
        assert (less.budget_tokens, less.budget_nodes, less.budget_seconds, less.max_gen_toks) == (50, 7, 0.5, 9)

    def test_what_is_not_asked_for_is_no_budget_of_the_search(self) -> None:
        """Else whole chains would be asked for step by step."""
        made = settings_of()
        assert (made.budget_tokens, made.budget_nodes, made.budget_seconds) == (None, None, None)

    def test_a_pattern_of_the_server_s_own(self) -> None:
        own = Settings.of(extract="regex:a+", delimiter="regex:[.!?] ")
        assert settings_of(own=own).delimiter == "regex:[.!?] "
        assert settings_of(own=own, arts={"extract": "regex:a+"}).extract == "regex:a+"
        with pytest.raises(BadRequestError, match="no regular expressions"):
            settings_of(own=own, arts={"extract": "regex:a*"})

    def test_half_a_character_of_a_question(self) -> None:
        (made,) = read("chat", ask(messages=[{"role": "user", "content": "\ud83d?"}]), "m", Settings(), Limits())
        assert made.messages[0]["content"] == "??"

    def test_a_server_that_would_refuse_its_own_settings(self) -> None:
        Limits().check(Settings())
        for wide in ({"budget_trajectories": 300}, {"width": 300}, {"budget_trajectories": None, "budget_tokens": 9}):
            with pytest.raises(SettingsError, match="this server allows 256 at most"):
                Limits().check(Settings.of(wide))


def test_extractors_are_not_kept_for_ever(plugins: Plugins) -> None:
    if "llama_cpp" not in plugins.registrations("backend"):
        plugins.register(llama_cpp, "llama_cpp")
    arts = Arts(registry=plugins, verifier="none")
    for i in range(200):
        assert arts._extractor(Settings.of(extract=f"regex:{i}"))(f"a{i}") == str(i)
    assert arts._extractor_named.cache_info().currsize <= 64
    assert arts._extractor(Settings()) is arts._extractor(Settings())


class TestWhatIsSearched:
    """The server's own limits end a search that has none."""

    @pytest.mark.parametrize("strategy", ["arts", "best_of_n", "beam"])
    def test_tokens(self, strategy: str, serve: Serve) -> None:
        served = serve(limits=Limits(tokens=100), max_gen_toks=100)
        own = {"strategy": strategy, "budget_trajectories": 30}
        reply = served.chat("for ever", arts=own).json()
        assert reply["arts"]["ended_by"] == "budget_tokens"
        assert 0 < reply["usage"]["completion_tokens"] <= 100
        assert served.backend.stats.decoded_tokens <= 100, "what was on its way counts as well"
        assert reply["choices"][0]["message"]["content"].startswith("on and on\n")
        assert reply["choices"][0]["finish_reason"] == "length"
        streamed = events(served.chat("for ever", arts=own, stream=True))
        assert streamed[-1]["arts"]["ended_by"] == "budget_tokens"

    @pytest.mark.parametrize("stream", [False, True])
    def test_seconds(self, stream: bool, serve: Serve) -> None:
        served = serve(limits=Limits(seconds=0.4), slow=0.01, max_gen_toks=190)
        began = time.monotonic()
        reply = served.chat("for ever", arts={"budget_trajectories": 200}, stream=stream)
        assert 0.3 < time.monotonic() - began < 5
        about = events(reply)[-1]["arts"] if stream else reply.json()["arts"]
        assert about["ended_by"] == "budget_seconds"
        until(lambda: served.backend.n_active == 0)

    def test_who_does_not_get_a_turn(self, serve: Serve) -> None:
        served = serve(limits=Limits(seconds=0.8), slow=0.02, max_gen_toks=190)
        own = {"budget_trajectories": 200}
        with ThreadPoolExecutor(24) as pool:  # three for each slot
            replies = list(pool.map(lambda _: served.chat("for ever", arts=own), range(24)))
        others = [reply for reply in replies if reply.status_code != 200]
        assert 0 < len(others) < 24
        for reply in others:
            assert reply.status_code == 503
            assert "its turn did not come within 0.8 seconds" in reply.json()["error"]["message"]

    def test_what_was_cut_short_is_searched_again(self, serve: Serve, tmp_path: Any) -> None:
        served = serve(limits=Limits(tokens=100), max_gen_toks=100, trace=str(tmp_path / "run"))
        for _ in range(2):
            before = served.backend.stats.decoded_tokens
            assert served.chat("for ever", arts={"budget_trajectories": 200}).status_code == 200
            assert served.backend.stats.decoded_tokens > before


class TestTheHouse:
    """How many may be in it, and who."""

    def test_bodies_that_are_still_on_their_way_take_nobody_s_place(self, serve: Serve) -> None:
        served = serve(limits=Limits(waiting=2))
        port = int(served.url.rsplit(":", 1)[1])
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
        for client in clients:
            client.sendall(request_head(100) + b"{")
        assert served.chat("one way").status_code == 200
        assert served.get("/health").json()["waiting"] == 0
        for client in clients:
            client.close()
        assert served.chat("one way").status_code == 200

    def test_a_body_that_does_not_come(self, serve: Serve) -> None:
        served = serve(limits=Limits(upload=0.3))
        head = request_head(100) + b"{"
        with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))) as client:
            client.settimeout(10)
            client.sendall(head)
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        assert served.get("/health").json()["waiting"] == 0

    def test_others_are_served_while_a_request_is_read(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        served = serve()

        def slowly(*arguments: Any, **more: Any) -> Any:
            time.sleep(3)
            return read(*arguments, **more)

        monkeypatch.setattr(protocol, "read", slowly)
        client = threading.Thread(target=served.chat, args=("one way",))
        client.start()
        until(lambda: served.get("/health").json()["waiting"] == 1)
        began = time.monotonic()
        assert served.get("/health").status_code == 200
        assert time.monotonic() - began < 2
        client.join()

    def test_names(self, serve: Serve) -> None:
        served = serve()
        for name in ("evil.example", "evil.example:80", "[::2]", "", "localhost.evil.example"):
            reply = served.get("/health", host=name)
            assert reply.status_code == 400
            assert "this server is not called" in reply.json()["error"]["message"]
        for name in ("localhost", "LOCALHOST:1", "127.0.0.1:5", "[::1]:5", "[::1]"):
            assert served.get("/health", host=name).status_code == 200

    def test_keys(self, serve: Serve) -> None:
        served = serve(key="sk-right")
        for given, status in (("Bearer sk-right", 200), ("bearer sk-right", 200), ("sk-right", 401), ("Basic x", 401)):
            assert HTTP.get(f"{served.url}/v1/models", headers={"authorization": given}).status_code == status

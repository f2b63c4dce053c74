"""Servers that are not as they should be: odd spellings, odd fields, failures that come together or at the start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scripted_server import ScriptedServer

from arts_plugin.backend import Generation, Sampling, StepResult
from arts_plugin.errors import SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.verifier import StatelessVerifier, StateView
from arts_server.backend import ServerBackend
from arts_server.dialect import Dialect, payload, read_choice
from arts_server.faults import RetryError, ServerError, parse, shorten
from arts_server.reader import Landed
from arts_server.replicas import Replica, addresses
from arts_server.states import ServerState

WARM = Generation(Sampling(temperature=1.0), max_gen_toks=60)


@pytest.fixture(autouse=True)
def impatient(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of the probe at the start as well."""
    monkeypatch.setattr("arts_server.dialect._PAUSES", (0.005, 0.01, 0.02))


Open = Callable[..., ServerBackend]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """One like vLLM."""
    made = ScriptedServer()
    yield made
    made.kill()


@pytest.fixture
def backend() -> Iterator[Open]:
    """Makes backends of servers and closes them."""
    made: list[ServerBackend] = []

    def make(*servers: ScriptedServer, features: bool = False, **settings: Any) -> ServerBackend:
        urls = ";".join(server.url for server in servers)
        made.append(
            ServerBackend(
                Settings(**{"backend": "server", "base_url": urls, "slots": 8, "timeout": 20.0, **settings}),
                features=features,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


class Strict(StatelessVerifier):
    """Cannot do without hidden states."""

    name = "strict"

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """1 for each."""
        assert all(state.feature is not None for state in states)
        return np.ones(len(states))


def branches(backend: ServerBackend, n: int, apart: bool = False) -> list[ServerState]:
    """Branches of one question (or of as many) that are on their way."""
    found = []
    root = backend.open(backend.encode("q\n"), WARM, 0)
    for i in range(n):
        found.append(backend.fork(backend.open(backend.encode(f"q{i}\n"), WARM, i) if apart else root, i))
    for state in found:
        backend.submit(state, 40)
    return found


def landed(backend: ServerBackend, n: int) -> list[StepResult]:
    """The results of so many."""
    found: list[StepResult] = []
    end = time.monotonic() + 20
    while len(found) < n and time.monotonic() < end:
        found += backend.poll()
    assert len(found) == n
    return found


class TestSpelling:
    """No text is lost, however a server writes its tokens."""

    @pytest.mark.parametrize(
        "spell",
        [
            lambda text: text.lstrip(" "),
            lambda text: text.replace(" ", "\u0120").replace("\n", "\u010a"),
            lambda text: text.replace(" ", "\u2581"),
            lambda text: "token_id:7",
        ],
    )
    def test_steps_are_what_they_would_be(
        self, spell: Callable[[str], str], server: ScriptedServer, backend: Open
    ) -> None:
        expected = _sorted(backend(server), 3)
        server.spell = spell
        assert [(r.text, r.token_ids, r.stop) for r in _sorted(backend(server), 3)] == [
            (r.text, r.token_ids, r.stop) for r in expected
        ]
        assert all(result.text.endswith("\n") for result in expected)

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085", "\u000b"])
    def test_streams_with_other_line_separators(self, separator: str, backend: Open) -> None:
        server = ScriptedServer("llama-server", ornament=separator)
        try:
            assert all(result.text.endswith(f"{separator}\n") for result in _sorted(backend(server), 2))
        finally:
            server.kill()


def _sorted(backend: ServerBackend, n: int) -> list[StepResult]:
    states = branches(backend, n)
    results = {id(result.state): result for result in landed(backend, n)}
    return [results[id(state)] for state in states]


class TestFailuresTogether:
    """One failure of a server takes all its connections with it."""

    def test_more_branches_than_retries(self, server: ScriptedServer, backend: Open) -> None:
        open_ = backend(server, max_retries=3)
        server.delay = 0.05
        server.faults.extend(["drop"] * 8)
        branches(open_, 8, apart=True)
        assert all(result.error is None for result in landed(open_, 8))

    def test_the_next_replica_is_asked(self, server: ScriptedServer, backend: Open) -> None:
        other = ScriptedServer()
        try:
            for fault in ("503", "429"):
                open_ = backend(server, other, max_retries=1)
                server.faults.clear()
                server.faults.extend([fault] * 50)
                root = open_.open(open_.encode("q\n"), WARM, 0)
                root.question.home = open_.transport.replicas[0]
                open_.submit(open_.fork(root, 0), 40)
                assert landed(open_, 1)[0].error is None
                assert len(server.faults) == 49
        finally:
            other.kill()

    def test_failures_that_began_before_the_last_are_one(self) -> None:
        replica = Replica("http://a")
        began = [replica.begin() for _ in range(9)]
        for moment in began:
            replica.failed(moment, "down")
        assert replica.failures == 1
        replica.failed(replica.begin(), "down")
        assert replica.failures == 2

    def test_what_came_with_the_last_failure_is_not_lost(self, server: ScriptedServer, backend: Open) -> None:
        open_ = backend(server)
        first, second = branches(open_, 2, apart=True)
        assert second.run is not None
        error = ServerError("all gone")
        open_._dispatch()
        time.sleep(0.3)
        mine = [open_._landed.get(timeout=5) for _ in range(2)]
        open_._landed.put(next(one for one in mine if one.state is first))
        open_._landed.put(Landed(second, second.run, error=error))
        with pytest.raises(ServerError, match="all gone"):
            open_.poll()
        assert open_.n_active == 2
        open_.cancel(second)
        assert [result.state for result in landed(open_, 1)] == [first]
        assert open_.n_active == 0


class TestRefusals:
    """What is refused costs its own trace and no other."""

    def test_a_hidden_state_that_is_refused(self, server: ScriptedServer, backend: Open) -> None:
        open_ = backend(server, features=True, features_url=server.url)
        branches(open_, 4)
        server.other_faults.append("400")
        results = landed(open_, 4)
        assert sorted(result.error is None for result in results) == [False, True, True, True]
        assert all((result.feature is None) == (result.error is not None) for result in results)

    def test_a_verifier_is_not_asked_of_what_failed(
        self, server: ScriptedServer, backend: Open, plugins: Plugins
    ) -> None:
        open_ = backend(server, features=True, features_url=server.url)
        settings = Settings(strategy="best_of_n", budget_trajectories=4, slots=4)
        jobs = [Job(open_.encode(f"q{i}\n"), settings) for i in range(2)]
        server.other_faults.append("400")
        trees = [tree for _, tree in SearchDriver(open_, plugins, Strict()).run(jobs)]
        stops = [trajectory.stop for tree in trees for trajectory in tree.trajectories()]
        assert sorted(stops) == ["eos"] * 7 + ["error"]
        assert all(tree.nodes[0].log_flow == 1.0 and tree.chosen is not None for tree in trees)


class TestProbe:
    """What passes at the start is not taken for something that the server cannot do."""

    @pytest.mark.parametrize("faults", [["503"], ["drop", "502"], [None, "503"], [None, "429", "504"]])
    def test_a_blip(self, faults: list[str | None], server: ScriptedServer, backend: Open) -> None:
        expected = backend(server).dialect
        server.other_faults.extend(faults)
        assert backend(server).dialect == expected
        assert expected.ids
        assert expected.many

    def test_a_replica_that_is_still_loading_is_down(self, server: ScriptedServer, backend: Open) -> None:
        loading = ScriptedServer()
        try:
            loading.other_faults.extend(["503"] * 40)
            assert backend(loading, server).dialect.ids
            with pytest.raises(ServerError, match="no server can be reached"):
                backend(loading)
        finally:
            loading.kill()

    def test_ids_without_texts_are_no_ids(self, server: ScriptedServer, backend: Open) -> None:
        server.alter = lambda choice: choice.pop("logprobs")
        open_ = backend(server)
        assert not open_.dialect.ids

    def test_meta_that_is_no_object(
        self, server: ScriptedServer, backend: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("scripted_server.Handler.limits", lambda handler: {"meta": [1], "max_model_len": "many"})
        assert backend(server).dialect.n_ctx is None


class TestOddFields:
    """Fields of other types are a reply that makes no sense, never a Python error."""

    FULL = Dialect("m", ids=True, many=True, whole=True, logprobs=True)

    @pytest.mark.parametrize(
        "changes",
        [
            {"logprobs": {"tokens": [7], "token_logprobs": [-1.0]}},
            {"logprobs": {"tokens": ["a"], "token_logprobs": 5}},
            {"token_ids": [None]},
            {"text": "\ud800"},
            {"text": 7},
            {"token_ids": [1, 2, 3]},
        ],
    )
    def test_choices(self, changes: dict[str, Any]) -> None:
        good = {
            "text": "a",
            "token_ids": [1],
            "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]},
            "finish_reason": "stop",
        }
        assert read_choice(good, self.FULL).ids == (1,)
        with pytest.raises(RetryError):
            read_choice({**good, **changes}, self.FULL)

    def test_a_reply_nested_without_end(self) -> None:
        with pytest.raises(RetryError, match="no JSON"):
            parse(b'{"a":' * 100_000, "http://a")

    def test_usage_of_another_kind(
        self, server: ScriptedServer, backend: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_ = backend(server, max_retries=1)
        state = branches(open_, 1)[0]
        for usage in ("many", [1], {"prompt_tokens_details": 7}):
            with pytest.raises(RetryError, match="usage"):
                open_.reader._book(state.question, {"usage": usage}, {"prompt": [1]})

    @pytest.mark.parametrize("address", ["http://[::1:8000", "http://a:99999999", "http://a:0"])
    def test_addresses(self, address: str) -> None:
        with pytest.raises(SettingsError, match="an address looks like"):
            addresses(address)


class TestKeys:
    """A key is in no message."""

    def test_white_space_around_it(
        self, server: ScriptedServer, backend: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ARTS_API_KEY", "sk-secret\n")
        backend(server)
        assert server.keys == {"Bearer sk-secret"}

    @pytest.mark.parametrize("key", ["sk-se\ncret", "sk-secret\u2026"])
    def test_what_no_header_holds(
        self, key: str, server: ScriptedServer, backend: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("ARTS_API_KEY", key)
        with pytest.raises(SettingsError, match="ARTS_API_KEY") as error:
            backend(server)
        assert "sk-" not in str(error.value)

    def test_a_server_that_shows_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ARTS_API_KEY", "sk-secret")
        assert shorten("you sent Bearer sk-secret") == "you sent Bearer ***"

    def test_a_password_without_a_scheme(self) -> None:
        with pytest.raises(SettingsError, match="a user in it") as error:
            addresses("user:hunter2@gpu:8000/v1")
        assert "hunter2" not in str(error.value)


def test_nothing_is_left_to_a_servers_defaults() -> None:
    """vLLM takes what is left out from the model's generation_config.json, where Qwen2.5 has a repetition penalty."""
    body = payload(Dialect("m", ids=True, tokenizer="vllm"), [1], 1, 5, Sampling(temperature=1.0), 0, [])
    assert (body["repetition_penalty"], body["presence_penalty"], body["frequency_penalty"]) == (1.0, 0.0, 0.0)
    body = payload(Dialect("m", ids=True, tokenizer="llama-server"), [1], 1, 5, Sampling(temperature=1.0), 0, [])
    assert body["repeat_penalty"] == 1.0
    assert "repetition_penalty" not in body


def test_streams_without_timings_are_booked(server: ScriptedServer, backend: Open) -> None:
    open_ = backend(server)
    root = open_.open(open_.encode("q\n"), replace(WARM, delimiter="regex:\n"), 0)
    open_.submit(open_.fork(root, 0), 40)
    assert landed(open_, 1)[0].text.endswith("\n")
    assert open_.open_cost(root).prefilled == 2


def test_a_step_of_text_that_was_cut_at_its_own_limit_goes_on(backend: Open) -> None:
    server = ScriptedServer("text")
    try:
        open_ = backend(server)
        state = open_.fork(open_.open(open_.encode("q\n"), WARM, 0), 0)
        open_.submit(state, 3)
        (result,) = landed(open_, 1)
        assert (result.stop, result.terminal) == ("length", False)
    finally:
        server.kill()


def test_tags_are_asked_together_and_once(
    server: ScriptedServer, backend: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arts_server.vocabulary._KNOWN", 64)
    open_ = backend(server)
    page = "".join(f"<tag{i}>" for i in range(60))
    assert open_.encode(page).token_ids == tuple(page.encode())
    before = len(server.asked)
    open_.encode(page)
    assert len(server.asked) == before + 1
    open_.encode(page.replace("tag", "other"))
    assert len(open_.vocabulary._special) == 60

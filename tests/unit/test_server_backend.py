"""Backend `server` against a scripted server: what is asked, what is made of it, and every way in which it can fail."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_server import LLAMA_SERVER, ScriptedServer, state_of

from arts_plugin.api import Arts
from arts_plugin.backend import Generation, Prompt, Sampling
from arts_plugin.errors import ArtsError, ModelError, PromptTooLongError, SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.settings import Settings
from arts_plugin.testing import run
from arts_plugin.tree import ReasoningTree
from arts_server.backend import ServerBackend
from arts_server.dialect import Dialect, payload
from arts_server.faults import RefusedError, RetryError, ServerError
from arts_server.pieces import pieces
from arts_server.replicas import FAILURES, Replica, addresses, choose

Serve = Callable[..., ScriptedServer]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is told in hundredths of what it is for users."""
    monkeypatch.setattr("arts_server.transport.FIRST_PAUSE", 0.005)
    monkeypatch.setattr("arts_server.transport.TICK", 0.01)
    monkeypatch.setattr("arts_server.replicas.FIRST_REST", 0.01)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Makes servers and stops them."""
    made: list[ScriptedServer] = []

    def make(**keywords: Any) -> ScriptedServer:
        made.append(ScriptedServer(**keywords))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def registry(plugins: Plugins) -> Iterator[Plugins]:
    """The built-in plugins and this backend."""
    from arts_server import plugin

    plugins.register(plugin, "server")
    yield plugins
    plugins.unregister(plugin)


Make = Callable[..., Arts]


@pytest.fixture
def arts(registry: Plugins) -> Make:
    """Makes searches on a server."""

    def make(*servers: ScriptedServer, **settings: Any) -> Arts:
        urls = ";".join(server.url for server in servers)
        defaults = {
            "backend": "server",
            "base_url": urls,
            "verifier": "none",
            "strategy": "best_of_n",
            "budget_trajectories": 6,
            "slots": 8,
            "timeout": 20.0,
        }
        return Arts(registry=registry, **{**defaults, **settings})

    return make


def found(trees: list[ReasoningTree]) -> list[list[str]]:
    """The texts of each tree's finished trajectories."""
    return [sorted(trajectory.text for trajectory in tree.trajectories()) for tree in trees]


QUESTIONS = ["one", "two", "three"]


def reference(serve: Serve, arts: Make, **settings: Any) -> list[list[str]]:
    """What a run without failures finds."""
    with arts(serve(), **settings) as search:
        texts = found(search.solve_many(QUESTIONS))
    assert all(len(group) == 6 and all("The answer is" in text for text in group) for group in texts)
    return texts


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


class TestRequests:
    """What is asked of a server."""

    def test_a_step_is_a_request_and_siblings_are_one(self, serve: Serve, arts: Make) -> None:
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

    def test_siblings_draw_the_same_alone_and_together(self, serve: Serve) -> None:
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

    def test_greedy_siblings_are_requests_of_their_own(self, serve: Serve) -> None:
        server = serve()
        backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
        run(backend, Prompt("q", tuple(b"q\n")), Generation(Sampling(temperature=0.0)), range(3))
        assert all("n" not in body for body in server.completions)
        backend.close()

    def test_stop_strings_of_a_task(self, serve: Serve) -> None:
        backend = ServerBackend(Settings(backend="server", base_url=serve().url, slots=4))
        (trace,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(stops=("answer",)))
        assert trace.text.endswith("The ")
        assert trace.steps[-1].stop == "stop"
        assert bytes(trace.tokens).decode() == trace.text
        (trace,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(stops=("0\nThe", "1\nThe", "2\nThe", "\nThe")))
        assert trace.steps[-1].cut_chars >= 1
        assert not trace.text.endswith("\n")
        backend.close()

    def test_limits(self, serve: Serve) -> None:
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

    def test_an_expression_as_delimiter_is_streamed(self, serve: Serve) -> None:
        server = serve()
        backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
        (trace,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(delimiter=r"regex:\d\n"))
        (whole,) = run(backend, Prompt("q", tuple(b"q\n")), Generation(delimiter="\n"))
        assert trace.text == whole.text
        assert [step.text for step in trace.steps] == [step.text for step in whole.steps]
        assert sum(bool(body.get("stream")) for body in server.completions) == len(trace.steps)
        backend.close()

    def test_no_more_branches_than_slots(self, serve: Serve, arts: Make) -> None:
        server = serve()
        server.delay = 0.01
        with arts(server, slots=5) as search:
            search.solve_many(QUESTIONS * 2)
        assert 1 < server.most <= 5

    def test_a_question_stays_on_its_replica(self, serve: Serve, arts: Make) -> None:
        first, second = serve(), serve()
        with arts(first, second, slots=12) as search:
            search.solve_many(QUESTIONS[:2])
        homes = Counter(
            (server.port, bytes(body["prompt"]).decode().split("\n")[0])
            for server in (first, second)
            for body in server.completions
        )
        assert len({question for _, question in homes}) == len({port for port, _ in homes}) == len(homes) == 2, homes

    def test_cost(self, serve: Serve, arts: Make) -> None:
        server = serve()
        with arts(server) as search:
            tree = search.solve("one")
        sent = sum(len(body["prompt"]) for body in server.completions)
        assert tree.cost.cached_tokens == 3 * len(server.completions)
        assert tree.cost.prefilled_tokens == sent - tree.cost.cached_tokens
        assert tree.cost.decoded_tokens == sum(len(t.token_ids) + 1 for t in tree.trajectories())  # and its end

    def test_what_is_cancelled_is_closed(self, serve: Serve) -> None:
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


PASSING = [
    *("500", "503", "429", "garbage", "half", "list", "error body", "no choices", "drop", "short"),
    *("no ids", "nan", "duplicate"),
]


class TestFaults:
    """Failures that pass leave no mark; others end the run with what is finished kept."""

    @pytest.mark.parametrize("fault", PASSING)
    def test_a_fault_that_passes_leaves_no_mark(self, fault: str, serve: Serve, arts: Make) -> None:
        server = serve()
        server.faults.extend([None, fault, None, None, fault, fault])
        with arts(server) as search:
            trees = search.solve_many(QUESTIONS)
        assert not server.faults
        assert all(tree.error is None and "errors" not in tree.meta for tree in trees)
        assert found(trees) == reference(serve, arts)

    def test_a_storm_of_429(self, serve: Serve, arts: Make) -> None:
        server = serve()
        server.faults.extend(["429"] * 12)
        with arts(server, max_retries=0, slots=4) as search:
            trees = search.solve_many(QUESTIONS[:1])
        assert found(trees) == reference(serve, arts)[:1]

    def test_a_reply_that_trickles(self, serve: Serve, arts: Make) -> None:
        server = serve()
        server.faults.append("loris")
        with arts(server, timeout=1.0) as search:
            trees = search.solve_many(QUESTIONS)
        assert found(trees) == reference(serve, arts)

    def test_a_server_that_stays_broken_ends_the_run(self, serve: Serve, arts: Make) -> None:
        server = serve()
        server.faults.extend(["500"] * 50)
        with arts(server, max_retries=1) as search, pytest.raises(ServerError, match=r"500.*max_retries=1"):
            search.solve_many(QUESTIONS)

    def test_redirects_are_not_followed(self, serve: Serve, arts: Make) -> None:
        server = serve()
        server.faults.append("redirect")
        with (
            arts(server) as search,
            pytest.raises(ServerError, match=r"redirects to http://127.0.0.1:9/v1.*give that address"),
        ):
            search.solve("one")

    def test_a_refused_question_costs_the_others_nothing(self, serve: Serve, arts: Make) -> None:
        server = serve()
        server.refuse = lambda prompt: "[user] two" in prompt
        with arts(server) as search:
            trees = search.solve_many(QUESTIONS)
        expected = reference(serve, arts)
        assert found([trees[0], trees[2]]) == [expected[0], expected[2]]
        assert "this prompt is refused" in trees[1].meta["errors"][0]

    def test_one_of_two_replicas_dies(self, serve: Serve, arts: Make) -> None:
        first, second = serve(), serve()
        first.delay = second.delay = 0.02
        with arts(first, second, budget_trajectories=6) as search:
            trees = []
            for event in search.stream(QUESTIONS * 2):
                if event.kind == "finished":
                    trees.append(event)
                elif len(first.completions) >= 3 and first._http.socket.fileno() >= 0:
                    first.kill()
        by_question = {event.job.meta["number"]: event.tree for event in trees}
        assert len(trees) == len(by_question) == 6
        expected = reference(serve, arts)
        assert found([by_question[i] for i in range(3)]) == expected
        assert found([by_question[i] for i in range(3, 6)]) == expected

    def test_a_run_goes_on_where_a_dead_server_left_it(self, serve: Serve, arts: Make, tmp_path: Path) -> None:
        server = serve()
        server.delay = 0.02
        folder = tmp_path / "run"
        done = 0
        with arts(server, trace=str(folder), max_retries=1, slots=6) as search, pytest.raises(ServerError):
            for event in search.stream(QUESTIONS):
                if event.kind == "finished":
                    done += 1
                    if done == 1:
                        server.kill()
        assert 1 <= done < 3
        again = serve()
        with arts(again, trace=str(folder), slots=6) as search:
            trees = search.solve_many(QUESTIONS)
        assert found(trees) == reference(serve, arts)
        assert len((folder / "trees.jsonl").read_text().splitlines()) == 3
        asked = {bytes(body["prompt"]).decode().split("\n")[0] for body in again.completions}
        assert len(asked) == 3 - done

    @pytest.mark.parametrize("traced", [True, False])
    def test_what_a_run_that_ends_in_an_error_leaves_is_said(
        self, traced: bool, serve: Serve, arts: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Before the error goes up, for whoever runs it: how much is kept, where, and how to go on."""
        folder = {"trace": str(tmp_path / "run")} if traced else {}
        said = (
            "question(s) were finished and are kept in trace="
            if traced
            else "finished question(s) had found; trace=FOLDER"
        )
        questions = [f"question {number}" for number in range(12)]
        before = 0
        for _ in range(2 if traced else 1):
            caplog.clear()
            server, done = serve(), 0
            server.delay = 0.02
            with arts(server, slots=6, max_retries=0, **folder) as search, pytest.raises(ServerError):
                for event in search.stream(questions):
                    done += event.kind == "finished"
                    if done == before + 1:
                        server.kill()
            assert before < done < len(questions)
            assert f"{done} {said}" in caplog.text, "what an earlier run has finished is kept as well"
            before = done

    def test_down_at_start(self, arts: Make, serve: Serve) -> None:
        server = serve()
        server.kill()
        with arts(server) as search, pytest.raises(ServerError, match=rf"{server.port}.*Is it running"):
            search.solve("one")

    def test_a_replica_that_is_down_at_start_is_said(
        self, serve: Serve, arts: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        dead, alive = serve(), serve()
        dead.kill()
        with arts(dead, alive) as search:
            trees = search.solve_many(QUESTIONS)
        assert found(trees) == reference(serve, arts)
        assert f"going on without a replica for now: http://127.0.0.1:{dead.port}" in caplog.text

    def test_a_model_that_it_has_not(self, serve: Serve, arts: Make) -> None:
        with (
            arts(serve(), model="other") as search,
            pytest.raises(ModelError, match="no model 'other'; it has scripted"),
        ):
            search.solve("one")

    def test_replicas_of_two_models(self, serve: Serve, arts: Make) -> None:
        with arts(serve(), serve(model="other")) as search, pytest.raises(ModelError, match="not alike"):
            search.solve("one")

    def test_a_key_comes_from_the_environment_and_goes_nowhere_else(
        self,
        serve: Serve,
        arts: Make,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("ARTS_API_KEY", "sk-very-secret")
        caplog.set_level(logging.DEBUG)
        server = serve()
        server.faults.append("401")
        folder = tmp_path / "run"
        with (
            arts(server, trace=str(folder)) as search,
            pytest.raises(ServerError, match=r"401.*set ARTS_API_KEY") as error,
        ):
            search.solve("one")
        assert server.keys == {"Bearer sk-very-secret"}
        written = "".join(file.read_text() for file in folder.rglob("*") if file.is_file())
        assert "secret" not in str(error.value) + caplog.text + written


class TestText:
    """Servers that know only text, and cannot say why they stopped."""

    def test_finds_what_it_would_find_with_ids(
        self, serve: Serve, arts: Make, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = serve(dialect="text")
        with arts(server, chat="plain") as search:
            trees = search.solve_many(QUESTIONS)
        assert "continued as text" in caplog.text
        assert "log-probabilities" in caplog.text
        assert all(body["stream"] and "stop" not in body for body in server.completions)
        with arts(serve(), chat="plain") as search:
            assert found(search.solve_many(QUESTIONS)) == found(trees)

    @pytest.mark.parametrize("fault", ["half stream", "cut stream", "500", "drop", "half"])
    def test_faults(self, fault: str, serve: Serve, arts: Make) -> None:
        server = serve(dialect="text")
        server.faults.extend([None, fault, fault])
        with arts(server, chat="plain") as search:
            trees = search.solve_many(QUESTIONS)
        with arts(serve(dialect="text"), chat="plain") as search:
            assert found(search.solve_many(QUESTIONS)) == found(trees)

    def test_no_likelihoods(self, serve: Serve) -> None:
        backend = ServerBackend(Settings(backend="server", base_url=serve(dialect="text").url))
        with pytest.raises(ModelError, match="takes no token ids"):
            backend.loglikelihood([((1,), (2,))])
        backend.close()

    def test_a_template_of_ones_own(self, serve: Serve, arts: Make, tmp_path: Path) -> None:
        template = tmp_path / "chat.jinja"
        template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\n[assistant] ")
        server = serve(dialect="text")
        with arts(server, chat_template=str(template)) as search:
            search.solve("one")
        assert server.completions[0]["prompt"].startswith("<user>one")
        with arts(serve(dialect="text"), chat="template") as search, pytest.raises(ModelError, match="chat_template="):
            search.solve("one")


class TestScoring:
    """Likelihoods, and hidden states from a server beside it."""

    def test_likelihoods(self, serve: Serve) -> None:
        backend = ServerBackend(Settings(backend="server", base_url=serve().url))
        assert backend.loglikelihood([(tuple(b"ab"), tuple(b"cde")), (tuple(b"a"), ())]) == [(-0.75, True), (0.0, True)]
        with pytest.raises(PromptTooLongError, match="at least one token"):
            backend.loglikelihood([((), (1,))])
        backend.close()

    @pytest.mark.parametrize("strict", [False, True])
    def test_likelihoods_by_echo(self, strict: bool, serve: Serve) -> None:
        """Also where prompt_logprobs is refused; which way it is, is found out once."""
        server = serve(scores="echo", strict=strict)
        backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=1))
        pairs = [(tuple(b"ab"), tuple(b"cde")), (tuple(b"A"), tuple(b"c")), (tuple(b"ab"), tuple(b"cDe"))]
        assert backend.loglikelihood(pairs) == [(-0.75, True), (-0.25, True), (-0.75, False)]
        assert backend.loglikelihood(pairs[:1]) == [(-0.75, True)]
        assert sum("prompt_logprobs" in body for body in server.seen) == (0 if strict else 1)
        assert sum(bool(body.get("echo")) for body in server.seen) == 4
        backend.close()

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("scores", ["prompt_logprobs", "echo"])
    def test_a_refusal_of_one_prompt(self, strict: bool, scores: str, serve: Serve) -> None:
        """Is its own where others were scored."""
        server = serve(scores=scores, strict=strict)
        backend = ServerBackend(Settings(backend="server", base_url=server.url))
        backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))])
        server.refuse = lambda prompt: "bad" in prompt
        with pytest.raises(RefusedError, match="this prompt is refused"):
            backend.loglikelihood([(tuple(b"bad"), tuple(b"cde"))])
        backend.close()

    @pytest.mark.parametrize(
        ("strict", "said"), [(False, "nor echo"), (True, "unknown field prompt_logprobs.*unknown field echo")]
    )
    def test_no_likelihoods_at_all(self, strict: bool, said: str, serve: Serve) -> None:
        backend = ServerBackend(Settings(backend="server", base_url=serve(scores=None, strict=strict).url))
        with pytest.raises(ModelError, match=said):
            backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))])
        backend.close()

    def test_an_echo_with_tokens_of_the_servers_own(self, serve: Serve) -> None:
        """A BOS that it adds would shift every log-probability."""
        server = serve(scores="echo")

        def with_bos(choice: dict[str, Any]) -> None:
            told = choice["logprobs"]
            if "top_logprobs" in told:
                told["token_logprobs"].insert(0, None)
                told["top_logprobs"].insert(0, None)

        server.alter = with_bos
        backend = ServerBackend(Settings(backend="server", base_url=server.url))
        with pytest.raises(ModelError, match="adds some of its own"):
            backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))])
        backend.close()

    def test_more_likelihoods_than_requests_at_once(self, serve: Serve) -> None:
        backend = ServerBackend(Settings(backend="server", base_url=serve().url, slots=2))
        texts = [b"c" * (1 + n % 5) for n in range(20)]
        assert backend.loglikelihood([((97,), tuple(text)) for text in texts]) == [
            (-0.25 * len(t), True) for t in texts
        ]
        with pytest.raises(PromptTooLongError, match="at least one token"):  # the others end with it
            backend.loglikelihood([*(((97,), tuple(text)) for text in texts), ((), (1,))])
        backend.close()

    def test_features_are_those_of_the_last_kept_tokens(self, serve: Serve) -> None:
        server, pooling = serve(), serve(model="pooling")
        settings = Settings(backend="server", base_url=server.url, features_url=pooling.url)
        backend = ServerBackend(settings, features=True)
        assert backend.info.n_embd == 8
        prompt = tuple(b"q\n")
        root = backend.open(Prompt("q", prompt), Generation(stops=("answer",)), 1)
        state = backend.fork(root, 0)
        backend.submit(state, 50)
        tokens, parents, cut, seen = [list(prompt)], [None], [0], []
        while backend.n_active:
            for result in backend.poll():
                tokens.append(list(result.token_ids))
                parents.append(len(tokens) - 2)  # type: ignore[arg-type]
                cut.append(result.cut_tokens)
                assert result.feature is not None
                seen.append(result.feature)
                if not result.terminal:
                    backend.submit(result.state, 50)  # type: ignore[arg-type]
        assert np.array_equal(root.feature, state_of(list(prompt)))  # type: ignore[arg-type]
        whole = [token for step in tokens for token in step]
        assert np.array_equal(seen[-1], state_of(whole))
        assert np.array_equal(backend.tree_features(tokens, parents, cut)[1:], np.stack(seen))
        backend.close()

    @pytest.mark.parametrize("generating", ["vllm", "llama-server"])
    def test_states_of_another_model_are_refused(self, generating: str, serve: Serve) -> None:
        """Of the same size, but with another vocabulary."""
        server, pooling = serve(dialect=generating), serve(model="other")
        pooling.shift = 1
        settings = Settings(backend="server", base_url=server.url, features_url=pooling.url)
        with pytest.raises(ModelError, match=r"serves other, which has another vocabulary than scripted.*features_url"):
            ServerBackend(settings, features=True)

    def test_states_of_a_model_of_another_name_are_said(self, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
        """It may be the same; a server that tells no tokens may be any."""
        for pooling in (serve(model="other"), serve(model="other", dialect="text")):
            caplog.clear()
            settings = Settings(backend="server", base_url=serve().url, features_url=pooling.url)
            ServerBackend(settings, features=True).close()
            assert "features_url serves other and base_url scripted" in caplog.text

    def test_states_of_length_one_are_refused(self, serve: Serve) -> None:
        pooling = serve(model="pooling", normalise=True)
        settings = Settings(backend="server", base_url=serve().url, features_url=pooling.url)
        with pytest.raises(ModelError, match=r"length one.*use_activation"):
            ServerBackend(settings, features=True)


class TestParts:
    """Addresses, circuits, tokens."""

    def test_addresses(self) -> None:
        given = "http://a:1/v1; https://b/v1/completions;http://a:1/;http://c/prefix/v1"
        assert addresses(given) == ["http://a:1", "https://b", "http://c/prefix"]
        for wrong, said in {
            None: "needs base_url",
            "": "needs base_url",
            "localhost:8000": "looks like",
            "ftp://a": "looks like",
            "http://me:secret@a/v1": "ARTS_API_KEY",
            "http://a/v1?key=secret": "ARTS_API_KEY",
        }.items():
            with pytest.raises(SettingsError, match=said) as error:
                addresses(wrong)
            assert "secret" not in str(error.value)

    def test_a_circuit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [100.0]
        monkeypatch.setattr("arts_server.replicas.time.monotonic", lambda: clock[0])
        replica = Replica("http://a")
        for _ in range(FAILURES):
            assert replica.ready()
            replica.failed(replica.begin(), "down")
        assert not replica.ready()
        clock[0] += 0.011
        assert replica.ready()
        began = replica.begin()
        assert not replica.ready()  # one trial at a time
        replica.failed(began, "down")
        clock[0] += 0.011
        assert not replica.ready()  # twice as long this time
        clock[0] += 0.01
        assert replica.ready()
        replica.begin()
        replica.succeeded()
        assert replica.ready()
        assert replica.failures == 0

    def test_choosing(self) -> None:
        home, other = Replica("http://a", in_flight=6), Replica("http://b", in_flight=5)
        assert choose([home, other], None, 2, 8) is other
        assert choose([home, other], home, 2, 8) is home
        home.in_flight = 8
        assert choose([home, other], home, 2, 8) is other  # spills over
        other.in_flight = 8
        assert choose([home, other], home, 2, 8) is home  # nobody has room: the cache decides
        home.failures, home.until = FAILURES, float("inf")
        assert choose([home, other], home, 2, 8) is other
        assert choose([home, other], home, 2, 8, {other}) is other  # there is nobody else
        home.failures = 0
        assert choose([home, other], home, 2, 8, {home}) is other
        home.failures = other.failures = FAILURES
        other.until = float("inf")
        assert choose([home, other], home, 2, 8) is None

    def test_pieces(self) -> None:
        assert pieces(["a", " b", "\n\n"], "a b\n") == [b"a", b" b", b"\n\n"]  # beyond the stop string
        assert pieces(["a", "<|im_end|>"], "a") == [b"a", b""]
        assert pieces(["<think>", "a"], "a") == [b"", b"a"]
        smile = "\U0001f600".encode()
        assert pieces(["a", "", "", "\U0001f600", "b"], "a\U0001f600b") == [
            b"a",
            smile[:1],
            smile[1:2],
            smile[2:],
            b"b",
        ]
        assert pieces(["", ""], "") == [b"", b""]

    @pytest.mark.parametrize(
        ("tokens", "text", "expected"),
        [
            (["Hello", "world", "\n"], " Hello world\n", [b" Hello", b" world", b"\n"]),  # SentencePiece, one by one
            (["The", "\u0120answer", "\u010a"], "The answer\n", [b"The", b" answer", b"\n"]),
            (["\u2581Hi", "\u2581you"], "Hi you", [b"Hi", b" you"]),
            (["caf", "\ufffd", "\ufffd", " au"], "caf\u00e9 au", [b"caf", b"\xc3", b"\xa9", b" au"]),
            (["caf", "\ufffd", "\ufffd"], "caf\u00e9", [b"caf", b"\xc3", b"\xa9"]),
            (["token_id:5", "token_id:6"], "Hello\n", [b"Hel", b"lo\n"]),
        ],
    )
    def test_pieces_of_tokens_spelt_otherwise(self, tokens: list[str], text: str, expected: list[bytes]) -> None:
        assert pieces(tokens, text) == expected
        assert b"".join(expected).decode() == text

    def test_text_that_no_token_stands_for(self) -> None:
        with pytest.raises(RetryError, match="none of its tokens"):
            pieces(["a"], "ab")


class TestLlamaServer:
    """Ids, log-probabilities and counts of a server that only tells them token by token."""

    @pytest.mark.parametrize("ornament", ["", " \u00e9\U0001f600!"])
    def test_streams_give_the_tokens_that_whole_replies_give(self, ornament: str, serve: Serve, arts: Make) -> None:
        trees = []
        for dialect in ("vllm", "llama-server"):
            # Under a budget of nodes both go step by step, so that they draw alike.
            with arts(serve(dialect=dialect, ornament=ornament), budget_nodes=100) as search:
                trees.append(search.solve("one"))
        whole, streamed = trees
        assert [node.token_ids for node in whole.nodes] == [node.token_ids for node in streamed.nodes]
        assert [node.text for node in whole.nodes] == [node.text for node in streamed.nodes]
        assert len({t.text for t in streamed.trajectories()}) > 1
        for node in streamed.nodes[1:]:
            untold = sum(byte >= 0x80 for byte in node.token_ids) - sum(char > "\x7f" for char in node.text)
            assert node.logprob == pytest.approx(-0.5 * (len(node.token_ids) - untold))
            assert bool(ornament) == bool(untold) or "answer" in node.text
        assert {t.stop for t in streamed.trajectories()} == {"eos"}

    def test_what_was_cached_is_booked(self, serve: Serve, arts: Make) -> None:
        server = serve(dialect="llama-server")
        with arts(server) as search:
            tree = search.solve("one")
        assert tree.cost.cached_tokens == sum(len(body["prompt"]) - 2 for body in server.completions)
        assert all(body["timings_per_token"] and body["stream"] for body in server.completions)

    def test_chats_are_rendered_there(self, serve: Serve) -> None:
        backend = ServerBackend(Settings(backend="server", base_url=serve(dialect="llama-server").url))
        prompt = backend.encode_chat([{"role": "user", "content": "a"}])
        assert bytes(prompt.token_ids) == b"[user] a\n[assistant] "
        assert backend.dialect.ids and backend.dialect.logprobs and not backend.dialect.whole
        assert backend.info.n_ctx == 2048  # of a slot, not of the model
        backend.close()

    @pytest.mark.parametrize("reply", [{}, {"tokens": []}, {"tokens": ["x"]}])
    def test_a_tokeniser_that_makes_no_sense(
        self, reply: dict[str, Any], serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = serve(dialect="llama-server", ornament="\u00e9")
        with arts(server, max_retries=1, slots=1, budget_trajectories=1) as search:
            answer = LLAMA_SERVER["/tokenize"]
            broken = lambda handler, body: reply if body.keys() == {"content"} else answer(handler, body)  # noqa: E731
            monkeypatch.setitem(LLAMA_SERVER, "/tokenize", broken)
            with pytest.raises(ServerError, match="/tokenize answers with"):
                search.solve("one")

"""A reward model on a server as a verifier, against a scripted server."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_server import ScriptedServer, rewards_of
from server_searches import Serve

from arts_plugin.api import Arts
from arts_plugin.errors import ArtsError, ModelError, RunFolderError, SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.settings import Settings
from arts_plugin.verifier import StateView
from arts_server.faults import ServerError
from arts_server.reward import RewardServer

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def opened() -> Iterator[Callable[..., RewardServer]]:
    """Makes verifiers and closes them."""
    made: list[RewardServer] = []

    def make(*servers: ScriptedServer, **settings: Any) -> RewardServer:
        urls = ";".join(server.url for server in servers)
        made.append(RewardServer(Settings.of(verifier="reward", reward_url=urls, timeout=20, **settings)))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def view(handle: object, text: str, question: str = "q") -> StateView:
    return StateView(f"<{question}>", text, (), "", (), 0.0, None, False, handle, question)


def chat(question: str, text: str) -> str:
    """What the scripted server makes of messages."""
    return f"[user] {question}\n[assistant] {text}\n[assistant] "


def reward(question: str, text: str) -> float:
    return rewards_of(chat(question, text), 1)[0]


class TestScores:
    def test_a_single_output_is_log_flow(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server)
        root = verifier.open("<q>")
        children = [verifier.fork(root) for _ in range(3)]
        scores = verifier.score([view(root, ""), *(view(child, f"step {i}\n") for i, child in enumerate(children))])
        expected = [reward("q", ""), *(reward("q", f"step {i}\n") for i in range(3))]
        assert scores.tolist() == expected
        asked = server.judged[-1]
        assert asked["use_activation"] is False and asked["add_generation_prompt"] is False
        assert [turn["role"] for turn in asked["messages"]] == ["user", "assistant"]

    def test_nothing_is_asked_twice(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server)
        root = verifier.open("<q>")
        child = verifier.fork(root)
        first = verifier.score([view(root, ""), view(child, "a")])
        asked = len(server.judged)
        assert verifier.score([view(child, "a"), view(root, "")]).tolist() == first[::-1].tolist()
        end = verifier.fork(child)  # an end of text, which adds nothing
        assert verifier.score([view(end, "a")]).tolist() == [first[1]]
        assert len(server.judged) == asked
        assert verifier.tokens_read(child) == len(chat("q", "a"))
        assert verifier.tokens_read(child) == verifier.tokens_read(end) == 0

    def test_two_outputs_are_bad_and_good(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        verifier = opened(serve(rewards="/classify", outputs=2))
        (score,) = verifier.score([view(verifier.open("<q>"), "a")])
        bad, good = rewards_of(chat("q", "a"), 2)
        assert score == pytest.approx(good - np.logaddexp(bad, good))
        assert score < 0

    def test_probabilities_are_taken_as_such(self) -> None:
        from arts_server.reward import _log_flow

        assert _log_flow([0.2, 0.8]) == pytest.approx(math.log(0.8))
        assert _log_flow([1.0, 0.0]) == -math.inf
        assert _log_flow([-0.2, 1.2]) == pytest.approx(1.2 - np.logaddexp(-0.2, 1.2))

    def test_of_a_judgement_of_each_token_the_last_counts(
        self, serve: Serve, opened: Callable[..., RewardServer]
    ) -> None:
        verifier = opened(serve(rewards="/pooling"))
        assert verifier.endpoint.path == "/pooling"
        assert verifier.score([view(verifier.open("<q>"), "a")]).tolist() == [reward("q", "a")]

    def test_without_a_template_text_is_sent(
        self, serve: Serve, opened: Callable[..., RewardServer], caplog: pytest.LogCaptureFixture
    ) -> None:
        verifier = opened(serve(rewards="/classify", template=False))
        assert "as plain text" in caplog.text
        assert verifier.score([view(verifier.open("<q>"), "a")]).tolist() == rewards_of("q\na", 1)

    @pytest.mark.parametrize("aggregate", ["last", "min", "product", "mean"])
    def test_a_path_is_scored_as_is_asked(
        self, aggregate: str, serve: Serve, opened: Callable[..., RewardServer]
    ) -> None:
        verifier = opened(serve(rewards="/classify"), verifier_aggregate=aggregate)
        handle, handles = verifier.open("<q>"), []
        for _ in range(3):
            handles.append(handle := verifier.fork(handle))
        texts = ["a", "ab", "abc"]
        root = handles[0].parent  # type: ignore[attr-defined]
        scores = verifier.score([view(h, t) for h, t in zip([*handles[::-1], root], [*texts[::-1], ""], strict=True)])
        steps = [reward("q", text) for text in texts]
        expected = {
            "last": steps[-1],
            "min": min(steps),
            "product": sum(steps),
            "mean": math.log(sum(map(math.exp, steps)) / 3),
        }
        assert scores[0] == pytest.approx(expected[aggregate])


class TestFaults:
    def test_what_passes_is_tried_again(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server, max_retries=20)
        server.faults.extend(["429", "500", "drop", "garbage", "half", "list", "few", "short", "error body"])
        root = verifier.open("<q>")
        handles = [verifier.fork(root) for _ in range(6)]
        scores = verifier.score([view(root, ""), *(view(h, f"{i}") for i, h in enumerate(handles))])
        assert not server.faults
        assert scores.tolist() == [reward("q", ""), *(reward("q", f"{i}") for i in range(6))]

    def test_refused_texts_are_worthless_and_said_once(
        self, serve: Serve, opened: Callable[..., RewardServer], caplog: pytest.LogCaptureFixture
    ) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server)
        server.refuse = lambda text: "bad" in text or "[assistant] \n" in text
        root = verifier.open("<q>")
        handles = [verifier.fork(root) for _ in range(3)]
        texts = ["bad 1", "good", "bad 2"]
        scores = verifier.score([view(root, ""), *(view(h, t) for h, t in zip(handles, texts, strict=True))])
        assert scores.tolist() == [0.0, -math.inf, reward("q", "good"), -math.inf]
        assert caplog.text.count("worthless") == 1
        assert "this text is refused" in caplog.text

    def test_no_number_is_worthless(
        self, serve: Serve, opened: Callable[..., RewardServer], caplog: pytest.LogCaptureFixture
    ) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server, verifier_aggregate="min")
        root = verifier.open("<q>")
        verifier.score([view(root, "")])
        server.faults.append("nan")
        assert verifier.score([view(verifier.fork(root), "a")]).tolist() == [-math.inf]
        assert "gives nan for a text" in caplog.text

    def test_a_dead_server_is_named(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server, max_retries=1)
        server.kill()
        with pytest.raises(ServerError, match="given up"):
            verifier.score([view(verifier.open("<q>"), str(i)) for i in range(3)])

    def test_one_of_two_dies(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        servers = [serve(rewards="/classify") for _ in range(2)]
        verifier = opened(*servers, slots=4)
        servers[0].kill()
        texts = [str(i) for i in range(12)]
        scores = verifier.score([view(verifier.open("<q>"), text) for text in texts])
        assert scores.tolist() == [reward("q", text) for text in texts]

    def test_requests_are_bounded(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        server = serve(rewards="/classify")
        verifier = opened(server, slots=3)
        server.delay = 0.02
        verifier.score([view(verifier.open("<q>"), str(i)) for i in range(12)])
        assert server.most_judging == 3


class TestStart:
    @pytest.mark.parametrize(
        ("keywords", "settings", "match"),
        [
            ({}, {}, "gives no rewards: .*does not support /classify.*does not support /pooling"),
            ({"rewards": "/classify", "outputs": 3}, {}, "judges by 3 numbers"),
            ({"rewards": "/classify"}, {"verifier_model": "other"}, "serves no model 'other'; it has scripted"),
        ],
    )
    def test_what_is_no_reward_model_is_refused(
        self,
        keywords: dict[str, Any],
        settings: dict[str, Any],
        match: str,
        serve: Serve,
        opened: Callable[..., RewardServer],
    ) -> None:
        with pytest.raises(ModelError, match=match):
            opened(serve(**keywords), **settings)

    def test_replicas_must_be_alike(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        with pytest.raises(ModelError, match="not alike"):
            opened(serve(rewards="/classify"), serve(rewards="/pooling"))

    def test_nobody_there(self) -> None:
        with pytest.raises(ServerError, match="is reward_url right"):
            RewardServer(Settings.of(verifier="reward", reward_url="http://127.0.0.1:9"))

    def test_an_address_is_needed_and_used(self) -> None:
        with pytest.raises(SettingsError, match="verifier=reward needs reward_url="):
            RewardServer(Settings.of(verifier="reward"))
        with pytest.raises(SettingsError, match=r"reward_url has 'nowhere'"):
            RewardServer(Settings.of(verifier="reward", reward_url="nowhere"))
        with pytest.raises(SettingsError, match="it is read by verifier=reward"):
            Settings.of(reward_url="http://127.0.0.1:8000")

    def test_handles_of_others_are_refused(self, serve: Serve, opened: Callable[..., RewardServer]) -> None:
        with pytest.raises(ArtsError, match="not its own"):
            opened(serve(rewards="/classify")).fork("x")


class TestSearch:
    def arts(self, registry: Plugins, proposer: ScriptedServer, judge: ScriptedServer, **more: Any) -> Arts:
        settings = {"backend": "server", "base_url": proposer.url, "verifier": "reward", "reward_url": judge.url}
        return Arts(registry=registry, **{**settings, "slots": 4, "budget_trajectories": 6, **more})

    @pytest.mark.parametrize("strategy", ["arts", "best_of_n", "beam", "smc", "mcts"])
    def test_every_state_is_judged(
        self, strategy: str, serve: Serve, registry: Plugins, caplog: pytest.LogCaptureFixture
    ) -> None:
        judge = serve(rewards="/classify")
        caplog.set_level(logging.WARNING)
        with self.arts(registry, serve(), judge, strategy=strategy) as arts:
            tree = arts.solve("one")
        assert tree.n_finished >= 1
        question = judge.judged[-1]["messages"][0]["content"]
        assert tree.prompt == chat(question, "").removesuffix("\n[assistant] ")
        for node in tree.nodes:
            assert node.log_flow == reward(question, "".join(one.text for one in tree.path(node.id)))
        asked = judge.judged[1:]  # without the probe
        assert tree.cost.verifier_tokens == sum(len(chat(question, b["messages"][1]["content"])) for b in asked)
        assert not caplog.records

    def test_a_run_belongs_to_its_reward_model(self, serve: Serve, registry: Plugins, tmp_path: Path) -> None:
        proposer = serve()
        with self.arts(registry, proposer, serve(rewards="/classify"), trace=str(tmp_path / "run")) as arts:
            arts.solve("one")
        with (
            self.arts(registry, proposer, serve(rewards="/classify", model="b"), trace=str(tmp_path / "run")) as arts,
            pytest.raises(RunFolderError, match="was 'reward: scripted' and is 'reward: b'"),
        ):
            arts.solve("two")

"""Backend `server` on a real vLLM. Opt-in: ARTS_TEST_VLLM=FOLDER, a virtual environment made by `vllm_venv.py FOLDER`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arts_plugin.api import Arts
from arts_plugin.backend import Backend
from arts_plugin.plugins import plugins
from arts_plugin.settings import Settings
from arts_plugin.testing import SAMPLED, BackendContract, cosine, question, run
from tests.models import smollm2
from tests.real.servers import POOLER, Server, vllm
from tests.real.vllm_venv import python_of

pytestmark = pytest.mark.vllm
VENV = Path(os.environ.get("ARTS_TEST_VLLM", ""))
if not os.environ.get("ARTS_TEST_VLLM"):
    pytest.skip("opt-in: ARTS_TEST_VLLM=FOLDER", allow_module_level=True)


@pytest.fixture(scope="module")
def folder() -> Path:
    """SmolLM2 as safetensors."""
    import torch

    from arts_hf.loading import converted

    return converted(Path(smollm2()), torch.bfloat16)


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with vllm(python_of(VENV), folder, tmp_path_factory.mktemp("vllm") / "log") as started:
        yield started


def opened(server: Server, **more: object) -> Backend:
    made: Backend = plugins().make(
        "backend", "server", Settings.of(backend="server", base_url=server.url, slots=8, **more), features=True
    )
    return made


class TestContract(BackendContract):
    """bfloat16 rounds a logit of 20 to an eighth, so near-ties are wider than in llama.cpp."""

    tolerance = 0.3
    tie = 1.0

    @pytest.fixture(scope="class")
    def backend(self, server: Server) -> Iterator[Backend]:
        made = opened(server)
        yield made
        made.close()

    def test_cancel_and_drop(self, backend: Backend) -> None:
        """As in the contract, but that nobody knows what a closed request had generated."""
        root = backend.open(question(backend), SAMPLED, 1)
        states = [backend.fork(root, i) for i in range(3)]
        for state in states:
            backend.submit(state, 48)
        backend.poll()
        if states[1].run is not None:  # type: ignore[attr-defined]
            assert backend.cancel(states[1])[1] == 0
        results = []
        while backend.n_active:
            results += backend.poll()
        assert {id(r.state) for r in results} <= {id(state) for state in states}

    def test_seeds_reproduce(self, backend: Backend) -> None:
        """Most traces come again; what is batched together moves bfloat16's logits."""
        prompt = question(backend)
        first, again = (run(backend, prompt, SAMPLED, range(8)) for _ in range(2))
        same = sum(a.steps[0].token_ids == b.steps[0].token_ids for a, b in zip(first, again, strict=True))
        assert same >= 5, f"{same} of 8 first steps came again"
        assert len({trace.tokens for trace in first}) > 1


def test_states_are_those_of_the_hf_backend(
    server: Server, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The pooling server's last-token states are what a verifier's head has learned from."""
    log = tmp_path_factory.mktemp("pooling") / "log"
    more = ("--runner", "pooling", "--convert", "embed", "--pooler-config", POOLER)
    with vllm(python_of(VENV), folder, log, *more) as pooling:
        backend = opened(server, features_url=pooling.url)
        traces = run(backend, question(backend), SAMPLED, range(2))
        prompt = question(backend).token_ids
        backend.close()
    settings = Settings.of(backend="hf", model=str(folder), dtype="float32", n_ctx=4096, slots=8)
    hf: Backend = plugins().make("backend", "hf", settings, features=True)
    for trace in traces:
        tokens, parents, cut = [list(prompt)], [None], [0]
        for step in trace.steps:
            tokens.append(list(step.token_ids))
            parents.append(len(tokens) - 2)  # type: ignore[arg-type]
            cut.append(step.cut_tokens)
        derived = hf.tree_features(tokens, parents, cut)[1:]
        worst = min(cosine(row, np.asarray(s.feature)) for row, s in zip(derived, trace.steps, strict=True))
        assert worst >= 0.99, worst
    (ours,) = hf.loglikelihood([(prompt, traces[0].tokens)])
    hf.close()
    assert abs(ours[0] - traces[0].logprob) <= 0.1 * len(traces[0].tokens)


def reward_model(folder: Path, place: Path, labels: int) -> tuple[Any, Any]:
    """A tiny random reward model with SmolLM2's tokeniser, saved at `place`: (model, tokeniser)."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id or 0,
        initializer_range=0.1,  # so that rewards of different texts differ
    )
    model = LlamaForSequenceClassification(config).eval()
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return model, tokenizer


@pytest.mark.parametrize("labels", [1, 2])
def test_rewards_are_those_of_transformers(labels: int, server: Server, folder: Path, tmp_path: Path) -> None:
    """A reward model on a second server scores each state of a search as transformers would."""
    import torch

    model, tokenizer = reward_model(folder, tmp_path / "model", labels)
    more = ("--runner", "pooling", "--dtype", "float32")
    with vllm(python_of(VENV), tmp_path / "model", tmp_path / "log", *more) as judge:
        settings = {"base_url": server.url, "verifier": "reward", "reward_url": judge.url, "slots": 4}
        with Arts(backend="server", **settings, budget_trajectories=4, max_gen_toks=60) as arts:
            tree = arts.solve("Tom has 3 pens and buys 2 more. How many pens does he have now?")
            question = arts.prompt("Tom has 3 pens and buys 2 more. How many pens does he have now?").user
    expected = []
    for node in tree.nodes:
        text = "".join(one.text for one in tree.path(node.id))
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            row = model(ids).logits[0]
        expected.append(float(row[0] if labels == 1 else torch.log_softmax(row, 0)[1]))
    assert len(expected) > 5 and np.std(expected) > 0.05
    np.testing.assert_allclose([node.log_flow for node in tree.nodes], expected, atol=2e-3)
    assert tree.cost.verifier_tokens > 0


def test_one_of_two_replicas_is_killed(server: Server, folder: Path, tmp_path: Path) -> None:
    """No answer is lost, and none comes twice."""
    questions = [f"What is {n} plus {n + 7}?" for n in range(12)]
    with vllm(python_of(VENV), folder, tmp_path / "log") as other:
        settings = {
            "base_url": f"{other.url};{server.url}",
            "verifier": "none",
            "strategy": "best_of_n",
            "budget_trajectories": 4,
            "slots": 16,
            "max_gen_toks": 80,
            "trace": str(tmp_path / "run"),
        }
        finished: list[int] = []
        with Arts(backend="server", **settings) as arts:
            for event in arts.stream(questions):
                if event.kind == "finished":
                    finished.append(event.job.meta["number"])
                    assert event.tree.error is None and "errors" not in event.tree.meta
                    assert event.tree.n_finished == 4
                    if len(finished) == 2:
                        other.kill()
    assert sorted(finished) == list(range(12))
    assert len((tmp_path / "run" / "trees.jsonl").read_text().splitlines()) == 12

"""Backend `server` on llama.cpp's own server. Opt-in: ARTS_TEST_LLAMA_SERVER=FOLDER, made by `llama_server.py FOLDER`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arts_plugin.api import Arts
from arts_plugin.backend import Backend, Generation, Sampling
from arts_plugin.errors import ModelError
from arts_plugin.plugins import plugins
from arts_plugin.settings import Settings
from arts_plugin.testing import SAMPLED, BackendContract, cosine, question, run
from tests.models import THREADS, smollm2
from tests.real.llama_server import server_of
from tests.real.servers import Server, llama_server

pytestmark = pytest.mark.llama_server
FOLDER = Path(os.environ.get("ARTS_TEST_LLAMA_SERVER", ""))
if not os.environ.get("ARTS_TEST_LLAMA_SERVER"):
    pytest.skip("opt-in: ARTS_TEST_LLAMA_SERVER=FOLDER", allow_module_level=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with llama_server(server_of(FOLDER), Path(smollm2()), tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@pytest.fixture(scope="module")
def in_process() -> Iterator[Backend]:
    """The same model in this process."""
    settings = Settings.of(model=smollm2(), n_ctx=4096, slots=4, n_threads=THREADS)
    made: Backend = plugins().make("backend", "llama_cpp", settings, features=False)
    yield made
    made.close()


def opened(server: Server, **more: Any) -> Any:
    settings = Settings.of(backend="server", base_url=server.url, slots=4, **more)
    return plugins().make("backend", "server", settings, features=False)


class TestContract(BackendContract):
    """Likelihoods, which this server does not give, are those of the model in process: its numbers must be the same."""

    @pytest.fixture(scope="class")
    def backend(self, server: Server, in_process: Backend) -> Iterator[Backend]:
        made = opened(server)
        made.loglikelihood = in_process.loglikelihood
        yield made
        made.close()

    def test_seeds_reproduce(self, backend: Backend) -> None:
        """One at a time: what is batched together rounds differently, and then a draw may be another."""
        prompt = question(backend)
        first, again = ([run(backend, prompt, SAMPLED, [i])[0].tokens for i in range(4)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 1


def test_what_it_can_do(server: Server) -> None:
    backend = opened(server)
    assert backend.dialect.ids
    assert backend.dialect.logprobs
    assert not backend.dialect.whole
    assert backend.info.n_ctx == 4096
    with pytest.raises(ModelError, match="does not score prompts"):
        backend.loglikelihood([((1, 2), (3,))])
    backend.close()


def test_prompts_are_those_of_the_model_in_process(server: Server, in_process: Backend) -> None:
    backend = opened(server)
    for text in ("What is 2 plus 3?", "<|im_end|> is no end \u00e9\U0001f600", "  two\n\nlines "):
        messages = [{"role": "user", "content": text}]
        assert backend.encode(text).token_ids == in_process.encode(text).token_ids, text
        assert backend.encode_chat(messages).token_ids == in_process.encode_chat(messages).token_ids, text
    backend.close()


def test_characters_of_several_tokens(server: Server, in_process: Backend) -> None:
    """Tokens that the server does not tell come back: the trace is what the model in process would have to read."""
    backend = opened(server)
    text = "Repeat: \U0001f99c\U0001f995\U0001f998 \u6f22\u5b57 \U0001f99c\U0001f995\U0001f998 \u6f22\u5b57 \U0001f99c\U0001f995\U0001f998 \u6f22\u5b57"
    prompt = backend.encode(text)
    (trace,) = run(backend, prompt, Generation(Sampling(temperature=0.0), max_gen_toks=40))
    backend.close()
    assert any(char > "\uffff" for char in trace.text), trace.text
    assert list(trace.tokens) == list(in_process.encode(trace.text).token_ids)


def test_states_are_those_of_the_model_in_process(server: Server, tmp_path: Path) -> None:
    """A second llama-server gives the hidden states that a verifier's head has learned from."""
    with llama_server(
        server_of(FOLDER), Path(smollm2()), tmp_path / "log", "--embeddings", "--pooling", "last"
    ) as pooling:
        settings = Settings.of(backend="server", base_url=server.url, slots=4, features_url=pooling.url)
        backend = plugins().make("backend", "server", settings, features=True)
        (trace,) = run(backend, prompt := question(backend), SAMPLED)
        backend.close()
    settings = Settings.of(model=smollm2(), n_ctx=4096, slots=4, n_threads=THREADS)
    here: Backend = plugins().make("backend", "llama_cpp", settings, features=True)
    tokens = [list(prompt.token_ids), *(list(step.token_ids) for step in trace.steps)]
    parents = [None, *range(len(trace.steps))]
    rows = here.tree_features(tokens, parents, [0, *(step.cut_tokens for step in trace.steps)])[1:]
    here.close()
    assert all(cosine(row, step.feature) >= 0.999 for row, step in zip(rows, trace.steps, strict=True))  # type: ignore[arg-type]
    lengths = [np.linalg.norm(row) / np.linalg.norm(step.feature) for row, step in zip(rows, trace.steps, strict=True)]  # type: ignore[arg-type]
    assert lengths == pytest.approx([1] * len(lengths), abs=0.02)


def test_a_search(server: Server, tmp_path: Path) -> None:
    """Ids, log-probabilities and cached tokens are in the trees, and the run is resumed."""
    settings = {"strategy": "arts", "budget_trajectories": 3, "slots": 4, "max_gen_toks": 64, "verifier": "logprob"}
    folder = str(tmp_path / "run")
    questions = ["What is 2 plus 3?", "What is 4 plus 4?"]
    with Arts(backend="server", base_url=server.url, trace=folder, **settings) as arts:
        trees = arts.solve_many(questions)
    for tree in trees:
        assert tree.error is None
        assert tree.n_finished >= 1
        assert tree.cost.cached_tokens > 0
        assert all(trajectory.logprob < 0 for trajectory in tree.trajectories())
    with Arts(backend="server", base_url=server.url, trace=folder, **settings) as arts:
        again = arts.solve_many(questions)
    assert [tree.to_json() for tree in again] == [tree.to_json() for tree in trees]


@pytest.mark.parametrize("name", ["repetition_penalty", "logit_bias"])
def test_biases_and_penalties(name: str, server: Server, in_process: Backend) -> None:
    """They do what they do in process, at least to the first near-tie."""
    backend = opened(server)

    def greedy(one: Backend, **changes: Any) -> tuple[int, ...]:
        (trace,) = run(one, question(one), Generation(Sampling(temperature=0.0, **changes), max_gen_toks=4))
        return trace.tokens

    plain = greedy(backend)
    changes = {name: 1.5 if name == "repetition_penalty" else ((plain[0], -100.0),)}
    there, here = greedy(backend, **changes), greedy(in_process, **changes)
    backend.close()
    assert there == here
    assert there[0] != plain[0]

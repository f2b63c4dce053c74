"""Backend `server` on llama-cpp-python's own server: text only, one choice, one request at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.api import Arts
from arts_plugin.backend import Backend, Generation, Sampling
from arts_plugin.errors import SettingsError
from arts_plugin.plugins import plugins
from arts_plugin.settings import Settings
from arts_plugin.testing import QUESTION, run
from tests.models import THREADS, smollm2
from tests.real.servers import Server, llama_cpp

pytest.importorskip("llama_cpp.server.app")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with llama_cpp(Path(smollm2()), tmp_path_factory.mktemp("server") / "log") as started:
        yield started


def made(server: Server) -> Any:
    return plugins().make(
        "backend", "server", Settings.of(backend="server", base_url=server.url, slots=4), features=False
    )


def test_greedy_steps_are_those_of_the_llama_cpp_backend(server: Server) -> None:
    """The same model, the same prompt: the same text, step by step, until the models' kernels differ at a near-tie."""
    generation = Generation(Sampling(temperature=0.0), max_gen_toks=40)
    plain = f"Question: {QUESTION}\nAnswer:"
    backend = made(server)
    assert not backend.dialect.ids
    (theirs,) = run(backend, backend.encode(plain), generation)
    backend.close()
    settings = Settings.of(model=smollm2(), n_ctx=2048, slots=4, n_threads=THREADS)
    mine: Backend = plugins().make("backend", "llama_cpp", settings, features=False)
    (ours,) = run(mine, mine.encode(plain), generation)
    mine.close()
    assert theirs.steps[0].stop == ours.steps[0].stop
    assert [step.text for step in theirs.steps] == [step.text for step in ours.steps]
    assert theirs.logprob == pytest.approx(ours.logprob, abs=0.15 * len(ours.tokens))


def test_control_tokens_that_it_hides_are_refused(server: Server) -> None:
    """Ends of generation need not be seen, and what is no control token of the model is text."""
    backend = made(server)
    prompt = backend.encode(f"Question: {QUESTION}\nAnswer:")
    for stops in (("<|im_start|>",), ("\n<|im_start|>user",)):
        with pytest.raises(
            SettingsError, match=r"<\|im_start\|> is a control token, which this server .* neither shows"
        ):
            backend.open(prompt, Generation(stops=stops), 1)
    with pytest.raises(SettingsError, match="<repo_name> is a control token"):
        backend.open(prompt, Generation(think_end="<repo_name>"), 1)
    backend.open(prompt, Generation(stops=("<|im_end|>", "</s>", "Q:"), think_end="</think>"), 1)
    backend.close()


def test_a_search(server: Server, tmp_path: Path) -> None:
    """Questions of several branches, though the server takes them one by one; and the run is resumed."""
    settings = {"strategy": "arts", "budget_trajectories": 3, "slots": 4, "max_gen_toks": 48, "verifier": "logprob"}
    folder = str(tmp_path / "run")
    questions = ["What is 2 plus 3?", "What is 4 plus 4?"]
    with Arts(backend="server", base_url=server.url, trace=folder, **settings) as arts:
        trees = arts.solve_many(questions)
    for tree in trees:
        assert tree.error is None
        assert tree.n_finished >= 1
        assert tree.cost.decoded_tokens >= max(len(t.token_ids) for t in tree.trajectories())
        for trajectory in tree.trajectories():
            assert trajectory.text
            assert trajectory.logprob < 0
    with Arts(backend="server", base_url=server.url, trace=folder, **settings) as arts:
        again = arts.solve_many(questions)
    assert [tree.to_json() for tree in again] == [tree.to_json() for tree in trees]


def test_chats_need_a_template_of_ones_own(server: Server, tmp_path: Path) -> None:
    """This server renders no chat that is to be continued."""
    backend = made(server)
    assert backend.info.chat_template is None
    backend.close()
    template = tmp_path / "chatml.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    settings = Settings.of(backend="server", base_url=server.url, chat_template=str(template))
    backend = plugins().make("backend", "server", settings, features=False)
    questions = ["Say hello.", "What is 2 plus 3?", "What is the capital of France?", "Name a colour."]
    prompts = [backend.encode_chat([{"role": "user", "content": question}]) for question in questions]
    # The model rambles now and then, and at which question differs from machine to machine.
    greedy = Generation(Sampling(temperature=0.0), max_gen_toks=64)
    traces = [run(backend, prompt, greedy)[0] for prompt in prompts]
    backend.close()
    assert any(trace.steps[-1].stop == "eos" for trace in traces)
    assert not any("<|im_end|>" in trace.text for trace in traces)

"""Grammars, biases and penalties on real models, across steps, forks and memory pressure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from arts_plugin.api import Arts
from arts_plugin.backend import Generation, Grammar, Sampling
from arts_plugin.plugins import plugins
from arts_plugin.settings import Settings
from arts_plugin.testing import run
from tests.models import THREADS, model

pytest.importorskip("llguidance")

DATE = Grammar("grammar", 'root ::= ("In the year " | "Around ") [12] [0-9] [0-9] [0-9] "." "\\n" [A-Z] [a-z ]+ "."')
SHAPE = re.compile(r"(In the year |Around )[12][0-9]{3}\.\n[A-Z][a-z ]+\.")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "people": {"type": "integer", "maximum": 99}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
LONG = Generation(Sampling(temperature=0.9, seed=4), max_gen_toks=120, max_step_tokens=6, grammar=DATE)


def opened(backend: str, **more: Any) -> Any:
    if backend == "hf":
        pytest.importorskip("transformers")
    settings = Settings.of(
        **{"backend": backend, "model": model("smollm2"), "n_ctx": 1024, "slots": 8, "n_threads": THREADS, **more}
    )
    return plugins().make("backend", backend, settings, features=False)


@pytest.fixture(scope="module", params=["llama_cpp", "hf"])
def backend(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = opened(request.param)
    yield made
    made.close()


def test_traces_follow_the_grammar(backend: Any) -> None:
    """Steps of six tokens, and one of a line: the grammar goes on where the step before it ended."""
    traces = run(backend, backend.encode("When was it?"), LONG, range(6))
    ended = [trace for trace in traces if trace.steps[-1].stop == "eos"]
    assert len(ended) >= 3
    for trace in ended:
        assert SHAPE.fullmatch(trace.text), trace.text
        assert any(step.stop == "delimiter" for step in trace.steps)
    assert len({trace.text for trace in ended}) > 1


@pytest.mark.parametrize(("name", "same"), [("llama_cpp", 0), ("hf", 8)])
def test_pressure_changes_nothing(name: str, same: int) -> None:
    """Branches that were put off and computed again stand where they stood in the grammar. Token by token they agree
    where arithmetic does: in float32; llama.cpp's depends on the shape of a batch."""
    more = {"dtype": "float32"} if name == "hf" else {}
    ample, tight = opened(name, **more), opened(name, n_ctx=256, **more)
    try:
        prompt = ample.encode("When was it? " * 36)
        generation = replace(LONG, max_gen_toks=60)
        want = run(ample, prompt, generation, range(8))
        found = run(tight, prompt, generation, range(8))
        assert tight.stats.refills + tight.stats.pauses > 0
        assert sum(a.tokens == b.tokens for a, b in zip(want, found, strict=True)) >= same
        ended = [trace.text for trace in found if trace.steps[-1].stop == "eos"]
        assert ended
        assert all(SHAPE.fullmatch(text) for text in ended)
    finally:
        ample.close()
        tight.close()


def test_searches_of_json(backend: Any) -> None:
    """The whole way, from settings to answers, with a strategy that forks."""
    arts = Arts(
        Settings.of(
            json_schema=SCHEMA, strategy="arts", budget_trajectories=4, max_step_tokens=8, verifier="none", chat="plain"
        ),
        engine=backend,
    )
    tree = arts.solve("A city and how many million people live in it, as JSON:")
    texts = [trajectory.text for trajectory in tree.trajectories() if trajectory.stop == "eos"]
    assert texts
    for text in texts:
        found = json.loads(text)
        assert set(found) == {"city", "people"}
        assert isinstance(found["people"], int)


def test_a_bias_forbids_and_forces(backend: Any) -> None:
    prompt = backend.encode("One, two, three,")
    greedy = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=8)
    (free,) = run(backend, prompt, greedy)
    first = free.tokens[0]
    (without,) = run(
        backend, prompt, replace(greedy, sampling=Sampling(temperature=0.0, logit_bias=((first, -100.0),)))
    )
    assert first not in without.tokens
    (forced,) = run(backend, prompt, replace(greedy, sampling=Sampling(temperature=0.0, logit_bias=((first, 100.0),))))
    assert set(forced.tokens) == {first}
    # Log-probabilities stay the model's own.
    assert forced.steps[0].logprob < free.steps[0].logprob < 0


def test_penalties(backend: Any) -> None:
    """A model repeats itself less; frequency and presence look at the trace alone, so its first token stays."""

    def repeats(trace: Any) -> int:
        return len(trace.tokens) - len(set(trace.tokens))

    prompt = backend.encode("The river is a river, and the river is a river, and the")
    greedy = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=32, max_step_tokens=5)
    (free,) = run(backend, prompt, greedy)
    assert repeats(free) > 4
    for changes in ({"repetition_penalty": 1.8}, {"frequency_penalty": 2.0}, {"presence_penalty": 8.0}):
        (found,) = run(backend, prompt, replace(greedy, sampling=Sampling(temperature=0.0, **changes)))  # type: ignore[arg-type]
        assert repeats(found) < repeats(free), changes
        if "repetition_penalty" not in changes:
            assert found.tokens[0] == free.tokens[0]


def test_the_penalty_is_that_of_transformers() -> None:
    """Greedy tokens under a repetition penalty, in steps of seven, against `generate`."""
    torch = pytest.importorskip("torch")
    made = opened("hf", dtype="float32")
    try:
        prompt = made.encode("The river is a river, and the river is")
        generation = Generation(
            Sampling(temperature=0.0, repetition_penalty=1.25), delimiter="\0", max_gen_toks=40, max_step_tokens=7
        )
        (found,) = run(made, prompt, generation)
        network = made.runtime.network
        before = network.config._attn_implementation
        network.set_attn_implementation("sdpa")
        ids = torch.tensor([prompt.token_ids])
        want = network.generate(ids, do_sample=False, repetition_penalty=1.25, max_new_tokens=40, pad_token_id=0)
        network.set_attn_implementation(before)
        assert list(found.tokens) == want[0, ids.shape[1] :].tolist()[: len(found.tokens)]
        assert len(found.tokens) > 20
    finally:
        made.close()

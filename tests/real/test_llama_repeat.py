"""The same question, computed alone, gets the same answer to the last bit, whatever was computed before it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.backend import Generation, Prompt, Sampling
from tests.models import model
from tests.real.llama_engines import SHOTS, TOPICS, check_empty, make

_GREEDY = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=64, max_step_tokens=5)
_QUESTIONS = [
    "Question: How many legs have three dogs?\nAnswer:",
    SHOTS + "Question: How many legs have three dogs?\nAnswer:",
    SHOTS + "Question: How many wings have five birds, of which one has lost a wing?\nAnswer:",
    "A completely different text, which shares no beginning with the others, about a bear and a fox who",
]

Outcome = list[tuple[tuple[int, ...], float, bytes]]
"""Of each step: tokens, log-probability, and the last hidden state's bytes."""


def _greedy(backend: LlamaCppBackend, prompts: Sequence[Prompt]) -> list[Outcome]:
    """Two greedy steps of each prompt, all at once."""
    roots = [backend.open(prompt, _GREEDY, 1) for prompt in prompts]
    states = [backend.fork(root, 0) for root in roots]
    found: dict[int, Outcome] = {id(state): [] for state in states}
    going = list(states)
    for _ in range(2):
        for state in going:
            backend.submit(state, 5)
        going = []
        while backend.n_active:
            for result in backend.poll():
                assert result.feature is not None
                found[id(result.state)].append((result.token_ids, result.logprob, result.feature.tobytes()))
                if not result.terminal:
                    going.append(result.state)
    for state in [*states, *roots]:
        backend.drop(state)
    return list(found.values())


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
def test_a_question_alone_repeats_exactly(name: str) -> None:
    """After itself, after others that share its beginning or nothing, after many at once, and after a scoring."""
    backend = make(model(name), n_ctx=1024)
    prompts = [backend.encode(text) for text in _QUESTIONS]
    first = [_greedy(backend, [prompt])[0] for prompt in prompts]
    order = [0, 0, 1, 2, 1, 0, 3, 2, 2, 0, 3, 1]
    for i in order:
        assert _greedy(backend, [prompts[i]]) == [first[i]]
    crowd = [backend.encode(SHOTS + f"Question: What about {topic}?\nAnswer:") for topic in TOPICS]
    for disturb in (
        lambda: _greedy(backend, [*crowd, *prompts]),
        lambda: backend.loglikelihood([(prompts[1].token_ids, prompts[3].token_ids)]),
    ):
        for i in (2, 0):
            disturb()
            assert _greedy(backend, [prompts[i]]) == [first[i]]
            check_empty(backend)
    backend.close()


def test_what_came_before_is_still_shared() -> None:
    """A conversation's next turn computes its own tokens, and at most one batch of those before."""
    backend = make()
    text, shared = SHOTS, 0
    for turn in range(6):
        text += f"Question: What is {turn} and {turn}?\nAnswer: It is {2 * turn}.\n"
        prompt, before = backend.encode(text), backend.stats.prefilled_tokens
        _greedy(backend, [prompt])
        new = len(prompt.token_ids) - shared
        assert backend.stats.prefilled_tokens - before <= new + (backend.context.steady_rows or 0)
        shared = len(prompt.token_ids)
    check_empty(backend)
    backend.close()

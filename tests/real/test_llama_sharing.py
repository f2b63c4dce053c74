"""What branches and questions share: a common beginning is computed and held once, under a sliding window too."""

from __future__ import annotations

import random

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.backend import Generation, Prompt, Sampling
from arts_plugin.testing import Trace, run
from tests.models import model
from tests.real.llama_engines import SAMPLED, SHOTS, STEP, TOPICS, assert_same, check_books, check_empty, make


def test_cells_are_distinct_tokens(ample: LlamaCppBackend) -> None:
    """Eight branches of one prompt: its cells once, and one for each token of a branch."""
    prompt = ample.encode(SHOTS + "Question: How many legs have three dogs?\nAnswer:")
    before = ample.kv.used
    root = ample.open(prompt, SAMPLED, 1)
    states = [ample.fork(root, i) for i in range(8)]
    for state in states:
        ample.submit(state, STEP)
    computed = 0
    while ample.n_active:
        ended = ample.poll()
        check_books(ample)
        assert not any(result.terminal for result in ended)
        paths = [tuple(s.run.sequence.tokens) for s in ample.running if s.run and s.run.sequence]
        paths += [tuple(s.point.sequence.tokens) for s in states if not s.run and s.point and s.point.sequence]
        computed = sum(len(path) - len(prompt.token_ids) for path in paths)
        assert ample.kv.used <= before + len(prompt.token_ids) + computed
    assert computed == 8 * STEP
    assert ample.kv.used >= len(prompt.token_ids) + computed
    for state in [*states, root]:
        ample.drop(state)
    check_empty(ample)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_shared_beginning_is_computed_once(at_once: bool) -> None:
    """Six questions after the same examples: only their ends are computed, one after another or all together."""
    backend = make()
    prompts = [backend.encode(SHOTS + f"Question: What about {topic}?\nAnswer:") for topic in TOPICS[:6]]
    generation = Generation(Sampling(temperature=0.8), delimiter="\0", max_gen_toks=4)
    roots = []
    for prompt in prompts:
        root = backend.open(prompt, generation, 1)
        roots.append(root)
        for index in range(3):
            backend.submit(backend.fork(root, index), 4)
        while backend.n_active and not at_once:
            backend.poll()
    while backend.n_active:
        backend.poll()
        check_books(backend)
    distinct = {p.token_ids[:i] for p in prompts for i in range(1, len(p.token_ids) + 1)}
    costs = [backend.open_cost(root) for root in roots]
    assert backend.stats.prefilled_tokens == len(distinct)
    assert backend.stats.refilled_tokens == 0
    assert [cost.prefilled + cost.shared for cost in costs] == [len(p.token_ids) for p in prompts]
    assert sum(cost.prefilled for cost in costs) == backend.stats.prefilled_tokens
    assert sum(cost.shared for cost in costs) == backend.stats.shared_tokens
    assert costs[0].shared == 0
    for root in roots:
        backend.drop(root)
    check_empty(backend)
    backend.close()


# Sliding windows.
def test_prompt_beyond_the_window() -> None:
    """Gemma 3 looks back 512 tokens in most layers: a fork of a longer prompt is as good as computing it anew."""
    backend = make(model("gemma3"), n_ctx=1536, slots=4)
    text = "".join(f"Line {i}: the square of {i} is {i * i}.\n" for i in range(42))
    prompt = backend.encode(text + "Line 42: the")
    assert backend.context.lib.llama_model_n_swa(backend.model.handle) == 512
    assert len(prompt.token_ids) > 600
    generation = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=24)
    root = backend.open(prompt, generation, 1)
    state = backend.fork(root, 0)
    backend.submit(state, 8)
    while not (first := backend.poll()):
        pass
    forks = [backend.fork(state, i) for i in range(2)]
    for fork in forks:
        backend.submit(fork, 16)
    ended = []
    while backend.n_active:
        ended += backend.poll()
    for each in [root, state]:
        backend.drop(each)
    fresh = Prompt("", (*prompt.token_ids, *first[0].token_ids))
    while backend.recent:  # nothing to share with
        backend.kv.drop(backend.recent.popleft())
    (refilled,) = run(backend, fresh, Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=16))
    for result in ended:
        assert_same(backend, fresh, Trace([result]), refilled)
    check_empty(backend)
    backend.close()


def test_an_overwritten_window_is_not_shared() -> None:
    """llama.cpp reuses cells behind a window even with `swa_full`: a question may not begin from what is left."""
    backend = make(model("gemma3"), n_ctx=2048, slots=4)
    kv, context, lib = backend.kv, backend.context, backend.context.lib
    numbers = random.Random(1)
    tokens = backend.encode(" ".join(str(numbers.randrange(1000)) for _ in range(500))).token_ids[:1200]
    hole, old = kv.new(), kv.new()
    context.prefill(hole, tokens[:10])
    context.prefill(old, tokens)
    kv.drop(hole)  # llama.cpp looks for cells from here on, and comes to those of `old` first
    other = kv.new()
    context.prefill(other, tokens[100:500])
    memory = lib.llama_get_memory(context.handle)
    assert lib.llama_memory_seq_pos_min(memory, old.id) > 0, "llama.cpp no longer overwrites: the guard can go"
    pair = [(tokens[:400], tokens[400:406])]
    ((shared, _),) = backend.loglikelihood(pair)
    for sequence in list(kv.sequences.values()):
        kv.drop(sequence)
    backend.recent.clear()
    ((alone, _),) = backend.loglikelihood(pair)
    assert abs(shared - alone) < 0.15 * 6
    backend.close()

"""The engine under memory pressure: what it gives up it computes again, and its books stay right."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_llama_cpp.context import MAX_SEQUENCES
from arts_plugin.backend import Generation, Sampling
from arts_plugin.engine.states import BranchState
from tests.models import model
from tests.real.llama_engines import (
    GREEDY,
    SHOTS,
    STEP,
    TOPICS,
    assert_same,
    check_books,
    check_empty,
    make,
    prompts_of,
    search,
)


@pytest.fixture
def tight() -> Iterator[LlamaCppBackend]:
    """As few cells as llama.cpp makes."""
    made = make(n_ctx=256)
    assert made.kv.n_cells == 256
    yield made
    made.close()


def test_few_cells_change_nothing(ample: LlamaCppBackend, tight: LlamaCppBackend) -> None:
    """Eight branches of which three fit: evicted, paused and refilled, they write what they write with room."""
    prompts = prompts_of(ample)
    ample.stats.reset()
    wanted = search(ample, prompts, GREEDY)
    assert (ample.stats.evictions, ample.stats.pauses, ample.stats.refills) == (0, 0, 0)
    assert len({trace.text for trace in wanted}) == len(wanted)
    found = search(tight, prompts, GREEDY)
    stats = tight.stats
    assert stats.evictions > 0
    assert stats.pauses > 0
    assert stats.refills > 0
    assert stats.peak_cells <= tight.kv.n_cells
    for prompt, left, right in zip(prompts, wanted, found, strict=True):
        assert right.steps[-1].terminal
        assert len(right.tokens) == 3 * STEP or right.steps[-1].stop == "eos"
        assert_same(ample, prompt, left, right)
    steps = [step for trace in found for step in trace.steps]
    assert stats.refilled_tokens == sum(step.refilled for step in steps) > 0
    assert stats.decoded_tokens == sum(step.decoded for step in steps)
    check_empty(tight)
    check_empty(ample)


@pytest.mark.parametrize("name", ["qwen2.5", "gemma3"])
def test_few_cells_on_other_models(name: str) -> None:
    """The same on another architecture, one of them with a sliding window."""
    room, tight = make(model(name), n_ctx=640), make(model(name), n_ctx=256)
    generation = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=36, max_step_tokens=12)
    prompts = [room.encode(SHOTS + f"Question: What about {topic}?\nAnswer:") for topic in TOPICS[:6]]
    wanted, found = search(room, prompts, generation), search(tight, prompts, generation)
    assert tight.stats.refills > 0
    for prompt, left, right in zip(prompts, wanted, found, strict=True):
        assert_same(room, prompt, left, right)
    check_empty(tight)
    tight.close()
    room.close()


def test_more_idle_states_than_sequences() -> None:
    """llama.cpp has 256 sequences; 300 states at rest are kept nevertheless."""
    backend = make(n_ctx=2048, slots=60)
    generation = Generation(Sampling(temperature=1.5, seed=1), delimiter="\0", max_gen_toks=2, max_step_tokens=1)
    root = backend.open(backend.encode("Once upon a time"), generation, 1)
    states = [backend.fork(root, index) for index in range(300)]
    backend.drop(root)
    for expected in (False, True):
        for state in states:
            backend.submit(state, 1)
        ended = []
        while backend.n_active:
            ended += backend.poll()
            assert len(backend.kv.sequences) <= MAX_SEQUENCES
        check_books(backend)
        ended = [result for result in ended if result.stop != "eos"]
        assert len(ended) > 290
        assert all(len(result.token_ids) == 1 and result.terminal == expected for result in ended)
        states = [result.state for result in ended]
    assert backend.stats.evictions > 0
    assert backend.stats.refills > 0
    check_empty(backend)
    backend.close()


def test_small_batches_take_many_points() -> None:
    """More evicted points are wanted at once than there are slots: batches stay within their size."""
    backend = make(n_ctx=256, slots=2, n_ubatch=1)
    generation = Generation(Sampling(temperature=1.5, seed=1), delimiter="\0", max_gen_toks=4, max_step_tokens=1)
    sizes: list[int] = []
    rows = backend.context.rows
    backend.context.rows = lambda wanted, features: (sizes.append(len(wanted)), rows(wanted, features))[1]  # type: ignore[method-assign]
    traces = search(backend, [backend.encode(f"{topic} is") for topic in TOPICS * 3], generation)
    assert all(trace.steps[-1].terminal for trace in traces)
    assert max(sizes) <= 2 * backend.slots
    check_empty(backend)
    backend.close()


def test_allowance_is_kept(tight: LlamaCppBackend) -> None:
    """Refills count against a step's allowance, whatever is evicted or paused meanwhile."""
    draw, granted = random.Random(5), {}

    def submit(state: BranchState) -> None:
        refill = tight.refill_cost(state)
        step = draw.randint(4, 2 * STEP)
        granted[id(state)] = step + refill
        tight.submit(state, step, step + refill)

    generation = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=64)
    states = []
    for index, prompt in enumerate(prompts_of(tight) * 2):
        root = tight.open(prompt, generation, 1)
        states.append(tight.fork(root, index))
        tight.drop(root)
    cost, short = 0, 0
    for _ in range(5):
        for state in states:
            submit(state)
        states = []
        while tight.n_active:
            for result in tight.poll():
                assert result.decoded + result.refilled <= granted[id(result.state)]
                cost += result.decoded + result.refilled
                short += not result.terminal and not result.token_ids
                if not result.terminal:
                    assert isinstance(result.state, BranchState)
                    states.append(result.state)
            check_books(tight)
    assert cost == tight.stats.decoded_tokens + tight.stats.refilled_tokens
    assert tight.stats.refilled_tokens > 0
    assert tight.stats.pauses > 0
    assert short > 0, "no step ended for want of its refill"
    for state in states:
        tight.drop(state)
    check_empty(tight)


def test_least_flow_gives_way_first(ample: LlamaCppBackend) -> None:
    """Of idle states, the one with the lowest priority is evicted."""
    prompts = prompts_of(ample)[:3]
    states = []
    for prompt, priority in zip(prompts, (0.0, -9.0, -1.0), strict=True):
        root = ample.open(prompt, GREEDY, 1)
        state = ample.fork(root, 0)
        ample.drop(root)
        ample.submit(state, 4)
        while not ample.poll():
            pass
        state.priority = priority
        states.append(state)
    ample.loglikelihood([(ample.encode("word " * (ample.kv.n_cells - 25)).token_ids[: ample.kv.n_cells - 25], [5])])
    assert [ample.refill_cost(state) > 0 for state in states] == [False, True, False]
    for state in states:
        ample.drop(state)
    check_empty(ample)

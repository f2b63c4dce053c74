"""Small engines on llama.cpp, chains that they compute together, and a recount of their books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.backend import Generation, Prompt, Sampling
from arts_plugin.engine.engine import RECENT_PROMPTS
from arts_plugin.engine.states import BranchState
from arts_plugin.settings import Settings
from arts_plugin.testing import BackendContract, Trace, cosine
from tests.models import THREADS, smollm2

STEP = 16
GREEDY = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=3 * STEP, max_step_tokens=STEP)
SAMPLED = Generation(Sampling(temperature=0.8, seed=3), delimiter="\0", max_gen_toks=3 * STEP, max_step_tokens=STEP)
SHOTS = "Question: How many legs have two cats?\nAnswer: Two cats have eight legs.\n" * 3
TOPICS = ("The river", "My mother", "A planet", "Music", "In winter", "The king", "Every dog", "Bread")
CONTRACT = BackendContract()


def make(name: str | None = None, **settings: Any) -> LlamaCppBackend:
    """A small backend with hidden states."""
    defaults = {"model": name or smollm2(), "n_ctx": 1024, "slots": 8, "n_threads": THREADS}
    return LlamaCppBackend(Settings.of({**defaults, **settings}), features=True)


def check_books(backend: LlamaCppBackend) -> None:
    """Recount the cells, sequence by sequence, and ask llama.cpp where each sequence ends."""
    kv, lib = backend.kv, backend.context.lib
    path_of: dict[int, tuple[int, ...]] = {}
    memory = lib.llama_get_memory(backend.context.handle)
    for sequence in kv.sequences.values():
        tokens = tuple(sequence.tokens)
        assert lib.llama_memory_seq_pos_max(memory, sequence.id) == len(sequence) - 1
        for i, cell in enumerate(sequence.cells):
            assert path_of.setdefault(cell, tokens[: i + 1]) == tokens[: i + 1], "a cell is shared by different paths"
    assert len(path_of) == kv.used
    held = [s.id for s in backend.recent] + [p.sequence.id for p in backend.points if p.sequence]
    held += [s.run.sequence.id for s in backend.running if s.run and s.run.sequence]
    assert sorted(held) == sorted(kv.sequences), "a sequence belongs to nobody, or to two"


def check_empty(backend: LlamaCppBackend) -> None:
    """Nothing runs, and the cache holds recent prompts alone."""
    assert backend.n_active == 0
    assert not backend.points
    assert not backend.priming
    assert len(backend.recent) <= RECENT_PROMPTS
    check_books(backend)
    distinct = {tuple(s.tokens[:i]) for s in backend.recent for i in range(1, len(s) + 1)}
    # The last token of a prompt is always computed, so a prompt that came twice holds that cell twice.
    assert len(distinct) <= backend.kv.used <= len(distinct) + len(backend.recent)


def assert_same(backend: LlamaCppBackend, prompt: Prompt, left: Trace, right: Trace) -> None:
    """As the contract has it; but Gemma 3's hidden states differ by more between llama.cpp's own batch shapes (cosines
    of 0.997 in a bare loop, where the contract wants 0.999)."""
    if backend.model.path.name.startswith("gemma"):
        for a, b in zip(left.steps, right.steps, strict=False):
            if a.token_ids != b.token_ids:
                break
            assert a.feature is not None and b.feature is not None
            assert cosine(a.feature, b.feature) >= 0.98
        left, right = (Trace([replace(step, feature=None) for step in trace.steps]) for trace in (left, right))
    CONTRACT.assert_same(backend, prompt, left, right)


Submit = Callable[[BranchState], None]


def search(
    backend: LlamaCppBackend, prompts: Sequence[Prompt], generation: Generation, submit: Submit | None = None
) -> list[Trace]:
    """A chain from each prompt, all at once, books checked after each poll. Finished states wait until a third of the
    others has finished as well, so that there are idle ones to evict."""
    submit = submit or (lambda state: backend.submit(state, generation.max_step_tokens))
    states = []
    for index, prompt in enumerate(prompts):
        root = backend.open(prompt, generation, 1)
        states.append(backend.fork(root, index))
        backend.drop(root)
    traces = {id(state): Trace() for state in states}
    idle, limit = list(states), len(states) // 3
    while idle or backend.n_active:
        if len(idle) > limit or not backend.n_active:
            for state in idle:
                submit(state)
            idle = []
        for result in backend.poll():
            traces[id(result.state)].steps.append(result)
            assert isinstance(result.state, BranchState)
            if result.terminal:
                backend.drop(result.state)
            else:
                result.state.priority = float(result.logprob)
                idle.append(result.state)
        check_books(backend)
    return list(traces.values())


def prompts_of(backend: LlamaCppBackend) -> list[Prompt]:
    return [backend.encode(f"Here is a story. {topic} was") for topic in TOPICS]

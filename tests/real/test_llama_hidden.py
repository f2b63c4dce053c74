"""Hidden states and log-likelihoods against a bare llama.cpp loop that computes everything anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_llama_cpp.context import LlamaContext
from arts_plugin.backend import FloatArray, Generation, Prompt, Sampling
from arts_plugin.errors import ArtsError, PromptTooLongError
from arts_plugin.settings import Settings
from arts_plugin.testing import Trace, cosine, question, run
from tests.models import THREADS, model, smollm2

GREEDY = Generation(Sampling(temperature=0.0), max_gen_toks=40, max_step_tokens=12, delimiter=" ")
TOLERANCE = 0.05  # nats a token


def bare(
    backend: LlamaCppBackend,
    tokens: Sequence[int],
    last: int,
    embeddings: bool,
    one_by_one: bool,
    flash_attn: int | None = None,
) -> FloatArray:
    """Logits (or hidden states) at the `last` tokens of one sequence, by a fresh context: [last, width].

    What comes before is one batch. A batch's shape chooses llama.cpp's kernels, and on quantised weights these differ
    by more than a mistake would need to; so the last tokens are computed in one batch, or one by one.
    """
    lib, model = backend.context.lib, backend.model
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens) + 8
    params.n_threads = params.n_threads_batch = THREADS or 1
    params.embeddings, params.pooling_type = embeddings, lib.LLAMA_POOLING_TYPE_NONE
    if flash_attn is not None:
        params.flash_attn_type = flash_attn
    context = lib.llama_init_from_model(model.handle, params)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    read, width = (
        (lib.llama_get_embeddings_ith, model.n_embd) if embeddings else (lib.llama_get_logits_ith, model.n_vocab)
    )
    start, rows = len(tokens) - last, []
    chunks = (
        [(0, start), *((i, i + 1) for i in range(start, len(tokens)))]
        if one_by_one
        else [(0, start), (start, len(tokens))]
    )
    for begin, end in chunks:
        if begin == end:
            continue
        lib.llama_set_embeddings(context, embeddings and begin >= start)
        for i, place in enumerate(range(begin, end)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = tokens[place], place, 1, 0
            batch.logits[i] = begin >= start
        batch.n_tokens = end - begin
        assert lib.llama_decode(context, batch) == 0
        if begin >= start:
            rows += [np.ctypeslib.as_array(read(context, i), (width,)).copy() for i in range(end - begin)]
    lib.llama_batch_free(batch)
    lib.llama_free(context)
    return np.stack(rows)


def bare_likelihood(
    backend: LlamaCppBackend,
    context: Sequence[int],
    continuation: Sequence[int],
    one_by_one: bool,
    flash_attn: int | None = None,
) -> float:
    """Sum of log-probabilities, every token recomputed, summed in float64."""
    tokens = [*context, *continuation[:-1]]
    rows = bare(backend, tokens, len(continuation), False, one_by_one, flash_attn).astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return float(sum(row[t] - np.log(np.exp(row).sum()) for row, t in zip(rows, continuation, strict=True)))


def check_likelihood(
    backend: LlamaCppBackend,
    context: Sequence[int],
    continuation: Sequence[int],
    total: float,
    tolerance: float = TOLERANCE,
    flash_attn: int | None = None,
) -> None:
    """Within the tolerance of what one of the two shapes gives."""
    off = []
    for one_by_one in (False, True):
        twin = bare_likelihood(backend, context, continuation, one_by_one, flash_attn)
        off.append(abs(total - twin) / len(continuation))
        if off[-1] <= tolerance:
            return
    raise AssertionError(f"{total} is off by {off} nats a token (one batch, one by one)")


@pytest.fixture(scope="module", params=["smollm2", "qwen2.5", "gemma3"])
def backend(request: pytest.FixtureRequest) -> Iterator[LlamaCppBackend]:
    settings = Settings.of(model=model(request.param), n_ctx=512, slots=4, n_threads=THREADS)
    made = LlamaCppBackend(settings, features=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def small() -> Iterator[LlamaCppBackend]:
    """SmolLM2 with as few cells as there may be, and batches that are computed in pieces."""
    made = LlamaCppBackend(Settings.of(model=smollm2(), n_ctx=256, n_ubatch=16, slots=4, n_threads=THREADS))
    yield made
    made.close()


# Hidden states.
def reference(backend: LlamaCppBackend, prompt: Prompt, trace: Trace) -> FloatArray:
    """Hidden states after the prompt and after each token of a trace, [1 + n, n_embd]."""
    tokens = [token for step in trace.steps for token in step.token_ids]
    return bare(backend, [*prompt.token_ids, *tokens], 1 + len(tokens), True, one_by_one=True)


def check_feature(feature: FloatArray | None, hidden: FloatArray, kept: int) -> None:
    """`feature` is the hidden state after `kept` tokens, and no neighbour's."""
    assert feature is not None
    assert feature.dtype == np.float32
    assert cosine(feature, hidden[kept]) >= 0.999
    others = [cosine(feature, hidden[i]) for i in (kept - 1, kept + 1) if 0 <= i < len(hidden)]
    assert max(others, default=0) < cosine(feature, hidden[kept]), "a neighbour's hidden state fits better"


def test_features_of_steps(backend: LlamaCppBackend) -> None:
    """At the last token of every step."""
    prompt = question(backend)
    (trace,) = run(backend, prompt, GREEDY)
    assert len(trace.steps) > 5
    hidden, kept = reference(backend, prompt, trace), 0
    for step in trace.steps:
        kept += len(step.token_ids)
        check_feature(step.feature, hidden, kept)


def test_feature_of_the_prompt(backend: LlamaCppBackend) -> None:
    """None until a fork has run; then the hidden state at the prompt's last token."""
    prompt = question(backend)
    root = backend.open(prompt, GREEDY, 1)
    assert root.feature is None
    state = backend.fork(root, 0)
    backend.submit(state, 12)
    backend.poll()
    assert root.feature is not None
    assert cosine(root.feature, bare(backend, prompt.token_ids, 1, True, True)[0]) >= 0.999
    backend.cancel(state)
    backend.drop(root)


def test_features_after_a_cut(backend: LlamaCppBackend) -> None:
    """A stop string that began steps ago: the feature is that of the last token that is kept."""
    prompt = question(backend)
    (whole,) = run(backend, prompt, GREEDY)
    hidden, text, reached = reference(backend, prompt, whole), whole.text, set()
    for at in range(2, len(text) - 8, 5):
        stop = text[at : at + 7]
        (cut,) = run(backend, prompt, replace(GREEDY, stops=(stop,)))
        assert cut.steps[-1].stop == "stop"
        assert cut.text == text[: text.find(stop)]
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
        check_feature(cut.steps[-1].feature, hidden, len(cut.tokens))
        reached.add(cut.steps[-1].cut_tokens)
        if max(reached) > 1 and len(reached) > 2:
            break
    assert max(reached) > 0, "no stop string began in an earlier step"


def test_feature_when_everything_is_cut(backend: LlamaCppBackend) -> None:
    """Nothing is kept: what remains is the prompt's."""
    prompt = question(backend)
    (whole,) = run(backend, prompt, GREEDY)
    (cut,) = run(backend, prompt, replace(GREEDY, stops=(whole.text[:6],)))
    assert (cut.text, cut.tokens) == ("", ())
    feature = cut.steps[-1].feature
    assert feature is not None
    assert cosine(feature, bare(backend, prompt.token_ids, 1, True, True)[0]) >= 0.999


def test_feature_at_the_end_of_generation(backend: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token that ends the trace is not kept; the feature is that of the one before."""
    prompt = question(backend)
    (whole,) = run(backend, prompt, GREEDY)
    hidden, first = reference(backend, prompt, whole), len(whole.steps[0].token_ids)
    for position in (0, first, first + 1):
        # The token that is greedy at this position ends generation now.
        monkeypatch.setattr(backend.model, "eog", frozenset({whole.tokens[position]}))
        (trace,) = run(backend, prompt, GREEDY)
        assert trace.steps[-1].stop == "eos"
        assert trace.tokens == whole.tokens[: whole.tokens.index(whole.tokens[position])]
        check_feature(trace.steps[-1].feature, hidden, len(trace.tokens))


# Log-likelihoods.
def test_likelihoods(backend: LlamaCppBackend) -> None:
    """Several continuations of several contexts, one of them the other's beginning, in the order that was asked."""
    contexts = [
        backend.encode(t).token_ids
        for t in ("The capital of France", "The capital of France is the city of", "Two and two make")
    ]
    endings = [backend.model.tokenize(t) for t in (" is Paris.", " Paris", " one of the largest cities")]
    pairs = [(context, ending) for ending in endings for context in contexts]
    scores = backend.loglikelihood(pairs)
    for (context, ending), (total, _) in zip(pairs, scores, strict=True):
        # Contexts are computed together, in other pieces than the reference's, which moves some quantised models.
        check_likelihood(
            backend, context, ending, total, 0.05 if backend.model.path.name.startswith("smollm2") else 0.25
        )


def test_contexts_are_computed_once(small: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each distinct context, and what contexts share, is computed once; each continuation but for its last token."""
    counted: list[int] = []
    decode = small.context._decode
    monkeypatch.setattr(small.context, "_decode", lambda items: (counted.append(len(items)), decode(items))[1])
    head = tuple(small.model.tokenize("A long and winding beginning that they all share, with its words and commas."))
    contexts = [head + tuple(small.model.tokenize(t)) for t in (" one", " two", " three")]
    endings = [small.model.tokenize(t) for t in (" and so on", " or else not", " at all")]
    small.loglikelihood([(context, ending) for ending in endings for context in contexts])
    distinct = {c[:i] for c in contexts for i in range(1, len(c) + 1)}
    rest = len(contexts) * sum(len(ending) - 1 for ending in endings)
    # The last token of a context is a row, so a context that is another's beginning may cost it one more.
    assert len(distinct) + rest <= sum(counted) <= len(distinct) + rest + len(contexts)


@pytest.mark.parametrize("n_ubatch", [16, 512])
def test_long_continuation(n_ubatch: int) -> None:
    """More rows than one batch may have, and than llama.cpp computes at once."""
    settings = Settings.of(model=smollm2(), n_ctx=256, n_ubatch=n_ubatch, slots=4, n_threads=THREADS)
    backend = LlamaCppBackend(settings)
    tokens = backend.encode("".join(f"{i} times {i} is {i * i}. " for i in range(60))).token_ids
    context, continuation = tokens[:7], tokens[7 : 7 + LlamaContext.score_rows + 50]
    assert len(continuation) > LlamaContext.score_rows
    ((total, greedy),) = backend.loglikelihood([(context, continuation)])
    check_likelihood(backend, context, continuation, total)
    assert not greedy
    backend.close()


def test_more_continuations_than_cells(small: LlamaCppBackend) -> None:
    """The rows of one context that do not fit together are computed one batch after another."""
    context = small.encode("The sun rose over the hills, and the sheep went out to the meadow. " * 11).token_ids
    endings = [small.model.tokenize(f" and then number {i} came by and said that all was well") for i in range(8)]
    assert len(context) + sum(map(len, endings)) - len(endings) > small.kv.n_cells
    scores = small.loglikelihood([(context, ending) for ending in endings])
    for ending, (total, _) in list(zip(endings, scores, strict=True))[1::3]:
        check_likelihood(small, context, ending, total)


def test_as_long_as_may_be(small: LlamaCppBackend) -> None:
    """A continuation's last token needs no cell; one more token is refused."""
    context = small.encode("".join(f"{i}, " for i in range(150))).token_ids
    continuation = small.model.tokenize(" and so on and so forth")
    kept = context[-(small.n_ctx + 1 - len(continuation)) :]
    assert len(kept) < len(context)
    assert len(kept) + len(continuation) == small.info.longest_pair
    ((total, _),) = small.loglikelihood([(kept, continuation)])
    check_likelihood(small, kept, continuation, total)
    with pytest.raises(PromptTooLongError, match=r"context of 250 tokens.*do not fit: together at most 257.*n_ctx"):
        small.loglikelihood([((5,) * 250, (5,) * 8)])


def test_what_cannot_be_scored(small: LlamaCppBackend) -> None:
    with pytest.raises(PromptTooLongError, match="context of at least one token"):
        small.loglikelihood([([], [1, 2])])
    with pytest.raises(PromptTooLongError, match="context of 1 tokens and a continuation of 257 do not fit"):
        small.loglikelihood([([1], [5] * 257)])
    with pytest.raises(ArtsError, match="continuation 1 has no tokens: there is nothing to score"):
        small.loglikelihood([([1], [2]), ([1], [])])
    root = small.open(small.encode("a"), GREEDY, 1)
    state = small.fork(root, 0)
    small.submit(state, 5)
    with pytest.raises(ArtsError, match="1 branches are running"):
        small.loglikelihood([([1], [2])])
    small.cancel(state)
    small.drop(root)


def test_scoring_beside_idle_states(small: LlamaCppBackend) -> None:
    """Log-likelihoods may take the cells of idle states, which are refilled afterwards."""
    prompt = small.encode("Once upon a time, there was a little girl who lived in a house.")
    root = small.open(prompt, GREEDY, 1)
    state = small.fork(root, 0)
    small.submit(state, 12)
    while not (done := small.poll()):
        pass
    context = small.encode("The sun rose over the hills, and the sheep went out to the meadow. " * 15).token_ids
    ending = small.model.tokenize("The sun rose over")
    ((total, _),) = small.loglikelihood([(context, ending)])
    check_likelihood(small, context, ending, total)
    assert small.refill_cost(state) > 0, "the idle state kept its cells"
    (alone,) = run(small, prompt, GREEDY, max_steps=2)
    small.submit(state, 12)
    while not (second := small.poll()):
        pass
    assert [done[0].token_ids, second[0].token_ids] == [step.token_ids for step in alone.steps]
    small.drop(state)
    small.drop(root)

"""Log-likelihoods of many contexts in one batch: each is what it is alone, in few batches, and nothing finished is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.backend import Pair
from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings
from tests.models import THREADS, smollm2
from tests.real.test_lm_eval_loglikelihood import close

SENTENCE = "the a river old quiet house runs under seven bright stars and nobody answers when it rains over hills"


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaCppBackend]:
    settings = Settings.of(model=smollm2(), n_ctx=600, n_ubatch=256, slots=4, n_threads=THREADS, flash_attn=False)
    made = LlamaCppBackend(settings)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_kept(engine: LlamaCppBackend) -> Iterator[None]:
    yield
    forget(engine)
    assert engine.kv.used == 0 and not engine.kv.sequences


def forget(engine: LlamaCppBackend) -> None:
    while engine.recent:
        engine.kv.drop(engine.recent.popleft())


def alone(engine: LlamaCppBackend, pair: Pair) -> float:
    forget(engine)
    ((total, _),) = engine.loglikelihood([pair])
    return total


def sizes(engine: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(tokens, those with logits) of each batch from now on."""
    seen: list[tuple[int, int]] = []
    decode = engine.context._decode
    monkeypatch.setattr(
        engine.context,
        "_decode",
        lambda items: (seen.append((len(items), sum(item[2] for item in items))), decode(items))[1],
    )
    return seen


def texts(seed: int, lengths: Sequence[int], head: str = "") -> list[str]:
    rng = random.Random(seed)
    return [head + " ".join(rng.choice(SENTENCE.split()) for _ in range(length)) for length in lengths]


def test_rows_of_a_multiple_choice_task(engine: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order that was asked, ragged, with doubles; as few batches as hold their tokens, however many contexts."""
    contexts = [engine.encode(text).token_ids for text in texts(1, [5, 30, 12, 44, 8, 21, 3, 17])]
    endings = [engine.model.tokenize(t) for t in (" yes", " no, never", " 42", " the river runs")]
    pairs = [(context, ending) for context in contexts for ending in endings]
    random.Random(2).shuffle(pairs)
    pairs += pairs[:3]
    told: dict[int, tuple[float, bool]] = {}
    seen = sizes(engine, monkeypatch)
    scores = engine.loglikelihood(pairs, told.__setitem__)
    rows, size = sum(len(context) for context in contexts), engine.context.score_batch
    *prompts, ends = seen
    assert sum(n for _, n in prompts) == len(contexts) and rows - 30 <= sum(n for n, _ in prompts) <= rows
    assert len(prompts) == -(-sum(n for n, _ in prompts) // size)
    assert ends == (sum(len(e) - 1 for e in endings) * len(contexts),) * 2
    assert [told[place] for place in range(len(pairs))] == scores
    assert scores[-3:] == scores[:3]
    monkeypatch.undo()
    for pair, (total, _) in list(zip(pairs, scores, strict=True))[::3]:
        assert close(total, alone(engine, pair), len(pair[1]))


def test_a_common_beginning_is_computed_once(engine: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """As few-shot examples are; then all that differs is one batch."""
    head = texts(3, [120])[0] + "\n"
    contexts = [engine.encode(text).token_ids for text in texts(4, [9, 14, 6, 11, 8], head)]
    (ending,) = [engine.model.tokenize(" yes")]
    seen = sizes(engine, monkeypatch)
    pairs = [(context, ending) for context in contexts]
    scores = engine.loglikelihood(pairs)
    n_head = len(engine.encode(head).token_ids)
    assert len(seen) <= -(-n_head // engine.context.score_batch) + 2
    assert sum(n for n, _ in seen) <= n_head + sum(len(context) - n_head for context in contexts) + 5
    monkeypatch.undo()
    for pair, (total, _) in zip(pairs, scores, strict=True):
        assert close(total, alone(engine, pair), len(pair[1]))


def test_more_contexts_than_sequences(engine: LlamaCppBackend) -> None:
    """llama.cpp has 256; the contexts' continuations need some as well."""
    head = engine.encode("Once upon a time").token_ids
    tokens = engine.model.tokenize(f"{SENTENCE} " * 20)[:280]
    pairs = [((*head, token, place), tokens[:2]) for place, token in enumerate(tokens)]
    scores = engine.loglikelihood(pairs)
    assert len({total for total, _ in scores}) > 250
    for place in (0, 130, 279):
        assert close(scores[place][0], alone(engine, pairs[place]), len(pairs[place][1]))


def test_long_and_short_together(engine: LlamaCppBackend) -> None:
    """Contexts longer than a batch, and continuations longer than the rows that may have logits."""
    long = engine.model.tokenize(" ".join(texts(5, [520])))
    pairs = [
        (long[:300], long[300:302]),
        (long[50:60], long[60:210]),
        (long[:5], long[5:8]),
        (long[100:500], long[:100]),
    ]
    assert len(pairs[0][0]) > engine.context.n_batch
    scores = engine.loglikelihood(pairs)
    for pair, (total, _) in zip(pairs, scores, strict=True):
        assert close(total, alone(engine, pair), len(pair[1]))


def test_an_interruption_loses_nothing_that_was_reported(engine: LlamaCppBackend) -> None:
    pairs = [(engine.encode(text).token_ids, [5, 6]) for text in texts(6, [20] * 30)]
    told: dict[int, tuple[float, bool]] = {}

    def interrupted(place: int, score: tuple[float, bool]) -> None:
        told[place] = score
        if len(told) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.loglikelihood(pairs, interrupted)
    assert len(told) == 12
    forget(engine)
    assert engine.kv.used == 0
    rest = [place for place in range(len(pairs)) if place not in told]
    scores = engine.loglikelihood([pairs[place] for place in rest])
    assert len(scores) == 18


def test_invalid_logits_are_an_error(engine: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no NaN in anybody's results."""
    score = engine.context.score

    def broken(rows: object, wanted: object) -> list[list[tuple[float, bool]]]:
        return [[(float("nan"), flag) for _, flag in found] for found in score(rows, wanted)]  # type: ignore[arg-type]

    monkeypatch.setattr(engine.context, "score", broken)
    with pytest.raises(ModelError, match="sum to nan: its logits are invalid"):
        engine.loglikelihood([([1, 2], [3])])

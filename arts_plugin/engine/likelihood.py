"""Log-likelihood of continuations: each distinct context is computed once, and what contexts share is shared."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from arts_plugin.engine.kv import KvSequence
from arts_plugin.engine.room import make_room
from arts_plugin.engine.runtime import Row
from arts_plugin.errors import ArtsError, PromptTooLongError

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine

Pair = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(slots=True)
class _Score:
    index: int
    continuation: tuple[int, ...]
    total: float = 0.0
    greedy: bool = True
    done: int = 0

    def add(self, logprob: float, likeliest: bool) -> None:
        self.total += logprob
        self.greedy = self.greedy and likeliest
        self.done += 1


def loglikelihood(
    engine: BranchEngine, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, is it the greedy continuation) of each (context, continuation).

    A context that is too long for its continuation loses tokens on the left, as lm-eval's own models do it.

    Raises:
        PromptTooLongError: a context is empty, or a continuation alone does not fit.
        ArtsError: branches are running.
    """
    if engine.n_active:
        raise ArtsError(f"{engine.n_active} branches are running; log-likelihoods need an idle engine")
    fitted = [_fit(tuple(context), tuple(continuation), engine.n_ctx) for context, continuation in pairs]
    results: list[tuple[float, bool]] = [(0.0, True)] * len(fitted)
    order = sorted(range(len(fitted)), key=lambda i: fitted[i])
    for context, group in groupby(order, key=lambda i: fitted[i][0]):
        scores = [_Score(i, fitted[i][1]) for i in group]
        _score_context(engine, array("i", context), [score for score in scores if score.continuation])
        for score in scores:
            results[score.index] = (score.total, score.greedy)
    return results


def _fit(context: tuple[int, ...], continuation: tuple[int, ...], n_ctx: int) -> Pair:
    if not context:
        raise PromptTooLongError("a log-likelihood needs a context of at least one token (BOS, for example)")
    room = n_ctx + 1 - len(continuation)  # the last token is never computed
    if room < 1:
        raise PromptTooLongError(f"a continuation of {len(continuation)} tokens does not fit the context of {n_ctx}")
    return context[-room:], continuation


def _score_context(engine: BranchEngine, context: array[int], scores: list[_Score]) -> None:
    if not scores:
        return
    base = engine.begin_sequence(context)
    if base is None:
        raise ArtsError(f"the KV cache of {engine.kv.n_cells} cells cannot hold a context of {len(context)} tokens")
    try:
        make_room(engine, 1)
        (found,) = engine.runtime.score([Row(base, context[-1])], [[score.continuation[0] for score in scores]])
        for score, value in zip(scores, found, strict=True):
            score.add(*value)
        _score_rest(engine, base, [score for score in scores if len(score.continuation) > 1])
    finally:
        engine.keep_recent(base)


def _score_rest(engine: BranchEngine, base: KvSequence, scores: list[_Score]) -> None:
    """Compute the continuations in batches of as many rows as may be, each in a fork of `base`."""
    rows = [(score, *pair) for score in scores for pair in pairwise(score.continuation)]
    while rows:
        # Only the first may have been begun by an earlier batch, whose cells count as well.
        cells = engine.kv.n_cells - len(base) - (rows[0][0].done - 1)
        size = min(engine.runtime.score_rows, engine.runtime.n_batch, cells)
        batch, rows = rows[:size], rows[size:]
        sequences: dict[int, KvSequence] = {}
        for score, _, _ in batch:
            if score.index not in sequences:
                sequences[score.index] = _sequence_for(engine, base, score)
        make_room(engine, len(batch))
        found = engine.runtime.score(
            [Row(sequences[score.index], token) for score, token, _ in batch], [[wanted] for _, _, wanted in batch]
        )
        for (score, _, _), (value,) in zip(batch, found, strict=True):
            score.add(*value)
        for sequence in sequences.values():
            engine.keep_recent(sequence)


def _sequence_for(engine: BranchEngine, base: KvSequence, score: _Score) -> KvSequence:
    """A fork of `base`, or of what an earlier batch computed of this continuation."""
    make_room(engine, 0, need_id=True)
    if score.done == 1:
        return engine.kv.new(base)
    done = base.tokens + array("i", score.continuation[: score.done - 1])
    source, length = engine.kv.best_source(done, len(done))
    if length < len(done):
        raise ArtsError("the beginning of a continuation was given up while it was scored")
    return engine.kv.new(source, length)

"""Log-likelihoods of continuations: many contexts in one batch, and what they share computed once."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from arts_plugin.backend import Pair, Report, Scored
from arts_plugin.engine.kv import KvSequence
from arts_plugin.engine.room import make_room
from arts_plugin.engine.runtime import Row
from arts_plugin.errors import ArtsError, ModelError, PromptTooLongError

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine

_WORTH_WAITING = 8
"""Tokens that a context shares with one of the same batch, from which on that one is computed first."""


@dataclass(slots=True)
class _Score:
    """The sum so far of one distinct continuation; `places` are those of the pairs that asked for it."""

    continuation: tuple[int, ...]
    places: list[int]
    total: float = 0.0
    greedy: bool = True
    sent: int = 0
    sequence: KvSequence | None = None

    def add(self, logprob: float, likeliest: bool) -> None:
        self.total += logprob
        self.greedy = self.greedy and likeliest

    @property
    def left(self) -> int:
        """Tokens still to be computed; the last one never is, for nothing follows it."""
        return len(self.continuation) - 1 - self.sent


@dataclass(slots=True)
class _Context:
    tokens: array[int]
    scores: list[_Score]
    base: KvSequence | None = None

    @property
    def longest(self) -> int:
        """Cells that its longest continuation takes."""
        return max(score.left for score in self.scores)


def check_pairs(pairs: Sequence[Pair], longest: int) -> None:
    """Refuse what cannot be scored, before anything is computed.

    Args:
        longest: tokens of a context and its continuation together, at most.

    Raises:
        PromptTooLongError: a context is empty, or it does not fit together with its continuation.
        ArtsError: a continuation is empty.
    """
    for i, (context, continuation) in enumerate(pairs):
        if not continuation:
            raise ArtsError(f"continuation {i} has no tokens: there is nothing to score; leave it out")
        if not context:
            raise PromptTooLongError("a log-likelihood needs a context of at least one token (BOS, for example)")
        if len(context) + len(continuation) > longest:
            raise PromptTooLongError(
                f"a context of {len(context)} tokens and a continuation of {len(continuation)} do not fit: together at "
                f"most {longest}; shorten the context, or raise n_ctx"
            )


def loglikelihood(engine: BranchEngine, pairs: Sequence[Pair], report: Report | None = None) -> list[Scored]:
    """(sum of log-probabilities in nats, is it the greedy continuation) of each (context, continuation).

    Args:
        report: called with the place and the score of each pair as soon as it is known, in any order.

    Raises:
        PromptTooLongError, ArtsError: see `check_pairs`; or branches are running.
        ModelError: the model's log-probabilities are no numbers.
    """
    if engine.n_active:
        raise ArtsError(f"{engine.n_active} branches are running; log-likelihoods need an idle engine")
    check_pairs(pairs, engine.n_ctx + 1)
    results: dict[int, Scored] = {}

    def collect(score: _Score) -> None:
        for place in score.places:
            results[place] = (score.total, score.greedy)
            if report is not None:
                report(place, results[place])

    scorer = _Scorer(engine, collect)
    try:
        for context in _distinct(pairs):
            scorer.admit(context)
        scorer.flush()
    finally:
        scorer.give_up()
    return [results[place] for place in range(len(pairs))]


def _distinct(pairs: Sequence[Pair]) -> Iterator[_Context]:
    """Each distinct context with its distinct continuations, sorted: neighbours share the most."""
    keys = [(tuple(context), tuple(continuation)) for context, continuation in pairs]
    order = sorted(range(len(keys)), key=lambda place: keys[place])
    for tokens, alike in groupby(order, key=lambda place: keys[place][0]):
        scores = [_Score(end, list(places)) for end, places in groupby(alike, key=lambda place: keys[place][1])]
        yield _Context(array("i", tokens), scores)


class _Scorer:
    """Collects contexts until they fill a batch, computes them together, and then their continuations together."""

    def __init__(self, engine: BranchEngine, collect: Callable[[_Score], None]) -> None:
        self.engine, self.runtime, self.kv, self.collect = engine, engine.runtime, engine.kv, collect
        self.wave: list[_Context] = []
        self.pending = 0  # rows of the wave's contexts
        self.forks: list[KvSequence] = []

    def admit(self, context: _Context) -> None:
        """Put a context into the wave; one that does not fit, or shares much with it, waits until it is computed."""
        if self.wave and self._shares_more(context):
            self.flush()
        if not self._begin(context):
            self.flush()
            if not self._begin(context):
                raise ArtsError(
                    f"the KV cache of {self.kv.n_cells} cells cannot hold a context of {len(context.tokens)} tokens"
                )

    def _shares_more(self, context: _Context) -> bool:
        """Whether the context before it, once computed, saves more tokens than what is resident now."""
        resident = self.kv.best_source(context.tokens, len(context.tokens) - 1)[1]
        return _shared(self.wave[-1].tokens, context.tokens) >= resident + _WORTH_WAITING

    def _begin(self, context: _Context) -> bool:
        """A sequence for the context; False if the batch, the cells or the ids do not suffice for it beside the wave."""
        if len(self.wave) >= self.runtime.score_rows or not make_room(self.engine, 0, need_id=True):
            return False
        # The shared part is copied before room is made, so that its cells cannot be among those given up.
        tokens = context.tokens
        base = self.kv.new(*self.kv.best_source(tokens, len(tokens) - 1))
        missing = len(tokens) - len(base)
        longest = max(other.longest for other in (*self.wave, context))
        # Of the continuations, at least one must fit beside all contexts.
        cells = self.pending + missing + longest
        too_many = bool(self.wave) and self.pending + missing > self.runtime.n_batch
        if too_many or not make_room(self.engine, cells, need_id=longest > 0):
            self.kv.drop(base)
            return False
        context.base = base
        self.wave.append(context)
        if missing > self.runtime.n_batch:
            self.runtime.prefill(base, tokens[len(base) : len(tokens) - self.runtime.n_batch])
        self.pending += len(tokens) - len(base)
        return True

    def flush(self) -> None:
        """Compute the wave: its contexts in one batch, then the continuations in as few as may be."""
        if not self.wave:
            return
        rows: list[Row] = []
        wanted: list[list[int]] = []
        for context in self.wave:
            base = _held(context.base)
            rows += [Row(base, token) for token in context.tokens[len(base) :]]
            wanted += [[] for _ in range(len(rows) - len(wanted))]
            wanted[-1] = [score.continuation[0] for score in context.scores]
        found = [values for values in self.runtime.score(rows, wanted) if values]
        waiting: deque[tuple[_Context, _Score]] = deque()
        for context, values in zip(self.wave, found, strict=True):
            for score, value in zip(context.scores, values, strict=True):
                score.add(*value)
                if score.left:
                    waiting.append((context, score))
                else:
                    self._finish(score)
        while waiting:
            self._continue(waiting)
        last = _held(self.wave[-1].base)
        self.wave[-1].base = None
        self.give_up()
        self.engine.keep_recent(last)

    def _continue(self, waiting: deque[tuple[_Context, _Score]]) -> None:
        """Compute one batch of continuations, each in a fork of its context."""
        rows: list[Row] = []
        wanted: list[list[int]] = []
        owners: list[_Score] = []
        room = min(self.runtime.score_rows, self.runtime.n_batch)
        while waiting and len(rows) < room:
            context, score = waiting[0]
            size = min(score.left, room - len(rows))
            if score.sequence is None and not make_room(self.engine, 0, need_id=True):
                break
            if not make_room(self.engine, len(rows) + size):
                size = self.kv.free - len(rows)
            if size <= 0:
                break
            if score.sequence is None:
                score.sequence = self.kv.new(_held(context.base))
                self.forks.append(score.sequence)
            ends = score.continuation[score.sent : score.sent + size + 1]
            rows += [Row(score.sequence, token) for token in ends[:-1]]
            wanted += [[token] for token in ends[1:]]
            owners += [score] * size
            score.sent += size
            if score.left:
                break  # its other tokens come with the next batch
            waiting.popleft()
        if not rows:
            raise ArtsError(f"the KV cache of {self.kv.n_cells} cells cannot hold a continuation beside its context")
        for score, (value,) in zip(owners, self.runtime.score(rows, wanted), strict=True):
            score.add(*value)
        for score in {id(owner): owner for owner in owners}.values():
            if not score.left:
                sequence = _held(score.sequence)
                self.forks.remove(sequence)
                self.kv.drop(sequence)
                self._finish(score)

    def _finish(self, score: _Score) -> None:
        if math.isnan(score.total) or score.total == math.inf:
            raise ModelError(
                f"the model's log-probabilities of {len(score.continuation)} tokens sum to {score.total}: its logits are "
                "invalid (a damaged file, or a type that overflows?)"
            )
        self.collect(score)

    def give_up(self) -> None:
        """Free what the wave holds."""
        held = [context.base for context in self.wave if context.base is not None]
        for sequence in [*self.forks, *held]:
            self.kv.drop(sequence)
        self.wave, self.forks, self.pending = [], [], 0


def _held(sequence: KvSequence | None) -> KvSequence:
    assert sequence is not None
    return sequence


def _shared(left: array[int], right: array[int]) -> int:
    """How many tokens two contexts have in common at their beginning."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))

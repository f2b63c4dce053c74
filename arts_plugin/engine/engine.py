"""Batched, forked decoding: one model, many branches, no barrier between them.

Every `poll` starts queued branches in free slots and computes one token for each running branch in a single call of
the runtime. A branch starts from a `Point`, whose sequence is copied (in a unified cache: shared) and whose saved
distribution gives the first token, so a fork costs no computation. When a step ends, its last token is computed once more
to obtain its hidden state and the logits from which any number of branches will start.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Sequence

from arts_plugin.backend import (
    EngineStats,
    FloatArray,
    Generation,
    OpenCost,
    Pair,
    Prompt,
    Report,
    Sampling,
    Scored,
    StepResult,
)
from arts_plugin.ends import TraceEnds
from arts_plugin.engine.alone import begin_alone, is_alone
from arts_plugin.engine.ends import adjustments, close, finish_short, position, take
from arts_plugin.engine.guides import Guides
from arts_plugin.engine.hidden import tree_features
from arts_plugin.engine.kv import CacheFullError, KvSequence
from arts_plugin.engine.likelihood import loglikelihood
from arts_plugin.engine.room import make_room
from arts_plugin.engine.runtime import Draw, NextTokens, Row, Runtime
from arts_plugin.engine.states import BranchState, Point, Question, Run, held, point_of, run_of
from arts_plugin.errors import ArtsError, EmptyPromptError, PromptTooLongError, SettingsError
from arts_plugin.randomness import branch_key, mix, uniform
from arts_plugin.steps import Delimiter

RECENT_PROMPTS = 4
"""Prompts whose cells outlive their question, so that the next one finds their shared beginning."""


class BranchEngine:
    """The engine half of an in-process backend; see `arts_plugin.backend.Backend` for the contract of each method."""

    def __init__(self, runtime: Runtime, slots: int) -> None:
        self.runtime, self.kv, self.slots = runtime, runtime.kv, slots
        self.vocabulary = runtime.model
        self.guides = Guides(runtime.model)
        self.stats = EngineStats(slots=slots)
        self.n_ctx = min(self.kv.n_cells, self.vocabulary.n_ctx_train)
        self.queue: deque[BranchState] = deque()
        self.running: list[BranchState] = []
        self.points: list[Point] = []  # those that hold a sequence, oldest first
        self.recent: deque[KvSequence] = deque()
        self.priming: list[Point] = []
        self.first: KvSequence | None = None  # the prompt in the first cells, if it was computed alone

    def spelling(self, token: int) -> str | None:
        """The text of a control token, or of another that a tokeniser never splits; None for any other id."""
        return self.vocabulary.spelling(token)

    # States.
    def open(self, prompt: Prompt, generation: Generation, problem: int) -> BranchState:
        """State 0; nothing is computed before a fork of it runs."""
        n_prompt = len(prompt.token_ids)
        if n_prompt == 0:
            raise EmptyPromptError("the prompt is empty: it has no token to begin from")
        if n_prompt >= self.n_ctx:
            trained = self.vocabulary.n_ctx_train
            remedy = f"raise n_ctx (the model was trained for {trained}) or " if self.kv.n_cells < trained else ""
            raise PromptTooLongError(
                f"the prompt has {n_prompt} tokens and the context {self.n_ctx} (n_ctx={self.kv.n_cells}, trained for {trained}): "
                f"no room for an answer; {remedy}shorten the prompt"
            )
        delimiter = Delimiter(generation.delimiter)
        limit = min(self.n_ctx, n_prompt + generation.max_gen_toks)
        ends = TraceEnds.of(generation.stops, generation.think_end, prompt, self.vocabulary.controls)
        question = Question(generation, delimiter, ends, n_prompt, limit)
        if odd := [token for token, _ in generation.sampling.logit_bias if token >= self.vocabulary.n_vocab]:
            raise SettingsError(f"logit_bias names token {odd[0]}; the vocabulary has {self.vocabulary.n_vocab}")
        guide = self.guides.start(generation.grammar)
        point = Point(question, array("i", prompt.token_ids), ends.scanner(delimiter), guide=guide)
        return BranchState(point, branch_key(generation.sampling.seed, problem))

    def open_cost(self, state: BranchState) -> OpenCost:
        """What computing the prompt has cost so far."""
        question = point_of(state).question
        return OpenCost(question.prefilled, question.shared)

    def fork(self, state: BranchState, index: int) -> BranchState:
        """A branch that starts where `state` stands."""
        point = point_of(state)
        point.users += 1
        return BranchState(point, mix(state.key, index))

    def drop(self, state: BranchState) -> None:
        """Forget an idle state. Terminal states hold nothing, and may be dropped as well."""
        if state.run:
            raise ArtsError("a submitted state cannot be dropped; cancel it")
        if state.point:
            self._leave(state.point)

    def submit(self, state: BranchState, max_tokens: int, allowance: int | None = None) -> None:
        """Queue one step."""
        point = point_of(state)
        if state.run:
            raise ArtsError("the state was submitted before and is not finished")
        if max_tokens < 1:
            raise ArtsError(f"max_tokens is {max_tokens}; a step has at least one token")
        point.waiting += 1
        state.run = Run(max_tokens, allowance)
        self.queue.append(state)

    def cancel(self, state: BranchState) -> tuple[int, int]:
        """Take a submitted state out."""
        run = state.run
        if run is None:
            raise ArtsError("only a submitted state can be cancelled")
        if state in self.queue:
            self.queue.remove(state)
        if run.started:
            if state in self.running:
                self.running.remove(state)
            if run.sequence is not None:
                self.kv.drop(run.sequence)
        elif state.point:
            state.point.waiting -= 1
            self._leave(state.point)
        state.run, state.point = None, None
        return run.decoded, run.refilled

    def refill_cost(self, state: BranchState) -> int:
        """Tokens to compute again before a branch could start at `state`; 0 for a prompt that never was computed."""
        point = point_of(state)
        if point.ready or not point.question.opened:
            return 0
        return len(point.tokens) - self.kv.best_source(point.tokens, len(point.tokens) - 1)[1]

    @property
    def n_active(self) -> int:
        """Branches running or queued."""
        return len(self.running) + len(self.queue)

    # One round.
    def poll(self) -> list[StepResult]:
        """Start what can start, compute one token for each running branch, and report the steps that ended."""
        results: list[StepResult] = []
        began, prefilled = time.perf_counter(), self.stats.prefill_seconds
        self._start_queued(results)
        if self.running or self.priming:
            self._advance(results)
        self.stats.cells = self.kv.used
        self.stats.peak_cells = max(self.stats.peak_cells, self.kv.used)
        prefill = self.stats.prefill_seconds - prefilled
        self.stats.decode_seconds += time.perf_counter() - began - prefill
        return results

    def _start_queued(self, results: list[StepResult]) -> None:
        for state in list(self.queue):
            if len(self.running) >= self.slots:
                return
            if not self._start(state, results):
                if not self.priming and not self.running:
                    raise ArtsError(f"the KV cache of {self.kv.n_cells} cells cannot hold a single branch")
                if not point_of(state).priming:
                    return  # out of memory for now: what runs will make room, in order

    def _start(self, state: BranchState, results: list[StepResult]) -> bool:
        """Start a queued branch if its point is ready; otherwise have the point computed first."""
        run, point = run_of(state), point_of(state)
        if run.started:
            return self._resume(state, results)
        if not point.ready:
            return not point.priming and self._prime(state, results)
        if not make_room(self, 0, need_id=True, keep=point):
            return False
        self.queue.remove(state)
        point.waiting -= 1
        run.sequence = self._sequence_from(point)
        run.started, run.tokens = True, point.tokens[:]
        run.scanner, run.hidden = point.scanner.fork(), list(point.tail)
        run.guide = point.guide and point.guide.fork()
        following, sampling = point.next, point.question.generation.sampling
        self._leave(point)
        self.running.append(state)
        if following is not None:
            uniforms = [uniform(state.key, position(state))]
            (drawn,) = following.draw([0], sampling, uniforms, adjustments([state]))
            self._collect(take(self, state, drawn), results)
        return True

    def _prime(self, state: BranchState, results: list[StepResult]) -> bool:
        """Have a queued branch's point computed; whether the branch has left the queue, as its allowance is too small."""
        if len(self.priming) >= self.slots:
            return False  # a batch has rows for so many
        run = run_of(state)
        make_room(self, 0, need_id=True)  # before its cost is known: what gives way may be what would be shared
        if run.left() < self.refill_cost(state) + 1:
            self.queue.remove(state)
            self._collect(finish_short(self, state), results)
            return True
        self._restore(point_of(state), run)
        return False

    def _sequence_from(self, point: Point) -> KvSequence | None:
        """A sequence to go on in: a copy, or the point's own if nobody else will use it."""
        if point.users > 1 or point.generated == 0:  # a prompt's may yet serve the next question
            return self.kv.new(point.sequence)
        sequence, point.sequence = point.sequence, None
        self.points.remove(point)
        return sequence

    def _restore(self, point: Point, run: Run) -> None:
        """Compute a point's tokens but the last, and have the last computed in the next round's batch."""
        question = point.question
        rows = None if question.opened or not is_alone(self) else self.runtime.steady_rows
        if rows is not None:
            begin_alone(self, point, rows)
        # The shared part is copied before room is made, so that its cells cannot be among those given up.
        made = self._begin_sequence(point.tokens, len(point.tokens) - 1, keep=point, size=rows)
        if made is None:
            return
        sequence, shared = made
        missing = len(point.tokens) - shared
        point.sequence, point.priming = sequence, True
        self.first = self.first if rows is None else sequence
        self.points.append(point)
        self.priming.append(point)
        if question.opened:
            self.stats.refills += 1
            self.stats.refilled_tokens += missing
            run.refilled += missing
        else:
            question.opened = True
            question.prefilled, question.shared = missing, shared
            self.stats.prefilled_tokens += missing
            self.stats.shared_tokens += shared

    def _begin_sequence(
        self, tokens: array[int], end: int, keep: Point | None = None, *, size: int | None = None
    ) -> tuple[KvSequence, int] | None:
        """A sequence with the first `end` of `tokens`, and how many of them were found; None if there is no room."""
        if not make_room(self, 0, need_id=True, keep=keep):
            return None
        source, shared = self.kv.best_source(tokens, end)
        sequence = self.kv.new(source, shared)
        # The cell of the row that follows, and one for each other row of the next batch, are wanted as well.
        if not make_room(self, end - shared + 1 + len(self.running) + len(self.priming), keep=keep):
            self.kv.drop(sequence)
            return None
        size = size or max(1, end - shared)
        began = time.perf_counter()
        try:
            for start in range(shared, end, size):
                self.runtime.prefill(sequence, tokens[start : min(start + size, end)])
        except BaseException as error:
            self.kv.drop(sequence)  # an interrupted prefill must not be found and shared later
            if isinstance(error, CacheFullError):
                return None
            raise
        finally:
            self.stats.prefill_seconds += time.perf_counter() - began
        return sequence, shared

    def _resume(self, state: BranchState, results: list[StepResult]) -> bool:
        """Refill a branch that was paused; its pending token is computed with the next batch."""
        run = run_of(state)
        make_room(self, 0, need_id=True)
        missing = len(run.tokens) - 1 - self.kv.best_source(run.tokens, len(run.tokens) - 1)[1]
        if run.left() < missing:
            self.queue.remove(state)
            self._collect(finish_short(self, state), results)
            return True
        made = self._begin_sequence(run.tokens, len(run.tokens) - 1)
        if made is None:
            return False
        run.sequence = made[0]
        missing = len(run.tokens) - 1 - made[1]
        run.refilled += missing
        if run.left() < 1 and not run.closing:
            run.closing = ("length", False)  # the pending token is the last that the budget allows
        self.stats.refills += 1
        self.stats.refilled_tokens += missing
        self.queue.remove(state)
        self.running.append(state)
        return True

    def pause(self, state: BranchState) -> None:
        """Give up a running branch's cells; it goes on later from its tokens, first in the queue."""
        run = run_of(state)
        self.running.remove(state)
        if run.sequence is not None:
            self.kv.drop(run.sequence)
            run.sequence = None
        self.queue.appendleft(state)
        self.stats.pauses += 1

    def evict(self, point: Point) -> None:
        """Give up a point's cells and distribution; they are computed again if it is taken up."""
        if point.sequence is not None:
            self.kv.drop(point.sequence)
        point.sequence, point.next = None, None
        self.points.remove(point)
        self.stats.evictions += 1

    def _advance(self, results: list[StepResult]) -> None:
        while True:
            primed, branches = list(self.priming), list(self.running)
            rows = [Row(held(p.sequence), p.tokens[-1]) for p in primed]
            rows += [Row(held(run_of(s).sequence), run_of(s).pending) for s in branches]
            make_room(self, len(rows), pause=True)
            if primed == self.priming and branches == self.running:
                break
        following = self.runtime.rows(rows, self.runtime.features)
        hidden = following.hidden
        self.stats.decodes += 1
        self.stats.occupied += len(branches)
        for i, point in enumerate(primed):
            point.next, point.priming = following.keep(i), False
            if hidden is not None:
                point.tail = [hidden[i].copy()] if not point.tail else point.tail
        self.priming.clear()
        drawn = self._draw(following, branches, len(primed))
        for i, state in enumerate(branches, len(primed)):
            run = run_of(state)
            if hidden is not None:
                run.hidden.append(hidden[i].copy())
            ended = close(self, state, following.keep(i)) if run.closing else take(self, state, drawn[i])
            self._collect(ended, results)

    def _draw(self, following: NextTokens, branches: list[BranchState], first: int) -> dict[int, Draw]:
        """By row, the next tokens of the branches that are not closing: at once for all that sample alike."""
        alike: dict[tuple[Sampling, bool], list[tuple[int, BranchState]]] = {}
        for row, state in enumerate(branches, first):
            if not run_of(state).closing:
                generation = point_of(state).question.generation
                alike.setdefault((generation.sampling, generation.grammar is None), []).append((row, state))
        drawn: dict[int, Draw] = {}
        for (sampling, _), members in alike.items():
            rows = [row for row, _ in members]
            uniforms = [uniform(state.key, position(state)) for _, state in members]
            changes = adjustments([state for _, state in members])
            drawn.update(zip(rows, following.draw(rows, sampling, uniforms, changes), strict=True))
        return drawn

    def _collect(self, ended: StepResult | None, results: list[StepResult]) -> None:
        if ended:
            results.append(ended)

    # Scoring.
    def loglikelihood(self, pairs: Sequence[Pair], report: Report | None = None) -> list[Scored]:
        """Log-likelihoods of continuations; see `arts_plugin.engine.likelihood`."""
        return loglikelihood(self, pairs, report)

    def tree_features(
        self, tokens: Sequence[Sequence[int]], parents: Sequence[int | None], cut: Sequence[int]
    ) -> FloatArray:
        """Hidden states of a recorded tree; see `arts_plugin.engine.hidden`."""
        return tree_features(self, tokens, parents, cut)

    # Ends of lives.
    def _leave(self, point: Point) -> None:
        """One user fewer; the last one gives its memory back."""
        point.users -= 1
        if point.users:
            return
        sequence, point.sequence, point.next = point.sequence, None, None
        if sequence is None:
            return
        self.points.remove(point)
        if point.priming:
            self.priming.remove(point)
            point.priming = False
        if point.generated == 0:
            self.keep_recent(sequence)
        else:
            self.kv.drop(sequence)

    def begin_sequence(self, tokens: array[int]) -> KvSequence | None:
        """A sequence with all of `tokens` but the last, for whoever computes that one; None if there is no room."""
        made = self._begin_sequence(tokens, len(tokens) - 1)
        return made[0] if made else None

    def keep_recent(self, sequence: KvSequence) -> None:
        """Keep a sequence that nobody uses until others push it out or its cells are wanted."""
        self.recent.append(sequence)
        if len(self.recent) > RECENT_PROMPTS:
            self.kv.drop(self.recent.popleft())

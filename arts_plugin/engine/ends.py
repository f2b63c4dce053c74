"""How a running branch draws its next token, and how its step or trace ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from arts_plugin.backend import FloatArray, StepResult
from arts_plugin.engine.guides import Guide
from arts_plugin.engine.runtime import Draw, NextTokens
from arts_plugin.engine.states import BranchState, Point, point_of, run_of, scanner_of
from arts_plugin.sampling import Adjustment
from arts_plugin.steps import StepEnd
from arts_plugin.tree import StopReason

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine


def position(state: BranchState) -> int:
    """Tokens of its trace that a running branch has drawn: the counter of its next uniform."""
    return len(run_of(state).tokens) - point_of(state).question.n_prompt


def adjustments(states: Sequence[BranchState]) -> list[Adjustment]:
    """What changes the logits of running branches of alike questions: nothing (an empty list), or something for each."""
    if not states:
        return []
    generation = point_of(states[0]).question.generation
    if not generation.sampling.shifts and generation.grammar is None:
        return []
    Guide.look([guide for state in states if (guide := run_of(state).guide)])
    found = []
    for state in states:
        run, before = run_of(state), point_of(state).question.n_prompt
        tokens = np.array(run.tokens, dtype=np.int32)
        found.append(Adjustment(tokens, tokens[before:], run.guide.allowed() if run.guide else None))
    return found


def take(engine: BranchEngine, state: BranchState, drawn: Draw) -> StepResult | None:
    """Go on with the token that was drawn for a running branch; the result if that ends its trace.

    A token that ends the step but not the trace, or reaches a limit, sets `closing`: it is still to be computed.
    """
    run, question = run_of(state), point_of(state).question
    token, logprob = drawn
    if not math.isfinite(logprob):
        problem = (run.guide and run.guide.problem) or f"the model gave invalid logits at token {position(state)}"
        return _finish(engine, state, "error", error=problem)
    run.decoded += 1
    engine.stats.decoded_tokens += 1
    if token in engine.vocabulary.eog and not question.ends.ends_thinking(scanner_of(run), token):
        return replace(_finish(engine, state, "eos"), end_token=token)
    run.pending = token
    run.tokens.append(token)
    run.step.append(token)
    run.logprobs.append(logprob)
    if run.guide:
        run.guide.take(token)
    end = question.ends.push(scanner_of(run), token, engine.vocabulary.piece(token))
    if end and end.reason == "stop":
        return _finish(engine, state, "stop", end=end)
    if len(run.tokens) >= question.limit:
        run.closing = ("length", True)
    elif end:
        run.closing = ("delimiter", False)
    elif len(run.step) >= run.max_tokens or run.left() < 1:
        run.closing = ("length", False)
    return None


def close(engine: BranchEngine, state: BranchState, following: NextTokens) -> StepResult:
    """The last token of a step has been computed: the state stands at its end."""
    run = run_of(state)
    reason, terminal = run.closing or ("length", False)
    if terminal:
        return _finish(engine, state, "length")
    scanner = scanner_of(run)
    text = scanner.text
    scanner.begin_step()
    tail = run.hidden[-scanner.tail_tokens - 1 :]
    point = Point(point_of(state).question, run.tokens, scanner, run.sequence, following, tail, guide=run.guide)
    engine.points.append(point)
    run.sequence = None
    return _report(engine, state, text, len(run.step), reason, point, tail)


def finish_short(engine: BranchEngine, state: BranchState) -> StepResult:
    """A branch whose token budget does not allow for its refill ends where it was computed last: an empty step, if it
    never ran."""
    run, before = run_of(state), point_of(state)
    if not run.started:
        before.waiting -= 1
        return _report(engine, state, "", 0, "length", before, before.tail)
    kept = len(run.step) - 1
    scanner, guide = before.scanner.fork(), before.guide and before.guide.fork()
    for token in run.step[:kept]:
        before.question.ends.push(scanner, token, engine.vocabulary.piece(token))
        if guide:
            guide.take(token)
    text = scanner.text
    scanner.begin_step()
    tail = run.hidden[-scanner.tail_tokens - 1 :]
    point = Point(before.question, run.tokens[:-1], scanner, tail=tail, guide=guide)
    return _report(engine, state, text, kept, "length", point, tail)


def _finish(
    engine: BranchEngine, state: BranchState, stop: StopReason, end: StepEnd | None = None, error: str | None = None
) -> StepResult:
    """A trace has ended: nothing of it stays in the cache."""
    run = run_of(state)
    scanner = scanner_of(run)
    keep, hidden = len(run.step), run.hidden
    if end:
        keep = end.keep_tokens
        # hidden[base - 1] belongs to the last token before this step; a stop string may reach back beyond it.
        base = len(run.hidden) - (len(run.step) - 1)
        hidden = run.hidden[: max(1, base + keep - end.cut_tokens)]
        scanner.cut(end)
    text = scanner.flush()
    if run.sequence is not None:
        engine.kv.drop(run.sequence)
    return _report(engine, state, text, keep, stop, None, hidden, end, error)


def _report(
    engine: BranchEngine,
    state: BranchState,
    text: str,
    keep: int,
    stop: StopReason,
    point: Point | None,
    hidden: list[FloatArray],
    end: StepEnd | None = None,
    error: str | None = None,
) -> StepResult:
    """Put `state` to rest at `point` (None: its trace is over) with the first `keep` tokens of its step."""
    run = run_of(state)
    if state in engine.running:
        engine.running.remove(state)
    state.run, state.point = None, point
    return StepResult(
        state=state,
        text=text,
        token_ids=tuple(run.step[:keep]),
        logprob=math.fsum(run.logprobs[:keep]),
        stop=stop,
        terminal=point is None,
        feature=hidden[-1] if hidden else None,
        decoded=run.decoded,
        refilled=run.refilled,
        cut_chars=end.cut_chars if end else 0,
        cut_tokens=end.cut_tokens if end else 0,
        error=error,
    )

"""How a step is read from a server's replies: where it ends, and which tokens it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from arts_plugin.steps import StepEnd
from arts_plugin.tree import StopReason
from arts_server.dialect import Choice
from arts_server.states import Progress, Question
from arts_server.vocabulary import stand_ins


@dataclass(frozen=True, slots=True)
class Outcome:
    """A step that has ended; see `arts_plugin.backend.StepResult`."""

    stop: StopReason
    terminal: bool
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    cut_chars: int = 0
    cut_tokens: int = 0


def take(
    progress: Progress, choice: Choice, question: Question, before: int, max_tokens: int, exact: bool = True
) -> Outcome | None:
    """Read a continuation into `progress`; the step's outcome if it has ended, None if it goes on.

    Args:
        before: tokens of the trace before this step.
        max_tokens: tokens of the step, at most.
        exact: whether each piece is a token; of a server without token ids it may be several.
    """
    pieces = list(choice.pieces)
    by_token = choice.finish == "stop" and not _asked_for(choice.stop_reason, question, progress)
    if by_token and pieces and not pieces[-1]:
        pieces.pop()  # the end-of-generation token is no part of the step
    ids = choice.ids[: len(pieces)] or stand_ins([piece.decode("utf-8", "replace") for piece in pieces])
    for i, piece in enumerate(pieces):
        progress.ids.append(ids[i])
        if choice.logprobs:
            progress.logprobs.append(choice.logprobs[i])
        end = question.ends.push(progress.scanner, ids[i], piece)
        if end and end.reason == "stop":
            return _over(progress, "stop", end)
        if before + len(progress.ids) >= question.limit:
            return _over(progress, "length")
        if end:
            return _rest(progress, "delimiter")
        if len(progress.ids) >= max_tokens:
            return _rest(progress, "length")
    if by_token:
        return _over(progress, "eos")
    if choice.finish == "length":
        if not exact and progress.ids and before + max_tokens < question.limit:
            return _rest(progress, "length")  # by the limit that we gave it
        return _over(progress, "length")  # the server has a limit of its own
    return None


def _asked_for(reason: str | int | None, question: Question, progress: Progress) -> bool:
    """Whether a reply ended at what it was to end at, and not at an end of the model's own."""
    if reason is None or isinstance(reason, str):
        return reason is not None
    mark, ends = question.ends.marks.get(reason), question.ends
    return mark is not None and (mark == ends.think_end or (mark in ends.stops and not progress.scanner.thinking))


def _rest(progress: Progress, stop: StopReason) -> Outcome:
    """The trace may go on from here."""
    text = progress.scanner.text
    progress.scanner.begin_step()
    return Outcome(stop, False, text, tuple(progress.ids), sum(progress.logprobs))


def _over(progress: Progress, stop: StopReason, end: StepEnd | None = None) -> Outcome:
    """The trace has ended."""
    keep = len(progress.ids)
    if end is not None:
        keep = end.keep_tokens
        progress.scanner.cut(end)
    text = progress.scanner.flush()
    cut = (end.cut_chars, end.cut_tokens) if end else (0, 0)
    return Outcome(stop, True, text, tuple(progress.ids[:keep]), sum(progress.logprobs[:keep]), *cut)

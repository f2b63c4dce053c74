"""What the engine keeps for a question, for a point that branches can start from, and for a running branch."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

from arts_plugin.backend import FloatArray, Generation
from arts_plugin.ends import TraceEnds
from arts_plugin.engine.guides import Guide
from arts_plugin.engine.kv import KvSequence
from arts_plugin.engine.runtime import NextTokens
from arts_plugin.errors import ArtsError
from arts_plugin.steps import Delimiter, StepScanner
from arts_plugin.tree import StopReason


@dataclass(slots=True, eq=False)
class Question:
    """What all branches of one prompt share. `limit`: tokens of prompt and trace together, at most."""

    generation: Generation
    delimiter: Delimiter
    ends: TraceEnds
    n_prompt: int
    limit: int
    prefilled: int = 0
    shared: int = 0
    opened: bool = False


@dataclass(slots=True, eq=False)
class Point:
    """The end of a prompt or a step: everything a branch needs to go on from there.

    `sequence` and `next` are what memory pressure may take away; they are computed again when a branch starts.
    A point lives as long as it has `users`: its state, and forks that have not started.

    Attributes:
        tokens: prompt and trace so far, all of them.
        next: the distribution of the next token.
        tail: hidden states at the last tokens, newest last: as far back as a stop string could reach, and one more.
        guide: where the trace stands in its grammar, if it has one.
    """

    question: Question
    tokens: array[int]
    scanner: StepScanner
    sequence: KvSequence | None = None
    next: NextTokens | None = None
    tail: list[FloatArray] = field(default_factory=list)
    users: int = 1
    waiting: int = 0
    priming: bool = False
    priority: float = math.inf
    guide: Guide | None = None

    @property
    def ready(self) -> bool:
        """Whether branches can start without anything being computed first."""
        return self.sequence is not None and self.next is not None

    @property
    def generated(self) -> int:
        """Tokens of the trace so far."""
        return len(self.tokens) - self.question.n_prompt


class BranchState:
    """A branch: at rest at a point, or running beyond it. The engine's side of `arts_plugin.backend.State`."""

    __slots__ = ("key", "point", "run")

    def __init__(self, point: Point | None, key: int) -> None:
        self.point, self.key = point, key
        self.run: Run | None = None

    @property
    def priority(self) -> float:
        """log F; see the protocol."""
        return self.point.priority if self.point else -math.inf

    @priority.setter
    def priority(self, value: float) -> None:
        if self.point:
            self.point.priority = value

    @property
    def feature(self) -> FloatArray | None:
        """Hidden state at the last token, once computed."""
        return self.point.tail[-1] if self.point and self.point.tail else None


@dataclass(slots=True, eq=False)
class Run:
    """A submitted step, queued or under way.

    Attributes:
        tokens: prompt, trace and this step, the sampled but not yet computed `pending` token included.
        step: this step's tokens; `logprobs` theirs.
        hidden: the point's tail and the hidden states of this step's computed tokens.
        closing: why the step will end once its last token has been computed, and whether its trace does.
    """

    max_tokens: int
    allowance: int | None
    started: bool = False
    sequence: KvSequence | None = None
    tokens: array[int] = field(default_factory=lambda: array("i"))
    scanner: StepScanner | None = None
    step: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    hidden: list[FloatArray] = field(default_factory=list)
    pending: int = -1
    closing: tuple[StopReason, bool] | None = None
    decoded: int = 0
    refilled: int = 0
    guide: Guide | None = None

    def left(self) -> float:
        """Tokens that it may still cost."""
        return math.inf if self.allowance is None else self.allowance - self.decoded - self.refilled


def point_of(state: BranchState) -> Point:
    """Where a state stands, or started."""
    if state.point is None:
        raise ArtsError("the state has ended, or was dropped or cancelled")
    return state.point


def run_of(state: BranchState) -> Run:
    """The step that a state was submitted for."""
    if state.run is None:
        raise ArtsError("the state is not submitted")
    return state.run


def scanner_of(run: Run) -> StepScanner:
    """The scanner of a branch that has started."""
    if run.scanner is None:
        raise ArtsError("the branch has not started")
    return run.scanner


def held(sequence: KvSequence | None) -> KvSequence:
    """A sequence that must be there."""
    if sequence is None:
        raise ArtsError("a running branch has lost its sequence")
    return sequence

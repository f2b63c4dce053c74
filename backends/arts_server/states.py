"""States of traces that live on a server: here they are tokens, text and a place in the tree, which seeds what
comes next."""

from __future__ import annotations

from dataclasses import dataclass, field

from arts_plugin.backend import FloatArray, Generation, Prompt
from arts_plugin.ends import TraceEnds
from arts_plugin.errors import ArtsError
from arts_plugin.randomness import mix
from arts_plugin.steps import Delimiter, StepScanner
from arts_server.dialect import Choice
from arts_server.replicas import Replica
from arts_server.vocabulary import whole

_SEEDS = (1 << 31) - 1


@dataclass(slots=True, eq=False)
class Question:
    """What all states of a question share.

    Attributes:
        ends: where its traces end.
        limit: tokens of a trace, at most.
        ahead: whether a request asks for the rest of a trace, whose steps are handed out one by one.
        home: the replica that has its prompt in the cache.
        sent, cached: prompt tokens sent for its steps, and those of them that the server had in its cache.
        root: hidden state at the prompt's last token, once it is known.
    """

    prompt: Prompt
    generation: Generation
    delimiter: Delimiter
    ends: TraceEnds
    limit: int
    ahead: bool = False
    home: Replica | None = None
    sent: int = 0
    cached: int = 0
    root: FloatArray | None = None

    def server_stops(self, thinking: bool) -> list[str]:
        """Strings at which the server may stop: those that end a trace, and the delimiter, unless it is found here. While a
        trace is thinking, its end stands in for those that end traces: they are sent once it has come."""
        found_here = self.ahead or self.streams
        wanted = (self.ends.think_end or "",) if thinking else self.generation.stops
        # Half of a surrogate pair is in no text, and servers fail at it.
        stops = (stop for stop in wanted if stop and stop == whole(stop))
        return [*(() if found_here else (self.delimiter.spec,)), *stops]

    def server_stop_ids(self, thinking: bool) -> list[int]:
        """Control tokens at which it may stop: those that are one of these strings all by themselves."""
        wanted = {self.ends.think_end} if thinking else set(self.ends.stops)
        return sorted(token for token, mark in self.ends.marks.items() if mark in wanted)

    @property
    def streams(self) -> bool:
        """Whether only we can tell where a step ends, and are to stop there."""
        return not self.ahead and self.delimiter.spec.startswith("regex:")


@dataclass(slots=True, eq=False)
class ServerState:
    """A prompt and the steps generated so far; see `arts_plugin.backend.State`.

    Attributes:
        tokens, text: all steps so far.
        key: of the branch; see `arts_plugin.randomness`.
        origin: the state that it was forked from, until it moves.
        index: which of its forks it is.
        run: what it is doing, if it was submitted.
        over: whether its trace has ended.
        rest: what the server has generated beyond it, for the first branch that goes on from it.
    """

    question: Question
    tokens: tuple[int, ...]
    text: str
    scanner: StepScanner
    key: int
    origin: ServerState | None = None
    index: int = 0
    run: Run | None = None
    over: bool = False
    rest: Choice | None = None
    hidden: FloatArray | None = None
    priority: float = 0.0

    @property
    def feature(self) -> FloatArray | None:
        """Hidden state at its last token."""
        return self.hidden if self.tokens or self.over else self.question.root

    @property
    def seed(self) -> int:
        """Of its next request. Siblings that have not moved count on from one, so that it does not matter how many of them
        a request holds: engines give choice i of a request what they would give seed + i."""
        if self.origin is None:
            return mix(self.key, len(self.tokens)) % _SEEDS
        return (mix(self.origin.key, len(self.tokens)) + self.index) % _SEEDS

    def fork(self, index: int) -> ServerState:
        """A branch that starts here."""
        if self.run is not None:
            raise ArtsError("a submitted state cannot be forked before its step has ended")
        if self.over:
            raise ArtsError("this state's trace has ended; nothing goes on from it")
        rest, self.rest = self.rest, None
        return ServerState(
            self.question,
            self.tokens,
            self.text,
            self.scanner,
            mix(self.key, index),
            self,
            index,
            rest=rest,
            hidden=self.hidden,
        )


@dataclass(slots=True, eq=False)
class Run:
    """A submitted step.

    Attributes:
        number: its place among all that were submitted.
        max_tokens: at most so many.
        allowance: tokens that may be generated for it, those of tries that failed among them; None: no limit.
        decoded: tokens that were generated for it so far, as far as is known here: of a reply that is not streamed and does
            not come whole, nobody can tell.
    """

    number: int
    max_tokens: int
    allowance: int | None = None
    decoded: int = 0

    @property
    def left(self) -> int:
        """Tokens that a further try may ask for."""
        return self.max_tokens if self.allowance is None else min(self.max_tokens, self.allowance - self.decoded)


@dataclass(slots=True, eq=False)
class Progress:
    """A step while it is read, in the thread that reads it."""

    scanner: StepScanner
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

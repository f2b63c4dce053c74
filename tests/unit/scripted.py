"""A proposer without a model: a known tree of steps, drawn from as an engine draws tokens, and an oracle verifier.

Where a real engine would be silent about a breach of the contract, the scripted one raises.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from arts_plugin.backend import (
    EngineStats,
    FloatArray,
    Generation,
    Message,
    ModelInfo,
    OpenCost,
    Pair,
    Prompt,
    Report,
    Scored,
    StepResult,
)
from arts_plugin.errors import PromptTooLongError
from arts_plugin.plugins import Plugins
from arts_plugin.randomness import branch_key, mix, uniform
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree, StopReason
from arts_plugin.verifier import StateView


@dataclass(frozen=True, slots=True)
class Step:
    """A step that a state may take: its text, its probability, the state it leads to (None ends the trace).

    It takes `length` tokens, one a poll. Its first token decides it; the others follow for certain. At the end of a
    trace comes an end-of-generation token, which costs a poll and is not kept.
    """

    text: str
    p: float
    to: str | None = None
    length: int = 1

    @property
    def pieces(self) -> tuple[str, ...]:
        """The text of each token."""
        assert len(self.text) >= self.length
        return (*self.text[: self.length - 1], self.text[self.length - 1 :])


Script = Mapping[str, Sequence[Step]]


def traces(script: Script, at: str) -> dict[str, float]:
    """The exact distribution of the texts of finished traces from a state."""
    found: dict[str, float] = {}
    for step in script[at]:
        rest = {"": 1.0} if step.to is None else traces(script, step.to)
        for text, p in rest.items():
            found[step.text + text] = found.get(step.text + text, 0.0) + step.p * p
    return found


@dataclass(slots=True, eq=False)
class Point:
    """Where branches can start: a state of the script, or amid a step that was cut, whose `rest` is still to come."""

    at: str
    prompt: Prompt
    generation: Generation
    tokens: tuple[int, ...] = ()
    rest: tuple[Step, int] | None = None
    resident: bool = False
    computed: bool = False
    priority: float = math.inf
    prefilled: int = 0


@dataclass(slots=True, eq=False)
class Run:
    """A submitted step: what it has cost and drawn so far."""

    max_tokens: int
    allowance: float
    started: bool = False
    step: Step | None = None
    place: int = 0
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    decoded: int = 0
    refilled: int = 0


class ScriptedState:
    """A branch, at rest at a point or under way from it."""

    def __init__(self, point: Point, key: int) -> None:
        self.point, self.key = point, key
        self.run: Run | None = None
        self.ended = False

    @property
    def priority(self) -> float:
        return self.point.priority

    @priority.setter
    def priority(self, value: float) -> None:
        if not self.ended:  # a terminal state still names the point that it came from
            self.point.priority = value

    @property
    def feature(self) -> FloatArray | None:
        return np.array([len(self.point.tokens)], dtype=np.float32) if self.point.computed else None


class ScriptedBackend:
    """`arts_plugin.backend.Backend` over a script. A prompt's text names the state of the script where it begins.

    Args:
        room: idle points whose memory is kept; those with the least priority beyond it must be refilled.
        jitter: chance that a branch stands still in a poll, and shuffled results: another completion order for
            every `order`, and the same steps.
        n_ctx: tokens of prompt and trace, at most.
        on_poll: called at every poll.
    """

    any_thread = True

    def __init__(
        self,
        script: Script,
        *,
        slots: int = 4,
        room: int | None = None,
        jitter: float = 0.0,
        order: int = 0,
        n_ctx: int = 1_000_000,
        on_poll: Callable[[], None] | None = None,
    ) -> None:
        assert all(math.isclose(sum(step.p for step in steps), 1) for steps in script.values())
        self.script, self.slots, self.n_ctx = script, slots, n_ctx
        self.room, self.jitter, self.on_poll = room, jitter, on_poll
        self.stats = EngineStats(slots=slots)
        self.live: dict[ScriptedState, None] = {}
        self.queue: deque[ScriptedState] = deque()
        self.running: list[ScriptedState] = []
        self.cancelled_tokens: list[int] = []
        self.submitted: list[tuple[int, int | None, int]] = []  # max_tokens, allowance, cost of a refill
        self.most_active = self.most_live = 0
        self._random = random.Random(order)
        # Numbered by the script, not by who comes first: trees of two engines are compared.
        places = dict.fromkeys((s.text, i) for steps in script.values() for s in steps for i in range(s.length))
        self._ids = {place: token for token, place in enumerate(places, 1)}

    @property
    def info(self) -> ModelInfo:
        return ModelInfo("scripted", self.n_ctx, n_vocab=1 << 30, n_embd=1)

    def digest(self) -> str:
        return "script:0"

    def encode(self, text: str) -> Prompt:
        return Prompt(text, tuple(text.encode()))

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        return self.encode("".join(message["content"] for message in messages))

    def spelling(self, token: int) -> str | None:
        return None

    # States.
    def open(self, prompt: Prompt, generation: Generation, problem: int) -> ScriptedState:
        if len(prompt.token_ids) >= self.n_ctx:
            raise PromptTooLongError(f"the prompt has {len(prompt.token_ids)} tokens and the context {self.n_ctx}")
        return self._new(Point(prompt.text, prompt, generation), branch_key(generation.sampling.seed, problem))

    def _new(self, point: Point, key: int) -> ScriptedState:
        state = ScriptedState(point, key)
        self.live[state] = None
        self.most_live = max(self.most_live, len(self.live))
        return state

    def open_cost(self, state: ScriptedState) -> OpenCost:
        return OpenCost(state.point.prefilled, 0)

    def fork(self, state: ScriptedState, index: int) -> ScriptedState:
        assert state in self.live and not state.run and not state.ended, "fork of a state that is not at rest"
        return self._new(state.point, mix(state.key, index))

    def drop(self, state: ScriptedState) -> None:
        assert state in self.live, "drop of a state that is gone"
        assert state.run is None, "drop of a submitted state"
        del self.live[state]

    def submit(self, state: ScriptedState, max_tokens: int, allowance: int | None = None) -> None:
        assert state in self.live and not state.run and not state.ended, "submission of a state that is not at rest"
        assert max_tokens >= 1 and (allowance is None or allowance >= 1)
        state.run = Run(max_tokens, math.inf if allowance is None else allowance)
        self.queue.append(state)
        self.submitted.append((max_tokens, allowance, self.refill_cost(state)))
        self.most_active = max(self.most_active, self.n_active)

    def cancel(self, state: ScriptedState) -> tuple[int, int]:
        assert state in self.live and state.run is not None, "cancelling a state that was not submitted"
        (self.running if state.run.started else self.queue).remove(state)
        run, state.run = state.run, None
        del self.live[state]
        self.cancelled_tokens.append(run.decoded)
        return run.decoded, run.refilled

    def refill_cost(self, state: ScriptedState) -> int:
        point = state.point
        return len(point.prompt.token_ids) + len(point.tokens) if point.computed and not point.resident else 0

    @property
    def cancelled(self) -> int:
        """How many branches were cancelled."""
        return len(self.cancelled_tokens)

    @property
    def n_active(self) -> int:
        return len(self.running) + len(self.queue)

    # One round.
    def poll(self) -> list[StepResult]:
        if self.on_poll:
            self.on_poll()
        while self.queue and len(self.running) < self.slots:
            self._start(self.queue.popleft())
        self.stats.decodes += 1
        self.stats.occupied += len(self.running)
        moving = [s for s in self.running if not self.jitter or self._random.random() >= self.jitter]
        results = [result for state in moving if (result := self._advance(state))]
        if self.jitter:
            self._random.shuffle(results)
        self._evict()
        return results

    def _start(self, state: ScriptedState) -> None:
        run, point = state.run, state.point
        assert run is not None
        cost = self.refill_cost(state)
        run.started, run.refilled = True, cost
        self.stats.refilled_tokens += cost
        if not point.computed:
            point.prefilled = len(point.prompt.token_ids)
        point.computed = point.resident = True
        run.step, run.place = point.rest or (None, 0)
        self.running.append(state)

    def _evict(self) -> None:
        if self.room is None:
            return
        busy = {state.point for state in self.queue}
        idle = dict.fromkeys(s.point for s in self.live if not s.run and not s.ended and s.point.resident)
        spare = sorted((point for point in idle if point not in busy), key=lambda point: point.priority)
        for point in spare[: max(0, len(spare) - self.room)]:
            point.resident = False
            self.stats.evictions += 1

    def _advance(self, state: ScriptedState) -> StepResult | None:
        """One token of a running branch."""
        run, point = state.run, state.point
        assert run is not None
        run.decoded += 1
        self.stats.decoded_tokens += 1
        assert run.decoded + run.refilled <= run.allowance, "an engine must keep to its allowance"
        position = len(point.tokens) + len(run.tokens)
        if run.step is None:
            greedy = point.generation.sampling.temperature == 0
            run.step = (
                max(self.script[point.at], key=lambda step: step.p)
                if greedy
                else self._draw(point.at, uniform(state.key, position))
            )
            run.logprob += math.log(run.step.p)
        step = run.step
        if run.place == step.length:
            return self._end(state, "eos", None)
        run.text += step.pieces[run.place]
        run.tokens.append(self._ids[step.text, run.place])
        run.place += 1
        limit = min(point.generation.max_gen_toks, self.n_ctx - len(point.prompt.token_ids))
        if position + 1 >= limit:
            return self._end(state, "length", None)
        if run.place == step.length and step.to is not None:
            return self._end(state, "delimiter", Point(step.to, point.prompt, point.generation))
        if len(run.tokens) >= run.max_tokens or run.decoded + run.refilled >= run.allowance:
            return self._end(state, "length", Point(point.at, point.prompt, point.generation, rest=(step, run.place)))
        return None

    def _draw(self, at: str, u: float) -> Step:
        total = 0.0
        for step in self.script[at]:
            total += step.p
            if u < total:
                return step
        return self.script[at][-1]

    def _end(self, state: ScriptedState, stop: StopReason, point: Point | None) -> StepResult:
        run = state.run
        assert run is not None
        self.running.remove(state)
        if point:
            point.tokens = state.point.tokens + tuple(run.tokens)
            point.computed = point.resident = True
            state.point = point
        state.run, state.ended = None, point is None
        return StepResult(
            state=state,
            text=run.text,
            token_ids=tuple(run.tokens),
            logprob=run.logprob,
            stop=stop,
            terminal=point is None,
            feature=state.feature,
            decoded=run.decoded,
            refilled=run.refilled,
        )

    def loglikelihood(self, pairs: Sequence[Pair], report: Report | None = None) -> list[Scored]:
        raise NotImplementedError

    def tree_features(
        self, tokens: Sequence[Sequence[int]], parents: Sequence[int | None], cut: Sequence[int]
    ) -> FloatArray:
        raise NotImplementedError

    def close(self) -> None:
        pass


class Oracle:
    """A verifier that knows log F of every text, and keeps count of the handles it was asked for."""

    name = "oracle"
    needs = frozenset({"text"})
    is_flow = True

    def __init__(self, log_flow: Callable[[str], float]) -> None:
        self.log_flow = log_flow
        self.handles: set[object] = set()

    def open(self, prompt: str) -> object:
        handle = object()
        self.handles.add(handle)
        return handle

    def fork(self, handle: object) -> object:
        assert handle in self.handles, "fork of a handle that is gone"
        return self.open("")

    def drop(self, handle: object) -> None:
        assert handle in self.handles, "drop of a handle that is gone"
        self.handles.remove(handle)

    def score(self, states: Sequence[StateView]) -> np.ndarray:
        assert all(state.handle in self.handles for state in states), "a state without its handle"
        return np.array([self.log_flow(state.text) for state in states])


def random_script(seed: int, depth: int = 4, fan: int = 3, longest: int = 5) -> Script:
    """A script with steps of several lengths, some of which end a trace early. It begins at the state "q"."""
    rng = random.Random(seed)
    script: dict[str, list[Step]] = {}

    def grow(at: str, level: int) -> None:
        weights = [rng.uniform(0.2, 1) for _ in range(fan)]
        steps = []
        for i, weight in enumerate(weights):
            ends = level == depth or (level > 1 and rng.random() < 0.25)
            length = rng.randint(1, longest)
            text = f"{level}.{i}:".ljust(length + 3, ".") + "\n"
            steps.append(Step(text, weight / sum(weights), None if ends else f"{at}/{i}", length))
        script[at] = steps
        for step in steps:
            if step.to is not None:
                grow(step.to, level + 1)

    grow("q", 1)
    return script


def search_all(
    backend: ScriptedBackend, plugins: Plugins, jobs: Sequence[tuple[str, Settings]], oracle: Oracle | None = None
) -> list[ReasoningTree]:
    """Search every (prompt, settings) together; the trees in the order of the jobs. Nothing may be left behind."""
    trees: dict[int, ReasoningTree] = {}
    driver = SearchDriver(backend, plugins, oracle)
    made = (Job(backend.encode(prompt), settings, meta={"job": i}) for i, (prompt, settings) in enumerate(jobs))
    for job, tree in driver.run(made):
        trees[job.meta["job"]] = tree
    assert not backend.live, f"{len(backend.live)} states were never dropped"
    assert backend.n_active == 0
    assert oracle is None or not oracle.handles, "handles of the verifier were never dropped"
    return [trees[i] for i in range(len(jobs))]


def search(
    backend: ScriptedBackend, plugins: Plugins, *, prompt: str = "q", oracle: Oracle | None = None, **settings: Any
) -> ReasoningTree:
    """Search one prompt."""
    return search_all(backend, plugins, [(prompt, Settings.of(settings))], oracle)[0]

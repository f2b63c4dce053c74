"""One question on its way through the driver: its settings, its tree, its strategy and what it has in flight."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from arts_plugin.backend import Backend, Generation, Prompt, Sampling, State, StepResult
from arts_plugin.coercion import biases
from arts_plugin.ends import begun
from arts_plugin.errors import ArtsError, PromptTooLongError, SettingsError
from arts_plugin.hookspecs import Extractor
from arts_plugin.plugins import Plugins, contained
from arts_plugin.prompts import answer_of
from arts_plugin.randomness import digest
from arts_plugin.search.base import Expansion, Proposal, Strategy, Taken
from arts_plugin.search.budget import Budget, TokenMeter, ended_by_clock
from arts_plugin.search.select import default_rule, select
from arts_plugin.settings import Settings, grammar_of
from arts_plugin.tree import EndedBy, Node, ReasoningTree
from arts_plugin.verifier import StateView, Verifier


@dataclass(frozen=True, slots=True)
class Job:
    """A question to search: its prompt, its own settings, where its traces stop, and notes to keep with the tree.

    `most_tokens` bounds its tokens beside the settings' own budget, for whoever runs it; it is no part of its key.
    """

    prompt: Prompt
    settings: Settings
    stops: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    most_tokens: int | None = None

    def generation(self, temperature: float | None = None, chains: bool = False) -> Generation:
        """How its traces are generated; `temperature` overrides the setting, and for `chains` see `Generation`."""
        s = self.settings
        sampling = Sampling(
            temperature=s.temperature if temperature is None else temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=s.min_p,
            seed=s.seed,
            logit_bias=biases(s.logit_bias),
            repetition_penalty=s.repetition_penalty,
            frequency_penalty=s.frequency_penalty,
            presence_penalty=s.presence_penalty,
        )
        grammar = grammar_of(s)
        return Generation(
            sampling,
            s.delimiter,
            self.stops,
            s.max_step_tokens,
            s.max_gen_toks,
            grammar,
            chains,
            think_end=s.think_end_token,
        )

    def key(self) -> str:
        """What identifies the job in a run folder: the prompt, where it stops, and the settings that shape its tree."""
        return f"{digest(list(self.prompt.token_ids), list(self.stops), self.settings.identity()):016x}"

    def problem(self) -> int:
        """The key that seeds its choices: the prompt and what shapes a step, but no budget, so that a larger search
        of the same question begins with the smaller one's draws."""
        generation = asdict(self.generation())
        del generation["sampling"]["seed"], generation["chains"], generation["think_end"]
        # What came with a later version does not count at its default: trees of earlier ones stay what they were.
        for name in _LATER:
            if generation["sampling"][name] == getattr(_PLAIN, name):
                del generation["sampling"][name]
        if generation["grammar"] is None:
            del generation["grammar"]
        return digest(list(self.prompt.token_ids), generation)


_PLAIN = Sampling()
_LATER = ("logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty")


@dataclass(slots=True)
class Flight:
    """A proposal on its way: what was asked, the tokens set aside for it, the engine's and the verifier's handles."""

    expansion: Expansion
    reserved: int
    state: State
    handle: object


Flights = dict[int, tuple["Search", Flight]]
"""What is in flight, by the id of its state."""


class Search:
    """One job's tree, strategy and accounts. The driver calls `launch`, `landed`, `tell`, `over` and `finish`.

    Nothing raises out of here for the question's own sake: a prompt that cannot be run makes a tree with an error.
    """

    def __init__(
        self, job: Job, backend: Backend, plugins: Plugins, verifier: Verifier, extractor: Extractor | None
    ) -> None:
        self.job, self.backend, self.plugins, self.verifier, self.extractor = job, backend, plugins, verifier, extractor
        self.started = time.perf_counter()
        settings = job.settings
        self.budget = Budget.of(settings)
        limits = [limit for limit in (self.budget.tokens, job.most_tokens) if limit is not None]
        self.meter = TokenMeter(min(limits, default=None))
        self.tree = ReasoningTree(
            prompt=job.prompt.text,
            problem=f"{job.problem():016x}",
            strategy=settings.strategy,
            select=settings.select or default_rule(verifier.name != "logprob"),
            scorer=verifier.name,
            meta=dict(job.meta),
        )
        if settings.think_end_token:
            self.tree.meta["think_end"] = settings.think_end_token
            self.tree.meta["think_begun"] = begun(job.prompt, settings.think_end_token)
            self.tree.meta["stops"] = list(job.stops)
        self.tree.nodes[0].token_ids = list(job.prompt.token_ids)
        self.tree.cost.prompt_tokens = len(job.prompt.token_ids)
        self.strategy: Strategy = plugins.make("strategy", settings.strategy, settings, self.tree)
        self._states: dict[int, State] = {}
        self._handles: dict[int, object] = {}
        self._waiting: deque[Expansion] = deque()
        self._in_flight = 0
        self._unsettled: dict[int, int] = {}  # id of a flight that was told and not settled yet -> the node it left
        self._root: State | None = None
        try:
            temperature = getattr(self.strategy, "temperature", None)
            self._chains = bool(getattr(self.strategy, "chains", False))
            generation = job.generation(temperature, self._chains)
            self._root = backend.open(job.prompt, generation, job.problem())
            self._states[0] = self._root
            self._handles[0] = verifier.open(job.prompt.text)
        except (PromptTooLongError, SettingsError) as error:
            self.tree.error = str(error)
            if error.code is not None:
                self.tree.meta["error_code"] = error.code

    # Outward: from the strategy to the engine.
    def launch(self, free: int, flights: Flights) -> int:
        """Submit up to `free` proposals, as far as the token budget allows; how many were."""
        submitted = 0
        while submitted < free and self._root is not None:
            if not self._waiting:
                self._waiting.extend(self.strategy.ask(free - submitted))
            if not self._waiting or not self._submit(self._waiting[0], flights):
                break
            self._waiting.popleft()
            submitted += 1
        return submitted

    def _submit(self, expansion: Expansion, flights: Flights) -> bool:
        parent = self._states[expansion.node]
        refill = self.backend.refill_cost(parent) if self.meter.limit is not None else 0
        settings = self.job.settings
        step = min(settings.max_step_tokens, settings.max_gen_toks)
        # Of chains, a backend may ask for the rest of the trace at once.
        wanted = settings.max_gen_toks if self._chains else step
        granted = self.meter.reserve(wanted + refill, least=refill + 1)
        if not granted:
            return False
        state = self.backend.fork(parent, expansion.index)
        handle = self.verifier.fork(self._handles[expansion.node])
        self.backend.submit(state, min(step, granted - refill), None if self.meter.limit is None else granted)
        flights[id(state)] = (self, Flight(expansion, granted, state, handle))
        self._in_flight += 1
        if expansion.last:
            self._forget(expansion.node)
        return True

    def _forget(self, node: int) -> None:
        self.backend.drop(self._states.pop(node))
        # State 0 is scored with the first results, when its last proposal may long have been asked for.
        if node or not self.root_unscored():
            self.verifier.drop(self._handles.pop(node))

    def _forget_all(self) -> None:
        for node in list(self._states):
            self._forget(node)

    # Inward: from the engine to the tree.
    def landed(self, result: StepResult, flight: Flight) -> bool:
        """Book a result's cost; whether it is still of use."""
        self._book(flight, result.decoded, result.refilled)
        if self.strategy.ended_by:
            self.discard(flight)
            return False
        return True

    def _book(self, flight: Flight, decoded: int, refilled: int) -> None:
        self._in_flight -= 1
        self.meter.settle(flight.reserved, decoded + refilled)
        self.tree.cost.decoded_tokens += decoded
        self.tree.cost.refilled_tokens += refilled

    def view(self, result: StepResult, flight: Flight) -> StateView:
        """What the verifier sees of a new state."""
        above = self.tree.trajectory(flight.expansion.node)
        text, tokens = above.text, above.token_ids
        return StateView(
            prompt=self.tree.prompt,
            text=text[: len(text) - result.cut_chars] + result.text,
            token_ids=(*tokens[: len(tokens) - result.cut_tokens], *result.token_ids),
            step_text=result.text,
            step_token_ids=result.token_ids,
            logprob=above.logprob + result.logprob,
            feature=result.feature,
            terminal=result.terminal,
            handle=flight.handle,
            question=self.job.prompt.user or self.tree.prompt,
        )

    def root_unscored(self) -> bool:
        """Whether state 0 can be scored now and has not been."""
        return self.tree.nodes[0].log_flow is None

    def root_view(self) -> StateView:
        """State 0: the prompt, and the hidden state at its last token."""
        feature = self._root.feature if self._root else None
        question = self.job.prompt.user or self.tree.prompt
        return StateView(self.tree.prompt, "", (), "", (), 0.0, feature, False, self._handles.get(0), question)

    def score_root(self, score: float) -> None:
        """Note the flow through the prompt."""
        self.tree.nodes[0].log_flow = score
        self.tree.nodes[0].scores[self.verifier.name] = score
        if self.job.settings.features and self._root is not None:
            self.tree.nodes[0].feature = self._root.feature
        if 0 not in self._states:
            self.verifier.drop(self._handles.pop(0))

    def tell(self, group: list[tuple[StepResult, Flight, float]]) -> list[Node]:
        """Hand scored results to the strategy and keep or drop their states as it decides; the nodes it took in."""
        proposals = []
        for result, flight, score in group:
            if result.error:
                self.tree.meta.setdefault("errors", []).append(result.error)
            flight.state.priority = score
            self._unsettled[id(flight)] = flight.expansion.node
            proposals.append(
                Proposal(
                    expansion=flight.expansion,
                    text=result.text,
                    token_ids=list(result.token_ids),
                    logprob=result.logprob,
                    stop=result.stop,
                    terminal=result.terminal,
                    log_flow=score,
                    cut_chars=result.cut_chars,
                    cut_tokens=result.cut_tokens,
                    answer=self._answer(result, flight),
                    scores={self.verifier.name: score},
                    feature=result.feature if self.job.settings.features else None,
                    end_token=result.end_token,
                    state=flight,
                )
            )
        try:
            taken = self.strategy.tell(proposals)
        except BaseException:
            for _, flight, _ in group:
                del self._unsettled[id(flight)]
                self.discard(flight)
            raise
        return self._settle(taken)

    def _answer(self, result: StepResult, flight: Flight) -> str | None:
        if not result.terminal or self.extractor is None:
            return None
        text = answer_of(self.view(result, flight).text, self.job.settings.think_end_token, self.job.stops)
        try:
            with contained("an extractor"):
                found: object = self.extractor(text)
            if found is None or isinstance(found, str):
                return found
            raise TypeError(f"it found {found!r:.80}, which is {type(found).__name__}; an answer is text, or None")
        except Exception as error:  # a plugin's extractor must not cost the question its tree
            self.tree.meta.setdefault("errors", []).append(f"extract={self.job.settings.extract}: {error!r:.300}")
            return None

    def _settle(self, taken: list[Taken]) -> list[Node]:
        nodes: list[Node] = []
        for item in taken:
            flight = item.proposal.state
            if not isinstance(flight, Flight):
                raise ArtsError(f"strategy {self.tree.strategy!r} returned a proposal that it was not told")
            self._unsettled.pop(id(flight), None)
            if item.node:
                nodes.append(item.node)
            if item.node and not item.merged and not item.node.terminal:
                self._states[item.node.id] = flight.state
                self._handles[item.node.id] = flight.handle
            else:
                self.discard(flight)
        released = getattr(self.strategy, "released", [])
        while released:
            self._forget(released.pop())
        if nodes:
            self.plugins.notify("arts_expanded", tree=self.tree, nodes=nodes)
            self.plugins.notify("arts_scored", tree=self.tree, nodes=nodes)
        return nodes

    def discard(self, flight: Flight) -> None:
        """Give back what a finished step holds: nothing will go on from it."""
        self.backend.drop(flight.state)
        self.verifier.drop(flight.handle)

    # The end.
    def over(self) -> bool:
        """Whether nothing more will come of this search."""
        if self._root is None or self.strategy.ended_by or ended_by_clock(self.budget, self.elapsed):
            return True
        # Nothing in flight after a launch: the token budget refuses the next proposal, now and for ever.
        return self._in_flight == 0 and bool(self._waiting) and self._refused()

    def _refused(self) -> bool:
        refill = self.backend.refill_cost(self._states[self._waiting[0].node])
        limit = self.meter.limit
        return limit is not None and limit - self.meter.spent < refill + 1

    @property
    def in_flight(self) -> int:
        """Proposals on their way."""
        return self._in_flight

    def growing(self, flights: Flights) -> set[int]:
        """Ids of the nodes from which the tree may still grow: those with a state, a proposal on its way, or one that has
        come and waits for its turn with the strategy."""
        flown = {flight.expansion.node for search, flight in flights.values() if search is self}
        return {*self._states, *self._unsettled.values(), *flown}

    @property
    def elapsed(self) -> float:
        """Seconds since admission."""
        return time.perf_counter() - self.started

    @property
    def waiting(self) -> bool:
        """Whether a proposal was asked for that the token budget has not allowed."""
        return bool(self._waiting)

    def finish(self, ended_by: EndedBy, flights: Flights) -> list[Node]:
        """Cancel what is in flight, settle the books, select and say goodbye; the nodes that were still taken in."""
        for key in [key for key, (search, _) in flights.items() if search is self]:
            flight = flights.pop(key)[1]
            self._book(flight, *self.backend.cancel(flight.state))
            self.verifier.drop(flight.handle)
        reason: EndedBy = "refused" if self.tree.error else ended_by_clock(self.budget, self.elapsed) or ended_by
        # States go by the ids of their nodes, which a strategy may change as it closes.
        self._forget_all()
        late = self._settle(self.strategy.close(reason))
        self._forget_all()
        for handle in self._handles.values():
            self.verifier.drop(handle)
        self.tree.ended_by = self.strategy.ended_by or reason
        if self._root is not None:
            cost = self.backend.open_cost(self._root)
            self.tree.cost.prefilled_tokens, self.tree.cost.cached_tokens = cost.prefilled, cost.shared
        self.tree.chosen = select(self.tree, self.tree.select, seed=self.job.settings.seed)
        self.tree.cost.seconds = self.elapsed
        self.plugins.notify("arts_finished", tree=self.tree)
        return late

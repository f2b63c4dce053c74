"""The loop that runs many searches over one engine.

It carries wishes from strategies to the backend and results back, scores new states (one verifier call for all of
them), keeps the token and time budgets, and admits the next question as soon as slots would otherwise stand idle.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal

from arts_plugin.backend import Backend, StepResult
from arts_plugin.errors import ArtsError
from arts_plugin.hookspecs import Extractor
from arts_plugin.plugins import Plugins, contained
from arts_plugin.search.best_of_n import BestOfN
from arts_plugin.search.job import Flight, Flights, Job, Search
from arts_plugin.settings import Settings
from arts_plugin.steps import Delimiter
from arts_plugin.tree import Node, ReasoningTree
from arts_plugin.verifier import LogprobScorer, StateView, Verifier

log = logging.getLogger(__name__)
_LONG_STEP = 32
"""Tokens of a step in which a delimiter should have occurred; an answer of one line is shorter."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a search. `nodes` are new, or merged into with a higher count, and scored."""

    kind: Literal["expanded", "finished"]
    job: Job
    tree: ReasoningTree
    nodes: tuple[Node, ...] = ()


@dataclass(slots=True)
class Admission:
    """The engine's books at the moment when the last question was admitted: until then, slots need not stand idle."""

    questions: int = 0
    decodes: int = 0
    occupied: int = 0

    def occupancy(self, slots: int) -> float:
        """Share of `slots` that were busy until then, averaged over decode calls; 0 before the first."""
        return self.occupied / (self.decodes * slots) if self.decodes else 0.0


class SearchDriver:
    """Runs searches over `backend`. Not thread-safe: one thread owns the model.

    Args:
        verifier: scores states; None lets the mean token log-probability stand in.
        extractor: what finds answers for voting, for a job's settings.
        fair: whether all jobs that are there are searched at once, each with its share of the slots, as people who wait
            for their own answer want it. Otherwise the next is begun when slots would stand idle, which takes less memory.
    """

    def __init__(
        self,
        backend: Backend,
        plugins: Plugins,
        verifier: Verifier | None = None,
        extractor: Callable[[Settings], Extractor] | None = None,
        *,
        fair: bool = False,
    ) -> None:
        self.backend = backend
        self.plugins = plugins
        self.verifier: Verifier = verifier or LogprobScorer()
        self.extractor = extractor
        self.fair = fair
        self.admission = Admission()
        self._active: list[Search] = []
        self._cancelled: SimpleQueue[Job] = SimpleQueue()
        self._flights: Flights = {}
        self._events: list[Event] = []
        self._warned: set[str] = set()
        self._steps_judged = False

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, ReasoningTree]]:
        """Search every job; each tree as it is finished, which is not the order of the jobs."""
        for event in self.events(jobs):
            if event.kind == "finished":
                yield event.job, event.tree

    def events(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Search every job; what happens, as it happens.

        A job that cannot be searched (its prompt is too long) comes back with `tree.error` set; the others go on.
        When the caller stops early or an exception passes through, what is in flight is cancelled.
        """
        queue = iter(jobs)
        active = self._active = []
        try:
            while True:
                with contained("a strategy, verifier or backend"):
                    self._fill(queue)
                    if not active:
                        return
                    if self.backend.n_active:
                        self._deliver(self.backend.poll())
                    self._drop_cancelled()
                    ended = [search for search in active if search.over()]
                    if not ended and not self.backend.n_active:
                        ended = self._stalled()
                    for search in ended:
                        active.remove(search)
                        self._finish(search)
                if self.fair and active:
                    active.append(active.pop(0))  # who is asked first gets what is left over
                yield from self._drain()
        finally:
            for search in active:
                search.finish("cancelled", self._flights)
            active.clear()

    def cancel(self, job: Job) -> None:
        """Have a running job ended, with what it has found so far, before the next token; one that is over stays as it is.
        May be called from another thread."""
        self._cancelled.put(job)

    def growing(self, job: Job) -> set[int]:
        """Ids of the nodes of a running job's tree from which it may still grow. Between events only."""
        return next((search.growing(self._flights) for search in self._active if search.job is job), set())

    def _drop_cancelled(self) -> None:
        while not self._cancelled.empty():
            job = self._cancelled.get()
            for search in [search for search in self._active if search.job is job]:
                self._active.remove(search)
                self._note(search, search.finish("cancelled", self._flights))
                self._events.append(Event("finished", search.job, search.tree))

    def _admits(self) -> bool:
        if self.fair:
            return len(self._active) < self.backend.slots
        return self.backend.n_active < self.backend.slots

    def _admit(self, job: Job) -> Search:
        stats = self.backend.stats
        self.admission = Admission(self.admission.questions + 1, stats.decodes, stats.occupied)
        extractor = self.extractor(job.settings) if self.extractor else None
        return Search(job, self.backend, self.plugins, self.verifier, extractor)

    def _fill(self, queue: Iterator[Job]) -> None:
        """Put the free slots to use, and admit questions for those that would stand idle (all there are, if fair)."""
        if not self.fair:
            self._launch()
        while self._admits() and (job := next(queue, None)) is not None:
            self._active.append(self._admit(job))
            if not self.fair:
                self._active[-1].launch(self._room, self._flights)
        if self.fair:
            self._launch()

    def _launch(self) -> None:
        """Let searches submit what they want, up to the engine's slots: to each its share, if fair, before the others get
        what is left over."""
        if self.fair:
            share = max(1, self.backend.slots // max(1, len(self._active)))
            for search in self._active:
                search.launch(min(self._room, share - search.in_flight), self._flights)
        for search in self._active:
            search.launch(self._room, self._flights)

    @property
    def _room(self) -> int:
        return self.backend.slots - self.backend.n_active

    def _stalled(self) -> list[Search]:
        """Searches that ask for nothing while nothing runs: over, though their strategies do not say so."""
        self._launch()
        if self.backend.n_active:
            return []
        for search in self._active:
            if search.waiting:  # the token budget is spent to the last token
                continue
            name = search.tree.strategy
            self._warn_once(f"strategy {name!r} asks for nothing, has nothing in flight and does not end; it was ended")
        return list(self._active)

    def _drain(self) -> Iterator[Event]:
        events, self._events = self._events, []
        yield from events

    def _deliver(self, results: list[StepResult]) -> None:
        arrived = [(result, *self._flights.pop(id(result.state))) for result in results]
        live = [(result, search, flight) for result, search, flight in arrived if search.landed(result, flight)]
        # What failed has no hidden state, nor any worth.
        judged = [(result, search, flight) for result, search, flight in live if not result.error]
        roots = [search for search in dict.fromkeys(search for _, search, _ in judged) if search.root_unscored()]
        views = [search.root_view() for search in roots] + [
            search.view(result, flight) for result, search, flight in judged
        ]
        try:
            scores = self.score(views)
        except BaseException:
            for _, search, flight in live:
                search.discard(flight)
            raise
        read = getattr(self.verifier, "tokens_read", None)  # verifiers with a model of their own have it
        if read is not None:
            for search, view in zip([*roots, *(search for _, search, _ in judged)], views, strict=True):
                search.tree.cost.verifier_tokens += read(view.handle)
        for search, score in zip(roots, scores[: len(roots)], strict=True):
            search.score_root(score)
        told: dict[Search, list[tuple[StepResult, Flight, float]]] = {}
        rest = iter(scores[len(roots) :])
        for result, search, flight in live:
            score = -math.inf if result.error else next(rest)
            told.setdefault(search, []).append((result, flight, score))
        while told:
            search = next(iter(told))
            group = told.pop(search)
            try:
                self._note(search, search.tell(group))
            except BaseException:
                for other, untold in told.items():
                    for _, flight, _ in untold:
                        other.discard(flight)
                raise

    def _note(self, search: Search, nodes: list[Node]) -> None:
        if nodes:
            self._events.append(Event("expanded", search.job, search.tree, tuple(nodes)))

    def score(self, views: list[StateView]) -> list[float]:
        """One score a state. A verifier's NaN counts as the lowest score, and is said once."""
        if not views:
            return []
        scores = [float(score) for score in self.verifier.score(views)]
        if len(scores) != len(views):
            raise ArtsError(f"verifier {self.verifier.name!r} gave {len(scores)} scores for {len(views)} states")
        if any(math.isnan(score) for score in scores):
            self._warn_once(f"verifier {self.verifier.name!r} gave NaN; such states count as the lowest")
            scores = [-math.inf if math.isnan(score) else score for score in scores]
        return scores

    def _finish(self, search: Search) -> None:
        self._note(search, search.finish("budget_tokens" if search.waiting else "exhausted", self._flights))
        self._events.append(Event("finished", search.job, search.tree))
        tree, settings = search.tree, search.job.settings
        if not tree.n_finished and tree.ended_by in {"budget_tokens", "budget_seconds", "budget_nodes"}:
            self._warn_once(
                f"{tree.ended_by} ended a search before any trajectory was finished: it was spent on breadth. A question starts "
                f"with {max(settings.width, settings.slots)} branches (slots); lower slots, or give it more"
            )
        failed = [error for error in search.tree.meta.get("errors", ()) if str(error).startswith("extract=")]
        if failed:
            self._warn_once(f"{failed[0]}; such trajectories have no vote", f"extract={search.job.settings.extract}")
        if not self._steps_judged:
            self._judge_steps(search)

    def _judge_steps(self, search: Search) -> None:
        """Say that there are no steps to search among, at the first question whose traces are long enough to tell.

        Independent chains do not branch at steps, and where the delimiter itself ends a trace, nobody meant there to be any.
        """
        delimiter, nodes = Delimiter(search.job.settings.delimiter), search.tree.nodes[1:]
        if isinstance(search.strategy, BestOfN) or any(delimiter.pattern().fullmatch(s) for s in search.job.stops):
            return
        self._steps_judged = any(node.stop == "delimiter" for node in nodes)
        if not self._steps_judged and any(len(node.token_ids) >= _LONG_STEP for node in nodes):
            self._steps_judged = True
            self._warn_once(
                f"the delimiter {delimiter.spec!r} did not occur in the {len(nodes)} step(s) of a question: every "
                "trajectory is one step, or was cut at max_step_tokens; set delimiter= to what the model writes"
            )

    def _warn_once(self, message: str, about: str | None = None) -> None:
        if (about or message) not in self._warned:
            self._warned.add(about or message)
            log.warning("%s", message)

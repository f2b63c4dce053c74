"""The thread that owns the model: requests come in by a queue, are searched together, and hear of it as it happens."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from arts_plugin.api import Arts
from arts_plugin.backend import Prompt
from arts_plugin.engine.guide_process import Followed
from arts_plugin.engine.guides import PROBLEM
from arts_plugin.errors import (
    ArtsError,
    ModelError,
    NotWrittenError,
    PromptTooLongError,
    SettingsError,
    UnknownNameError,
)
from arts_plugin.search.driver import Event, SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.serve.answers import blames_grammar, failure
from arts_plugin.serve.decided import Teller
from arts_plugin.serve.protocol import Ask
from arts_plugin.serve.thinking import Parting, Uncut, parting_of
from arts_plugin.settings import grammar_of
from arts_plugin.tree import EndedBy, ReasoningTree

log = logging.getLogger(__name__)

REFUSALS = (SettingsError, PromptTooLongError, UnknownNameError, ModelError)
"""What is wrong with a request rather than with its engine; a chat template that refuses messages is a ModelError."""
_BANK = 0.1
"""CPU seconds that the masks of a request's grammar may take beyond 2 ms each: all others wait for them."""
_PATIENCE = 10.0
"""Seconds that requests which are being read have for it when the server stops."""


@dataclass(frozen=True, slots=True)
class News:
    """What a request hears: that its first step is there, a piece of its answer, the finished tree, or why there is none: it
    was `refused` for its own sake, its search `failed` and may be asked for again, or the model's answers are `broken`.

    Attributes:
        thinking: whether the piece is thinking.
        stopped: of a tree whose answer was streamed: whether a stop string has cut it since.
        code: OpenAI's code for what is wrong, if it has one.
    """

    kind: Literal["begun", "text", "tree", "refused", "failed", "broken"]
    text: str = ""
    tree: ReasoningTree | None = None
    thinking: bool = False
    stopped: bool = False
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A request whose prompt is tokenised (None: the model's thread must) and whose grammar, if it has one, is compiled, and
    stays so while this is held."""

    ask: Ask
    prompt: Prompt | None
    grammar: Followed | None = None


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the house. `tell` is called from the model's thread as well. `cut` is the limit of this server that ended
    its search, if one did."""

    ready: Ready
    tell: Callable[[News], None]
    teller: Teller
    job: Job | None = None
    left: bool = False
    begun: bool = False
    cut: EndedBy | None = None
    parting: Parting | Uncut | None = None

    def say(self, tree: ReasoningTree, pieces: Iterable[str], *, last: bool = False) -> None:
        """Pass pieces of the answer on, parted from its thinking; with the last ones also what was held back."""
        parting = self.parting = self.parting or parting_of(tree, self.ask.kind)
        parts = (part for piece in pieces for part in parting.feed(piece))
        for text, thinking in chain(parts, parting.rest() if last else ()):
            self.hear(News("text", text, thinking=thinking))

    @property
    def ask(self) -> Ask:
        """What it asks for."""
        return self.ready.ask

    def hear(self, news: News) -> None:
        """Pass it on; whoever cannot be told is left alone."""
        try:
            self.tell(news)
        except Exception as error:
            log.debug("a request cannot be told of its end: %r", error)


class Service:
    """Searches for whoever asks, until `stop`. Whoever asks hears how it ended, whatever goes wrong.

    Args:
        arts: loaded in the thread that will own it, closed there as well.
    """

    def __init__(self, arts: Arts) -> None:
        self.arts = arts
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._first: Ticket | None = None
        self._tickets: dict[int, Ticket] = {}
        self._driver: SearchDriver | None = None
        self._stopping = self._over = False
        self._readers = threading.Condition()
        self._n_readers = 0
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="arts-serve", daemon=True)

    def start(self) -> None:
        """Load the model and open the run folder, if there is one.

        Raises:
            ArtsError: the model cannot be loaded, or the folder holds a run with other settings.
        """
        self._thread.start()
        if (problem := self._ready.get()) is not None:
            raise problem

    def read(self, ask: Ask) -> Ready:
        """Tokenise a prompt and compile its grammar, in whatever thread this is, while others are searched.

        Raises:
            ArtsError: the prompt or the grammar is refused, or the service is stopping.
        """
        with self._reading():
            backend = self.arts.backend
            prompt = self._prompt(ask) if getattr(backend, "any_thread", False) else None
            grammar, guides = grammar_of(ask.settings), getattr(backend, "guides", None)
            kept = guides.prepare(grammar, _BANK) if grammar is not None and guides is not None else None
            return Ready(ask, prompt, kept)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """While this is held, the model is not freed."""
        with self._readers:
            if self._over:
                raise ArtsError("the server is stopping")
            self._n_readers += 1
        try:
            yield
        finally:
            with self._readers:
                self._n_readers -= 1
                self._readers.notify_all()

    def put(self, ready: Ready, tell: Callable[[News], None]) -> Ticket:
        """Take a request in."""
        ticket = Ticket(ready, tell, Teller(ready.ask.stops))
        self._inbox.put(ticket)
        if self._over:
            self._turn_away()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for this any more: what it has under way, if anything, is cancelled."""
        ticket.left = True
        self._cancel(ticket)

    def expire(self, ticket: Ticket) -> None:
        """Its time is over: it hears what has been found so far, or that its turn did not come."""
        ticket.cut = "budget_seconds"
        if ticket.job is None:
            ticket.left = True
            ticket.hear(News("failed", f"its turn did not come within {ticket.ask.seconds:g} seconds"))
        self._cancel(ticket)

    def _cancel(self, ticket: Ticket) -> None:
        job, driver = ticket.job, self._driver
        if job is not None and driver is not None:
            driver.cancel(job)

    def stop(self) -> None:
        """End the thread, cancelling what runs, and free the model. Idempotent."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    # In the thread.
    def _work(self) -> None:
        try:
            self.arts.backend  # noqa: B018 - loaded here
            self.arts.verifier  # noqa: B018
            self.arts.run_folder  # noqa: B018
        except BaseException as error:
            with suppress(Exception):
                self.arts.close()
            self._ready.put(error)
            return
        self._ready.put(None)
        try:
            while not self._stopping:
                self._first = self._inbox.get()
                if self._first is not None:
                    self._search()
        finally:
            with self._readers:
                self._over = True
                self._readers.wait_for(lambda: not self._n_readers, timeout=_PATIENCE)
            self._fail_all("the server is stopping")
            self._turn_away()
            self.arts.close()

    def _turn_away(self) -> None:
        """Answer whoever comes after the end."""
        with suppress(queue.Empty):
            while True:
                if (ticket := self._inbox.get_nowait()) is not None:
                    ticket.hear(News("failed", "the server is stopping"))

    def _search(self) -> None:
        """Search until nobody waits."""
        try:
            driver = self._driver = self._driver or self.arts.new_driver(fair=True)
            for event in driver.events(_Source(self)):
                self._tell(event, driver)
                if self._stopping:
                    break
        except Exception as error:
            _warn("the search failed", error)
            self._driver = None
            self._fail_all(f"the search failed: {error}")

    def _fail_all(self, message: str) -> None:
        waiting = [*self._tickets.values(), *([self._first] if self._first else [])]
        self._tickets.clear()
        self._first = None
        for ticket in waiting:
            ticket.hear(News("failed", message))

    def next(self) -> Job | None:
        """The next request that must be searched; None when there is none just now."""
        while (ticket := self._taken()) is not None:
            try:
                job = ticket.job = self._job(ticket.ready)
                known = self.arts.run_folder.get(job.key()) if self.arts.run_folder is not None else None
                if known is not None:
                    self._answer(ticket, known)
                    continue
            except REFUSALS as error:
                ticket.hear(News("refused", str(error), code=error.code))
                continue
            except Exception as error:
                _warn("a request could not be searched", error)
                ticket.hear(News("failed", f"the request could not be searched: {error}"))
                continue
            self._tickets[id(job)] = ticket
            if ticket.left or ticket.cut:  # while it was read
                self._cancel(ticket)
            return job
        return None

    def _taken(self) -> Ticket | None:
        """The next that has not left; None when there is none just now."""
        ticket, self._first = self._first, None
        while ticket is None or ticket.left:
            try:
                ticket = self._inbox.get_nowait()
            except queue.Empty:
                return None
        return ticket

    def _job(self, ready: Ready) -> Job:
        if ready.grammar is not None and not ready.grammar.alive:  # since it was read; to compile it again holds up all
            raise SettingsError(f"{PROBLEM}it takes too much")
        ask, prompt = ready.ask, ready.prompt or self._prompt(ready.ask)
        return replace(self.arts.job(prompt, ask.settings, ask.stops, {"request": ask.id}), most_tokens=ask.tokens)

    def _prompt(self, ask: Ask) -> Prompt:
        """
        Raises:
            SettingsError: token ids that are none, or that this backend does not take.
            PromptTooLongError: it has no place in the context, which is said before anything else looks at all of it.
        """
        backend = self.arts.backend
        if ask.kind == "chat":
            prompt = backend.encode_chat(ask.messages)
        elif isinstance(ask.prompt, str):
            prompt = backend.encode(ask.prompt)
        else:
            prompt = self._spelled(ask.prompt)
        n, most = len(prompt.token_ids), getattr(backend, "n_ctx", None)
        if most is not None and n >= most:
            raise PromptTooLongError(f"the prompt has {n} tokens and the context {most}: no room for an answer")
        return prompt

    def _spelled(self, tokens: tuple[int, ...]) -> Prompt:
        vocabulary = getattr(self.arts.backend, "vocabulary", None)
        piece, most = getattr(vocabulary, "piece", None), getattr(vocabulary, "n_vocab", 0)
        if piece is None:
            raise SettingsError(f"backend {self.arts.settings.backend!r} takes prompts as text, not as token ids")
        if (odd := max(tokens)) >= most:
            raise SettingsError(f"prompt has the token id {odd}; the vocabulary has {most} tokens")
        return Prompt(b"".join(map(piece, tokens)).decode("utf-8", "replace"), tokens)

    def _tell(self, event: Event, driver: SearchDriver) -> None:
        """What an event means for who asked. A failure here is theirs alone: the others' searches go on."""
        ticket = self._tickets.get(id(event.job))
        if ticket is None:
            return
        try:
            if event.kind == "expanded":
                self._more(ticket, event.tree, driver)
                return
            self._keep(ticket, event)
            self._answer(ticket, event.tree)
        except Exception as error:
            _warn("an answer could not be given", error)
            ticket.hear(News("failed", f"the answer could not be given: {error}"))
            driver.cancel(event.job)
        del self._tickets[id(event.job)]

    def _more(self, ticket: Ticket, tree: ReasoningTree, driver: SearchDriver) -> None:
        """Say what has become certain."""
        job = ticket.job
        if job is None or ticket.left:
            return
        if not ticket.ask.stream:
            return
        if not ticket.begun:
            ticket.begun = True
            ticket.hear(News("begun"))
        ticket.say(tree, ticket.teller.more(tree, driver.growing(job)))

    def _keep(self, ticket: Ticket, event: Event) -> None:
        """Put a finished tree into the run folder. One that was cut short is not what the next who asks should find."""
        folder, tree, key = self.arts.run_folder, event.tree, event.job.key()
        if ticket.cut and tree.ended_by == "cancelled":
            tree.ended_by = ticket.cut
        if tree.ended_by == "budget_tokens" and ticket.ask.settings.budget_tokens is None:
            ticket.cut = "budget_tokens"  # this server's
        whole = ticket.cut is None and tree.ended_by != "cancelled" and not tree.error and not failure(tree)
        if folder is not None and whole and folder.get(key) is None:
            try:
                folder.put(key, tree)
            except NotWrittenError as error:  # who asked gets the answer all the same
                _warn("a tree is not kept", error)

    def _answer(self, ticket: Ticket, tree: ReasoningTree) -> None:
        if tree.error:
            ticket.hear(News("refused", tree.error, code=tree.meta.get("error_code")))
        elif problem := failure(tree):
            ticket.hear(News("refused" if blames_grammar(tree) else "broken", problem))
        else:
            if ticket.ask.stream and not ticket.left:
                ticket.say(tree, ticket.teller.rest(tree), last=True)
            ticket.hear(News("tree", tree=tree, stopped=bool(ticket.parting and ticket.parting.stopped)))


def _warn(what: str, error: Exception) -> None:
    log.warning("%s: %s", what, error, exc_info=not isinstance(error, ArtsError))


class _Source:
    """The waiting requests, as the driver reads them: it asks again after it was told that there are none."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def __iter__(self) -> Iterator[Job]:
        return self

    def __next__(self) -> Job:
        job = self.service.next()
        if job is None:
            raise StopIteration
        return job

"""The thread that owns the model: requests come in by a queue, are searched together, and hear of it as it happens."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from arts_plugin.api import Arts
from arts_plugin.errors import ArtsError
from arts_plugin.search.driver import Event, SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.serve.decided import Teller
from arts_plugin.serve.protocol import Ask
from arts_plugin.tree import ReasoningTree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What a request hears: that its first step is there, a piece of its answer, the finished tree, or why there is none."""

    kind: Literal["begun", "text", "tree", "refused", "failed"]
    text: str = ""
    tree: ReasoningTree | None = None


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the house. `tell` may be called from the model's thread."""

    ask: Ask
    tell: Callable[[News], None]
    teller: Teller
    job: Job | None = None
    left: bool = False
    begun: bool = False


class Service:
    """Searches for whoever asks, until `stop`.

    Args:
        arts: loaded in the thread that will own it, closed there as well.
    """

    def __init__(self, arts: Arts) -> None:
        self.arts = arts
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._first: Ticket | None = None
        self._tickets: dict[int, Ticket] = {}
        self._driver: SearchDriver | None = None
        self._stopping = False
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="arts-serve", daemon=True)

    def start(self) -> None:
        """Load the model.

        Raises:
            ArtsError: it cannot be loaded.
        """
        self._thread.start()
        if (problem := self._ready.get()) is not None:
            raise problem

    def put(self, ask: Ask, tell: Callable[[News], None]) -> Ticket:
        """Take a request in."""
        ticket = Ticket(ask, tell, Teller(ask.stops))
        self._inbox.put(ticket)
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Nobody waits for this any more: what it has under way, if anything, is cancelled."""
        ticket.left = True
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
        except BaseException as error:
            self._ready.put(error)
            return
        self._ready.put(None)
        try:
            while not self._stopping:
                self._first = self._inbox.get()
                if self._first is not None:
                    self._search()
        finally:
            self.arts.close()

    def _search(self) -> None:
        """Search until nobody waits."""
        driver = self._driver = self._driver or self.arts.new_driver(fair=True)
        try:
            for event in driver.events(_Source(self)):
                self._tell(event, driver)
                if self._stopping:
                    break
        except Exception as error:
            log.warning("the search failed: %s", error, exc_info=not isinstance(error, ArtsError))
            for ticket in list(self._tickets.values()):
                ticket.tell(News("failed", f"the search failed: {error}"))
            self._tickets.clear()
            self._driver = None

    def next(self) -> Job | None:
        """The next request that can be searched; None when there is none just now."""
        while True:
            ticket, self._first = self._first, None
            if ticket is None:
                try:
                    ticket = self._inbox.get_nowait()
                except queue.Empty:
                    return None
            if ticket is None or ticket.left:
                continue
            try:
                ticket.job = self._job(ticket.ask)
            except Exception as error:
                ticket.tell(News("refused", str(error)))
                continue
            self._tickets[id(ticket.job)] = ticket
            if ticket.left and self._driver is not None:  # it left while it was read
                self._driver.cancel(ticket.job)
            return ticket.job

    def _job(self, ask: Ask) -> Job:
        backend = self.arts.backend
        prompt = backend.encode_chat(ask.messages) if ask.kind == "chat" else backend.encode(ask.prompt)
        return self.arts.job(prompt, ask.settings, ask.stops, {"request": ask.id})

    def _tell(self, event: Event, driver: SearchDriver) -> None:
        ticket = self._tickets.get(id(event.job))
        if ticket is None:
            return
        if event.kind == "expanded":
            if ticket.ask.stream and not ticket.left:
                if not ticket.begun:
                    ticket.begun = True
                    ticket.tell(News("begun"))
                for text in ticket.teller.more(event.tree, driver.growing(event.job)):
                    ticket.tell(News("text", text))
            return
        del self._tickets[id(event.job)]
        folder, tree = self.arts.run_folder, event.tree
        if folder is not None and tree.ended_by != "cancelled" and not tree.error:
            folder.put(event.job.key(), tree)
        if tree.error:
            ticket.tell(News("refused", tree.error))
            return
        if ticket.ask.stream and not ticket.left:
            for text in ticket.teller.rest(tree):
                ticket.tell(News("text", text))
        ticket.tell(News("tree", tree=tree))


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

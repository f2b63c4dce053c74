"""The listening side: uvicorn, with limits for clients that send or read next to nothing."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 2048
_AT_ONCE = 64
"""Connections accepted in one turn of the loop, before any of those that wait can be given up."""
_MOST_OPEN = 1024
_SPARE_FILES = 128
_FAREWELL = 2.0


class Waiting:
    """The connections of one server, and those of them whose request has not come in full, the oldest first.

    Args:
        head: seconds in which the first line and the headers of a request must have come.
        body: seconds in which the rest must have, and in which a client must have read what it was sent.
        most: connections, at most. The oldest of those that wait gives way to one more; those that were answered last.
    """

    def __init__(self, head: float, body: float, most: int) -> None:
        self.head, self.body, self.most = head, body, most
        self._open: set[Connection] = set()
        self._since: dict[Connection, asyncio.TimerHandle] = {}

    def come(self, connection: Connection) -> None:
        """A connection is made: its request is waited for."""
        self._open.add(connection)
        self.wait(connection)
        while len(self._open) > self.most and self._since:
            others = [other for other in self._since if other is not connection]
            # One that was answered and is kept may be used again at any moment, and is closed soon if it is not.
            self.give_up(next((other for other in others if not other.idle), others[0] if others else connection))

    def wait(self, connection: Connection) -> None:
        """Its request is, or is still, on its way."""
        if connection not in self._since and connection in self._open:
            self._since[connection] = connection.loop.call_later(self.head, self._late, connection)

    def done(self, connection: Connection) -> None:
        """Its request has come."""
        if (timer := self._since.pop(connection, None)) is not None:
            timer.cancel()

    def _late(self, connection: Connection) -> None:
        if connection.sends_body and connection in self._since:
            self._since[connection] = connection.loop.call_later(self.body, self.give_up, connection)
        else:
            self.give_up(connection)

    def give_up(self, connection: Connection) -> None:
        """Close a connection, whatever is on its way."""
        self.gone(connection)
        connection.transport.abort()

    def gone(self, connection: Connection) -> None:
        """A connection is closed."""
        self.done(connection)
        self._open.discard(connection)


class Connection(H11Protocol):
    """A client's connection: closed where its request, or its client's attention, does not come."""

    def __init__(self, *arguments: Any, waiting: Waiting, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._waiting = waiting
        self._unread: asyncio.TimerHandle | None = None
        self._farewell: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it has been answered, and nothing of a further request has come."""
        answered = self.cycle is not None and self.cycle.response_complete
        return answered and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    @property
    def sends_body(self) -> bool:
        """Whether its request is under way and answered by nobody yet."""
        answered = self.cycle is None or self.cycle.response_complete
        return self.conn.their_state is h11.SEND_BODY and not answered

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It is open."""
        super().connection_made(transport)
        self._waiting.come(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._waiting.gone(self)
        for timer in (self._unread, self._farewell):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """A request is answered. What of it is still on its way is read for a moment, so that its client sees the answer."""
        self._waiting.done(self)
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._farewell = self.loop.call_later(_FAREWELL, self._waiting.give_up, self)
        self._look()

    def _look(self) -> None:
        if self._farewell is not None and self.conn.their_state is not h11.SEND_BODY:
            self._farewell.cancel()
            self._farewell = None
        idle = self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)
        if idle or self.sends_body:
            self._waiting.wait(self)
        else:
            self._waiting.done(self)

    def pause_writing(self) -> None:
        """Its client reads less than it is sent."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._waiting.body, self._waiting.give_up, self)

    def resume_writing(self) -> None:
        """Its client has read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class Server(uvicorn.Server):
    """A server that accepts few connections at a time, however many wait to be accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        await super().startup(sockets)
        for listening in sockets or []:
            listening.listen(BACKLOG)


def server(app: Any, head: float, body: float) -> Server:
    """A server for the application; see `Waiting`."""
    waiting = Waiting(head, body, most_connections())
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(Connection, waiting=waiting)),
        ws="none",
        log_level="warning",
        backlog=_AT_ONCE,
        timeout_graceful_shutdown=5,
    )
    return Server(config)


def most_connections() -> int:
    """As many as leave files for everything else."""
    try:
        import resource
    except ImportError:  # Windows
        return _MOST_OPEN
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return _MOST_OPEN
    return max(16, min(_MOST_OPEN, soft - _SPARE_FILES - _AT_ONCE, soft // 2))


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet.

    Raises:
        OSError: the address is not this machine's, or taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Its protocol is named, because asyncio sends small parts at once (TCP_NODELAY) only where it is.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made

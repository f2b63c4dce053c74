"""The HTTP side: routes, limits, server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from arts_plugin.serve import answers, protocol
from arts_plugin.serve.protocol import Ask, BadRequestError, Kind, Limits
from arts_plugin.serve.service import News, Service, Ticket
from arts_plugin.serve.thinking import Parting

log = logging.getLogger(__name__)

_BREATH = 15.0
"""Seconds of silence after which a comment is sent, so that nothing on the way takes a long search for a dead one."""
_CLIENTS = 10_000


class App:
    """Answers for a service.

    Args:
        model: the name under which it is served.
        key: what clients must send as `Authorization: Bearer`; None lets everybody in.
        hosts: names by which it may be called; a page in a browser that has another name point here is turned away.
    """

    def __init__(
        self, service: Service, model: str, limits: Limits, key: str | None, hosts: Sequence[str] = ("*",)
    ) -> None:
        self.service, self.model, self.limits, self._key, self.hosts = service, model, limits, key, list(hosts)
        self._waiting = 0
        self._created = int(time.time())
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()

    def asgi(self) -> Starlette:
        """The application."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.a_model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.text, methods=["POST"]),
        ]
        known = Middleware(TrustedHostMiddleware, allowed_hosts=self.hosts, www_redirect=False)
        return Starlette(
            routes=routes, middleware=[known], lifespan=self._life, exception_handlers={HTTPException: _plainly}
        )

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(self.service.stop)

    # Routes.
    async def health(self, request: Request) -> Response:
        """Whether it is up; anybody may ask."""
        return JSONResponse({"status": "ok", "waiting": self._waiting})

    async def models(self, request: Request) -> Response:
        """The one model."""
        return self._barred(request) or JSONResponse({"object": "list", "data": [self._card]})

    async def a_model(self, request: Request) -> Response:
        """The same, by name."""
        if barred := self._barred(request):
            return barred
        if request.path_params["name"] != self.model:
            return _error(404, f"there is no such model; this server has {self.model!r}")
        return JSONResponse(self._card)

    @property
    def _card(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": self._created, "owned_by": "arts-plugin"}

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._complete(request, "chat")

    async def text(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._complete(request, "text")

    async def _complete(self, request: Request, kind: Kind) -> Response:
        if barred := self._barred(request) or self._too_often(request):
            return barred
        if self._waiting >= self.limits.waiting:
            return _error(429, f"{self._waiting} requests are waiting, as many as may", retry=True)
        try:
            body = json.loads(await self._body(request))
            ask = protocol.read(kind, body, self.model, self.service.arts.settings, self.limits)
        except BadRequestError as error:
            return _error(400, str(error), param=error.param)
        except (ValueError, RecursionError) as error:
            return _error(400, f"the body is no JSON: {error}")
        except _TooLongError:
            return _error(413, f"the body has more than {self.limits.body} bytes")
        except ClientDisconnect:
            return Response(status_code=499)
        heard: asyncio.Queue[News] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        ticket = self.service.put(ask, lambda news: _pass_on(loop, heard, news))
        self._waiting += 1
        if not ask.stream:
            try:
                return await self._whole(request, ask, heard)
            finally:
                self._bye(ticket)
        # A refusal has a status of its own only before the stream has begun.
        try:
            first = await _hear(request, heard)
        except BaseException:
            self._bye(ticket)
            raise
        if first is None or first.kind in {"refused", "failed"}:
            self._bye(ticket)
            return _refusal(first)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        events = self._events(request, ask, ticket, heard, first)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    def _bye(self, ticket: Ticket) -> None:
        """The request is over, whether it was answered or its client went away."""
        self._waiting -= 1
        self.service.leave(ticket)

    async def _whole(self, request: Request, ask: Ask, heard: asyncio.Queue[News]) -> Response:
        news = await _hear(request, heard)
        if news is None or news.tree is None:
            return _refusal(news)
        return JSONResponse(answers.answer(ask, self.model, news.tree))

    async def _events(
        self, request: Request, ask: Ask, ticket: Ticket, heard: asyncio.Queue[News], first: News
    ) -> AsyncIterator[str]:
        try:
            yield _event(answers.chunk(ask, self.model, None))
            parting = Parting(ask.settings.think_end_token if ask.kind == "chat" else None)
            news: News | None = first
            while news is not None and news.kind in {"begun", "text"}:
                for part, thinking in parting.feed(news.text):
                    yield _event(answers.chunk(ask, self.model, part, thinking=thinking))
                while True:
                    try:
                        news = await _hear(request, heard, _BREATH)
                        break
                    except TimeoutError:
                        yield ": searching\n\n"
            if news is None:
                return
            if news.tree is None:
                yield _event(answers.problem(news.text, "server_error"))
                return
            for part, thinking in parting.rest():
                yield _event(answers.chunk(ask, self.model, part, thinking=thinking))
            last = answers.chunk(ask, self.model, "", answers.finish_reason(news.tree))
            yield _event({**last, "arts": answers.about(news.tree)})
            if ask.usage:
                yield _event(answers.closing(ask, self.model, news.tree))
            yield "data: [DONE]\n\n"
        finally:
            self._bye(ticket)

    # Who may come in.
    def _barred(self, request: Request) -> Response | None:
        if self._key is None:
            return None
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if hmac.compare_digest(given.encode(), self._key.encode()):
            return None
        return _error(401, "the API key is missing or wrong")

    def _too_often(self, request: Request) -> Response | None:
        """The limit of requests a minute of each client."""
        if not self.limits.rate:
            return None
        who = request.client.host if request.client else ""
        now = time.monotonic()
        times = self._asked.setdefault(who, deque())
        self._asked.move_to_end(who)
        if len(self._asked) > _CLIENTS:
            self._asked.popitem(last=False)
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= self.limits.rate:
            return _error(429, f"more than {self.limits.rate} requests in a minute", retry=True)
        times.append(now)
        return None

    async def _body(self, request: Request) -> bytes:
        """
        Raises:
            _TooLongError: it is longer than it may be; what follows is not read.
        """
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limits.body:
                raise _TooLongError
        return bytes(body)


class _TooLongError(Exception):
    """A body over the limit."""


async def _hear(request: Request, heard: asyncio.Queue[News], patience: float | None = None) -> News | None:
    """What is heard next; None if the client leaves before.

    Raises:
        TimeoutError: nothing, for so many seconds.
    """
    hearing = asyncio.ensure_future(heard.get())
    leaving = asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({hearing, leaving}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise TimeoutError
        return hearing.result() if hearing.done() else None
    finally:
        hearing.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has gone. Its body has been read, so that all there is to come is its leave."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _pass_on(loop: asyncio.AbstractEventLoop, heard: asyncio.Queue[News], news: News) -> None:
    """From the model's thread to the loop's."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(heard.put_nowait, news)


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def _refusal(news: News | None) -> Response:
    if news is None:
        return Response(status_code=499)  # nobody reads it
    return _error(400, news.text) if news.kind == "refused" else _error(503, news.text, "server_error", retry=True)


def _error(
    status: int, message: str, kind: str = "invalid_request_error", param: str | None = None, retry: bool = False
) -> Response:
    headers = {"retry-after": "1"} if retry else None
    return JSONResponse(answers.problem(message, kind, param), status, headers)


async def _plainly(request: Request, error: Exception) -> Response:
    """What the router refuses, in OpenAI's form."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, f"{request.method} {request.url.path}: {getattr(error, 'detail', '')}")

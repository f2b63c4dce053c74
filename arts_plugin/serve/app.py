"""The HTTP side: routes, limits, server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import gc
import hmac
import json
import logging
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from arts_plugin.errors import ArtsError
from arts_plugin.serve import answers, protocol
from arts_plugin.serve.doors import doors
from arts_plugin.serve.protocol import Ask, BadRequestError, Kind, Limits
from arts_plugin.serve.reading import Reader
from arts_plugin.serve.service import REFUSALS, News, Ready, Service

log = logging.getLogger(__name__)

_BREATH = 15.0
"""Seconds of silence after which a comment is sent, so that nothing on the way takes a long search for a dead one."""
_CLIENTS = 10_000
_STATUS = {
    "refused": (400, "invalid_request_error"),
    "failed": (503, "server_error"),
    "broken": (502, "server_error"),
}
"""Status, and OpenAI's word, for how a request may end without an answer."""


class App:
    """Answers for a service.

    Args:
        model: the name under which it is served.
        key: what clients must send as `Authorization: Bearer`; None lets everybody in.
        hosts: names by which it may be called; a page in a browser that has another name point here is turned away.
        origins: origins of pages that may call it.
        own_seed: whether requests without a seed get the service's own.
    """

    def __init__(
        self,
        service: Service,
        model: str,
        limits: Limits,
        key: str | None,
        hosts: Sequence[str] = ("*",),
        origins: Sequence[str] = (),
        own_seed: bool = False,
    ) -> None:
        self.service, self.model, self.limits, self._key = service, model, limits, key
        self.hosts, self.origins, self._own_seed = list(hosts), list(origins), own_seed
        self._waiting = 0
        self._created = int(time.time())
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()
        self._reader = Reader(limits.waiting)

    def asgi(self) -> Starlette:
        """The application."""
        routes = [
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/", self.models),
            Route("/v1/models/{name:path}", self.a_model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.text, methods=["POST"]),
        ]
        return Starlette(
            routes=routes,
            middleware=doors(self.hosts, self.origins, open_to_all=self._key is None),
            lifespan=self._life,
            exception_handlers={HTTPException: _plainly, Exception: _plainly},
        )

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        yield
        self._reader.close()
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
        if request.path_params["name"].rstrip("/") != self.model:
            return _error(404, f"there is no such model; this server has {self.model!r}", code="model_not_found")
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
        if barred := self._barred(request) or _of_another_type(request) or self._too_often(request) or self._full():
            return barred
        body = await self._received(request)
        if isinstance(body, Response):
            return body
        with ExitStack() as house:
            # Its place is taken when its body has come, which takes as long as its client likes.
            if full := self._enter(house):
                return full
            asked = await self._read(request, kind, body)
            if isinstance(asked, Response):
                return asked
            if full := self._enter(house, len(asked) - 1):
                return full
            return await self._searched(request, asked, house)

    async def _searched(self, request: Request, asked: Sequence[Ready], house: ExitStack) -> Response:
        """The answer to one search, which may be streamed, or to several."""
        loop, ask = asyncio.get_running_loop(), asked[0].ask
        queues = [asyncio.Queue[News]() for _ in asked]
        for ready, heard in zip(asked, queues, strict=True):
            ticket = self.service.put(ready, partial(_pass_on, loop, heard))
            house.callback(self.service.leave, ticket)
            house.callback(loop.call_later(ready.ask.seconds, self.service.expire, ticket).cancel)
        if not ask.stream:
            return await self._whole(request, [ready.ask for ready in asked], queues)
        # What goes wrong has a status of its own only before the stream has begun.
        with suppress(TimeoutError):
            first = await _hear(request, queues[0], _BREATH)
            if first is None or first.kind in _STATUS:
                return _refusal(first)
            return _Stream(self._events(request, ask, queues[0], first), house.pop_all())
        return _Stream(self._events(request, ask, queues[0], News("begun")), house.pop_all())

    async def _whole(self, request: Request, asks: Sequence[Ask], queues: Sequence[asyncio.Queue[News]]) -> Response:
        trees = []
        for heard in queues:
            news = await _hear(request, heard)
            if news is None or news.tree is None:
                return _refusal(news)
            trees.append(news.tree)
        return JSONResponse(answers.answer(asks, self.model, trees))

    def _full(self) -> Response | None:
        if self._waiting < self.limits.waiting:
            return None
        return _error(429, f"{self._waiting} requests are waiting, as many as may", retry=True)

    def _enter(self, house: ExitStack, places: int = 1) -> Response | None:
        """Take places until the house is left, or say that there are not so many."""
        if places and self._waiting + places > self.limits.waiting:
            return _error(429, f"{self._waiting} requests are waiting, and {self.limits.waiting} may", retry=True)
        self._waiting += places
        house.callback(self._leave, places)
        return None

    def _leave(self, places: int) -> None:
        self._waiting -= places

    async def _received(self, request: Request) -> bytes | Response:
        """The body, or why it is not there."""
        try:
            async with asyncio.timeout(self.limits.upload):
                return await self._body(request)
        except TimeoutError:
            return _error(408, f"the body did not come within {self.limits.upload:g} seconds")
        except _TooLongError:
            return _error(413, f"the body has more than {self.limits.body} bytes")
        except ClientDisconnect:
            return _refusal(None)

    async def _read(self, request: Request, kind: Kind, body: bytes) -> tuple[Ready, ...] | Response:
        """What is asked for, ready to be searched, or why it cannot be."""
        leaving = asyncio.ensure_future(_gone(request))
        try:
            found = await self._reader.read(len(body), leaving, partial(self._parsed, kind, body))
            return _refusal(None) if found is None else found
        except BadRequestError as error:
            return _error(error.status, str(error), param=error.param, code=error.code)
        except REFUSALS as error:
            return _error(400, str(error), code=error.code)
        except Exception as error:
            log.warning("a request could not be read: %s", error, exc_info=not isinstance(error, ArtsError))
            return _refusal(News("failed", f"the request could not be searched: {error}"))
        finally:
            leaving.cancel()

    def _parsed(self, kind: Kind, body: bytes) -> tuple[Ready, ...]:
        try:
            settings = self.service.arts.settings
            asks = protocol.read(kind, _json(body), self.model, settings, self.limits, own_seed=self._own_seed)
        except RecursionError as error:
            raise BadRequestError("the body is nested too deeply") from error
        return tuple(map(self.service.read, asks))

    async def _events(self, request: Request, ask: Ask, heard: asyncio.Queue[News], first: News) -> AsyncIterator[str]:
        yield _event(answers.chunk(ask, self.model, None))
        news: News | None = first
        while news is not None and news.kind in {"begun", "text"}:
            if news.text:
                yield _event(answers.chunk(ask, self.model, news.text, thinking=news.thinking))
            while True:
                try:
                    news = await _hear(request, heard, _BREATH)
                    break
                except TimeoutError:
                    yield ": searching\n\n"
        if news is None:
            return
        if news.tree is None:
            yield _event(answers.problem(news.text, _STATUS[news.kind][1], code=news.code))
            return
        last = answers.chunk(ask, self.model, "", answers.finish_reason(news.tree, news.stopped))
        yield _event({**last, "arts": answers.about(ask, news.tree)})
        if ask.usage:
            yield _event(answers.closing(ask, self.model, news.tree))
        yield "data: [DONE]\n\n"

    # Who may come in.
    def _barred(self, request: Request) -> Response | None:
        if self._key is None:
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), self._key.encode()):
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


class _Stream(StreamingResponse):
    """Server-sent events.

    Args:
        after: closed at the end; also if the client goes before the first event, when no part of `events` is run.
    """

    def __init__(self, events: AsyncIterator[str], after: ExitStack) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._after:
            await super().__call__(scope, receive, send)


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
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(heard.put_nowait, news)


def _json(body: bytes) -> Any:
    # A megabyte of lists is read in 20 ms, in which no other thread goes on, and looked through for cycles in 100 more.
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is no JSON: {error}") from error
    finally:
        if collects:
            gc.enable()


def _event(data: Any) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'), allow_nan=False)}\n\n"


def _refusal(news: News | None) -> Response:
    if news is None:
        return Response(status_code=499)  # nobody reads it
    status, kind = _STATUS[news.kind]
    return _error(status, news.text, kind, retry=status == 503, code=news.code)


def _of_another_type(request: Request) -> Response | None:
    """A page of another origin may send what is no JSON without asking."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() == "application/json":
        return None
    return _error(415, f"the content-type is {given!r:.100}; this server takes application/json")


def _error(
    status: int,
    message: str,
    kind: str = "invalid_request_error",
    param: str | None = None,
    retry: bool = False,
    code: str | None = None,
) -> Response:
    headers = {"retry-after": "1"} if retry else None
    return JSONResponse(answers.problem(message, kind, param, code), status, headers)


async def _plainly(request: Request, error: Exception) -> Response:
    """What the router refuses, and what nobody expected, in OpenAI's form."""
    if isinstance(error, HTTPException):
        return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return _error(500, f"the server failed: {type(error).__name__}", "server_error")

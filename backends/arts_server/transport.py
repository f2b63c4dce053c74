"""HTTP: one event loop in a thread of its own, requests that are tried again, and replies that are read to their end."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Protocol, TypeVar, cast

import httpx

from arts_server.faults import RefusedError, RetryError, ServerError, check_status, parse, reading, shorten
from arts_server.keys import Keys
from arts_server.replicas import Replica, choose

log = logging.getLogger(__name__)

T = TypeVar("T")
LONGEST_REPLY = 1 << 26
"""Bytes of a reply; a parsed one takes up to thirty times as much memory."""
LONGEST_LINE = 1 << 22
"""Bytes of a streamed event, which tells a few tokens."""
_LONGEST_ERROR = 1 << 16
_CONNECT = 10.0
FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
TICK = 0.1


class Homed(Protocol):
    """Something whose requests are best sent to one replica."""

    home: Replica | None


class Transport:
    """Sends requests to replicas of one server.

    Args:
        timeout: seconds for one request from its first byte to the reply's last, at most.
        max_retries: how often a request is tried again after failures; a server that is only busy is asked until
            `timeout` seconds have gone.
        keys: which key goes to which of them.

    Raises:
        SettingsError: a key that no HTTP header can hold.
    """

    def __init__(self, roots: Sequence[str], timeout: float, max_retries: int, slots: int, keys: Keys) -> None:
        self.timeout, self.max_retries, self.slots = timeout, max_retries, slots
        self._serve(roots, keys)
        self._client: httpx.AsyncClient | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="arts-server", daemon=True)
        self._thread.start()

    def _serve(self, roots: Sequence[str], keys: Keys) -> None:
        self.replicas = [Replica(root) for root in roots]
        self.key_variable = keys.variable
        self._headers = {root: keys.headers(root) for root in roots}

    def beside(self, roots: Sequence[str], keys: Keys) -> Transport:
        """Another set of servers, asked from the same loop; `close` of either closes both."""
        other = copy.copy(self)
        other._serve(roots, keys)
        return other

    # From the thread that owns the model.
    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Have `work` done; cancelling what comes back closes its connection, at which servers stop generating."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have `work` done, and wait for it."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def each(self, work: Callable[[Replica], Coroutine[Any, Any, T]], option: str) -> list[T]:
        """`work` at every replica, once; one that is down now may come up later.

        Args:
            option: the setting that names the replicas.

        Raises:
            ServerError: none can be reached.
        """
        found: list[T] = []
        down: list[str] = []
        for replica in self.replicas:
            began = time.monotonic()
            try:
                found.append(self.do(work(replica)))
            except RetryError as error:
                down.append(str(error))
                replica.failed(began, error)
        if not found:
            raise ServerError(f"no server can be reached: {'; '.join(down)}. Is it running, and is {option} right?")
        for problem in down:
            log.warning("going on without a replica for now: %s", problem)
        return found

    def close(self) -> None:
        """Cancel what is under way and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        with suppress(Exception):
            self.do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        if not self._thread.is_alive():
            self._loop.close()

    async def _shut(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks(self._loop) if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    # In the loop.
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:  # bound to the loop that it is made in
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.slots)
            waits = httpx.Timeout(None, connect=_CONNECT)
            # Cookies would tie requests together, and a server has no need of them.
            none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
            self._client = httpx.AsyncClient(timeout=waits, limits=limits, follow_redirects=False, cookies=none)
        return self._client

    async def get(self, replica: Replica, path: str) -> dict[str, Any]:
        """One attempt at one replica, which need not be ready.

        Raises:
            ServerError, RefusedError, RetryError: see `arts_server.faults`.
        """
        return await self._read("GET", replica, path, None)

    async def ask(self, replica: Replica, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The same, with a body."""
        return await self._read("POST", replica, path, payload)

    async def _read(self, method: str, replica: Replica, path: str, payload: dict[str, Any] | None) -> dict[str, Any]:
        async with self._open(method, replica, path, payload) as response:
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > LONGEST_REPLY:
                    raise RetryError(f"{replica.root}{path} answers more than {LONGEST_REPLY >> 20} MiB")
        return parse(bytes(body), replica.root + path)

    @asynccontextmanager
    async def _open(
        self, method: str, replica: Replica, path: str, payload: dict[str, Any] | None
    ) -> AsyncIterator[httpx.Response]:
        """A reply whose status is good. What httpx raises, also while the reply is read, becomes `RetryError`."""
        where = replica.root + path
        # A few bytes that are unpacked may fill the memory: nothing is to be packed.
        headers = {**self._headers[replica.root], "accept-encoding": "identity"}
        # httpx would write text as UTF-8, in which half of a surrogate pair has no place; JSON has an escape for it.
        content = None if payload is None else json.dumps(payload).encode("ascii")
        if content is not None:
            headers["content-type"] = "application/json"
        try:
            # httpx counts from byte to byte; a reply that trickles would never end.
            async with (
                asyncio.timeout(self.timeout),
                self._http().stream(method, where, content=content, headers=headers) as response,
            ):
                packing = response.headers.get("content-encoding", "").strip().lower()
                packed = packing not in {"", "identity"}
                if not response.is_success:
                    said = b"" if packed else await _beginning(response)
                    check_status(response.status_code, response.headers, said, where, self.key_variable)
                if packed:
                    raise RetryError(f"{where} packs its reply ({shorten(packing)}), which it was asked not to do")
                yield response
        except TimeoutError as error:
            raise RetryError(f"{where} took more than {self.timeout:g} s (timeout=)") from error
        except httpx.HTTPError as error:
            raise RetryError(f"{where}: {type(error).__name__} {shorten(str(error))}".rstrip(), passing=True) from error
        except httpx.InvalidURL as error:
            raise ServerError(f"{where} is no address: {error}") from error

    async def post(
        self,
        path: str,
        payload: dict[str, Any],
        of: Homed | None = None,
        branches: int = 1,
        read: Callable[[dict[str, Any]], T] | None = None,
    ) -> T:
        """A reply by whichever replica can give it, tried again as often as is allowed.

        Args:
            of: what the request belongs to, whose replica has its prompt in the cache.
            branches: how many branches wait for it.
            read: makes something of a reply; it raises `RetryError` for one that makes no sense.

        Raises:
            ServerError: too many failures, or one that will not pass.
            RefusedError: the request itself is refused.
        """

        async def work(replica: Replica) -> T:
            reply = await self.ask(replica, path, payload)
            if read is None:
                return reply  # type: ignore[return-value]
            with reading(f"a reply of {path}"):
                return read(reply)

        return await self.persist(work, of, branches)

    async def persist(
        self, work: Callable[[Replica], Coroutine[Any, Any, T]], of: Homed | None = None, branches: int = 1
    ) -> T:
        """`work` at one replica after the other, until one is good."""
        began = time.monotonic()
        failures = pauses = 0
        tried: set[Replica] = set()  # since the last pause
        while True:
            replica = await self._ready(of, branches, tried)
            attempted = replica.begin()
            replica.in_flight += branches
            try:
                found = await work(replica)
            except RetryError as error:
                if error.busy:
                    replica.trying = False
                    if time.monotonic() - began > self.timeout:
                        raise ServerError(f"{error}; it was too busy for {self.timeout:g} s (timeout=)") from error
                else:
                    replica.failed(attempted, error)
                    failures += 1
                    if failures > self.max_retries:
                        raise ServerError(
                            f"{error}; given up after {failures} attempts (max_retries={self.max_retries})"
                        ) from error
                pauses += 1
                tried.add(replica)
                if not any(other.ready() for other in self.replicas if other not in tried):
                    await asyncio.sleep(_pause(pauses, error.after))
                    tried = {replica}
            except RefusedError:  # which is an answer
                replica.succeeded()
                raise
            except BaseException:
                replica.trying = False
                raise
            else:
                replica.succeeded()
                return found
            finally:
                replica.in_flight -= branches

    async def _ready(self, of: Homed | None, branches: int, tried: set[Replica]) -> Replica:
        while True:
            home = of.home if of else None
            found = choose(self.replicas, home, branches, self.slots / len(self.replicas), tried)
            if found is not None:
                if of is not None and (home is None or not home.ready()):
                    of.home = found
                return found
            if all(replica.failures > self.max_retries and not replica.trying for replica in self.replicas):
                # Each request may have failed only now and then, and yet there is nobody left to ask.
                worst = ", ".join(f"{r.root} failed {r.failures} times in a row ({r.reason})" for r in self.replicas)
                raise ServerError(f"{worst}; given up (max_retries={self.max_retries})")
            await asyncio.sleep(TICK)

    async def events(self, replica: Replica, path: str, payload: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """A streamed reply's events, one attempt; closing it closes the connection."""
        where = replica.root + path
        async with self._open("POST", replica, path, payload) as response, aclosing(_lines(response, where)) as lines:
            async for line in lines:
                if not line.startswith(b"data:"):
                    if line.startswith(b"{"):  # an error, which some servers send instead of a stream
                        parse(line, where)
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield parse(data, where)
            raise RetryError(f"{where}: the stream broke off")


async def _beginning(response: httpx.Response) -> bytes:
    """As much of an error's body as anyone wants to see."""
    body = bytearray()
    async with aclosing(cast(AsyncGenerator[bytes], response.aiter_raw())) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= _LONGEST_ERROR:
                break
    return bytes(body[:_LONGEST_ERROR])


async def _lines(response: httpx.Response, where: str) -> AsyncGenerator[bytes]:
    """A reply's lines, as server-sent events have them. (httpx also ends one at U+2028 and the like, which a JSON string may
    hold as it is.)"""
    rest = bytearray()  # without a line's end: only what comes is searched for one
    async with aclosing(cast(AsyncGenerator[bytes], response.aiter_raw())) as chunks:
        async for chunk in chunks:
            first, *others = chunk.split(b"\n")
            rest += first
            for other in others:
                yield bytes(rest.rstrip(b"\r"))
                rest = bytearray(other)
            if len(rest) > LONGEST_LINE:
                raise RetryError(f"{where} streams a line of more than {LONGEST_LINE >> 20} MiB")
    if rest:
        yield bytes(rest)


def _pause(attempt: int, asked: float | None) -> float:
    """Seconds before the next attempt: what the server asks for, or twice as many each time; with jitter, so that what was
    refused together does not come back together."""
    backoff = min(_LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt - 1, 16))
    if asked is not None:
        return min(asked, _LONGEST_PAUSE) + backoff * random.uniform(0.0, 0.25)
    return backoff * random.uniform(0.5, 1.0)

"""What can go wrong between here and a server, and what a reply says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from arts_plugin.errors import ArtsError
from arts_server.keys import redact

_SHOWN = 300
_READ = 1 << 14
"""Characters of a text that are searched for keys before its beginning is shown."""
_AGAIN = frozenset({408, 409, 425, 429})
_PASSING = frozenset({408, 425, 429, 502, 503, 504})


class ServerError(ArtsError):
    """The servers cannot be used: down, of another model, or answering what cannot be read. Ends a run; what is finished
    is kept, and the same command goes on with the rest."""


class RefusedError(ArtsError):
    """A server refuses one request for its own sake (400, 413, 422). Its question alone is lost."""


class RetryError(Exception):
    """A failure that may pass.

    Attributes:
        after: seconds that the server asks for, if it does.
        busy: whether it only has too much to do (429), which is no failure of the replica.
        passing: whether it says nothing of what the server can do: it is starting, overloaded or cannot be reached.
    """

    def __init__(self, message: str, after: float | None = None, *, busy: bool = False, passing: bool = False) -> None:
        super().__init__(message)
        self.after, self.busy, self.passing = after, busy, passing


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What Python says of a reply whose fields are of other types than they should be, as `RetryError`."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        # Not chained: a traceback would show what the error quotes.
        raise RetryError(f"{what} makes no sense: {type(error).__name__}: {shorten(str(error))}") from None


def shorten(text: str) -> str:
    """What can be shown of a reply: its beginning, without keys."""
    clean = "".join(c if c.isprintable() else " " for c in redact(text[:_READ]).strip())
    return clean if len(clean) <= _SHOWN else clean[:_SHOWN] + "..."


def shown(value: object) -> str:
    """The same of a part of it, or of an error that may quote one."""
    try:
        return shorten(repr(value))
    except RecursionError:
        return f"something of type {type(value).__name__} that is nested too deeply"


def check_status(status: int, headers: Any, body: bytes, where: str, key_variable: str) -> None:
    """
    Args:
        key_variable: the environment variable with the key for that server.

    Raises:
        ServerError: no request will ever be answered there.
        RefusedError: this one will not.
        RetryError: this one may be, later or elsewhere.
    """
    if 200 <= status < 300:
        return
    if 300 <= status < 400:
        target = shorten(headers.get("location", "another address"))
        raise ServerError(f"{where} redirects to {target}, which is not followed; give that address")
    said = _message(body)
    if status in {401, 403}:
        raise ServerError(f"{where} answers {status}: {said}; set {key_variable} in the environment")
    if status == 404:
        raise ServerError(f"{where} answers 404: {said}; is that the right address, and does it serve that model?")
    if status == 501:
        raise ServerError(f"{where} answers 501: {said}; it does not do that with this model")
    if status in _AGAIN or status >= 500:
        after = _seconds(headers.get("retry-after"))
        raise RetryError(f"{where} answers {status}: {said}", after, busy=status == 429, passing=status in _PASSING)
    raise RefusedError(f"{where} refuses the request ({status}): {said}")


def parse(body: bytes, where: str) -> dict[str, Any]:
    """A reply as an object.

    Raises:
        RefusedError: it is an error of the request's own, with status 200.
        RetryError: it cannot be read, or is another error.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        raise RetryError(f"{where} answers what is no JSON: {shorten(body.decode('utf-8', 'replace'))!r}") from None
    if not isinstance(reply, dict):
        raise RetryError(f"{where} answers {shown(reply)}, which is no object")
    error = reply.get("error")
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        said = _message(body)
        if code in {400, 413, 422}:
            raise RefusedError(f"{where} refuses the request: {said}")
        raise RetryError(f"{where} answers with an error: {said}")
    return reply


def _message(body: bytes) -> str:
    """What an error reply says."""
    text = body.decode("utf-8", "replace")
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError):
        return shorten(text) or "nothing"
    for key in ("error", "detail", "message"):
        if isinstance(reply, dict) and reply.get(key):
            reply = reply[key]
            if isinstance(reply, dict) and reply.get("message"):
                reply = reply["message"]
            break
    return shorten(reply) if isinstance(reply, str) else shown(reply)


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:  # a date, which nobody sends
        return None

"""Who may come in: names by which this server is called, and pages in a browser that call it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from arts_plugin.errors import SettingsError
from arts_plugin.serve import answers

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+", re.IGNORECASE)


def doors(hosts: Sequence[str], origins: Sequence[str], open_to_all: bool) -> list[Middleware]:
    """What a request passes before the application.

    Args:
        hosts: the server's names; "*" is any.
        origins: the origins of pages that may call it (`http://localhost:3000`); "*" is any.
        open_to_all: whether the server asks for no key, so that any other page must be turned away.
    """
    found = [Middleware(Named, hosts=hosts)]
    if origins:
        methods, told = ["GET", "POST"], ["retry-after"]
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=methods,
                allow_headers=["*"],
                expose_headers=told,
            )
        )
    if open_to_all and "*" not in origins:
        found.append(Middleware(Pages, origins=origins))
    return found


def check_origin(text: str) -> str:
    """An origin as browsers send it.

    Raises:
        SettingsError: it is none.
    """
    text = text.strip().rstrip("/")
    if text != "*" and not _ORIGIN.fullmatch(text):
        raise SettingsError(f"cors_origin is {text!r}; it takes scheme and host, like http://localhost:3000, or *")
    return text.lower()


class Named:
    """Turns away who calls this server by a name that is not its own: a page whose name was made to point here.

    Args:
        hosts: the names, with or without the brackets of an IPv6 address; "*" is any.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and "*" not in self.hosts:
            host = Headers(scope=scope).get("host", "").lower()
            name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
            if name not in self.hosts:
                problem = answers.problem(f"this server is not called {name!r:.100}")
                await JSONResponse(problem, 400)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Pages:
    """Turns away pages of other origins: where no key is asked for, any page that a user visits could call this server.

    Clients that are no browsers name no origin, and pass.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self.app, self.origins = app, set(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._welcome(Headers(scope=scope)):
            problem = answers.problem(
                "pages of other origins may not use this server; its owner can allow one with --cors_origin"
            )
            await JSONResponse(problem, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _welcome(self, headers: Headers) -> bool:
        named = [origin.lower() for origin in headers.getlist("origin")]
        if any(origin not in self.origins and not _own(origin, headers.get("host", "")) for origin in named):
            return False
        # A browser tells of requests without an origin as well (an image's, a link's) where they come from.
        return bool(named) or headers.get("sec-fetch-site", "none").lower() in {"none", "same-origin"}


def _own(origin: str, host: str) -> bool:
    """Whether a page of this origin was served from here."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(host) and parts.netloc == host.lower()

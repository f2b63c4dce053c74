"""The command `arts serve`."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from typing import Any

import click

from arts_plugin.cli_options import given, settings_options
from arts_plugin.errors import ArtsError, SettingsError
from arts_plugin.terminal import echo

KEY = "ARTS_SERVE_KEY"
_BACKLOG = 2048


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--name", default=None, help="Name of the model for clients; default: its own.")
@click.option(
    "--most_trajectories",
    "--most-trajectories",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="budget_trajectories and width of a request, at most.",
)
@click.option(
    "--most_tokens",
    "--most-tokens",
    default=1 << 17,
    show_default=True,
    type=click.IntRange(1),
    help="Generated and refilled tokens of a request, at most; then it gets what has been found.",
)
@click.option(
    "--most_seconds",
    "--most-seconds",
    default=600.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Seconds from a request's arrival, at most; then it gets what has been found.",
)
@click.option(
    "--most_waiting",
    "--most-waiting",
    default=64,
    show_default=True,
    type=click.IntRange(1),
    help="Requests in the house at once; one more is answered 429.",
)
@click.option(
    "--most_bytes",
    "--most-bytes",
    default=1 << 20,
    show_default=True,
    type=click.IntRange(1),
    help="Bytes of a request.",
)
@click.option(
    "--rate", default=0, show_default=True, type=click.IntRange(0), help="Requests a minute of each client; 0: any."
)
@settings_options()
def serve(
    host: str,
    port: int,
    name: str | None,
    most_trajectories: int,
    most_tokens: int,
    most_seconds: float,
    most_waiting: int,
    most_bytes: int,
    rate: int,
    **settings: Any,
) -> None:
    """Serve an OpenAI-compatible API that searches behind each request.

    Settings are those of every request; a request may change those of its own search in its field `arts`. If the environment
    variable ARTS_SERVE_KEY is set, clients must send it as their API key.
    """
    try:
        import uvicorn

        from arts_plugin.serve.app import App
    except ImportError as error:
        raise ArtsError(f"arts serve needs {error.name}: pip install 'arts-plugin[server]'") from error
    from arts_plugin.api import Arts
    from arts_plugin.serve.protocol import Limits
    from arts_plugin.serve.service import Service

    key = api_key()
    if key is None and not _loopback(host):
        echo(f"anybody who can reach {host} may use this server: set {KEY} to ask for a key", err=True)
    limits = Limits(
        body=most_bytes,
        trajectories=most_trajectories,
        tokens=most_tokens,
        seconds=most_seconds,
        waiting=most_waiting,
        rate=rate,
    )
    arts = Arts(**given(settings))
    limits.check(arts.settings)
    service = Service(arts)
    with _bound(host, port) as listening:
        echo("loading the model", err=True)
        service.start()
        try:
            model = name or arts.backend.info.name
            hosts = ("localhost", "127.0.0.1", "::1", host) if _loopback(host) else ("*",)
            listening.listen(_BACKLOG)  # who reads the address may come at once
            app = App(service, model, limits, key, hosts).asgi()
            echo(f"serving {model} at {address(host, listening.getsockname()[1])}", err=True)
            config = uvicorn.Config(app, log_level="warning", backlog=_BACKLOG, timeout_graceful_shutdown=5)
            with suppress(KeyboardInterrupt):  # which uvicorn hands on after it has stopped in good order
                uvicorn.Server(config).run(sockets=[listening])
        finally:
            service.stop()


def api_key() -> str | None:
    """What clients must send; None if nobody set one.

    Raises:
        SettingsError: it is empty, which would let everybody in, or no HTTP header can hold it.
    """
    given = os.environ.get(KEY)
    if given is None:
        return None
    key = given.strip()
    if not key:
        raise SettingsError(f"{KEY} is empty; set it to a key, or unset it to let in whoever can reach this server")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{KEY} has a character that no HTTP header can hold")
    return key


def address(host: str, port: int) -> str:
    """The URL for clients."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _bound(host: str, port: int) -> socket.socket:
    """A socket at that address, before the model is loaded; it does not listen yet.

    Raises:
        ArtsError: the address is not this machine's, or taken.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise ArtsError(f"cannot listen at host={host} port={port}: {error}") from error
    return made


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


COMMANDS = (serve,)

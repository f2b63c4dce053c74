"""The command `arts serve`."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from typing import Any

import click

from arts_plugin.cli_options import given, settings_options
from arts_plugin.errors import ArtsError, SettingsError
from arts_plugin.terminal import echo

KEY = "ARTS_SERVE_KEY"


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
@click.option(
    "--cors_origin",
    "--cors-origin",
    multiple=True,
    help="Origin of pages that may call the server, http://localhost:3000 for example; can be repeated. * is any.",
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
    cors_origin: tuple[str, ...],
    **settings: Any,
) -> None:
    """Serve an OpenAI-compatible API that searches behind each request.

    Settings are those of every request; a request may change those of its own search in its field `arts`. If the environment
    variable ARTS_SERVE_KEY is set, clients must send it as their API key.
    """
    try:
        from arts_plugin.serve import listening
        from arts_plugin.serve.app import App
        from arts_plugin.serve.doors import check_origin
    except ImportError as error:
        raise ArtsError(f"arts serve needs {error.name}: pip install 'arts-plugin[server]'") from error
    from arts_plugin.api import Arts
    from arts_plugin.serve.protocol import Limits
    from arts_plugin.serve.service import Service

    key = api_key()
    if key is None and not _loopback(host):
        echo(f"anybody who can reach {host} may use this server: set {KEY} to ask for a key", err=True)
    origins = [check_origin(origin) for origin in cors_origin]
    if "*" in origins and key is None:
        echo(f"any page in a browser of this machine may use this server: set {KEY} to ask for a key", err=True)
    limits = Limits(
        body=most_bytes,
        trajectories=most_trajectories,
        tokens=most_tokens,
        seconds=most_seconds,
        waiting=most_waiting,
        rate=rate,
    )
    chosen = given(settings)
    arts = Arts(**chosen)
    limits.check(arts.settings)
    service = Service(arts)
    try:
        place = listening.bound(host, port)
    except OSError as error:
        raise ArtsError(f"cannot listen at host={host} port={port}: {error}") from error
    with place:
        echo("loading the model", err=True)
        service.start()
        try:
            model = name or arts.backend.info.name
            hosts = ("localhost", "127.0.0.1", "::1", host) if _loopback(host) else ("*",)
            place.listen(listening.BACKLOG)  # who reads the address may come at once
            app = App(service, model, limits, key, hosts, origins, own_seed="seed" in chosen).asgi()
            echo(f"serving {model} at {address(host, place.getsockname()[1])}", err=True)
            with suppress(KeyboardInterrupt):  # which uvicorn hands on after it has stopped in good order
                listening.server(app, limits.head, limits.upload).run(sockets=[place])
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


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


COMMANDS = (serve,)

"""The command `arts serve`."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from typing import Any

import click

from arts_plugin.cli_options import given, settings_options
from arts_plugin.errors import ArtsError

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
    help="budget_trajectories of a request, at most.",
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

    key = os.environ.get(KEY)
    if key is None and not _loopback(host):
        click.echo(f"anybody who can reach {host} may use this server: set {KEY} to ask for a key", err=True)
    limits = Limits(most_bytes, most_trajectories, most_waiting, rate)
    service = Service(Arts(**given(settings)))
    click.echo("loading the model", err=True)
    service.start()
    model = name or service.arts.backend.info.name
    hosts = ("localhost", "127.0.0.1", "[::1]", host) if _loopback(host) else ("*",)
    config = uvicorn.Config(
        App(service, model, limits, key, hosts).asgi(),
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    click.echo(f"serving {model} at http://{host}:{sockets[0].getsockname()[1]}/v1", err=True)
    try:
        with suppress(KeyboardInterrupt):  # which uvicorn hands on after it has stopped in good order
            server.run(sockets=sockets)
    finally:
        service.stop()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


COMMANDS = (serve,)

"""Registers backend `server`. Importing this imports neither httpx nor anything heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arts_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from arts_plugin.settings import Settings
    from arts_server.backend import ServerBackend


@hookimpl
def arts_register_backends(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """server."""
    register("server", make)


def make(settings: Settings, *, features: bool) -> ServerBackend:
    """The backend for these settings; `features` asks for hidden states at step ends.

    Raises:
        ModelError: httpx is not installed.
    """
    from arts_plugin.errors import ModelError

    try:
        import httpx  # noqa: F401 - said here, where it can be mended
    except ImportError as error:
        raise ModelError("backend=server needs httpx: pip install 'arts-plugin[server]'") from error
    from arts_server.backend import ServerBackend

    return ServerBackend(settings, features=features)

"""Registers backend `server` and verifier `reward`. Importing this imports neither httpx nor anything heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arts_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from arts_plugin.settings import Settings
    from arts_server.backend import ServerBackend
    from arts_server.reward import RewardServer


@hookimpl
def arts_register_backends(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """server."""
    register("server", make)


@hookimpl
def arts_register_verifiers(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """reward."""
    register("reward", make_reward)


def make(settings: Settings, *, features: bool) -> ServerBackend:
    """The backend for these settings; `features` asks for hidden states at step ends.

    Raises:
        ModelError: httpx is not installed.
    """
    _need_httpx("backend=server")
    from arts_server.backend import ServerBackend

    return ServerBackend(settings, features=features)


def make_reward(settings: Settings) -> RewardServer:
    """A reward model on the servers of `reward_url`, beside any backend.

    Raises:
        ModelError: httpx is not installed.
    """
    _need_httpx("verifier=reward")
    from arts_server.reward import RewardServer

    return RewardServer(settings)


def _need_httpx(user: str) -> None:
    try:
        import httpx  # noqa: F401 - said here, where it can be mended
    except ImportError as error:
        from arts_plugin.errors import ModelError

        raise ModelError(f"{user} needs httpx: pip install 'arts-plugin[server]'") from error

"""Registers backend `llama_cpp`. Importing this imports neither llama_cpp nor anything heavy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arts_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from arts_llama_cpp.backend import LlamaCppBackend
    from arts_plugin.settings import Settings


@hookimpl
def arts_register_backends(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """llama_cpp."""
    register("llama_cpp", make)


def make(settings: Settings, *, features: bool) -> LlamaCppBackend:
    """The backend for these settings; `features` asks for hidden states at step ends."""
    from arts_llama_cpp.backend import LlamaCppBackend

    return LlamaCppBackend(settings, features=features)

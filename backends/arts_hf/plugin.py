"""Registers backend `hf`. Importing this imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from arts_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from arts_hf.backend import HfBackend
    from arts_plugin.settings import Settings


@hookimpl
def arts_register_backends(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """hf."""
    register("hf", make)


def make(settings: Settings, *, features: bool) -> HfBackend:
    """The backend for these settings; `features` asks for hidden states at step ends.

    Raises:
        ModelError: torch or transformers is not installed, or the model cannot be loaded.
    """
    try:
        from arts_hf.backend import HfBackend
    except ImportError as error:
        from arts_plugin.errors import ModelError

        raise ModelError(f"backend hf needs torch and transformers ({error}): pip install 'arts-plugin[hf]'") from error
    return HfBackend(settings, features=features)

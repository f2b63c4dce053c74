"""Registers backend `hf` and the readers of published process reward models. Importing this imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from arts_plugin.hookspecs import hookimpl

if TYPE_CHECKING:
    from arts_hf.backend import HfBackend
    from arts_hf.layouts import Layout
    from arts_plugin.settings import Settings


@hookimpl
def arts_register_backends(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """hf."""
    register("hf", make)


@hookimpl
def arts_register_verifiers(register: Callable[[str, Callable[..., Any]], None]) -> None:
    """qwen_math_prm, skywork_prm, rlhflow_prm and math_shepherd."""
    from arts_hf.layouts import LAYOUTS

    for layout in LAYOUTS:
        register(layout.name, partial(make_prm, layout))


def make_prm(layout: Layout, settings: Settings) -> Any:
    """A process reward model.

    Raises:
        ModelError: torch or transformers is not installed, or the model cannot be loaded.
    """
    try:
        from arts_hf.prm import load
    except ImportError as error:
        from arts_plugin.errors import ModelError

        raise ModelError(
            f"{layout.name} needs torch and transformers ({error}): pip install 'arts-plugin[hf]'"
        ) from error
    return load(layout, settings)


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

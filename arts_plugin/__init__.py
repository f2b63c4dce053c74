"""Amortized Reasoning Tree Search as a decoding plugin. Importing this package imports no model library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arts_plugin.errors import (
    ArtsError,
    ModelError,
    PromptTooLongError,
    RunFolderError,
    SettingsError,
    UnknownNameError,
)
from arts_plugin.terminal import clean_logs

if TYPE_CHECKING:
    from arts_plugin.api import Arts
    from arts_plugin.hookspecs import hookimpl
    from arts_plugin.settings import Settings
    from arts_plugin.tree import Cost, Node, ReasoningTree, Trajectory

__version__ = "0.1.0"
clean_logs()
_LAZY = {
    "Arts": "arts_plugin.api",
    "hookimpl": "arts_plugin.hookspecs",
    "Settings": "arts_plugin.settings",
    "Cost": "arts_plugin.tree",
    "Node": "arts_plugin.tree",
    "ReasoningTree": "arts_plugin.tree",
    "Trajectory": "arts_plugin.tree",
}
__all__ = [
    "Arts",
    "ArtsError",
    "Cost",
    "ModelError",
    "Node",
    "PromptTooLongError",
    "ReasoningTree",
    "RunFolderError",
    "Settings",
    "SettingsError",
    "Trajectory",
    "UnknownNameError",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""One command-line option for each setting, with the same name as everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import click

from arts_plugin.settings import describe

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(without: Collection[str] = ()) -> Callable[[F], F]:
    """Options for all settings but those that the command sets itself."""

    def decorate(command: F) -> F:
        for name, default, doc in reversed(describe()):
            if name in without:
                continue
            shown = "" if default is None else f"  [default: {default!r}]"
            names = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
            command = click.option(*names, name, default=None, metavar="VALUE", help=doc + shown)(command)
        return command

    return decorate


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the user gave."""
    return {name: value for name, value in settings.items() if value is not None}

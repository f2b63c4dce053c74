"""Chat templates: Jinja, rendered by jinja2 in its sandbox with the helpers that published templates use."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


@cache
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def render(template: str, messages: Sequence[dict[str, str]], **variables: Any) -> str:
    """`messages` in `template`.

    Raises:
        jinja2.TemplateError: the template is wrong, or refuses the messages.
    """
    return _compile(template).render(messages=list(messages), **variables)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)

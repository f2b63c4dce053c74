"""Chats as prompts: Jinja templates rendered in jinja2's sandbox, and what a message may not smuggle in.

Every in-process backend goes through here, so that the same model gets the same prompt from each.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from arts_plugin.backend import Message
from arts_plugin.marks import any_of


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


def options(enable_thinking: bool | None) -> dict[str, bool]:
    """What a template is told beside the messages; nothing that was not asked for, for a template may test whether it
    was."""
    return {} if enable_thinking is None else {"enable_thinking": enable_thinking}


def last_user(messages: Sequence[Message]) -> str:
    """What the user said last."""
    return next((m["content"] for m in reversed(messages) if m.get("role") == "user"), "")


def special_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """What in a message's text would be taken for one of these special tokens.

    Runs of white space are user-defined tokens in some vocabularies; those are anybody's to write. A user's own
    private-use character must not pass for the mark of a hidden text.
    """
    return re.compile(any_of([*(text for text in texts if text.strip()), "\ue000"]))


def encode(
    messages: Sequence[Message],
    special: re.Pattern[str],
    render: Callable[[Sequence[Message]], str],
    tokenize: Callable[[str, bool], Iterable[int]],
) -> tuple[str, list[int]]:
    """The rendered chat and its tokens. What looks like a special token inside a message stays ordinary text.

    Args:
        special: what looks like one.
        render: puts messages into the model's template.
        tokenize: (text, whether special tokens are recognised) -> token ids.
    """
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group())
        return f"\ue000{len(hidden) - 1}\ue001"

    rendered = render([{**m, "content": special.sub(hide, m["content"])} for m in messages])
    tokens: list[int] = []
    for i, part in enumerate(re.split(r"\ue000(\d+)\ue001", rendered)):
        # Odd parts are the numbers of hidden texts, which are tokenised as a user's.
        tokens += tokenize(hidden[int(part)], False) if i % 2 else tokenize(part, True)
    return re.sub(r"\ue000(\d+)\ue001", lambda match: hidden[int(match.group(1))], rendered), tokens


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)

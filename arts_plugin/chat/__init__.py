"""Chats as prompts: rendered in the model's Jinja template, and what a message may not smuggle in.

Every in-process backend goes through here, so that the same model gets the same prompt from each.
"""

from __future__ import annotations

import bisect
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arts_plugin.chat import process
from arts_plugin.errors import ModelError
from arts_plugin.marks import any_of

Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]
"""(first, behind the last) of a run of characters."""


class TemplateError(ModelError):
    """A chat template is wrong, goes beyond its limits, or refuses the messages."""


class TemplateRefusalError(TemplateError):
    """A chat template refuses the messages: it says so itself, with its `raise_exception`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat as text.

    Attributes:
        own: the runs of characters that the template wrote, in order. All others came with the messages.
    """

    text: str
    own: tuple[Span, ...]


def render(template: str, messages: Messages, source: str, **variables: Any) -> Rendered:
    """`messages` in `template`, as transformers' `apply_chat_template` renders them, in a process with limits.

    Args:
        source: whose template it is, for messages of errors.
        variables: what the template is told beside the messages: special tokens by their names, switches.

    Raises:
        TemplateRefusalError: the template refuses the messages.
        ModelError: the template is wrong or goes beyond a limit.
    """
    told = process.rendered(source, template, [dict(message) for message in messages], variables)
    if "error" in told:
        kind = TemplateRefusalError if told.get("refused") else TemplateError
        raise kind(f"the chat template of {source} failed: {told['error']}: {told['message']}")
    return Rendered(told["text"], tuple((first, end) for first, end in told["own"]))


def render_by(render: Callable[[Messages], str], messages: Messages, special: re.Pattern[str]) -> Rendered:
    """`messages` as somebody else renders them, who does not say which characters are the messages'.

    What looks like a special token in a message is found again by a second rendering, in which numbers stand for it.

    Args:
        render: gives the text of messages.
        special: what looks like a special token.

    Raises:
        TemplateError: the template reads what looks like a special token, so that it cannot be told whose it is.
    """
    text = render(messages)
    if not any(special.search(message["content"]) for message in messages):
        return Rendered(text, ((0, len(text)),))
    hidden: list[str] = []
    nonce = secrets.randbelow(10**16) + 10**16  # digits: trimming, letter case and JSON leave them as they are

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group())
        return f"{nonce}{len(hidden) - 1:06d}"

    marked = render([{**message, "content": special.sub(hide, message["content"])} for message in messages])
    parts = re.split(rf"{nonce}(\d{{6}})", marked)
    found = [hidden[int(part)] if i % 2 else part for i, part in enumerate(parts)]
    if "".join(found) != text:
        raise TemplateError(
            f"the chat template acts on what looks like a special token in a message ({', '.join(dict.fromkeys(hidden))}), "
            "and it cannot be told which of them are the template's own; give the template itself (chat_template=FILE)"
        )
    own, at = [], 0
    for i, part in enumerate(found):
        if i % 2 == 0 and part:
            own.append((at, at + len(part)))
        at += len(part)
    return Rendered(text, tuple(own))


def options(enable_thinking: bool | None) -> dict[str, bool]:
    """What a template is told beside the messages; nothing that was not asked for, for a template may test whether it
    was."""
    return {} if enable_thinking is None else {"enable_thinking": enable_thinking}


def last_user(messages: Messages) -> str:
    """What the user said last."""
    return next((m["content"] for m in reversed(messages) if m.get("role") == "user"), "")


def special_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Finds these special tokens in text.

    Runs of white space are user-defined tokens in some vocabularies; those are anybody's to write.
    """
    return re.compile(any_of(text for text in texts if text.strip()))


def encode(chat: Rendered, special: re.Pattern[str], tokenize: Callable[[str, bool], Iterable[int]]) -> list[int]:
    """The tokens of a chat. A special token is one that the template wrote, to its last character; any other text that looks
    like one stays ordinary text.

    Args:
        special: what looks like one.
        tokenize: (text, whether special tokens are recognised) -> token ids.
    """
    text, at = chat.text, 0
    tokens: list[int] = []
    for first, end in [*_together(_foreign(chat, special), chat.own), (len(text), len(text))]:
        for part, recognised in ((text[at:first], True), (text[first:end], False)):
            if part:
                tokens += tokenize(part, recognised)
        at = end
    return tokens


def _foreign(chat: Rendered, special: re.Pattern[str]) -> Iterator[Span]:
    """Where text looks like a special token that the template did not write. The template's own come first: what is left
    between them is searched by itself."""
    own = [match.span() for first, end in chat.own for match in special.finditer(chat.text, first, end)]
    at = 0
    for first, end in [*own, (len(chat.text), len(chat.text))]:
        yield from (match.span() for match in special.finditer(chat.text, at, first))
        at = end


def _together(spans: Iterable[Span], own: Sequence[Span]) -> list[Span]:
    """`spans`, those made one between which nothing is the template's: a message of thousands is tokenised in one go."""
    ends = [end for _, end in own]
    made: list[Span] = []
    for first, end in spans:
        if made:
            at = bisect.bisect_right(ends, made[-1][1])
            if at == len(own) or own[at][0] >= first:
                made[-1] = (made[-1][0], end)
                continue
        made.append((first, end))
    return made

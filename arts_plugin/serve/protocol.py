"""OpenAI's completion protocol: what a request asks for."""

from __future__ import annotations

import json
import reprlib
import secrets
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from arts_plugin.backend import Message
from arts_plugin.coercion import names_a_file
from arts_plugin.errors import ArtsError, SettingsError
from arts_plugin.settings import OF_THE_RUN, Settings
from arts_plugin.steps import REGEX_PREFIX

Kind = Literal["chat", "text"]
_SAMPLING = (
    *("temperature", "top_p", "seed", "top_k", "min_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "grammar"),
)
_LENGTHS = ("max_completion_tokens", "max_tokens")
_NOTHING: tuple[Any, ...] = (None, False, "", [], {"type": "text"}, "auto")
_REFUSED = {
    "tools": "tools cannot be called",
    "functions": "functions cannot be called",
    "logprobs": "log-probabilities of a chosen trajectory are not told",
    "suffix": "text cannot be inserted before a suffix",
    "echo": "the prompt is not echoed",
}
_PATTERNS = ("extract", "delimiter")
_FILES = frozenset({"grammar", "json_schema"})
_LONG = _FILES | {"logit_bias"}
_MOST_KEY = 40
_SEEDS = 1 << 31
_MOST_TEXT = 1000
"""Characters of any other setting, and of a stop string."""
_SHOWN = reprlib.Repr()
"""Shows a value without looking at all of it."""
_SHOWN.maxstring = 100
_ROLES = frozenset({"system", "developer", "user", "assistant"})


class BadRequestError(ArtsError):
    """A request that cannot be answered as it stands. `param` names what is wrong in it, `code` is OpenAI's word for it."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, read; of a request with several prompts, the part that one of them is.

    Attributes:
        prompt: of a text completion, as text or token ids; `messages` are a chat's.
        settings: of this search.
        tokens, seconds: what it may cost, at most, whatever its settings say; see `Limits`.
        usage: whether a stream ends with the usage.
    """

    kind: Kind
    settings: Settings
    tokens: int
    seconds: float
    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] = ""
    stops: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for, at most, and how many there may be.

    Attributes:
        body: bytes of a request.
        head: seconds in which its first line and its headers must have come.
        upload: seconds in which its body must have come, and in which its client must have read what it was sent.
        trajectories: `budget_trajectories` and `width` of a search; no request is without a budget of trajectories.
        tokens: generated and refilled tokens of a search. They are reserved before a branch runs, so that a search without
            such a budget of its own ends within them, with what it has found.
        seconds: from a request's arrival; its search is ended then, with what it has found.
        grammar: characters of a grammar or a schema.
        waiting: requests in the house at once; one more is answered 429.
        rate: requests a minute of each client; 0 is no limit.
    """

    body: int = 1 << 20
    head: float = 10.0
    upload: float = 30.0
    trajectories: int = 256
    tokens: int = 1 << 17
    seconds: float = 600.0
    grammar: int = 1 << 15
    waiting: int = 64
    rate: int = 0

    def check(self, settings: Settings) -> None:
        """
        Raises:
            SettingsError: a search of these settings is wider than is allowed.
        """
        wanted = settings.budget_trajectories
        if wanted is None or wanted > self.trajectories:
            raise SettingsError(f"budget_trajectories is {wanted}; this server allows {self.trajectories} at most")
        if settings.width > self.trajectories:
            raise SettingsError(f"width is {settings.width}; this server allows {self.trajectories} at most")

    def within(self, settings: Settings) -> Settings:
        """`settings` with no more of tokens, nodes and seconds than is allowed. Budgets that are not set stay so: they
        would change how trajectories are asked for."""

        def least(wanted: int | None, limit: int) -> int | None:
            return None if wanted is None else min(wanted, limit)

        seconds = settings.budget_seconds
        return replace(
            settings,
            budget_tokens=least(settings.budget_tokens, self.tokens),
            budget_nodes=least(settings.budget_nodes, self.tokens),  # a step costs a token at least
            budget_seconds=None if seconds is None else min(seconds, self.seconds),
            max_gen_toks=min(settings.max_gen_toks, self.tokens),
        )


def read(
    kind: Kind, body: Any, model: str, settings: Settings, limits: Limits, *, own_seed: bool = False
) -> tuple[Ask, ...]:
    """What `body` asks for: one search for each prompt.

    Args:
        model: the name under which the model is served.
        settings: those that a request may change, under `arts` by their own names.
        own_seed: whether a request without a seed gets that of `settings`, and no fresh one.

    Raises:
        BadRequestError: it is malformed, asks for what there is not, or for more than is allowed.
    """
    if not isinstance(body, dict):
        raise BadRequestError("the body is no JSON object")
    name = body.get("model")
    if name is not None and name not in ("", model):
        raise BadRequestError(
            f"there is no model {_SHOWN.repr(name)}; this server has {model!r}", "model", 404, "model_not_found"
        )
    for key, reason in _REFUSED.items():
        if body.get(key) not in _NOTHING:
            raise BadRequestError(f"{key}: {reason}", key)
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        raise BadRequestError("n and best_of must be 1: a search returns the trajectory that it chose", "n")
    stream, options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise BadRequestError("stream is true or false, and stream_options an object", "stream")
    prompts = _prompts(body.get("prompt"), limits) if kind == "text" else [""]
    if stream and len(prompts) > 1:
        raise BadRequestError("a stream answers a single prompt; send the others without stream", "stream")
    first = Ask(
        kind,
        _settings(body, settings, limits, own_seed),
        limits.tokens,
        limits.seconds,
        messages=_messages(body.get("messages")) if kind == "chat" else (),
        prompt=prompts[0],
        stops=_stops(body.get("stop")),
        stream=stream,
        usage=bool(options.get("include_usage")),
    )
    return tuple(replace(first, prompt=prompt) for prompt in prompts)


def _settings(body: Mapping[str, Any], settings: Settings, limits: Limits, own_seed: bool) -> Settings:
    own = body.get("arts") or {}
    if not isinstance(own, dict):
        raise BadRequestError("arts is an object of settings", "arts")
    changes = {key: body[key] for key in _SAMPLING if body.get(key) is not None}
    if (schema := _schema(body.get("response_format"))) is not None:
        changes["json_schema"] = schema
    field = next((key for key in _LENGTHS if body.get(key) is not None), None)
    if field is not None:
        changes["max_gen_toks"] = body[field]
    if shared := (OF_THE_RUN | {"slots"}) & own.keys():
        raise BadRequestError(f"arts.{min(shared)} is the same for all requests of this server", "arts")
    changes |= own
    if (longest := max(own, key=len, default="")) and len(longest) > _MOST_KEY:
        raise BadRequestError(f"unknown setting {longest[:_MOST_KEY]!r}...", "arts")
    seeded = changes.get("seed") not in (None, -1)
    if not seeded:
        changes.pop("seed", None)
    _check_texts(changes, limits)
    try:
        made = settings.with_(changes)
        limits.check(made)
    except SettingsError as error:
        raise _as_asked(error, body, field) from error
    for key in _PATTERNS:  # as they were read: an escape may spell the prefix
        text = getattr(made, key)
        if text.startswith(REGEX_PREFIX) and text != getattr(settings, key):
            # One can take time exponential in the text, and everybody's searches wait for it.
            raise BadRequestError(f"{key}: a request takes no regular expressions; start the server with that one", key)
    if not seeded and not own_seed and made.temperature > 0 and made.strategy != "greedy":
        made = replace(made, seed=secrets.randbelow(_SEEDS))
    return limits.within(made)


def _as_asked(error: SettingsError, body: Mapping[str, Any], length: str | None) -> BadRequestError:
    """What is wrong with a setting, by the name of the field that it came with.

    Args:
        length: the field that `max_gen_toks` came with, if one did.
    """
    name, _, rest = str(error).partition(" ")
    own: Mapping[str, Any] = body.get("arts") or {}
    fields = {"max_gen_toks": length, "json_schema": "response_format" if body.get("response_format") else None}
    if name in own:
        return BadRequestError(str(error), "arts")
    field = fields.get(name) or (name if name in body else None)
    return BadRequestError(f"{field or name} {rest}", field or "arts")


def _check_texts(changes: Mapping[str, Any], limits: Limits) -> None:
    """What a client may not have this server run, read or keep.

    Raises:
        BadRequestError: a text that is too long or no text, or a file.
    """
    for key, value in changes.items():
        # Numbers and the like become texts where a setting is one.
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        most = limits.grammar if key in _LONG else _MOST_TEXT
        if len(text) > most:
            raise BadRequestError(f"{key} has {len(text)} characters; this server allows {most} at most", key)
        if text != _clean(text):
            raise BadRequestError(f"{key} has half a surrogate pair, which is no character", key)
        if key in _FILES and value is not None and names_a_file(key, text):
            raise BadRequestError(f"{key} is text of its own in a request, not a file", key)


def _clean(text: str) -> str:
    """`text` with halves of surrogate pairs replaced: they can be neither encoded nor sent on."""
    return text.encode("utf-8", "replace").decode()


def _schema(raw: Any) -> dict[str, Any] | None:
    """The JSON schema that `response_format` asks for; None for text."""
    if raw is None or raw == {"type": "text"}:
        return None
    if raw == {"type": "json_object"}:
        return {"type": "object"}
    named = raw.get("json_schema") if isinstance(raw, dict) and raw.get("type") == "json_schema" else None
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise BadRequestError("response_format is text, json_object, or json_schema with a schema", "response_format")
    return schema


def _messages(raw: Any) -> tuple[Message, ...]:
    if not isinstance(raw, list) or not raw:
        raise BadRequestError("messages is a list of at least one message", "messages")
    return tuple(_message(message) for message in raw)


def _message(raw: Any) -> Message:
    role = raw.get("role") if isinstance(raw, dict) else None
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequestError(
            f"a message's role is one of {', '.join(sorted(_ROLES))}, not {_SHOWN.repr(role)}", "messages"
        )
    content = raw.get("content")
    if raw.get("tool_calls") or raw.get("function_call"):
        raise BadRequestError("a message with tool calls is not read", "messages")
    if content is None and role == "assistant":  # as OpenAI's own clients send back what had none
        content = ""
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise BadRequestError(
            f"the content of a message (role {role}) is text; images and sounds are not read", "messages"
        )
    return {"role": "system" if role == "developer" else role, "content": _clean(content)}


def _prompts(raw: Any, limits: Limits) -> list[str | tuple[int, ...]]:
    """The prompts of a text completion: a text or a list of token ids, or a list of such."""
    several = raw if isinstance(raw, list) and raw and not isinstance(raw[0], int) else [raw]
    if len(several) > limits.waiting:
        raise BadRequestError(
            f"prompt has {len(several)} prompts; this server allows {limits.waiting} at most", "prompt"
        )
    return [_prompt(one) for one in several]


def _prompt(raw: Any) -> str | tuple[int, ...]:
    if isinstance(raw, str) and raw:
        return _clean(raw)
    if isinstance(raw, list) and raw and all(type(token) is int and 0 <= token < 1 << 31 for token in raw):
        return tuple(raw)
    raise BadRequestError(
        "prompt is a text or a list of token ids that is not empty, or a list of such prompts", "prompt"
    )


def _stops(raw: Any) -> tuple[str, ...]:
    stops = [raw] if isinstance(raw, str) else raw or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops) or len(stops) > 16:
        raise BadRequestError("stop is a string or a list of at most 16", "stop")
    if any(len(stop) > _MOST_TEXT or stop != _clean(stop) for stop in stops):
        raise BadRequestError(f"a stop string is text of at most {_MOST_TEXT} characters", "stop")
    return tuple(stop for stop in stops if stop)

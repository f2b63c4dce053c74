"""OpenAI's completion protocol: what a request asks for."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from arts_plugin.backend import Message
from arts_plugin.coercion import names_a_file
from arts_plugin.errors import ArtsError, SettingsError
from arts_plugin.settings import OF_THE_RUN, Settings

Kind = Literal["chat", "text"]
_SAMPLING = (
    *("temperature", "top_p", "seed", "top_k", "min_p"),
    *("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "grammar"),
)
_LENGTHS = ("max_completion_tokens", "max_tokens")
_REFUSED = {
    "tools": "tools cannot be called",
    "functions": "functions cannot be called",
    "logprobs": "log-probabilities of a chosen trajectory are not told",
    "suffix": "text cannot be inserted before a suffix",
    "echo": "the prompt is not echoed",
}
_ROLES = frozenset({"system", "developer", "user", "assistant"})


class BadRequestError(ArtsError):
    """A request that cannot be answered as it stands. `param` names what is wrong in it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, read.

    Attributes:
        prompt: of a text completion; `messages` are a chat's.
        settings: of this search.
        usage: whether a stream ends with the usage.
    """

    kind: Kind
    settings: Settings
    messages: tuple[Message, ...] = ()
    prompt: str = ""
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
        trajectories: `budget_trajectories` of a search; no request is without a budget of them.
        waiting: requests in the house at once; one more is answered 429.
        rate: requests a minute of each client; 0 is no limit.
    """

    body: int = 1 << 20
    trajectories: int = 256
    waiting: int = 64
    rate: int = 0


def read(kind: Kind, body: Any, model: str, settings: Settings, limits: Limits) -> Ask:
    """What `body` asks for.

    Args:
        model: the name under which the model is served.
        settings: those that a request may change, under `arts` by their own names.

    Raises:
        BadRequestError: it is malformed, asks for what there is not, or for more than is allowed.
    """
    if not isinstance(body, dict):
        raise BadRequestError("the body is no JSON object")
    if (name := body.get("model")) not in {None, "", model}:
        raise BadRequestError(f"there is no model {name!r:.100}; this server has {model!r}", "model")
    for key, reason in _REFUSED.items():
        if body.get(key) not in (None, False, [], {"type": "text"}, "auto"):
            raise BadRequestError(f"{key}: {reason}", key)
    if body.get("n") not in (None, 1) or body.get("best_of") not in (None, 1):
        raise BadRequestError("n and best_of must be 1: a search returns the trajectory that it chose", "n")
    stream, options = body.get("stream") or False, body.get("stream_options") or {}
    if not isinstance(stream, bool) or not isinstance(options, dict):
        raise BadRequestError("stream is true or false, and stream_options an object", "stream")
    return Ask(
        kind,
        _settings(body, settings, limits),
        messages=_messages(body.get("messages")) if kind == "chat" else (),
        prompt=_prompt(body.get("prompt")) if kind == "text" else "",
        stops=_stops(body.get("stop")),
        stream=stream,
        usage=bool(options.get("include_usage")),
    )


def _settings(body: Mapping[str, Any], settings: Settings, limits: Limits) -> Settings:
    own = body.get("arts") or {}
    if not isinstance(own, dict):
        raise BadRequestError("arts is an object of settings", "arts")
    changes = {key: body[key] for key in _SAMPLING if body.get(key) is not None}
    if (schema := _schema(body.get("response_format"))) is not None:
        changes["json_schema"] = schema
    length = next((body[key] for key in _LENGTHS if body.get(key) is not None), None)
    if length is not None:
        changes["max_gen_toks"] = length
    if shared := (OF_THE_RUN | {"slots"}) & own.keys():
        raise BadRequestError(f"arts.{min(shared)} is the same for all requests of this server", "arts")
    changes |= own
    for key in ("grammar", "json_schema"):
        if isinstance(changes.get(key), str) and names_a_file(key, changes[key]):
            raise BadRequestError(f"{key} is text of its own in a request, not a file", key)
    try:
        made = settings.with_(changes)
    except SettingsError as error:
        raise BadRequestError(str(error), "arts") from error
    wanted = made.budget_trajectories
    if wanted is None or wanted > limits.trajectories:
        raise BadRequestError(
            f"budget_trajectories is {wanted}; this server allows {limits.trajectories} at most", "arts"
        )
    return made


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
    if role not in _ROLES:
        raise BadRequestError(f"a message's role is one of {', '.join(sorted(_ROLES))}, not {role!r:.50}", "messages")
    content = raw.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise BadRequestError("a message's content is text; images, sounds and tool calls are not read", "messages")
    return {"role": "system" if role == "developer" else role, "content": content}


def _prompt(raw: Any) -> str:
    if isinstance(raw, list) and len(raw) == 1:
        raw = raw[0]
    if not isinstance(raw, str) or not raw:
        raise BadRequestError("prompt is one text that is not empty", "prompt")
    return raw


def _stops(raw: Any) -> tuple[str, ...]:
    stops = [raw] if isinstance(raw, str) else raw or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops) or len(stops) > 16:
        raise BadRequestError("stop is a string or a list of at most 16", "stop")
    return tuple(stop for stop in stops if stop)

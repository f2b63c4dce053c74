"""What a server can do, found out once at the start, and the requests and replies that follow from it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from arts_plugin.backend import Sampling
from arts_plugin.errors import ModelError
from arts_server.faults import RefusedError, RetryError, ServerError, reading, shorten, shown
from arts_server.keys import redact
from arts_server.pieces import pieces
from arts_server.replicas import Replica
from arts_server.transport import Transport
from arts_server.values import check_size, count, logprob, token_ids

COMPLETIONS = "/v1/completions"
Tokenizer = Literal["vllm", "llama-server", "llama-cpp-python"]
_LONG = 1 << 16
_PROBE = "One, two, three, four,"
_PAUSES = (0.25, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How to speak to a server.

    Attributes:
        model: its name for the model.
        ids: whether prompts go as token ids and steps come back as such; otherwise both are text.
        many: whether one request can bring several siblings (`n`).
        whole: whether a reply says what ended it and keeps the string that did, so that a step is one reply; otherwise
            steps are streamed, and cut off here where they end.
        logprobs: whether it tells the tokens' log-probabilities.
        tokenizer: whose endpoint for tokenising it has, if any.
        n_ctx: the longest prompt and trace, if it says so.
        owner: what it says it is.
    """

    model: str
    ids: bool = False
    many: bool = False
    whole: bool = False
    logprobs: bool = False
    tokenizer: Tokenizer | None = None
    n_ctx: int | None = None
    owner: str = ""

    def remarks(self) -> list[str]:
        """What a user should know of a server that cannot do all."""
        found = []
        if not self.ids:
            found.append(
                "it neither takes nor gives token ids: steps are continued as text, which may be split into tokens anew, and "
                "what looks like a special token in a question counts as one"
            )
        if not self.whole:
            found.append("it does not say which stop string ended a reply: steps are streamed")
        if not self.many:
            found.append("it gives one choice a request: siblings are requests of their own")
        if not self.logprobs:
            found.append("it gives no log-probabilities: they are 0 in every tree, so a verifier must do the judging")
        return found


@dataclass(frozen=True, slots=True)
class Choice:
    """One continuation: its tokens' texts, log-probabilities and ids, and what ended it.

    `ids` is empty where the server gives none, `logprobs` likewise. `stop_reason` is the stop string that ended it, or the
    id of a token that did: one that was asked for, or one of the model's own further ends.
    """

    pieces: tuple[bytes, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str
    stop_reason: str | int | None

    def after(self, count: int) -> Choice:
        """What follows its first `count` tokens."""
        return replace(self, pieces=self.pieces[count:], ids=self.ids[count:], logprobs=self.logprobs[count:])


def name_digest(model: str) -> str:
    """A digest of a model's name: a server does not show its weights."""
    return f"sha256-of-name:{hashlib.sha256(model.encode('utf-8', 'surrogatepass')).hexdigest()}"


def payload(
    dialect: Dialect,
    prompt: Sequence[int] | str,
    n: int,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    stops: Sequence[str],
    stop_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """A request for `n` siblings of one step."""
    body: dict[str, Any] = {
        "model": dialect.model,
        "prompt": list(prompt) if not isinstance(prompt, str) else prompt,
        "max_tokens": max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
    }
    # Not in OpenAI's API, but every engine's; llama.cpp's servers have defaults of their own for what is left out.
    body["top_k"] = sampling.top_k or (-1 if dialect.owner == "sglang" else 0)
    body["min_p"] = sampling.min_p
    # vLLM takes what is left out from the model's generation_config.json.
    llama = dialect.tokenizer in {"llama-server", "llama-cpp-python"}
    body["repeat_penalty" if llama else "repetition_penalty"] = sampling.repetition_penalty
    body["presence_penalty"] = body["frequency_penalty"] = 0.0
    if llama and sampling.repetition_penalty != 1:
        body["repeat_last_n"] = dialect.n_ctx or _LONG  # all of the prompt, as elsewhere
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if n > 1:
        body["n"] = n
    if dialect.logprobs:
        body["logprobs"] = 0 if dialect.whole else 1  # llama_cpp.server takes 0 for none
    if dialect.tokenizer == "llama-server":
        body["timings_per_token"] = True  # which tell what was in its cache
    elif dialect.ids:
        body["return_token_ids"] = True
    if dialect.whole and stops:
        body["stop"] = list(stops)
        body["include_stop_str_in_output"] = True
    if dialect.whole and stop_ids:
        body["stop_token_ids"] = list(stop_ids)
    return body


@reading("a reply")
def read_choices(reply: dict[str, Any], wanted: int, dialect: Dialect, most: int = _LONG) -> list[Choice]:
    """The choices of a reply, in order of their index; fewer than `wanted` where the server ignores `n`.

    Args:
        most: tokens that were asked for, of each.

    Raises:
        RetryError: it makes no sense.
    """
    found: dict[int, Choice] = {}
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices:
        raise RetryError("a reply without choices")
    for place, raw in enumerate(choices):
        if not isinstance(raw, dict):
            raise RetryError(f"a choice that is no object: {shown(raw)}")
        index = raw.get("index", place)
        if not isinstance(index, int) or not 0 <= index < wanted or index in found:
            continue  # more than was asked for, or one of them twice
        found[index] = read_choice(raw, dialect, most)
    if sorted(found) != list(range(len(found))) or not found:
        raise RetryError(f"choices {sorted(found)} of {wanted}")
    return [found[index] for index in sorted(found)]


@reading("a choice")
def read_choice(raw: dict[str, Any], dialect: Dialect, most: int = _LONG) -> Choice:
    """One of them (or, of a stream, what an event adds).

    Raises:
        RetryError: texts, ids and log-probabilities do not fit together.
    """
    text, finish, reason = raw.get("text") or "", raw.get("finish_reason") or "", raw.get("stop_reason")
    if not isinstance(text, str):
        raise RetryError(f"a text that is no string: {shown(text)}")
    told = raw.get("logprobs") or {}
    texts = [text] if text else []
    ids, logprobs = _list(raw.get("token_ids")), list[float]()
    if isinstance(told, dict) and (listed := _listed(told)):
        texts = [str(entry.get("token")) for entry in listed]
        ids, logprobs = [entry["id"] for entry in listed], [logprob(entry.get("logprob")) for entry in listed]
    elif isinstance(told, dict) and told.get("tokens"):
        texts, logprobs = list(told["tokens"]), [logprob(value) for value in told.get("token_logprobs") or ()]
    check_size(texts, text, most)
    ids = token_ids(ids, "a choice") if dialect.ids else []
    if dialect.ids and len(ids) != len(texts) and not (finish and len(ids) == len(texts) + 1):
        raise RetryError(f"{len(ids)} token ids for {len(texts)} tokens")
    if logprobs and len(logprobs) != len(texts):
        raise RetryError(f"{len(logprobs)} log-probabilities for {len(texts)} tokens")
    return Choice(
        tuple(pieces(texts, text)),
        tuple(ids),
        tuple(logprobs),
        str(finish),
        reason if isinstance(reason, (str, int)) else None,
    )


def _listed(told: dict[str, Any]) -> list[dict[str, Any]]:
    """llama-server's tokens of a completion: as those of chats elsewhere, and with ids."""
    return [
        entry for entry in _list(told.get("content")) if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    ]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


async def probe(transport: Transport, replica: Replica, model: str | None) -> Dialect:
    """What this server can do.

    Raises:
        ModelError: it does not serve that model, or cannot complete a text.
        ServerError, RefusedError, RetryError: see `arts_server.faults`.
    """
    entry = await served(transport, replica, model)
    name = str(entry["id"])
    tokenizer, tokens = await tokenizer_of(transport, replica, name)
    body = {
        "model": name,
        "prompt": tokens or _PROBE,
        "max_tokens": 2,
        "temperature": 1.0,
        "seed": 1,
        "n": 2,
        "logprobs": 1,
        "return_token_ids": True,
        "include_stop_str_in_output": True,
        "stop": ["\0never"],
    }
    reply = await _first_accepted(transport, replica, body)
    choices = [choice for choice in _list(reply.get("choices")) if isinstance(choice, dict)]
    if not choices:
        raise ModelError(f"{replica.root} completes no text: {shown(reply)}")
    told = [_dict(choice.get("logprobs")) for choice in choices]
    by_entry = all(_listed(one) for one in told)
    # Ids without the tokens' texts do not say which of them a step keeps.
    by_token = all(
        one.get("tokens") and isinstance(c.get("token_ids"), list) for one, c in zip(told, choices, strict=True)
    )
    ids = tokens is not None and (by_entry or by_token)
    meta = _dict(entry.get("meta"))  # llama-server's: of one slot, and of the model
    n_ctx = entry.get("max_model_len") or meta.get("n_ctx") or meta.get("n_ctx_train")
    return Dialect(
        model=name,
        ids=ids,
        many=len(choices) == 2,
        whole=ids and all("stop_reason" in choice for choice in choices),
        logprobs=by_entry or all(one.get("token_logprobs") for one in told),
        tokenizer=tokenizer,
        n_ctx=count(n_ctx) or None,
        owner=shorten(str(entry.get("owned_by", ""))),
    )


async def served(transport: Transport, replica: Replica, model: str | None, option: str = "model") -> dict[str, Any]:
    """What a server says of a model, or of its only one.

    Args:
        option: the setting that names the model.

    Raises:
        ModelError: it does not serve that model, or several and none is named.
        ServerError, RefusedError, RetryError: see `arts_server.faults`.
    """
    listed = (await transport.get(replica, "/v1/models")).get("data")
    entries = (
        [entry for entry in listed if isinstance(entry, dict) and "id" in entry] if isinstance(listed, list) else []
    )
    names = [str(entry["id"]) for entry in entries]
    if any(redact(name) != name for name in names):
        raise ModelError(f"{replica.root} names a model by the key that it was sent: it is no server to send a key to")
    if model is None and len(names) == 1:
        return entries[0]
    if model not in names:
        wanted = f"no {option}= names one" if model is None else f"it serves no model {model!r}"
        raise ModelError(f"{replica.root}: {wanted}; it has {shorten(', '.join(names)) or 'none'}")
    return entries[names.index(model)]


async def tokenizer_of(
    transport: Transport, replica: Replica, model: str, text: str = _PROBE
) -> tuple[Tokenizer | None, list[int] | None]:
    """Whose endpoint it has, and the tokens of a text by it."""
    both = {"model": model, "prompt": text, "content": text, "add_special_tokens": False, "add_special": False}
    for path, body in (("/tokenize", both), ("/extras/tokenize", {"input": text})):
        try:
            reply = await _steady(transport, replica, path, body)
        except (RefusedError, ServerError):
            continue
        except RetryError as error:
            if error.passing:
                raise
            continue
        tokens = reply.get("tokens")
        if isinstance(tokens, list) and tokens:
            tokens = token_ids(tokens, f"{path} answers")
            if path.startswith("/extras"):
                return "llama-cpp-python", tokens
            return ("vllm" if "max_model_len" in reply or "count" in reply else "llama-server"), tokens
    return None, None


async def _steady(transport: Transport, replica: Replica, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A reply at the start, where a failure that passes must not be taken for something that the server cannot do."""
    for pause in _PAUSES:
        try:
            return await transport.ask(replica, path, body)
        except RetryError as error:
            if not error.passing:
                raise
        await asyncio.sleep(pause)
    return await transport.ask(replica, path, body)


async def _first_accepted(transport: Transport, replica: Replica, body: dict[str, Any]) -> dict[str, Any]:
    """The reply to the fullest request that is not refused: some servers refuse what others ignore."""
    bare = {key: body[key] for key in ("model", "max_tokens", "temperature")}
    attempts = [
        body,
        {**body, "n": 1},
        {**body, "n": 1, "prompt": _PROBE},
        {**bare, "prompt": _PROBE, "logprobs": 1},
        {**bare, "prompt": _PROBE},
    ]
    refused: Exception | None = None
    for attempt in attempts:
        try:
            return await _steady(transport, replica, COMPLETIONS, attempt)
        except (RefusedError, RetryError) as error:
            if isinstance(error, RetryError) and error.passing:
                raise
            refused = error
    raise ModelError(f"{replica.root} completes no text: {refused}")

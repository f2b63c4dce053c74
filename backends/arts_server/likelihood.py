"""Log-likelihoods by servers that score a prompt: by `prompt_logprobs` (vLLM), or by `echo` where that is understood."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from arts_plugin.errors import ModelError, PromptTooLongError
from arts_server.dialect import COMPLETIONS, Dialect
from arts_server.faults import RetryError, shown
from arts_server.transport import Transport

Pair = tuple[Sequence[int], Sequence[int]]
CANNOT = (
    "this server does not score prompts (neither prompt_logprobs nor echo), so log-likelihood tasks cannot run on it; "
    "use a task of generate_until, a vLLM server, or backend=hf or llama_cpp"
)


async def loglikelihood(
    transport: Transport, dialect: Dialect, n_ctx: int, pairs: Sequence[Pair], at_once: int
) -> list[tuple[float, bool]]:
    """(sum of log-probabilities in nats, is it the greedy continuation) of each (context, continuation).

    Raises:
        ModelError: the server cannot do it.
        PromptTooLongError: a context is empty, or a continuation alone does not fit.
    """
    if not dialect.ids:
        raise ModelError(CANNOT)

    async def one(pair: Pair) -> tuple[float, bool]:
        context, continuation = list(pair[0]), list(pair[1])
        if not continuation:
            return 0.0, True
        if not context:
            raise PromptTooLongError("a log-likelihood needs a context of at least one token (BOS, for example)")
        room = n_ctx - 1 - len(continuation)  # servers generate at least one token
        if room < 1:
            raise PromptTooLongError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {n_ctx}"
            )
        ids = [*context[-room:], *continuation]
        body = {"model": dialect.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        found = await transport.post(COMPLETIONS, body, read=lambda reply: _read(reply, ids, len(continuation)))
        if found is not None:
            return found
        del body["prompt_logprobs"]
        body |= {"echo": True, "logprobs": 1}
        return await transport.post(COMPLETIONS, body, read=lambda reply: _read_echo(reply, ids, len(continuation)))

    told: dict[int, tuple[float, bool]] = {}
    waiting = iter(enumerate(pairs))

    async def some() -> None:
        for index, pair in waiting:
            told[index] = await one(pair)

    try:
        async with asyncio.TaskGroup() as group:  # which ends the others when one fails
            for _ in range(min(at_once, len(pairs))):
                group.create_task(some())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [told[index] for index in range(len(pairs))]


def _read(reply: dict[str, Any], ids: Sequence[int], n: int) -> tuple[float, bool] | None:
    told = _choice(reply).get("prompt_logprobs")
    if told is None:
        return None
    if not isinstance(told, list) or len(told) != len(ids):
        raise RetryError(f"prompt_logprobs that do not belong to a prompt of {len(ids)} tokens: {shown(told)}")
    total, greedy = 0.0, True
    for token, entry in zip(ids[-n:], told[-n:], strict=True):
        try:
            found = entry[str(token)]
            total += float(found["logprob"])
            greedy = greedy and found["rank"] == 1
        except (KeyError, TypeError, ValueError) as error:
            raise RetryError(f"a prompt's log-probability that cannot be read: {shown(error)}") from None
    return total, greedy


def _read_echo(reply: dict[str, Any], ids: Sequence[int], n: int) -> tuple[float, bool]:
    told = _choice(reply).get("logprobs") or {}
    values, likeliest = told.get("token_logprobs") or [], told.get("top_logprobs") or []
    if len(values) < len(ids) or len(likeliest) < len(ids):  # an echo of the text alone, or none
        raise ModelError(CANNOT)
    asked = slice(len(ids) - n, len(ids))
    try:
        total = sum(float(value) for value in values[asked])
        greedy = all(
            value >= max(others.values()) for value, others in zip(values[asked], likeliest[asked], strict=True)
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise RetryError(f"an echo's log-probability that cannot be read: {shown(error)}") from None
    return total, greedy


def _choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RetryError("a reply without choices")
    return choices[0]

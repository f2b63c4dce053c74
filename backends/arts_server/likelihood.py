"""Log-likelihoods by servers that score a prompt: by `prompt_logprobs` (vLLM), or by `echo` where that is understood."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from arts_plugin.errors import ModelError, PromptTooLongError
from arts_server.dialect import COMPLETIONS, Dialect
from arts_server.faults import RefusedError, RetryError, reading, shown
from arts_server.transport import Transport
from arts_server.values import logprob

Pair = tuple[Sequence[int], Sequence[int]]
Score = tuple[float, bool]
INSTEAD = "use a task of generate_until, a vLLM server, or backend=hf or llama_cpp"
CANNOT = (
    "this server does not score prompts (neither prompt_logprobs nor echo), so log-likelihood tasks cannot run on it; "
    + INSTEAD
)
NO_IDS = (
    "this server takes no token ids as a prompt, and of a text it could not be told where a continuation's tokens begin, so "
    "log-likelihood tasks cannot run on it; " + INSTEAD
)


class PromptScorer:
    """Log-likelihoods of continuations, by whichever way the server knows.

    Args:
        n_ctx: the longest prompt, in tokens.
        at_once: requests under way, at most.
    """

    def __init__(self, transport: Transport, dialect: Dialect, n_ctx: int, at_once: int) -> None:
        self.transport, self.dialect, self.n_ctx, self.at_once = transport, dialect, n_ctx, at_once
        self._echoes: bool | None = None  # which of the ways it is, once one has worked

    async def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """(sum of log-probabilities in nats, is it the greedy continuation) of each (context, continuation).

        Raises:
            ModelError: the server cannot do it.
            PromptTooLongError: a context is empty, or a continuation alone does not fit.
        """
        if not self.dialect.ids:
            raise ModelError(NO_IDS)
        told: dict[int, Score] = {}
        waiting = iter(enumerate(pairs))

        async def some() -> None:
            for index, pair in waiting:
                told[index] = await self._one(list(pair[0]), list(pair[1]))

        try:
            async with asyncio.TaskGroup() as group:  # which ends the others when one fails
                for _ in range(min(self.at_once, len(pairs))):
                    group.create_task(some())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [told[index] for index in range(len(pairs))]

    async def _one(self, context: list[int], continuation: list[int]) -> Score:
        if not continuation:
            return 0.0, True
        if not context:
            raise PromptTooLongError("a log-likelihood needs a context of at least one token (BOS, for example)")
        room = self.n_ctx - 1 - len(continuation)  # servers generate at least one token
        if room < 1:
            raise PromptTooLongError(
                f"a continuation of {len(continuation)} tokens does not fit the context of {self.n_ctx}"
            )
        ids, n, refused = [*context[-room:], *continuation], len(continuation), ""
        if not self._echoes:
            try:
                found = await self._ask(ids, n, _read, prompt_logprobs=0)
            except RefusedError as error:
                if self._echoes is False:  # for its own sake, then
                    raise
                found, refused = None, str(error)
            if found is not None:
                self._echoes = False
                return found
        try:
            found = await self._ask(ids, n, _read_echo, echo=True, logprobs=1)
        except RefusedError as error:
            if self._echoes:
                raise
            said = "; ".join(dict.fromkeys(filter(None, (refused, str(error)))))
            raise ModelError(f"{CANNOT} (it says: {said})") from None
        if found is None:
            raise ModelError(f"{CANNOT} (it says: {refused})" if refused else CANNOT)
        self._echoes = True
        return found

    async def _ask(self, ids: list[int], n: int, read: Any, **how: Any) -> Score | None:
        body = {"model": self.dialect.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, **how}
        found: Score | None = await self.transport.post(COMPLETIONS, body, read=lambda reply: read(reply, ids, n))
        return found


def _read(reply: dict[str, Any], ids: Sequence[int], n: int) -> Score | None:
    told = _choice(reply).get("prompt_logprobs")
    if told is None:
        return None
    if not isinstance(told, list) or len(told) != len(ids):
        raise RetryError(f"prompt_logprobs that do not belong to a prompt of {len(ids)} tokens: {shown(told)}")
    total, greedy = 0.0, True
    for token, entry in zip(ids[-n:], told[-n:], strict=True):
        with reading("a prompt's log-probability"):
            found = entry[str(token)]
            total += logprob(found["logprob"])
            greedy = greedy and found["rank"] == 1
    return total, greedy


def _read_echo(reply: dict[str, Any], ids: Sequence[int], n: int) -> Score | None:
    """None for an echo of the text alone, or none."""
    told = _choice(reply).get("logprobs")
    told = told if isinstance(told, dict) else {}
    values, likeliest = told.get("token_logprobs") or [], told.get("top_logprobs") or []
    if not isinstance(values, list) or not isinstance(likeliest, list):
        raise RetryError(f"an echo's log-probabilities that are no lists: {shown(told)}")
    if len(values) < len(ids) or len(likeliest) < len(ids):
        return None
    if len(values) > len(ids) + 1:  # the one that it had to generate
        raise ModelError(f"an echo of {len(values)} tokens for {len(ids)}: the server adds some of its own. {CANNOT}")
    asked = slice(len(ids) - n, len(ids))
    with reading("an echo's log-probability"):
        total = sum(map(logprob, values[asked]))
        greedy = all(
            value >= max(others.values()) for value, others in zip(values[asked], likeliest[asked], strict=True)
        )
    return total, greedy


def _choice(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise RetryError("a reply without choices")
    return choices[0]

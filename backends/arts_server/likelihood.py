"""Log-likelihoods by servers that score a prompt: by `prompt_logprobs` (vLLM), or by `echo` where that is understood."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Sequence
from typing import Any

from arts_plugin.backend import Pair, Report, Scored
from arts_plugin.engine.likelihood import check_pairs
from arts_plugin.errors import ModelError
from arts_server.dialect import COMPLETIONS, Dialect
from arts_server.faults import RefusedError, RetryError, reading, shown
from arts_server.transport import Transport
from arts_server.values import logprob

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
        longest: tokens of a context and its continuation together, at most.
        at_once: requests under way, at most.
    """

    def __init__(self, transport: Transport, dialect: Dialect, longest: int, at_once: int) -> None:
        self.transport, self.dialect, self.longest, self.at_once = transport, dialect, longest, at_once
        self._echoes: bool | None = None  # which of the ways it is, once one has worked

    def run(self, pairs: Sequence[Pair], report: Report | None) -> list[Scored]:
        """(sum of log-probabilities in nats, is it the greedy continuation) of each (context, continuation).

        Args:
            report: called with the place and the score of each pair as it arrives.

        Raises:
            ModelError: the server cannot do it.
            PromptTooLongError, ArtsError: see `arts_plugin.engine.likelihood.check_pairs`.
        """
        if not self.dialect.ids:
            raise ModelError(NO_IDS)
        check_pairs(pairs, self.longest)
        told: dict[int, Scored] = {}
        arrived: queue.SimpleQueue[tuple[int, Scored] | None] = queue.SimpleQueue()
        job = self.transport.start(self._all(pairs, lambda index, score: arrived.put((index, score))))
        job.add_done_callback(lambda _: arrived.put(None))
        try:
            while (landed := arrived.get()) is not None:
                told[landed[0]] = landed[1]
                if report is not None:
                    report(*landed)
            job.result()
        except BaseException:
            job.cancel()
            raise
        return [told[index] for index in range(len(pairs))]

    async def _all(self, pairs: Sequence[Pair], landed: Report) -> None:
        waiting = iter(enumerate(pairs))

        async def some() -> None:
            for index, pair in waiting:
                landed(index, await self._one(list(pair[0]), list(pair[1])))

        try:
            async with asyncio.TaskGroup() as group:  # which ends the others when one fails
                for _ in range(min(self.at_once, len(pairs))):
                    group.create_task(some())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def _one(self, context: list[int], continuation: list[int]) -> Scored:
        ids, n, refused = [*context, *continuation], len(continuation), ""
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

    async def _ask(self, ids: list[int], n: int, read: Any, **how: Any) -> Scored | None:
        body = {"model": self.dialect.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, **how}
        found: Scored | None = await self.transport.post(COMPLETIONS, body, read=lambda reply: read(reply, ids, n))
        return found


def _read(reply: dict[str, Any], ids: Sequence[int], n: int) -> Scored | None:
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


def _read_echo(reply: dict[str, Any], ids: Sequence[int], n: int) -> Scored | None:
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

"""Steps on their way: one request for siblings, more where a step is not whole, hidden states where they are wanted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from arts_plugin.backend import FloatArray
from arts_plugin.steps import StepScanner
from arts_server.dialect import COMPLETIONS, Choice, Dialect, payload, read_choice, read_choices
from arts_server.faults import RefusedError, RetryError, reading
from arts_server.features import PoolingServer
from arts_server.llama_server import Mender
from arts_server.replicas import Replica
from arts_server.states import Progress, Question, Run, ServerState
from arts_server.steps import Outcome, take
from arts_server.transport import Transport
from arts_server.values import count

Member = tuple[ServerState, Run]


@dataclass(frozen=True, slots=True)
class Landed:
    """A step that has ended, or failed with `error`; `rest` is what the server generated beyond it."""

    state: ServerState
    run: Run
    outcome: Outcome | None = None
    scanner: StepScanner | None = None
    rest: Choice | None = None
    feature: FloatArray | None = None
    error: BaseException | None = None

    @property
    def fatal(self) -> bool:
        """Whether it ends more than its own trace."""
        return self.error is not None and not isinstance(self.error, RefusedError)


class StepReader:
    """Reads steps in the transport's loop. It touches no state; the thread that owns the model does, when it is told.

    Args:
        pooling: where hidden states come from, if they are wanted.
    """

    def __init__(self, transport: Transport, dialect: Dialect, pooling: PoolingServer | None) -> None:
        self.transport, self.dialect, self.pooling = transport, dialect, pooling
        self._mender = Mender(transport) if dialect.ids and dialect.tokenizer == "llama-server" else None

    async def advance(self, group: Sequence[Member], tell: Callable[[Landed], None]) -> None:
        """Advance siblings by a step each; `tell` is called for each as it ends, or fails."""
        waiting = dict(enumerate(group))
        try:
            # Where there are fewer choices than were asked for, the others are asked for one by one.
            choices = dict(enumerate(await self._siblings(group))) if len(group) > 1 else {}

            async def one(i: int) -> None:
                try:
                    landed = await self._finish(*group[i], choices.get(i))
                except RefusedError as error:  # of this member alone
                    landed = Landed(*group[i], error=error)
                del waiting[i]
                tell(landed)

            async with asyncio.TaskGroup() as tasks:
                for i in range(len(group)):
                    tasks.create_task(one(i))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            cause = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            for state, run in waiting.values():
                tell(Landed(state, run, error=cause))

    async def _siblings(self, group: Sequence[Member]) -> list[Choice]:
        state, run = group[0]
        body = self._body(state, [], run.max_tokens, len(group), state.scanner.thinking)

        async def work(replica: Replica) -> list[Choice]:
            reply = await self.transport.ask(replica, COMPLETIONS, body)
            choices = read_choices(reply, len(group), self.dialect, body["max_tokens"])
            self._book(state.question, reply, body)
            return choices

        choices = await self.transport.persist(work, state.question, len(group))
        for (_, member), choice in zip(group, choices, strict=False):
            member.decoded += len(choice.ids)
        return choices

    async def _finish(self, state: ServerState, run: Run, choice: Choice | None) -> Landed:
        """A step, of which the beginning may be there already."""
        progress = Progress(state.scanner.fork())
        question, before = state.question, len(state.tokens)
        outcome, read = None, 0
        choice = state.rest if choice is None else choice
        if choice is not None:
            outcome = take(progress, choice, question, before, run.max_tokens, self.dialect.ids)
        while outcome is None:
            if self.dialect.whole and not question.streams:
                read = len(progress.ids)
                choice = await self._next(state, run, progress)
                outcome = take(progress, choice, question, before, run.max_tokens, self.dialect.ids)
            else:
                progress, outcome = await self._streamed(state, run)
        rest = choice.after(len(progress.ids) - read) if question.ahead and choice and not outcome.terminal else None
        return Landed(state, run, outcome, progress.scanner, rest, await self._feature(state, outcome))

    async def _next(self, state: ServerState, run: Run, progress: Progress) -> Choice:
        wanted = state.question.limit - len(state.tokens) if state.question.ahead else run.max_tokens
        if run.allowance is not None:
            wanted = min(wanted, run.allowance)
        body = self._body(state, progress.ids, wanted - len(progress.ids), 1, progress.scanner.thinking)

        async def work(replica: Replica) -> Choice:
            reply = await self.transport.ask(replica, COMPLETIONS, body)
            (choice,) = read_choices(reply, 1, self.dialect, body["max_tokens"])
            self._book(state.question, reply, body)
            if not choice.ids:
                raise RetryError("a reply without a single token")
            return choice

        found = await self.transport.persist(work, state.question)
        run.decoded += len(found.ids)
        return found

    def _body(self, state: ServerState, more: Sequence[int], max_tokens: int, n: int, thinking: bool) -> dict[str, Any]:
        question = state.question
        prompt: Sequence[int] | str = question.prompt.text + state.text
        if self.dialect.ids:
            prompt = [*question.prompt.token_ids, *state.tokens, *more]
        seed = state.seed + len(more)
        stops, stop_ids = question.server_stops(thinking), question.server_stop_ids(thinking)
        return payload(self.dialect, prompt, n, max_tokens, question.generation.sampling, seed, stops, stop_ids)

    def _book(self, question: Question, reply: dict[str, Any], body: dict[str, Any]) -> None:
        """Prompt tokens as the server counts them."""
        with reading("usage"):
            usage = reply.get("usage") or {}
            sent = usage.get("prompt_tokens")
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        known = count(sent)
        question.sent += known if known is not None else len(body["prompt"]) if self.dialect.ids else 0
        question.cached += count(cached) or 0

    async def _streamed(self, state: ServerState, run: Run) -> tuple[Progress, Outcome]:
        """A step read token by token; the connection is closed where it ends. A try that breaks off has cost its tokens, and
        where these are budgeted the next one asks for what is left."""
        question, before = state.question, len(state.tokens)

        async def work(replica: Replica) -> tuple[Progress, Outcome]:
            progress, most = Progress(state.scanner.fork()), run.left
            if most < 1:
                raise RefusedError(
                    f"{run.decoded} tokens came in streams that broke off, and the budget allows no more"
                )
            body = {**self._body(state, [], most, 1, progress.scanner.thinking), "stream": True}
            for key in ("stop", "stop_token_ids", "include_stop_str_in_output"):
                body.pop(key, None)
            stream = self._stream(replica, body, question)
            mended = self._mender.mended(replica, stream) if self._mender else stream
            async with aclosing(stream), aclosing(mended) as choices:
                async for choice in choices:
                    run.decoded += max(len(choice.pieces), len(choice.ids))
                    outcome = take(progress, choice, question, before, most, self.dialect.ids)
                    if outcome is not None:
                        return progress, outcome
            raise RetryError(f"{replica.root}{COMPLETIONS}: a stream ended without saying why")

        return await self.transport.persist(work, question)

    async def _stream(self, replica: Replica, body: dict[str, Any], question: Question) -> AsyncGenerator[Choice]:
        booked = begun = False
        try:
            async with aclosing(self.transport.events(replica, COMPLETIONS, body)) as events:
                async for event in events:
                    begun = True
                    if not booked and isinstance(timings := event.get("timings"), dict):
                        booked = _book_timings(question, timings)
                    choices = event.get("choices")
                    for raw in choices if isinstance(choices, list) else ():
                        if isinstance(raw, dict):
                            yield read_choice(raw, self.dialect, body["max_tokens"])
        finally:
            if begun and not booked and self.dialect.ids:  # it does not say, or would have with its last event
                question.sent += len(body["prompt"])

    async def _feature(self, state: ServerState, outcome: Outcome) -> FloatArray | None:
        if self.pooling is None or not self.dialect.ids:
            return None
        prompt = state.question.prompt.token_ids
        kept = state.tokens[: len(state.tokens) - outcome.cut_tokens]
        sequences = [(*prompt, *kept, *outcome.token_ids)]
        if state.question.root is None:
            sequences.append(prompt)
        rows: FloatArray = await self.pooling.states(sequences)
        if len(rows) > 1:
            state.question.root = rows[1]
        first: FloatArray = rows[0]
        return first


def _book_timings(question: Question, timings: dict[str, Any]) -> bool:
    """Prompt tokens of a stream as llama-server counts them; whether it does."""
    computed, cached = count(timings.get("prompt_n")), count(timings.get("cache_n"))
    if computed is None or cached is None:
        return False
    question.sent += computed + cached
    question.cached += cached
    return True

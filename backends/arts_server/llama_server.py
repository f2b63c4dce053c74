"""llama-server's streams as choices that tell every token. It tells a token when its text is whole; what it leaves out is
asked of its tokeniser."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import replace

from arts_server.dialect import Choice
from arts_server.faults import RetryError, shown
from arts_server.pieces import pieces
from arts_server.replicas import Replica
from arts_server.transport import Transport
from arts_server.values import token_ids

_MARKS = 8
"""Tokens that a tokeniser may put before a text."""
_MOST_SILENT = 1 << 16
"""Tokens without text in a row: a trace of nothing else would never end."""


class Mender:
    """Completes streams of one kind of server.

    A token that ends inside a character is not told, and comes back here with the tokens of that character, without a
    log-probability of its own (0). A token without text is told before it is known whether it ends the generation: it
    is no part of the text if it does.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._texts: dict[int, str] = {}

    async def mended(self, replica: Replica, choices: AsyncIterable[Choice]) -> AsyncGenerator[Choice]:
        """The choices of a stream, one token an event, with what is missing."""
        silent: list[Choice] = []
        async for choice in choices:
            if choice.ids and not choice.finish and not any(choice.pieces):
                silent.append(choice)
                if len(silent) > _MOST_SILENT:
                    raise RetryError(f"{replica.root} streams more than {_MOST_SILENT} tokens without text")
                continue
            if choice.finish != "stop":
                for one in silent:
                    yield one
            silent.clear()
            text = b"".join(choice.pieces)
            yield choice if text.isascii() or not choice.ids else await self._whole(replica, choice, text.decode())

    async def _whole(self, replica: Replica, choice: Choice, text: str) -> Choice:
        """A choice of one token whose text may have begun in tokens before it."""
        last = choice.ids[-1]
        if last not in self._texts:
            self._texts[last] = str(await self._ask(replica, "/detokenize", {"tokens": [last]}, "content"))
        if self._texts[last].strip(" ") == text.strip(" "):
            return choice
        told = await self._ask(replica, "/tokenize", {"content": text}, "tokens")
        ids = token_ids(told, f"{replica.root}/tokenize answers")
        if not 0 < len(ids) <= len(text.encode()) + _MARKS:
            raise RetryError(f"{replica.root}/tokenize answers with {len(ids)} tokens for {shown(text)}")
        before = len(ids) - 1
        return replace(
            choice,
            pieces=tuple(pieces([*[""] * before, text], text)),
            ids=tuple(ids),
            logprobs=(*[0.0] * before, *choice.logprobs),
        )

    async def _ask(self, replica: Replica, path: str, body: dict[str, object], key: str) -> object:
        reply = await self.transport.ask(replica, path, body)
        if key not in reply:
            raise RetryError(f"{replica.root}{path} answers without {key!r}")
        return reply[key]

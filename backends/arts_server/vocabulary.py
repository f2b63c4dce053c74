"""Prompts for a server: tokenised by its own endpoint where it has one, with ordinary text kept ordinary."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from arts_plugin import chat
from arts_plugin.backend import Message, Prompt
from arts_plugin.ends import END_TOKENS
from arts_plugin.errors import ModelError, SettingsError
from arts_plugin.randomness import digest
from arts_server.dialect import Dialect
from arts_server.faults import RefusedError, shown
from arts_server.keys import redact
from arts_server.transport import Transport
from arts_server.values import token_ids

log = logging.getLogger(__name__)

_LOOKS_SPECIAL = re.compile("<[^<>\\s]{1,40}>|\\[/?[A-Z_]{2,24}\\]")
"""What may be a special token in some vocabulary; whether it is one, the server is asked."""
_KNOWN, _AT_ONCE = 4096, 16
_NO_TEMPLATE = (
    "the server does not apply its model's chat template to a prompt that is to be continued; give chat_template= a Jinja "
    "file, or use chat=plain"
)


class ServerVocabulary:
    """Turns texts and chats into prompts.

    Args:
        template: a Jinja file, in place of the server's own chat template.
        parse_special: whether special tokens in a plain prompt become control tokens.
    """

    def __init__(
        self,
        transport: Transport,
        dialect: Dialect,
        template: str | None,
        enable_thinking: bool | None = None,
        parse_special: bool = False,
    ) -> None:
        self.transport, self.dialect = transport, dialect
        self._chat_options = chat.options(enable_thinking)
        self._parse_special = parse_special
        self._special: dict[str, int | None] = {}  # what looks like a special token -> its id, None if it is none
        self._own: str | None = None
        if template is not None:
            try:
                self._own = Path(template).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                raise ModelError(f"chat_template={template} cannot be read: {error}") from error
            if re.search(r"\beos_token\b", self._own):
                log.warning(
                    "chat_template=%s uses eos_token, which a server does not tell: nothing stands in its place; write the "
                    "token itself into the file", template,
                )  # fmt: skip

    @property
    def chat_template(self) -> str | None:
        """The template, or a word for the server's own."""
        if self._own is not None:
            return self._own
        return "the server's own" if self.dialect.tokenizer in {"vllm", "llama-server"} and self._serves_chats else None

    @cached_property
    def _serves_chats(self) -> bool:
        """Whether the model behind the server has a chat template."""
        try:
            return bool(self._rendered([{"role": "user", "content": "a"}], True))
        except ModelError:
            return False

    # Plain texts.
    def encode(self, text: str) -> Prompt:
        """A plain prompt: user text, with BOS if the model wants one. Without token ids it is the server that decides what
        special tokens in it are."""
        text = whole(text)
        if not self.dialect.ids:
            return Prompt(text, tuple(self.tokenize(text)))
        tokens = self._tokens(text, False) if self._parse_special else self.tokenize(text)
        own = self._parse_special and bool(self.bos) and tuple(tokens[: len(self.bos)]) == self.bos
        return Prompt(text, tuple(tokens if own else [*self.bos, *tokens]))

    @cached_property
    def bos(self) -> tuple[int, ...]:
        """What the tokeniser puts before a text: BOS, or nothing."""
        if not self.dialect.ids:
            return ()
        bare, whole = self._tokens("a", False), self._tokens("a", True)
        return tuple(whole[: len(whole) - len(bare)]) if whole[-len(bare) :] == bare else ()

    def tokenize(self, text: str) -> list[int]:
        """Tokens of ordinary text, without BOS. Without token ids: stand-ins, made of the text's words."""
        if not self.dialect.ids:
            return stand_ins(re.findall(r"\s*\S+|\s+", text))
        clean = whole(text)
        self._learn(_LOOKS_SPECIAL.findall(clean))
        tokens: list[int] = []
        at = 0
        for match in _LOOKS_SPECIAL.finditer(clean):
            if self._special[match.group()] is not None:
                # Cut in two, it is nobody's special token.
                middle = match.start() + 1
                tokens += self._tokens(clean[at:middle], False)
                at = middle
        return tokens + self._tokens(clean[at:], False)

    def _learn(self, texts: Iterable[str]) -> None:
        """Ask which of them are special tokens, several at once: a page of HTML has hundreds."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self._special]
        if len(self._special) + len(unknown) > _KNOWN:
            self._special.clear()
            unknown = list(dict.fromkeys(texts))

        async def ask() -> list[int | None]:
            gate = asyncio.Semaphore(_AT_ONCE)

            async def one(text: str) -> int | None:
                async with gate:
                    tokens = await self.transport.post("/tokenize", self._request(text, False), read=_token_list)
                return tokens[0] if len(text) > 1 and len(tokens) == 1 else None

            async with asyncio.TaskGroup() as tasks:
                asked = [tasks.create_task(one(text)) for text in unknown]
            return [task.result() for task in asked]

        if unknown:
            try:
                self._special.update(zip(unknown, self.transport.do(ask()), strict=True))
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None

    def controls(self, text: str) -> Mapping[int, str]:
        """The tokens that `text` spells and that are found by their ids: id -> spelling.

        Raises:
            SettingsError: it spells one that this server neither tells by id nor shows.
        """
        looks = _LOOKS_SPECIAL.findall(whole(text))
        if not self.dialect.ids:
            self._refuse_hidden(looks)
            return {}
        self._learn(looks)
        return {token: text for text in looks if (token := self._special[text]) is not None}

    def _refuse_hidden(self, looks: Sequence[str]) -> None:
        """Refuse what a server without token ids would never show: what it hides is not in a text that was tokenised and put
        together again. One without a tokeniser cannot be asked."""
        if self.dialect.tokenizer != "llama-cpp-python":
            return
        for text in dict.fromkeys(looks):
            if text in END_TOKENS:  # where it is one, it ends generations anyway
                continue
            tokens = self._ask("/extras/tokenize", {"input": text}, "tokens")
            if text not in self._ask("/extras/detokenize", {"tokens": tokens}, "text"):
                raise SettingsError(
                    f"{text} is a control token, which this server ({self.dialect.tokenizer}) neither shows nor tells by its "
                    "id, so that nothing can end there; leave it out, or use llama-server, vLLM or a model in process"
                )

    def spelling(self, token: int) -> str | None:
        """The text of a control token, or of another that the server's tokeniser never splits; None for any other id.

        Raises:
            ModelError: the server gives no token ids.
        """
        if not self.dialect.ids:
            raise ModelError(f"a token is named by its id, {token}, and this server gives none; name it by its text")
        body = {"model": self.dialect.model, "tokens": [token]}
        try:
            text = str(self._ask("/detokenize", body, "prompt" if self.dialect.tokenizer == "vllm" else "content"))
        except RefusedError:
            return None
        return text if _LOOKS_SPECIAL.fullmatch(text) and self._tokens(text, False) == [token] else None

    def _tokens(self, text: str, special: bool) -> list[int]:
        """As the server has it: special tokens in `text` count; `special` asks for BOS."""
        if not text:
            return []
        return self.transport.do(self.transport.post("/tokenize", self._request(text, special), read=_token_list))

    def _request(self, text: str, special: bool) -> dict[str, Any]:
        both = {"prompt": text, "content": text, "add_special_tokens": special, "add_special": special}
        return {"model": self.dialect.model, **both}

    def _ask(self, path: str, body: dict[str, Any], key: str) -> Any:
        reply: dict[str, Any] = self.transport.do(self.transport.post(path, body))
        if key not in reply:
            raise ModelError(f"{path} answers without {key!r}: {shown(reply)}")
        return reply[key]

    # Chats.
    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> Prompt:
        """A chat in the model's template.

        Raises:
            ModelError: there is none, or it refuses the messages.
        """
        messages = [{**message, "content": whole(message["content"])} for message in messages]
        looks = [text for m in messages for text in _LOOKS_SPECIAL.findall(m["content"])] if self.dialect.ids else []
        self._learn(looks)
        special = chat.special_pattern({text for text in looks if self._special[text] is not None})
        if self._own is not None:
            rendered = self._rendered_here(self._own, messages, add_generation_prompt)
        else:
            rendered = chat.render_by(lambda said: self._rendered(said, add_generation_prompt), messages, special)
        tokens = chat.encode(
            rendered,
            special,
            lambda part, known: self._tokens(part, False) if known and self.dialect.ids else self.tokenize(part),
        )
        bos = list(self.bos)
        if bos and tokens[: len(bos)] != bos:
            tokens = [*bos, *tokens]
        return Prompt(rendered.text, tuple(tokens), chat.last_user(messages))

    def _rendered_here(self, template: str, messages: chat.Messages, add_generation_prompt: bool) -> chat.Rendered:
        return chat.render(
            template, messages, "chat_template=", bos_token="", eos_token="",
            add_generation_prompt=add_generation_prompt, **self._chat_options,
        )  # fmt: skip

    def _rendered(self, messages: chat.Messages, add_generation_prompt: bool) -> str:
        """The chat as the server renders it."""
        said = [dict(message) for message in messages]
        try:
            if self.dialect.tokenizer == "vllm":
                body = {
                    "model": self.dialect.model,
                    "messages": said,
                    "add_generation_prompt": add_generation_prompt,
                    "add_special_tokens": False,
                    "chat_template_kwargs": self._chat_options,
                }
                tokens = self._ask("/tokenize", body, "tokens")
                return redact(str(self._ask("/detokenize", {"model": self.dialect.model, "tokens": tokens}, "prompt")))
            if self.dialect.tokenizer == "llama-server" and add_generation_prompt:
                body = {"messages": said, "chat_template_kwargs": self._chat_options}
                return redact(str(self._ask("/apply-template", body, "prompt")))
        except RefusedError as error:
            raise ModelError(f"the server's chat template refuses: {error}") from error
        raise ModelError(_NO_TEMPLATE)


def _token_list(reply: dict[str, Any]) -> list[int]:
    return token_ids(reply.get("tokens"), "/tokenize answers")


def whole(text: str) -> str:
    """`text` with a mark in place of each half of a surrogate pair, which no tokeniser takes; pairs become their character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def stand_ins(texts: Sequence[str]) -> list[int]:
    """Numbers that tell token texts apart where a server gives no ids: 31 bits of a digest of each."""
    return [digest(text) & 0x7FFFFFFF for text in texts]

"""Rendered chats that lm-eval's prompts are made of, and the tokens behind them."""

from __future__ import annotations

import logging

from arts_plugin.backend import Backend, Message, Prompt
from arts_plugin.errors import ModelError
from arts_plugin.lm_eval.requests import ChatPrompt
from arts_plugin.prompts import encode
from arts_plugin.settings import Chat

log = logging.getLogger("lm_eval.arts")


class Chats:
    """Renders chats in a model's template, and remembers them: a host may make plain strings of what it was given."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rendered: dict[str, ChatPrompt] = {}
        self._said = False

    def render(self, messages: list[Message], add_generation_prompt: bool = True) -> ChatPrompt:
        """A chat as text that knows its messages; those of the system are left out if the template refuses them.

        Raises:
            ModelError: the model has no chat template, or it refuses the chat without them as well.
        """
        try:
            text = self.encode(messages, add_generation_prompt).text
        except ModelError as refusal:
            spoken = [message for message in messages if message["role"] != "system"]
            if not spoken or len(spoken) == len(messages):
                raise
            try:
                text = self.encode(spoken, add_generation_prompt).text
            except ModelError:
                raise refusal from None
            messages = self._without_system(messages, spoken, refusal)
        self._rendered[text] = ChatPrompt(text, messages, add_generation_prompt)
        return self._rendered[text]

    def _without_system(self, messages: list[Message], spoken: list[Message], refusal: ModelError) -> list[Message]:
        if not self._said:
            self._said = True
            lost = next(message["content"] for message in messages if message["role"] == "system")
            log.warning(
                "messages of the system are left out of all chats whose template refuses them, as lm-eval's own models do: "
                "the model does not see %.80r (%s)", lost, refusal,
            )  # fmt: skip
        return spoken

    def encode(self, messages: list[Message], add_generation_prompt: bool) -> Prompt:
        """The tokens of a chat.

        Raises:
            ModelError: the model has no chat template.
        """
        if add_generation_prompt or messages[-1]["role"] != "assistant":
            return self._backend.encode_chat(messages, add_generation_prompt)
        # A task's gen_prefix: templates would end the assistant's turn after it, and it is to be continued.
        begun, said = self._backend.encode_chat(messages[:-1]), messages[-1]["content"]
        bos = len(self._backend.encode("").token_ids)
        token_ids = (*begun.token_ids, *self._backend.encode(said).token_ids[bos:])
        return Prompt(begun.text + said, token_ids, begun.user)

    def behind(self, context: str) -> ChatPrompt | None:
        """The chat behind a context, also where the host made a plain string of it."""
        chat = context if isinstance(context, ChatPrompt) else self._rendered.get(context)
        return chat if chat is not None and chat.messages else None

    def prompt(self, context: str, chat: Chat) -> Prompt:
        """The prompt of a request.

        Args:
            chat: `template` puts a context that is no chat into the template, if there is one. `auto` leaves that to
                --apply_chat_template, which has not been used for such a context.
        """
        if known := self.behind(context):
            return self.encode(known.messages, known.add_generation_prompt)
        return encode(self._backend, context, "auto") if chat == "template" else self._backend.encode(context)

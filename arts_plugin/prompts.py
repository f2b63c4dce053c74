"""The prompt of a bare question: one format for `arts solve`, `arts_demo` and the data that verifiers learn from."""

from __future__ import annotations

from arts_plugin.backend import Backend, Message, Prompt
from arts_plugin.settings import Chat

INSTRUCTION = "Reason step by step, one step a line, and put the final answer within \\boxed{}."


def question_text(question: str) -> str:
    """The question and what is asked of the answer's form."""
    return f"{question.strip()}\n\n{INSTRUCTION}"


def encode(backend: Backend, text: str, chat: Chat) -> Prompt:
    """`text` as a prompt: in the model's chat template (`auto`: if it has one), or plain and followed by a newline.

    Raises:
        ModelError: `chat` is "template" and the model has none.
    """
    if chat == "template" or (chat == "auto" and backend.info.chat_template):
        message: Message = {"role": "user", "content": text}
        return backend.encode_chat([message])
    return backend.encode(f"{text}\n")


def answer_of(text: str, think_end: str | None) -> str:
    """The part of a trajectory that answers: what comes after its thinking, if that has ended. The first end counts."""
    if not think_end or think_end not in text:
        return text
    return text.partition(think_end)[2].lstrip()

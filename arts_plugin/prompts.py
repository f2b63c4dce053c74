"""The prompt of a bare question: one format for `arts solve`, `arts_demo` and the data that verifiers learn from."""

from __future__ import annotations

from collections.abc import Sequence

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


def answer_of(text: str, think_end: str | None, stops: Sequence[str] = ()) -> str:
    """The part of a trajectory that answers: what comes after its thinking; the first end counts.

    Where thinking never ended (a model that does not think, or that ran out of tokens) all of it is the answer, up to the
    first of `stops`, as lm-eval's `hf` model has it: engines look for stop strings after the thinking alone.
    """
    if not think_end:
        return text
    _, end, after = text.partition(think_end)
    return after.lstrip() if end else before_stop(text.lstrip(), stops)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first place where one of `stops` begins."""
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]

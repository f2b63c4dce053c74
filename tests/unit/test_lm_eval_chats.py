"""Chats of lm-eval in templates that refuse some roles."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from arts_plugin import chat
from arts_plugin.backend import Message, Prompt
from arts_plugin.errors import ModelError
from arts_plugin.lm_eval.chats import Chats

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
NOTHING = "{{ raise_exception('no chat at all') }}"
SYSTEM, USER = {"role": "system", "content": "Answer in French."}, {"role": "user", "content": "2 + 2?"}
BEGUN = {"role": "assistant", "content": "It is"}


class Templated:
    """A backend of one template and one token a character."""

    def __init__(self, template: str) -> None:
        self.template = template

    def encode(self, text: str) -> Prompt:
        return Prompt(text, tuple(map(ord, text)))

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        return self.encode(
            chat.render(self.template, messages, "a model", add_generation_prompt=add_generation_prompt).text
        )


def chats(template: str) -> Chats:
    backend: Any = Templated(template)
    return Chats(backend)


def test_a_template_without_a_system_role(caplog: pytest.LogCaptureFixture) -> None:
    made = chats(NO_SYSTEM)
    with caplog.at_level(logging.WARNING):
        contexts = [made.render([SYSTEM, USER]) for _ in range(3)]
        begun = made.render([SYSTEM, USER, BEGUN], add_generation_prompt=False)
    assert contexts == ["<user>2 + 2?\n<assistant>"] * 3 and contexts[0].messages == [USER]
    assert begun == "<user>2 + 2?\n<assistant>It is" and begun.messages == [USER, BEGUN]
    (record,) = caplog.records
    assert "Answer in French." in record.getMessage() and "System role not supported" in record.getMessage()
    assert made.prompt(str(contexts[0]), "auto").text == contexts[0], "as it is tokenised later"


@pytest.mark.parametrize(
    ("template", "messages"), [(NOTHING, [SYSTEM, USER]), (NOTHING, [USER]), (NO_SYSTEM, [SYSTEM])]
)
def test_what_remains_an_error(template: str, messages: list[Message]) -> None:
    with pytest.raises(ModelError, match=r"no chat at all|System role"):
        chats(template).render(messages)


def test_a_template_with_a_system_role_keeps_it(caplog: pytest.LogCaptureFixture) -> None:
    made = chats("{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}")
    assert made.render([SYSTEM, USER]) == "<system>Answer in French.<user>2 + 2?"
    assert not caplog.records

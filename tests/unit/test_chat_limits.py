"""A chat template has so much time, memory and text, and nobody waits for another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arts_plugin import chat
from arts_plugin.chat import process
from arts_plugin.errors import ModelError

MESSAGES = [{"role": "user", "content": "hi"}]
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMBS = [
    ENDLESS,
    "{{ 'a' * 2000000000 }}",
    "{{ ('a' * 10000) * 10000 }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a\n' * 1000 | indent(10 ** 9) }}",
    "{{ [1] | batch(10 ** 10, 1) | list }}",
    "{{ ([messages[0].content * 10000] * 10000) | join }}",
    "{{ ([1] * 10 ** 6) * 10 ** 4 }}",
    "{{ 'a'.replace('', 'b' * 10 ** 6) * 10 ** 3 }}",
    "{{ 10 ** (10 ** 9) }}",
    "{% macro twice(n) %}{% if n %}{{ twice(n - 1) }}{{ twice(n - 1) }}{% endif %}{% endmacro %}{{ twice(99) }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% for m in range(99999) %}{{ 'abcdefgh' * 1000 }}{% endfor %}",
    "{{ ('a ' * 10 ** 7) | wordwrap(1) | urlize | striptags | length }}",
    "{{ messages[0].content.ljust(10 ** 10) }}",
]


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little of everything, for processes that start now."""
    monkeypatch.setattr(process, "SECONDS", 0.3)
    monkeypatch.setattr(process, "MEMORY", 1 << 28)
    monkeypatch.setattr(process, "CHARACTERS", 1 << 20)
    monkeypatch.setattr(process, "_idle", [])


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("template", BOMBS)
def test_a_bomb(template: str) -> None:
    """The error names the template's file, the limit and what to do; the next chat is rendered."""
    with pytest.raises(ModelError) as caught:
        chat.render(template, MESSAGES, "model.gguf")
    assert "the chat template of model.gguf" in str(caught.value)
    assert any(limit in str(caught.value) for limit in ("0.3 s", "256 MiB", "1,048,576 characters")), caught.value
    assert "chat=plain" in str(caught.value)
    assert chat.render("{{ messages[0].content }}", MESSAGES, "model.gguf").text == "hi"


def test_endless_recursion_is_the_templates_error() -> None:
    with pytest.raises(chat.TemplateError, match="RecursionError"):
        chat.render("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", MESSAGES, "model.gguf")
    with pytest.raises(chat.TemplateError):
        chat.render("{{ " + "(" * 9999 + ")" * 9999 + " }}", MESSAGES, "model.gguf")


def test_a_refusal_is_told_apart() -> None:
    with pytest.raises(chat.TemplateRefusalError, match="TemplateError: no system role"):
        chat.render("{{ raise_exception('no system role') }}", MESSAGES, "model.gguf")
    with pytest.raises(chat.TemplateError, match="UndefinedError") as caught:
        chat.render("{{ a.b.c }}", MESSAGES, "model.gguf")
    assert not isinstance(caught.value, chat.TemplateRefusalError)


def test_nobody_waits_for_anothers_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SECONDS", 5.0)
    ended = []

    def render() -> None:
        with pytest.raises(ModelError, match="computes for more than 5 s"):
            chat.render(ENDLESS, MESSAGES, "model.gguf")
        ended.append(True)

    thread = threading.Thread(target=render)
    thread.start()
    assert chat.render("{{ messages[0].content }}", MESSAGES, "model.gguf").text == "hi"
    assert not ended
    thread.join()
    assert ended


def test_a_process_that_has_died_is_replaced() -> None:
    chat.render("x", MESSAGES, "model.gguf")
    for worker in process._idle:
        worker._process.kill()
        worker._process.wait()
    assert chat.render("{{ messages[0].content }}", MESSAGES, "model.gguf").text == "hi"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_a_killed_parent_leaves_nothing_behind() -> None:
    program = (
        "import threading\n"
        "from arts_plugin import chat\n"
        "from arts_plugin.chat import process\n"
        "m = [{'role': 'user', 'content': 'hi'}]\n"
        "chat.render('x', m, 'a')\n"
        "print(process._idle[0]._process.pid, flush=True)\n"
        f"chat.render({ENDLESS!r}, m, 'a')\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = Path("/proc") / parent.stdout.readline().strip()
        assert worker.is_dir()
        os.kill(parent.pid, signal.SIGKILL)
    for _ in range(600):
        if not worker.exists() or "State:\tZ" in (worker / "status").read_text():
            return
        time.sleep(0.1)
    pytest.fail(f"{worker} is still there")

"""What models, servers, data sets, cards and templates wrote reaches terminals, logs and pages without being obeyed there."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from arts_plugin import chat, checkpoint
from arts_plugin.checkpoint import shipped
from arts_plugin.cli import main
from arts_plugin.errors import ArtsError, ModelError, SettingsError
from arts_plugin.terminal import OURS, printable, printed
from tests.report_runs import chain_tree, write_run

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\x7f\u202edcba\u2066\u2069\u200f\u2028\U000e0041\ud800 é漢\U0001f600"
CONTROLS = [
    chr(n)
    for n in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if n not in (9, 10)
]


def raw(text: str) -> set[str]:
    """Characters of `text` that a terminal or a browser would obey."""
    return {c for c in text if c not in "\n\t" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}


@pytest.mark.parametrize("char", [*CONTROLS, "\u200e", "\u061c", "\u2028", "\ufeff", "\ud800", "\U000e0041"], ids=ascii)
def test_what_is_obeyed_is_shown_as_its_code(char: str) -> None:
    shown = printable(f"a{char}b")
    assert raw(shown) == set()
    assert shown.encode().decode("unicode_escape") == f"a{char}b"


def test_other_text_stays() -> None:
    text = "a\tb\nc é 数 \U0001f600 \u00a0 \\x1b \"'"
    assert printable(text) == text
    assert printed({"a\x1b": [text, 1, None, {"b": ("\x1b", True)}]}) == {
        "a\x1b": [text, 1, None, {"b": ["\\u001b", True]}]
    }


@pytest.fixture
def host() -> Iterator[io.StringIO]:
    """What a host's own handler on the root logger writes."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    yield out
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("name", [*OURS, *(f"{name}.deep.inside" for name in OURS)])
def test_logs_whoever_writes_them(name: str, host: io.StringIO) -> None:
    log = logging.getLogger(name)
    log.warning("question %s: %r", HOSTILE, 1)
    log.warning(f"{HOSTILE} 100 % sure")
    log.warning("too few %s %s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.warning("failed", exc_info=True)
    lines = host.getvalue()
    assert raw(lines) == set()
    assert lines.count("owned") == 4 and "é漢\U0001f600: 1" in lines and "Traceback" in lines


def test_warnings_are_still_printed_where_logging_is_not_set_up() -> None:
    """Once, and debug messages not at all; the same where the host has a handler."""
    program = (
        "import arts_plugin, logging, sys\n"
        "if sys.argv[1:]: logging.basicConfig()\n"
        "log = logging.getLogger('arts_plugin.somewhere')\n"
        "log.warning('a %s', '\\x1b[2J')\n"
        "log.debug('no')\n"
    )
    for arguments in ([], ["set up"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
        assert done.stderr.endswith("a \\u001b[2J\n") and done.stderr.count("\n") == 1


def test_errors_in_any_traceback() -> None:
    for error in (ArtsError(HOSTILE), ModelError(HOSTILE), SettingsError(HOSTILE)):
        assert raw(str(error)) == set() and "owned" in str(error)
    with pytest.raises(chat.TemplateError) as caught:
        chat.render("{{ raise_exception(messages[0].content) }}", [{"role": "user", "content": HOSTILE}], HOSTILE)
    assert raw(str(caught.value)) == set() and "owned" in str(caught.value)


def test_the_command_says_what_went_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> None:
        raise ModelError(HOSTILE)

    monkeypatch.setitem(main.commands, "fail", fail)
    done = CliRunner().invoke(main, ["fail"])
    assert done.exit_code == 1 and "owned" in done.output and raw(done.output) == set()


def test_a_cards_proposer(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {name: replace(card, proposer=replace(card.proposer, name=HOSTILE)) for name, card in shipped().items()}
    assert cards
    monkeypatch.setattr(checkpoint, "shipped", lambda: cards)
    done = CliRunner().invoke(main, ["plugins"])
    assert done.exit_code == 0 and "owned" in done.output and raw(done.output) == set()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in which everything that others name has a hostile name."""
    trees = [chain_tree(f"q{i}{HOSTILE}$x$", ["1", "2" + HOSTILE], [0.1, 0.2]) for i in range(3)]
    return write_run(tmp_path / "run", trees, {tree.problem: "1" for tree in trees})


@pytest.mark.parametrize("command", [["report"], ["view"]], ids=str)
def test_pages_and_what_is_said_of_them(run: Path, command: list[str]) -> None:
    done = CliRunner().invoke(main, [*command, str(run)])
    assert done.exit_code == 0, done.output
    assert raw(done.output) == set()
    for page in [*run.rglob("*.html"), *run.rglob("*.md"), *run.rglob("*.svg")]:
        assert raw(page.read_text(encoding="utf-8")) == set(), page


def test_report_of_hostile_names(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels with escapes and with dollars, which would be mathematics in a picture."""
    from arts_plugin.report import page

    real = page.analyse

    def analyse(*args: Any) -> dict[str, Any]:
        made = real(*args)
        made["run"]["model"] = made["run"]["path"] = HOSTILE
        made["left_out"] = [HOSTILE]
        for row in [*made["table"], *made["curves"]]:
            row["label"] = f"\x1b\u202e $\\frac$ | {row['label']}"
        return made

    monkeypatch.setattr(page, "analyse", analyse)
    made, report = page.write_report(run, out=tmp_path / "out")
    assert report["run"]["model"] == HOSTILE  # numbers keep their names
    for file in (made, made.with_name("table.md"), made.with_name("accuracy.svg")):
        text = file.read_text(encoding="utf-8")
        assert raw(text) == set(), file
    assert "owned" in made.read_text(encoding="utf-8")

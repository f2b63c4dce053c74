"""Models that think first: what the vote, lm-eval and a client get of a trajectory."""

from __future__ import annotations

import pytest
from scripted import ScriptedBackend, Step

from arts_plugin.answers.extract import extract_auto
from arts_plugin.lm_eval.answer import handed_out
from arts_plugin.plugins import Plugins
from arts_plugin.prompts import answer_of
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.serve.thinking import Parting, Uncut, parted
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

END = "</think>"
SCRIPT = {
    "q": [Step("Is it 4? The answer is 4.\n", 1.0, "r")],
    "r": [Step(f"No.\n{END}\n\nThe answer is 5", 0.5), Step("Perhaps it is 4", 0.5)],
}


def searched(plugins: Plugins, seed: int, think_end: str | None) -> ReasoningTree:
    settings = Settings.of(strategy="best_of_n", budget_trajectories=8, think_end_token=think_end, seed=seed)
    backend = ScriptedBackend(SCRIPT, slots=8)
    driver = SearchDriver(backend, plugins, extractor=lambda _: extract_auto)
    ((_, tree),) = driver.run([Job(backend.encode("q"), settings)])
    return tree


def test_steps_are_found_inside_and_answers_after(plugins: Plugins) -> None:
    tree = searched(plugins, 1, END)
    thoughts = [t for t in tree.trajectories() if END in t.text]
    others = [t for t in tree.trajectories() if END not in t.text]
    assert thoughts and others
    assert {t.answer for t in thoughts} == {"5"}
    assert {t.answer for t in others} == {"4"}  # it never came to an end: all of it is looked through
    assert len(tree.trajectory(thoughts[0].leaf).nodes) == 3
    answers = {str(answer) for answer in handed_out(tree, 8)}
    assert answers == {"The answer is 5", others[0].text}
    told = {entry["text"] for entry in handed_out(tree, 1)[0].trajectories}
    assert told == answers


def test_without_the_word_nothing_is_cut(plugins: Plugins) -> None:
    tree = searched(plugins, 1, None)
    assert any(END in str(answer) for answer in handed_out(tree, 8))
    assert "think_end" not in tree.meta


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        (f"<think>\na{END}\nb", "a", "b"),
        (f" \n<think>a <think> b{END}<think>b", "a <think> b", "<think>b"),
        (f"<think>\n\n{END}\n\nb", "", "b"),
        (f"<think>a < b </t {END}c <", "a < b </t ", "c <"),
        ("<think>", "", ""),
        ("<think>a </thin", "a </thin", ""),
        # Nothing has opened it.
        ("a b c", "", "a b c"),
        ("a </thin", "", "a </thin"),
        ("\n <thin a", "", "\n <thin a"),
        ("<think", "", "<think"),
        ("  ", "", "  "),
        ("a STOP b", "", "a "),
        ("<think>a STOP b", "a STOP b", ""),
    ],
)
def test_parts(text: str, thinking: str, answer: str) -> None:
    assert parted(text, END, "", STOPS) == (thinking, answer)
    assert parted(text, None) == ("", text)
    check_streams(text, "", (thinking, answer))
    if END in text:
        assert answer_of(text, END) == answer


def check_streams(text: str, begun: str, parts: tuple[str, str], end: str = END) -> None:
    """A stream has these parts, wherever its pieces end."""
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert _fed(begun, end, text[:first], text[first:second], text[second:]) == parts
    assert _fed(begun, end, *text) == parts


STOPS = ("STOP",)


def _fed(begun: str, end: str, *pieces: str) -> tuple[str, str]:
    parting = Parting(end, begun, STOPS)
    parts = [part for piece in pieces for part in parting.feed(piece)] + list(parting.rest())
    assert all(part for part, _ in parts)
    return "".join(part for part, thought in parts if thought), "".join(part for part, thought in parts if not thought)


@pytest.mark.parametrize(
    ("begun", "text", "thinking", "answer"),
    [
        ("opened", f"a\nb{END}\n\nc d", "a\nb", "c d"),
        ("opened", f"<<//</think{END}>", "<<//</think", ">"),
        ("opened", f"{END}c", "", "c"),
        ("opened", "a STOP b", "a STOP b", ""),  # it ran out of tokens
        ("opened", "<thi", "<thi", ""),
        ("closed", "a b", "", "a b"),
        ("closed", "<think>", "", "<think>"),
    ],
)
def test_what_the_prompt_has_begun(begun: str, text: str, thinking: str, answer: str) -> None:
    assert parted(text, END, begun, STOPS) == (thinking, answer)
    check_streams(text, begun, (thinking, answer))


def test_an_end_that_nothing_opened() -> None:
    """A whole reply is parted there; a stream had to take what came before for the answer."""
    text = f"a{END}b{END} c"
    assert parted(text, END) == ("a", f"b{END} c")
    check_streams(text, "", ("", f"ab{END} c"))
    check_streams(f"a STOP b{END}\nc", "", ("", "a c"))


@pytest.mark.parametrize(("text", "parts"), [("a ENDb", ("a ", "b")), ("a STOPb", ("", "a ")), (" EN", ("", " EN"))])
def test_where_an_end_does_not_tell_how_thinking_is_opened(text: str, parts: tuple[str, str]) -> None:
    """All of it is held back until that is certain."""
    assert parted(text, "END", "", STOPS) == parts
    check_streams(text, "", parts, "END")
    assert list(Parting("END").feed("a long text without one")) == []


def test_parts_are_said_as_soon_as_they_are_certain() -> None:
    parting = Parting("[/THINK]")
    assert list(parting.feed("[TH")) == []
    assert list(parting.feed("INK] so")) == [("so", True)]
    assert list(parting.feed(" a [/TH")) == [(" a ", True)]
    assert list(parting.feed("IS]")) == [("[/THIS]", True)]
    assert list(parting.feed("[/THINK]\nb")) == [("b", False)]
    assert list(Parting(None).feed("  x")) == [("  x", False)]
    plain = Parting("[/THINK]", stops=("Q:",))
    assert list(plain.feed("[THIS")) == [("[THIS", False)]
    assert [*plain.feed(" Q"), *plain.feed("x [/")] == [(" ", False), ("Qx ", False)]
    assert [*plain.feed("] Q"), *plain.feed(": R")] == [("[/] ", False)]
    assert list(plain.rest()) == [] and plain.stopped


@pytest.mark.parametrize(
    ("text", "found"),
    [("a STOP b", "a "), ("<think>a STOP b", "<think>a STOP b"), (f"a STOP{END}b", f"a STOP{END}b"), ("a", "a")],
)
def test_a_text_completion_is_one_text(text: str, found: str) -> None:
    for pieces in ([text], list(text)):
        parting = Uncut(END, "", STOPS)
        parts = [part for piece in pieces for part in parting.feed(piece)] + list(parting.rest())
        assert "".join(part for part, _ in parts) == found and not any(thought for _, thought in parts)
        assert parting.stopped == (found != text)
    assert list(Uncut(END).feed("a")) == list(Uncut(None, "", STOPS).feed("a")) == [("a", False)]


def test_the_first_end_counts_for_answers() -> None:
    assert answer_of(f"a{END}b{END} c", END) == f"b{END} c"
    assert answer_of("a", END) == "a"
    assert answer_of(f"a{END}b", None) == f"a{END}b"


def test_thinking_that_never_ends_is_the_answer_up_to_a_stop() -> None:
    assert answer_of("a Q: b STOP c", END, ("STOP", "", "Q:")) == "a "
    assert answer_of(f"a Q:{END} b Q: c", END, ("Q:",)) == "b Q: c"  # the engine has looked for what follows
    assert answer_of("a Q: b", None, ("Q:",)) == "a Q: b"

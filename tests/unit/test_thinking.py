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
from arts_plugin.serve.thinking import Parting, parted
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
        (f"a\nb{END}\n\nc d\n\ne", "a\nb", "c d\n\ne"),
        (f"{END}c", "", "c"),
        ("a b c", "a b c", ""),
        (f"a{END}", "a", ""),
        ("a </thin", "a </thin", ""),
        (f"a < b </t {END}c <", "a < b </t ", "c <"),
        (f"<<//</think{END}>", "<<//</think", ">"),
        (f"<think>\na{END}\nb", "a", "b"),
        (f" \n<think>a <think> b{END}<think>b", "a <think> b", "<think>b"),
        (f"<think>\n\n{END}\n\nb", "", "b"),
        (f"\n <thin a{END}b", "\n <thin a", "b"),
        ("<think", "<think", ""),
        ("<think>", "", ""),
        ("  ", "  ", ""),
        (f"a{END}b{END} c", "a", f"b{END} c"),
    ],
)
def test_parts(text: str, thinking: str, answer: str) -> None:
    assert parted(text, END) == (thinking, answer)
    assert parted(text, None) == ("", text)
    # A stream has the same parts, wherever its pieces end.
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert _fed(text[:first], text[first:second], text[second:]) == (thinking, answer)
    assert _fed(*text) == (thinking, answer)
    if END in text:
        assert answer_of(text, END) == answer


def _fed(*pieces: str) -> tuple[str, str]:
    parting = Parting(END)
    parts = [part for piece in pieces for part in parting.feed(piece)] + list(parting.rest())
    assert all(part for part, _ in parts)
    return "".join(part for part, thought in parts if thought), "".join(part for part, thought in parts if not thought)


def test_thinking_is_said_as_soon_as_it_cannot_be_the_end() -> None:
    parting = Parting("[/THINK]")
    assert list(parting.feed("[TH")) == []
    assert list(parting.feed("INK] so")) == [("so", True)]
    assert list(parting.feed(" a [/TH")) == [(" a ", True)]
    assert list(parting.feed("IS]")) == [("[/THIS]", True)]
    assert list(parting.feed("[/THINK]\nb")) == [("b", False)]
    assert list(Parting(None).feed("  x")) == [("  x", False)]
    bare = Parting("END")  # without a slash nothing opens it
    assert [*bare.feed(" END"), *bare.feed(" x")] == [(" ", True), ("x", False)]


def test_the_first_end_counts_for_answers() -> None:
    assert answer_of(f"a{END}b{END} c", END) == f"b{END} c"
    assert answer_of("a", END) == "a"
    assert answer_of(f"a{END}b", None) == f"a{END}b"

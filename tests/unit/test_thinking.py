"""Models that think first: what the vote, lm-eval and a client get of a trajectory."""

from __future__ import annotations

import pytest
from scripted import ScriptedBackend, Step

from arts_plugin.evaluation.extract import extract_auto
from arts_plugin.lm_eval.answer import handed_out
from arts_plugin.plugins import Plugins
from arts_plugin.prompts import answer_of
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.serve.protocol import Parting, parted
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
    ],
)
def test_parts(text: str, thinking: str, answer: str) -> None:
    assert parted(text, END) == (thinking, answer)
    assert parted(text, None) == ("", text)
    # A stream has the same parts, wherever its pieces end, as long as none ends inside the word itself.
    for cut in range(len(text) + 1):
        if END in text and text.index(END) < cut < text.index(END) + len(END):
            continue
        parting = Parting(END)
        parts = [part for piece in (text[:cut], text[cut:]) for part in parting.feed(piece)]
        assert "".join(part for part, thought in parts if thought) == thinking
        assert "".join(part for part, thought in parts if not thought) == answer
    whole = Parting(None)
    assert list(whole.feed("  x")) == [("  x", False)]


def test_the_last_end_counts_for_answers() -> None:
    assert answer_of(f"a{END}b{END} c", END) == "c"
    assert answer_of("a", END) == "a"
    assert answer_of(f"a{END}b", None) == f"a{END}b"

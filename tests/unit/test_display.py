"""Model text in a terminal is data."""

from __future__ import annotations

import io

from rich.console import Console

from arts_plugin.display import budget_line, full_view, live_view, one_line, printable
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

HOSTILE = "\x1b]0;owned\x07 [red]markup[/red] \x9b31m \u202eright to left \ud800 \r over"


def rendered(view: object) -> str:
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=True, color_system=None).print(view)
    return out.getvalue()


def hostile_tree() -> ReasoningTree:
    tree = ReasoningTree()
    tree.add(0, text=HOSTILE, log_flow=-1.0, count=2)
    tree.add(1, text="end\x1b[2J", terminal=True, stop="eos")
    tree.chosen = 2
    return tree


def test_control_characters_are_shown_not_sent() -> None:
    shown = printable(HOSTILE)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\ud800", "\r"} & set(shown)
    assert "\\u001b" in shown
    assert printable("a\tb\nc é 数") == "a\tb\nc é 数"


def test_views_print_markup_as_text() -> None:
    tree = hostile_tree()
    for view in (full_view(tree, 100), live_view(tree, Settings(), 100, 20)):
        text = rendered(view)
        assert "[red]markup[/red]" in text
        assert "\x1b]0" not in text and "\x1b[2J" not in text
        assert "2x" in text and "[eos]" in text


def test_live_view_keeps_the_latest_steps() -> None:
    tree = ReasoningTree()
    for i in range(50):
        tree.add(0, text=f"step number {i}")
    text = rendered(live_view(tree, Settings(), 100, 10))
    assert "step number 49" in text and "step number 3\n" not in text
    assert "43 earlier steps" in text


def test_budget_line_counts_merged_proposals() -> None:
    tree = hostile_tree()
    tree.nodes[2].count = 3
    line = budget_line(tree, Settings.of(budget_nodes=9, budget_tokens=100))
    assert "3 of 8 trajectories" in line
    assert "5 of 9 proposals" in line
    assert "0 of 100 tokens" in line


def test_one_line_is_cut_to_width() -> None:
    assert one_line("a\nb   c", 10) == "a b c"
    assert one_line("abcdef", 4) == "abc…"

"""Trees in a terminal. Model text is data: control characters are shown, never sent to the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from arts_plugin.settings import Settings
from arts_plugin.terminal import printable
from arts_plugin.tree import Node, ReasoningTree

MAX_SHOWN = 24
"""Branches shown below one node; the others are counted."""


def one_line(text: str, width: int) -> str:
    """`text` on one line, at most `width` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


def live_view(tree: ReasoningTree, settings: Settings, width: int, height: int) -> RenderableType:
    """The tree so far and the budget that is left, cut to the terminal's height: the latest steps stay visible."""
    lines = [label(node, width - 4 - 2 * node.step) for node in tree.nodes[1:]]
    depth = [node.step for node in tree.nodes[1:]]
    shown = [Text("  " * d) + line for d, line in zip(depth, lines, strict=True)][-max(1, height - 3) :]
    hidden = len(lines) - len(shown)
    head = [Text(f"… {hidden} earlier steps", style="dim")] if hidden else []
    return Group(*head, *shown, Text(budget_line(tree, settings), style="bold"))


def budget_line(tree: ReasoningTree, settings: Settings) -> str:
    """What is spent and what is left, in every currency that has a limit."""
    parts = [f"{len(tree.nodes) - 1} steps"]
    limits = (
        ("trajectories", tree.n_finished, settings.budget_trajectories),
        ("tokens", tree.cost.decoded_tokens + tree.cost.refilled_tokens, settings.budget_tokens),
        ("proposals", tree.n_proposals, settings.budget_nodes),
    )
    parts += [f"{spent} of {limit} {name}" for name, spent, limit in limits if limit is not None]
    return ", ".join(parts)


def label(node: Node, width: int) -> Text:
    """A step on one line: its score, how often it was drawn, its text, and how it ended if it did."""
    score = "" if node.log_flow is None else f"{node.log_flow:7.2f} "
    times = f"{node.count}x " if node.count > 1 else ""
    end = f" [{node.stop}]" if node.terminal else ""
    text = Text(score, style="cyan")
    text.append(times, style="magenta")
    text.append(one_line(node.text, max(10, width - len(score) - len(times) - len(end))))
    text.append(end, style="green" if node.terminal else "")
    return text


def full_view(tree: ReasoningTree, width: int) -> Tree:
    """The whole tree, with the chosen trajectory in bold."""
    chosen = set() if tree.chosen is None else {node.id for node in tree.path(tree.chosen)}
    root = Tree(Text(f"{len(tree.nodes) - 1} steps, {tree.n_finished} finished trajectories", style="dim"))
    stack = [(root, 0)]
    while stack:
        branch, at = stack.pop()
        children = tree.nodes[at].children
        for child in children[:MAX_SHOWN]:
            node = tree.nodes[child]
            line = label(node, width - 4 * node.step)
            line.stylize("bold" if child in chosen else "dim")
            stack.append((branch.add(line), child))
        if len(children) > MAX_SHOWN:
            branch.add(Text(f"… and {len(children) - MAX_SHOWN} more", style="dim"))
    return root

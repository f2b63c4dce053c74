"""Which part of the answer is certain while its search still runs: what every trajectory that may yet be chosen begins with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from arts_plugin.errors import ArtsError
from arts_plugin.tree import ReasoningTree


def decided(tree: ReasoningTree, growing: Iterable[int]) -> list[int]:
    """The nodes from the root that all of these share: finished trajectories, and nodes from which the tree still grows.

    Until something is finished, a search that runs out of its budget may choose any leaf.
    """
    ends = {node.id for node in tree.nodes if node.terminal} or {node.id for node in tree.nodes if not node.children}
    shared: list[int] | None = None
    for end in ends | set(growing):
        path = [node.id for node in tree.path(end)]
        if shared is None:
            shared = list(path)
        else:
            same = next((i for i, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b), None)
            shared = shared[: min(len(shared), len(path)) if same is None else same]
        if len(shared) <= 1:
            break
    return shared or [0]


class Teller:
    """Says an answer step by step, never what it would have to take back.

    Args:
        stops: strings that end a trajectory; one may yet begin in what has been generated.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._held = max((len(stop) for stop in stops), default=1) - 1
        self._said = ""

    def more(self, tree: ReasoningTree, growing: Iterable[int]) -> Iterator[str]:
        """The steps, or their parts, that have become certain."""
        path = decided(tree, growing)
        whole = "".join(tree.nodes[i].text for i in path[1:])
        yield from self._say([tree.nodes[i].text for i in path[1:]], len(whole) - self._held)

    def rest(self, tree: ReasoningTree) -> Iterator[str]:
        """What is left of the chosen trajectory, once the search has ended.

        Raises:
            ArtsError: it does not begin with what was said.
        """
        if tree.chosen is None:
            return
        if not tree.text.startswith(self._said):
            raise ArtsError(f"strategy {tree.strategy!r} chose a trajectory that was out of the question before")
        yield from self._say([node.text for node in tree.path(tree.chosen)[1:]], len(tree.text))

    def _say(self, steps: Iterable[str], end: int) -> Iterator[str]:
        at = 0
        for text in steps:
            piece = text[max(0, len(self._said) - at) : max(0, end - at)]
            at += len(text)
            if piece:
                self._said += piece
                yield piece

"""A plugin in one file: a decoding strategy, an answer extractor and an observer."""

from __future__ import annotations

from arts_plugin import hookimpl
from arts_plugin.search.base import TreeStrategy
from arts_plugin.search.budget import Budget


class Wide(TreeStrategy):
    """Expands every open state, breadth first, with `width` proposals."""

    def __init__(self, tree, budget, width):
        super().__init__(tree, budget)
        self.width, self.pending = width, 0
        self.expand(0)

    def expand(self, node):
        self.pending += self.launch(node, self.width)

    def tell(self, proposals):
        taken = []
        for proposal in sorted(proposals, key=lambda p: (p.expansion.node, p.expansion.index)):
            self.pending -= 1
            taken.append(self.take(proposal, merge=True))
            node = taken[-1].node
            if node and not node.terminal and not taken[-1].merged and not self.ended_by:
                self.expand(node.id)
        if not self.pending and not self.ended_by:
            self.ended_by = "exhausted"
        return taken


@hookimpl
def arts_register_strategies(register):
    register("wide", lambda settings, tree: Wide(tree, Budget.of(settings), settings.width))


@hookimpl
def arts_register_extractors(register):
    register("last_word", lambda: lambda text: (text.split() or [None])[-1])


@hookimpl
def arts_finished(tree):
    print(f"[example] {tree.n_finished} trajectories, {len(tree.nodes) - 1} steps, {tree.cost.seconds:.1f} s")

"""Budgets are hard, in every currency and together, and nothing that was paid for is lost."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from budgeted import NO_BUDGET, loop_script, spent
from scripted import Oracle, ScriptedBackend, Step, random_script, search, search_all

from arts_plugin import builtin, hookimpl
from arts_plugin.plugins import Plugins
from arts_plugin.search.arts import Arts
from arts_plugin.search.budget import Budget
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree


class Spied(Arts):
    """`arts`, remembering which states it expanded."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.expanded: set[int] = set()
        super().__init__(*arguments, **keywords)

    def _expand(self, node: int, width: int) -> None:
        self.expanded.add(node)
        super()._expand(node, width)


@pytest.fixture
def spied() -> tuple[Plugins, list[Spied]]:
    """The built-in plugins with `arts` spied upon, and the strategies that were made."""
    made: list[Spied] = []

    class Plugin:
        @hookimpl
        def arts_register_strategies(self, register: Callable[..., None]) -> None:
            register("arts", self.make)

        def make(self, settings: Settings, tree: ReasoningTree) -> Spied:
            s = settings
            strategy = Spied(tree, Budget.of(s), width=s.width, slots=s.slots, beta=s.beta, seed=s.seed, draw=s.draw)
            made.append(strategy)
            return strategy

    registry = Plugins(load=False)
    registry.register(Plugin(), "spy")
    registry.register(builtin, "builtin")
    return registry, made


def within(tree: ReasoningTree, settings: Settings) -> None:
    """No limit is exceeded, and the one that is named was reached."""
    s = settings
    assert s.budget_trajectories is None or tree.n_finished <= s.budget_trajectories
    assert s.budget_nodes is None or tree.n_proposals <= s.budget_nodes
    assert s.budget_tokens is None or spent(tree) <= s.budget_tokens
    if tree.ended_by == "budget_trajectories":
        assert tree.n_finished == s.budget_trajectories
    elif tree.ended_by == "budget_nodes":
        assert tree.n_proposals == s.budget_nodes
    elif tree.ended_by == "budget_tokens":
        assert s.budget_tokens is not None
    else:
        assert tree.ended_by == "exhausted"
        assert all(leaf.terminal for leaf in tree.leaves())


@pytest.mark.parametrize("case", range(60))
def test_any_budgets_are_kept(case: int, spied: tuple[Plugins, list[Spied]]) -> None:
    """Random budgets, strategies, memory and completion order, two questions at once."""
    plugins, strategies = spied
    rng = random.Random(case)
    script = random_script(rng.randrange(5), depth=rng.choice([3, 5]), fan=rng.choice([1, 2, 3]))
    settings = []
    for seed in range(2):
        budgets = {
            "budget_trajectories": rng.choice([None, 1, 2, 5, 9]),
            "budget_tokens": rng.choice([None, 1, 7, 40, 150]),
            "budget_nodes": rng.choice([None, 1, 3, 10, 40]),
        }
        if all(budget is None for budget in budgets.values()):
            budgets["budget_nodes"] = 20
        strategy = rng.choice(["arts", "arts", "best_of_n", "greedy"])
        shape = {
            "width": rng.choice([1, 2, 3]),
            "slots": rng.choice([1, 4, 7]),
            "max_step_tokens": rng.choice([1, 3, 20]),
        }
        draw = rng.choice(["multinomial", "systematic"])
        settings.append(Settings.of({**budgets, **shape}, strategy=strategy, seed=seed, draw=draw))
    backend = ScriptedBackend(
        script, slots=rng.choice([1, 3, 8]), room=rng.choice([None, 0, 1, 3]), jitter=rng.choice([0, 0.5]), order=case
    )
    oracle = Oracle(lambda text: -0.1 * len(text))
    trees = search_all(backend, plugins, [("q", s) for s in settings], oracle)
    for tree, wanted in zip(trees, settings, strict=True):
        limited = wanted if wanted.strategy != "greedy" else wanted.with_(budget_trajectories=1)
        within(tree, limited)
    # The engine's own books: what was cancelled, merged or thrown away was paid for as well.
    assert sum(tree.cost.decoded_tokens for tree in trees) == backend.stats.decoded_tokens
    assert sum(tree.cost.refilled_tokens for tree in trees) == backend.stats.refilled_tokens
    for strategy in strategies:
        tree = strategy.tree
        unfinished = {node.id for node in tree.nodes[1:] if not node.terminal}
        opened = set(strategy._open)
        assert opened.isdisjoint(strategy.expanded)
        assert unfinished == (opened | strategy.expanded) - {0}
        for node in strategy.expanded:
            proposals = sum(tree.nodes[child].count for child in tree.nodes[node].children)
            assert proposals <= (strategy.width if node else strategy.window)


def test_trajectories_count_merged_proposals(plugins: Plugins) -> None:
    """Three ways to go and one token each: eight proposals are at most three nodes, and eight trajectories."""
    script = {"q": [Step("a.", 0.6), Step("b.", 0.3), Step("c.", 0.1)]}
    tree = search(ScriptedBackend(script, slots=4), plugins, slots=8, width=2, budget_trajectories=5)
    assert tree.ended_by == "budget_trajectories"
    assert tree.n_finished == 5 > len(tree.trajectories())


def test_nodes_count_merged_proposals(plugins: Plugins) -> None:
    script = {"q": [Step("a\n", 0.5, "q"), Step("b\n", 0.5, "q")]}
    tree = search(ScriptedBackend(script), plugins, slots=4, width=3, budget_nodes=20, **NO_BUDGET)
    assert tree.ended_by == "budget_nodes"
    assert tree.n_proposals == 20 > len(tree.nodes)
    assert tree.cost.decoded_tokens == 20


def test_nothing_finished_chooses_the_best_unfinished(plugins: Plugins) -> None:
    oracle = Oracle(lambda text: 10.0 * text.count("b") - 11.0 * text.count("a"))
    tree = search(
        ScriptedBackend(loop_script()), plugins, oracle=oracle, slots=6, width=2, budget_nodes=18, **NO_BUDGET
    )
    assert tree.n_finished == 0
    assert tree.chosen is not None
    chosen = tree.trajectory(tree.chosen)
    assert not chosen.finished
    assert chosen.order == -1
    assert chosen.log_flow == max(leaf.log_flow for leaf in tree.leaves() if leaf.log_flow is not None) > 0
    assert tree.text == chosen.text


def test_exhausted(plugins: Plugins) -> None:
    """A finite script and a budget beyond it: the tree is grown to its end, and every state once."""
    tree = search(ScriptedBackend(random_script(2, depth=3)), plugins, slots=3, width=3, budget_nodes=5000, **NO_BUDGET)
    assert tree.ended_by == "exhausted"
    assert all(leaf.terminal for leaf in tree.leaves())
    for node in tree.nodes:
        if node.children:
            assert sum(tree.nodes[child].count for child in node.children) == 3

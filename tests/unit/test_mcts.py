"""PUCT: which states descents end at, and how visits are shared."""

from __future__ import annotations

import math
import random

import pytest
from scripted import Oracle, Script, ScriptedBackend, Step, random_script, search

from arts_plugin.plugins import Plugins
from arts_plugin.search.budget import Budget
from arts_plugin.search.mcts import Mcts
from arts_plugin.tree import ReasoningTree

LOOP: Script = {name: [Step(f"{name}\n", 1.0, name)] for name in "abc"}
LOOP = {"q": [Step(f"{name}\n", 1 / 3, name) for name in "abc"], **LOOP}
FLOWS = {"a": 1.0, "b": 2.0, "c": 5.0}


def grown(exploration: float, nodes: int, beta: float = 1.0, seed: int = 0) -> Mcts:
    """Three branches without an end, F the same all along each, one proposal at a time."""
    from arts_plugin.search.base import Proposal

    tree = ReasoningTree(problem="2a")
    made = Mcts(tree, Budget(nodes=nodes), width=1, slots=3, beta=beta, exploration=exploration)
    made.descents = 1
    while asked := made.ask(10):
        told = []
        for e in asked:
            branch = "abc"[e.index] if e.node == 0 else tree.nodes[e.node].text[0]
            told.append(
                Proposal(e, f"{branch}\n", [e.node], -1.0, "delimiter", False, log_flow=math.log(FLOWS[branch]))
            )
        made.tell(told)
    assert made.ended_by == "budget_nodes"
    return made


def shares(made: Mcts) -> dict[str, float]:
    visits = {made.tree.nodes[child].text[0]: made.visits.get(child, 0) for child in made.tree.nodes[0].children}
    return {name: count / sum(visits.values()) for name, count in visits.items()}


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_with_much_exploration_visits_follow_the_prior(beta: float) -> None:
    found = shares(grown(exploration=1e6, nodes=1500, beta=beta))
    total = sum(flow**beta for flow in FLOWS.values())
    for name, flow in FLOWS.items():
        assert found[name] == pytest.approx(flow**beta / total, abs=0.01)


def test_without_exploration_the_best_branch_has_all() -> None:
    assert shares(grown(exploration=0.0, nodes=60))["c"] == 1.0


def test_visits_are_those_of_the_formula() -> None:
    """The bandit that the root sees, computed by itself: constant values, PUCT step by step."""
    made = grown(exploration=1.25, nodes=400)
    low, high = math.log(1.0), math.log(5.0)
    q = {name: (math.log(flow) - low) / (high - low) for name, flow in FLOWS.items()}
    prior = {name: flow / sum(FLOWS.values()) for name, flow in FLOWS.items()}
    visits = dict.fromkeys(FLOWS, 0)
    for _ in range(400 - 3):
        total = math.sqrt(sum(visits.values()))
        chosen = max(FLOWS, key=lambda name: q[name] + 1.25 * prior[name] * total / (1 + visits[name]))
        visits[chosen] += 1
    found = {made.tree.nodes[child].text[0]: made.visits.get(child, 0) for child in made.tree.nodes[0].children}
    assert found == visits


def run(plugins: Plugins, seed: int, backend: dict[str, object] | None = None, **settings: object) -> ReasoningTree:
    script = random_script(seed, depth=4)
    made = ScriptedBackend(script, slots=4, **(backend or {}))  # type: ignore[arg-type]
    given = {"strategy": "mcts", "budget_trajectories": 12, "slots": 4, "width": 2, "seed": seed, **settings}
    return search(made, plugins, oracle=Oracle(lambda text: random.Random(text).uniform(-2, 2)), **given)


def test_the_tree_does_not_depend_on_the_batch(plugins: Plugins) -> None:
    for seed in range(6):
        trees = [run(plugins, seed, {"jitter": 0.6, "order": order}) for order in range(5)]
        assert len({tuple((n.text, n.parent, n.count) for n in tree.nodes) for tree in trees}) == 1


def test_no_state_is_expanded_twice_and_none_is_left(plugins: Plugins) -> None:
    """Without a budget in the way, every open state gets its K proposals, and the search ends by itself."""
    for seed in range(6):
        tree = run(plugins, seed, budget_trajectories=None, budget_nodes=5000)
        assert tree.ended_by == "exhausted"
        for node in tree.nodes[1:]:
            proposals = sum(tree.nodes[child].count for child in node.children)
            assert proposals == (0 if node.terminal else 2)


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_flows_that_are_not_finite(value: float, plugins: Plugins) -> None:
    script = random_script(1, depth=3)
    oracle = Oracle(lambda text: value if "1.1" in text else 0.5)
    tree = search(ScriptedBackend(script), plugins, oracle=oracle, strategy="mcts", budget_trajectories=6)
    assert tree.n_finished == 6 or tree.ended_by == "exhausted"


@pytest.mark.parametrize("budget", [{"budget_tokens": 40}, {"budget_nodes": 11}, {"budget_tokens": 2}])
def test_other_budgets_end_it_as_well(budget: dict[str, int], plugins: Plugins) -> None:
    for seed in range(8):
        tree = run(plugins, seed, **budget)
        spent = sum(len(node.token_ids) * node.count for node in tree.nodes[1:])
        assert spent <= budget.get("budget_tokens", 10**9)
        assert tree.ended_by in {*budget, "budget_trajectories", "exhausted"}

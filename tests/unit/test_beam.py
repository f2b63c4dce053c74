"""Beam search and its diverse form: which states go on."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from scripted import Oracle, ScriptedBackend, random_script, search

from arts_plugin.plugins import Plugins
from arts_plugin.tree import Node, ReasoningTree

N, K = 8, 2


def run(
    plugins: Plugins, strategy: str, seed: int = 0, backend: dict[str, object] | None = None, **settings: object
) -> ReasoningTree:
    script = random_script(seed, depth=5)
    made = ScriptedBackend(script, slots=5, **(backend or {}))  # type: ignore[arg-type]
    given = {"strategy": strategy, "budget_trajectories": N, "width": K, "seed": seed, **settings}
    return search(made, plugins, oracle=Oracle(lambda text: random.Random(text).uniform(-3, 3)), **given)


def rounds(tree: ReasoningTree) -> list[list[Node]]:
    """The nodes of each depth, without the root."""
    found: dict[int, list[Node]] = defaultdict(list)
    for node in tree.nodes[1:]:
        found[node.step].append(node)
    return [found[step] for step in sorted(found)]


def flow(node: Node) -> float:
    assert node.log_flow is not None
    return node.log_flow


@pytest.mark.parametrize("seed", range(12))
def test_the_best_states_go_on(seed: int, plugins: Plugins) -> None:
    """In every round those with children are the N / K best of that round, less what trajectories have finished."""
    tree = run(plugins, "beam", seed)
    finished = 0
    for nodes in rounds(tree):
        finished += sum(node.count for node in nodes if node.terminal)
        opened = sorted((node for node in nodes if not node.terminal), key=flow, reverse=True)
        expanded = [node for node in opened if node.children]
        assert len(expanded) == min(-(-(N - finished) // K), len(opened))
        assert sorted(map(flow, expanded), reverse=True) == [flow(node) for node in opened[: len(expanded)]]
        proposals = [sum(tree.nodes[child].count for child in node.children) for node in expanded]
        assert sum(proposals) == min(N - finished, K * len(expanded)) and max(proposals, default=0) <= K
    assert tree.ended_by in {"budget_trajectories", "exhausted"}


def parts(tree: ReasoningTree) -> dict[int, list[Node]]:
    """Part -> its nodes, by the place of its first step at the root."""
    owner: dict[int, int] = {}
    for node in tree.nodes[1:]:
        owner[node.id] = node.index * (N // K) // N if node.parent == 0 else owner[node.parent or 0]
    found: dict[int, list[Node]] = defaultdict(list)
    for node in tree.nodes[1:]:
        found[owner[node.id]].append(node)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_parts_do_not_compete(seed: int, plugins: Plugins) -> None:
    """Each part goes on with its own best state, however good those of the others are."""
    tree = run(plugins, "dvts", seed)
    made = parts(tree)
    assert set(made) == set(range(N // K))
    worse_than_a_loser = 0
    for nodes in made.values():
        done = 0
        for step in range(1, max(node.step for node in nodes) + 1):
            here = [node for node in nodes if node.step == step]
            done += sum(node.terminal for node in here)
            opened = [node for node in here if not node.terminal]
            expanded = [node for node in opened if node.children]
            if opened and done < K:
                assert [node.id for node in expanded] == [max(opened, key=flow).id]
            else:
                assert not expanded
            losers = [
                n for other in made.values() for n in other if n.step == step and not n.terminal and not n.children
            ]
            worse_than_a_loser += sum(flow(node) < flow(loser) for node in expanded for loser in losers)
    if seed == 0:
        assert worse_than_a_loser, "a beam would have chosen otherwise"


@pytest.mark.parametrize(("n", "k"), [(8, 3), (7, 2), (5, 3), (4, 8), (9, 4), (3, 1)])
def test_one_state_of_a_part_goes_on_whatever_k_divides(n: int, k: int, plugins: Plugins) -> None:
    """With at most K proposals; a part finishes no more than it began with."""
    groups = max(1, n // k)
    for seed in range(12):
        tree = run(plugins, "dvts", seed, budget_trajectories=n, width=k)
        owner: dict[int, int] = {}
        for node in tree.nodes[1:]:
            owner[node.id] = node.index * groups // n if node.parent == 0 else owner[node.parent or 0]
        for part in range(groups):
            inside = [node for node in tree.nodes[1:] if owner[node.id] == part]
            begun = sum(node.count for node in inside if node.parent == 0)
            assert sum(node.count for node in inside if node.terminal) <= begun
            for nodes in rounds(tree):
                expanded = [node for node in nodes if node.children and owner[node.id] == part]
                assert len(expanded) <= 1
                assert all(sum(tree.nodes[c].count for c in node.children) <= k for node in expanded)
        assert tree.ended_by == "exhausted" or tree.n_finished == n


def test_a_part_is_the_same_whatever_the_others_find(plugins: Plugins) -> None:
    """Also where parts begin with different numbers of proposals."""
    script = random_script(4, depth=5)

    def second_part(bonus: float) -> list[str]:
        def flow(text: str) -> float:
            return random.Random(text).uniform(-3, 3) + (bonus if text.startswith("1.0") else 0.0)

        tree = search(
            ScriptedBackend(script, slots=5), plugins, oracle=Oracle(flow),
            strategy="dvts", budget_trajectories=7, width=2, seed=1,
        )  # fmt: skip
        owner: dict[int, int] = {}
        for node in tree.nodes[1:]:
            owner[node.id] = node.index * 3 // 7 if node.parent == 0 else owner[node.parent or 0]
        untouched = {part for part in range(3) if not any(
            owner[node.id] == part and node.parent == 0 and node.text.startswith("1.0") for node in tree.nodes[1:]
        )}  # fmt: skip
        assert 0 < len(untouched) < 3
        return [node.text for node in tree.nodes[1:] if owner[node.id] in untouched]

    assert second_part(0.0) == second_part(9.0) == second_part(-9.0)


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
def test_the_tree_does_not_depend_on_the_batch(strategy: str, plugins: Plugins) -> None:
    for seed in range(6):
        trees = [run(plugins, strategy, seed, {"jitter": 0.6, "order": order}) for order in range(5)]
        assert len({tuple((n.text, n.parent, n.index, n.count) for n in tree.nodes) for tree in trees}) == 1


@pytest.mark.parametrize("strategy", ["beam", "dvts"])
@pytest.mark.parametrize("budget", [{"budget_tokens": 40}, {"budget_nodes": 11}, {"budget_tokens": 3}])
def test_other_budgets_end_it_as_well(strategy: str, budget: dict[str, int], plugins: Plugins) -> None:
    """Nothing that was paid for is lost: every token is in the tree."""
    for seed in range(8):
        tree = run(plugins, strategy, seed, **budget)
        spent = sum(len(node.token_ids) * node.count for node in tree.nodes[1:])
        assert spent <= budget.get("budget_tokens", 10**9)
        assert sum(node.count for node in tree.nodes[1:]) <= budget.get("budget_nodes", 10**9)
        assert tree.ended_by in {*budget, "budget_trajectories", "exhausted"}

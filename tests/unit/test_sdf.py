"""Sparse Deep Fork on scripts: main traces, pivots, and what is given back."""

from collections import Counter

import pytest
from scipy import stats
from scripted import Oracle, ScriptedBackend, Step, random_script, search, search_all

from arts_plugin.errors import SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.settings import Settings
from arts_plugin.training.pools import main_leaves
from arts_plugin.tree import ReasoningTree

# Every trace has exactly four steps, so three intermediate states.
LADDER = {
    "q": [Step("a\n", 0.5, "1"), Step("b\n", 0.5, "1")],
    "1": [Step("c\n", 0.5, "2"), Step("d\n", 0.5, "2")],
    "2": [Step("e\n", 0.5, "3"), Step("f\n", 0.5, "3")],
    "3": [Step("g\n", 0.5), Step("h\n", 0.5)],
}


def deep_fork(plugins: Plugins, traces: int = 8, p: float = 0.5, seed: int = 0, **more: object) -> ReasoningTree:
    backend = ScriptedBackend(more.pop("script", LADDER), slots=4)
    return search(
        backend, plugins, oracle=Oracle(lambda text: 0.0), strategy="sdf", width=traces, fork_probability=p,
        budget_trajectories=2 * traces, seed=seed, slots=4, **more,
    )  # fmt: skip


def forks(tree: ReasoningTree) -> list[int]:
    """Depths of the states that have a second child."""
    return [node.step for node in tree.nodes[1:] if len(node.children) > 1]


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_certain_and_impossible_forks(plugins: Plugins, p: float) -> None:
    tree = deep_fork(plugins, p=p)
    assert len(main_leaves(tree)) == 8
    assert tree.n_finished == 8 * (1 + p)
    assert len(forks(tree)) == 8 * p
    assert tree.ended_by == ("budget_trajectories" if p == 1 else "exhausted")


def test_number_and_place_of_forks(plugins: Plugins) -> None:
    """Binomial(N, p) forks, and their pivots uniform over the intermediate states; at most one a trace."""
    found = [forks(deep_fork(plugins, traces=20, seed=seed)) for seed in range(60)]
    total, places = sum(map(len, found)), Counter(depth for depths in found for depth in depths)
    assert stats.binomtest(total, 20 * 60, 0.5).pvalue > 0.001
    assert set(places) == {1, 2, 3}
    assert stats.chisquare([places[d] for d in (1, 2, 3)]).pvalue > 0.001


def test_main_traces_are_those_of_best_of_n(plugins: Plugins) -> None:
    """Forks take nothing from the pool of independent traces, whatever the script and the engine's order."""
    script = random_script(3)
    sdf = search(
        ScriptedBackend(script, slots=4, jitter=0.4, order=5), plugins, strategy="sdf", width=6, fork_probability=1.0,
        budget_trajectories=12,
    )  # fmt: skip
    pool = search(ScriptedBackend(script, slots=4), plugins, strategy="best_of_n", budget_trajectories=6)
    mains = [sdf.trajectory(leaf).text for leaf in main_leaves(sdf)]
    assert mains == [pool.trajectory(leaf).text for leaf in main_leaves(pool)]
    assert main_leaves(pool) == [t.leaf for t in pool.trajectories()]


def test_tree_does_not_depend_on_the_order_of_completion(plugins: Plugins) -> None:
    script = random_script(4)
    made = [
        search(
            ScriptedBackend(script, slots=slots, jitter=jitter, order=order), plugins, strategy="sdf", width=6,
            budget_trajectories=12,
        )
        for slots, jitter, order in ((1, 0.0, 0), (4, 0.0, 0), (4, 0.5, 1), (9, 0.5, 2))
    ]  # fmt: skip
    for tree in made:
        tree.cost.seconds = 0.0
        tree.cost.prefilled_tokens = 0
    assert len({tree.to_json() for tree in made}) == 1


def test_states_are_given_back_while_the_search_goes_on(plugins: Plugins) -> None:
    """Once a main trace has ended, only its pivot is kept: with p = 0 no more states live than slots times depth."""
    backend = ScriptedBackend(LADDER, slots=2)
    settings = Settings.of(strategy="sdf", width=40, fork_probability=0.0, budget_trajectories=80, slots=2)
    search_all(backend, plugins, [("q", settings)])
    assert backend.most_live < 16


def test_a_trace_of_one_step_is_not_forked(plugins: Plugins) -> None:
    tree = deep_fork(plugins, p=1.0, script={"q": [Step("x\n", 1.0)]})
    assert tree.n_finished == 8
    assert not forks(tree)


@pytest.mark.parametrize("budget", [{"budget_nodes": 13}, {"budget_tokens": 17}])
def test_other_budgets_end_it(plugins: Plugins, budget: dict[str, int]) -> None:
    tree = deep_fork(plugins, max_step_tokens=2, **budget)
    assert tree.ended_by == next(iter(budget))
    spent = tree.n_proposals if "budget_nodes" in budget else tree.cost.decoded_tokens
    assert 0 < spent <= next(iter(budget.values()))


def test_fork_probability_is_a_probability() -> None:
    with pytest.raises(SettingsError, match=r"fork_probability is 1\.5"):
        Settings.of(fork_probability=1.5)


def test_the_root_holds_the_prompts_tokens(plugins: Plugins) -> None:
    tree = deep_fork(plugins)
    assert tree.nodes[0].token_ids == list(b"q")
    assert ReasoningTree.from_json(tree.to_json()).nodes[0].token_ids == list(b"q")

"""Particles against enumeration: estimates without bias, whatever is resampled on the way."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import numpy as np
import pytest
from scripted import Oracle, Script, ScriptedBackend, Step, random_script, search, traces

from arts_plugin.plugins import Plugins
from arts_plugin.search.select import PARTICLES, select
from arts_plugin.search.smc import Smc
from arts_plugin.tree import ReasoningTree

N = 4
SCRIPT: Script = {
    "q": [Step("a\n", 0.7, "a"), Step("b\n", 0.3, "b")],
    "a": [Step("c\n", 0.5, "c"), Step("stop", 0.5)],
    "b": [Step("c\n", 0.9, "c"), Step("end", 0.1)],
    "c": [Step("x", 0.2), Step("y", 0.8)],
}


def log_flow(text: str) -> float:
    """Any function of the text will do: an estimate that is unbiased for one twist is for all."""
    return 2.5 * random.Random(text).uniform(-1, 1)


def run(plugins: Plugins, seed: int, **settings: object) -> ReasoningTree:
    backend = ScriptedBackend(SCRIPT, slots=3)
    given = {"strategy": "smc", "budget_trajectories": N, "seed": seed, **settings}
    return search(backend, plugins, oracle=Oracle(log_flow), **given)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_estimates_are_unbiased(beta: float, plugins: Plugins) -> None:
    """Of the normaliser, and of the target mass of every trace: E[Z x share of particles] = p F^beta / F(root)^beta."""
    want = {text: p * math.exp(beta * (log_flow(text) - log_flow(""))) for text, p in traces(SCRIPT, "q").items()}
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(1500):
        tree = run(plugins, seed, beta=beta)
        z = math.exp(tree.meta["smc_log_z"])
        held = tree.meta[PARTICLES]
        assert sum(held.values()) == N
        found["Z"].append(z)
        for text in want:
            leaves = [str(t.leaf) for t in tree.trajectories() if t.text == text]
            found[text].append(z * sum(held.get(leaf, 0) for leaf in leaves) / N)
    for text, values in found.items():
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        expected = sum(want.values()) if text == "Z" else want[text]
        assert abs(np.mean(values) - expected) < 4 * error + 1e-12, text


def test_flat_flows_resample_nothing(plugins: Plugins) -> None:
    """beta=0: all weights stay equal, so particles are chains, and Z is 1."""
    for seed in range(10):
        tree = run(plugins, seed, beta=0.0)
        assert tree.meta["smc_log_z"] == pytest.approx(0.0)
        assert {t.leaf: t.count for t in tree.trajectories()} == {int(k): v for k, v in tree.meta[PARTICLES].items()}


def test_resampling_is_systematic_and_only_when_needed() -> None:
    tree = ReasoningTree(problem="2a")
    made = Smc(tree, _no_budget(), particles=8)
    made._log_weight[:] = np.log([0.5, 0.25, 0.125, 0.125, 1e-9, 1e-9, 1e-9, 1e-9])
    everyone = range(8)
    assert made._ess(everyone) == pytest.approx(1 / (0.25 + 0.0625 + 2 * 0.015625), rel=1e-6)
    made._at = list(everyone)
    made._resample(everyone)
    assert [made._at.count(i) for i in range(4)] == [4, 2, 1, 1]
    assert made._ess(everyone) == pytest.approx(8)


def test_those_that_are_finished_stay_and_the_sum_of_the_others_is_kept() -> None:
    tree = ReasoningTree(problem="2a")
    made = Smc(tree, _no_budget(), particles=4)
    weights = np.array([8.0, 0.5, 4.0, 0.1])
    made._log_weight[:] = np.log(weights)
    made._at = [1, 2, 3, 4]
    made._resample([1, 3])
    assert made._at[0] == 1 and made._at[2] == 3 and {made._at[1], made._at[3]} <= {2, 4}
    assert np.exp(made._log_weight) == pytest.approx([8.0, 0.3, 4.0, 0.3])


def test_each_particle_finishes_once(plugins: Plugins) -> None:
    """So the trajectory budget is kept, and used up."""
    for seed in range(60):
        backend = ScriptedBackend(random_script(seed % 10, depth=4), slots=4)
        tree = search(backend, plugins, oracle=Oracle(log_flow), strategy="smc", budget_trajectories=6, seed=seed)
        assert (tree.n_finished, tree.ended_by) == (6, "exhausted")


def _no_budget() -> object:
    from arts_plugin.search.budget import Budget

    return Budget()


def test_the_tree_does_not_depend_on_the_batch(plugins: Plugins) -> None:
    script = random_script(3, depth=4)
    for seed in range(6):
        trees = []
        for order in range(5):
            backend = ScriptedBackend(script, slots=3, jitter=0.6, order=order)
            trees.append(
                search(backend, plugins, oracle=Oracle(log_flow), strategy="smc", budget_trajectories=6, seed=seed)
            )
        assert len({tuple((n.text, n.parent, n.count) for n in tree.nodes) for tree in trees}) == 1
        assert len({str(tree.meta[PARTICLES]) for tree in trees}) == 1


def test_particles_vote(plugins: Plugins) -> None:
    """A trajectory counts as often as particles are on it, and not at all without one."""
    tree = ReasoningTree(problem="2a")
    for index, answer in enumerate("112"):
        tree.add(0, index=index, text=answer, token_ids=[1], logprob=-1.0, terminal=True, stop="eos", answer=answer)
    assert select(tree, "majority") in {1, 2}
    tree.meta[PARTICLES] = {"1": 1, "3": 5}
    assert select(tree, "majority") == 3


@pytest.mark.parametrize("budget", [{"budget_tokens": 9}, {"budget_nodes": 6}, {"budget_tokens": 1}])
def test_other_budgets_end_it_as_well(budget: dict[str, int], plugins: Plugins) -> None:
    for seed in range(20):
        tree = run(plugins, seed, **budget)
        assert tree.ended_by in {*budget, "exhausted"}
        spent = sum(len(node.token_ids) * node.count for node in tree.nodes[1:])
        assert spent <= budget.get("budget_tokens", 10**9)
        assert all(tree.nodes[int(leaf)].terminal for leaf in tree.meta[PARTICLES])

"""Visibility amplification: proved on scripts whose every probability is known."""

import math

from scipy import stats
from scripted import Oracle, Script, ScriptedBackend, Step, search_all

from arts_plugin.plugins import Plugins
from arts_plugin.settings import Settings

RIGHT = (0.3, 0.25, 0.35, 0.3)
"""Probability of the right step at each height."""
K = 4


def needle_script() -> Script:
    """One right step at each height; whoever misses one walks on among wrong steps, to the same length."""
    script: dict[str, list[Step]] = {}
    for h, p in enumerate(RIGHT):
        last = h == len(RIGHT) - 1
        wrong = None if last else f"lost{h + 1}"
        astray = [Step(f"u{h}\n", (1 - p) / 2, wrong), Step(f"v{h}\n", (1 - p) / 2, wrong)]
        script[f"right{h}"] = [Step(f"r{h}\n", p, None if last else f"right{h + 1}"), *astray]
        script[f"lost{h}"] = [Step(f"u{h}\n", 0.5, wrong), Step(f"v{h}\n", 0.5, wrong)]
    return script


NEEDLE = "".join(f"r{h}\n" for h in range(len(RIGHT)))
ORACLE_FLOW = 100.0


def times_found(plugins: Plugins, trees: int, **settings: object) -> int:
    # An oracle that sends every draw to the longest right prefix.
    oracle = Oracle(lambda text: ORACLE_FLOW * len(text) if NEEDLE.startswith(text) else -ORACLE_FLOW)
    jobs = [("right0", Settings.of(settings, seed=seed)) for seed in range(trees)]
    grown = search_all(ScriptedBackend(needle_script(), slots=64), plugins, jobs, oracle)
    steps = len(RIGHT) * K
    assert all(tree.n_proposals <= steps for tree in grown), "both must get the same number of steps"
    return sum(any(t.text == NEEDLE for t in tree.trajectories()) for tree in grown)


def test_visibility_amplification(plugins: Plugins) -> None:
    """P(found): prod_h [1 - (1 - p_h)^K] for a tree that keeps one state a step, 1 - (1 - prod_h p_h)^K for chains."""
    trees = 1200
    amplified = math.prod(1 - (1 - p) ** K for p in RIGHT)
    plain = 1 - (1 - math.prod(RIGHT)) ** K
    steps = len(RIGHT) * K
    tree = times_found(plugins, trees, slots=K, width=K, beta=1.0, budget_trajectories=None, budget_nodes=steps)
    chain = times_found(plugins, trees, strategy="best_of_n", budget_trajectories=K, budget_nodes=steps)
    low, high = stats.binomtest(tree, trees).proportion_ci(0.95)
    assert low <= amplified <= high
    assert low > 5 * plain, "the amplification must be seen, not only allowed for"
    low, high = stats.binomtest(chain, trees).proportion_ci(0.95)
    assert low <= plain <= high


def test_amplification_is_lost_without_the_oracle(plugins: Plugins) -> None:
    """Uniform draws spread the same steps over wrong prefixes: the flow is what finds the needle."""
    trees = 600
    amplified = math.prod(1 - (1 - p) ** K for p in RIGHT)
    steps = len(RIGHT) * K
    blind = times_found(plugins, trees, slots=K, width=K, beta=0.0, budget_trajectories=None, budget_nodes=steps)
    assert stats.binomtest(blind, trees, amplified, alternative="less").pvalue < 1e-9

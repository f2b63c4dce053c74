"""K = 1 from a root of N is best-of-N with equal proposals merged: proved on scripts whose every probability is known."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from goodness import ALPHA, fit
from scipy import stats
from scripted import Script, ScriptedBackend, Step, random_script, search, search_all, traces

from arts_plugin.plugins import Plugins
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

CHAINS = 6


def chain_script() -> Script:
    """Few first steps, so that several of six chains begin alike, and continuations that differ by first step."""
    return {
        "q": [Step("a\n", 0.6, "A"), Step("b\n", 0.3, "B"), Step("c!", 0.1)],
        "A": [Step("x\n", 0.5, "X"), Step("y!", 0.5, length=2)],
        "B": [Step("x\n", 0.2, "X"), Step("z!", 0.8)],
        "X": [Step("1.", 0.7), Step("22.", 0.3, length=3)],
    }


def forests(plugins: Plugins, strategy: str, seeds: range) -> list[ReasoningTree]:
    settings = (
        {"strategy": "arts", "slots": CHAINS, "width": 1, "budget_trajectories": None, "budget_nodes": 1000}
        if strategy == "arts"
        else {"strategy": "best_of_n", "budget_trajectories": CHAINS}
    )
    jobs = [("q", Settings.of(settings, seed=seed)) for seed in seeds]
    trees = search_all(ScriptedBackend(chain_script(), slots=64), plugins, jobs)
    ended = "exhausted" if strategy == "arts" else "budget_trajectories"
    assert all(tree.ended_by == ended for tree in trees), "every chain must be allowed to finish"
    return trees


def chains(tree: ReasoningTree) -> list[tuple[int, int, str]]:
    """(index at the root, count there, text) of each chain."""
    found = []
    for trajectory in tree.trajectories():
        first = tree.nodes[trajectory.nodes[1]]
        found.append((first.index, first.count, trajectory.text))
    return found


def test_width_one_grows_the_first_chain_of_each_kind(plugins: Plugins) -> None:
    """Exactly: with the same seed, what `arts` grows is best-of-N with chains of equal first steps merged."""
    first_step = 2
    merged = 0
    pairs = zip(forests(plugins, "arts", range(60)), forests(plugins, "best_of_n", range(60)), strict=True)
    for arts, best_of_n in pairs:
        independent = sorted(chains(best_of_n))
        assert [(index, count) for index, count, _ in independent] == [(i, 1) for i in range(CHAINS)]
        kinds: dict[str, tuple[int, int, str]] = {}
        for index, _, text in independent:
            first, count, kept = kinds.get(text[:first_step], (index, 0, text))
            kinds[text[:first_step]] = (first, count + 1, kept)
        assert sorted(chains(arts)) == sorted(kinds.values())
        merged += CHAINS - len(kinds)
    assert merged > 60


def one_trace_each(trees: Sequence[ReasoningTree], weighed: bool) -> Counter[str]:
    """One trace of each tree (traces of one tree are not independent), drawn by the count of its first step or not."""
    rng = np.random.default_rng(3)
    seen: Counter[str] = Counter()
    for tree in trees:
        grown = chains(tree)
        weights = np.array([count if weighed else 1 for _, count, _ in grown], dtype=float)
        seen[grown[int(rng.choice(len(grown), p=weights / weights.sum()))][2]] += 1
    return seen


def test_width_one_has_the_distribution_of_best_of_n(plugins: Plugins) -> None:
    exact = traces(chain_script(), "q")
    assert math.isclose(sum(exact.values()), 1)
    # Other seeds for each, or the two samples would share their chains.
    arts = forests(plugins, "arts", range(1000))
    seen = one_trace_each(arts, weighed=True)
    rival = one_trace_each(forests(plugins, "best_of_n", range(1000, 2000)), weighed=True)
    texts = list(exact)
    assert set(seen) | set(rival) <= set(texts)
    assert fit([seen[text] for text in texts], list(exact.values())) > ALPHA
    assert fit([rival[text] for text in texts], list(exact.values())) > ALPHA
    table = [[seen[text] for text in texts], [rival[text] for text in texts]]
    assert stats.chi2_contingency(table).pvalue > ALPHA
    unweighed = one_trace_each(arts, weighed=False)
    assert fit([unweighed[text] for text in texts], list(exact.values())) < 1e-9, "counts must matter"


def test_merged_proposals_are_equal_and_unmerged_ones_differ(plugins: Plugins) -> None:
    tree = search(ScriptedBackend(random_script(4)), plugins, slots=12, width=4, budget_trajectories=30)
    assert max(node.count for node in tree.nodes) > 1
    for node in tree.nodes:
        tokens = [tuple(tree.nodes[child].token_ids) for child in node.children]
        assert len(set(tokens)) == len(tokens)
    independent = search(ScriptedBackend(random_script(4)), plugins, strategy="best_of_n", budget_trajectories=30)
    first = [tuple(independent.nodes[child].token_ids) for child in independent.nodes[0].children]
    assert len(first) == 30 > len(set(first))

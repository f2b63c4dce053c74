"""States are drawn in proportion to flow: proved on scripts whose every probability is known."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from goodness import ALPHA, fit
from scipy import stats
from scripted import Oracle, Script, ScriptedBackend, Step, search_all

from arts_plugin.plugins import Plugins
from arts_plugin.search.arts import Arts, draw_without_replacement
from arts_plugin.search.base import Proposal
from arts_plugin.search.budget import Budget
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree


def first_drawn(log_flows: Sequence[float | None], seed: int, beta: float) -> int:
    """Which of the root's children is expanded first."""
    n = len(log_flows)
    strategy = Arts(ReasoningTree(problem="2a"), Budget(nodes=100), width=n, slots=n, beta=beta, seed=seed)
    asked = strategy.ask(n)
    assert [(e.node, e.index) for e in asked] == [(0, i) for i in range(n)]
    strategy.tell(
        [
            Proposal(e, f"{e.index}\n", [e.index], -1.0, "delimiter", False, log_flow=log_flow)
            for e, log_flow in zip(asked, log_flows, strict=True)
        ]
    )
    drawn = {e.node for e in strategy.ask(100)}
    assert len(drawn) == 1, "with slots = K one state is drawn at a time"
    return drawn.pop() - 1


FLOWS = (1.0, 2.0, 3.0, 6.0)
LOG_FLOWS = tuple(math.log(flow) for flow in FLOWS)


def visits(beta: float, draws: int = 4000) -> list[int]:
    counts = Counter(first_drawn(LOG_FLOWS, seed, beta) for seed in range(draws))
    return [counts[i] for i in range(len(FLOWS))]


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_first_visits_are_proportional_to_flow(beta: float) -> None:
    weights = np.array(FLOWS) ** beta
    assert fit(visits(beta), weights / weights.sum()) > ALPHA


def test_uniform_draws_would_be_noticed() -> None:
    """The power of the test above: it tells apart beta = 0, 1 and 2."""
    proportional = np.array(FLOWS) / sum(FLOWS)
    assert fit(visits(0.0), proportional) < 1e-9
    assert fit(visits(2.0), proportional) < 1e-9
    assert fit(visits(1.0), np.full(4, 0.25)) < 1e-9


def test_beta_zero_ignores_even_an_impossible_flow() -> None:
    counts = Counter(first_drawn((-math.inf, 0.0, 5.0), seed, 0.0) for seed in range(1500))
    assert fit([counts[i] for i in range(3)], [1 / 3] * 3) > ALPHA


def test_states_without_flow_are_drawn_uniformly() -> None:
    counts = Counter(first_drawn((None, None, None), seed, 1.0) for seed in range(1500))
    assert fit([counts[i] for i in range(3)], [1 / 3] * 3) > ALPHA


def test_equally_impossible_states_share_their_draws() -> None:
    counts = Counter(first_drawn((-math.inf,) * 3, seed, 1.0) for seed in range(1500))
    assert fit([counts[i] for i in range(3)], [1 / 3] * 3) > ALPHA


def test_impossible_states_come_last_and_certain_ones_first() -> None:
    rng = np.random.default_rng(0)
    weights = np.array([-math.inf, 700.0, math.inf, -700.0])
    for systematic in (False, True):
        assert [draw_without_replacement(weights, 1, rng, systematic)[0] for _ in range(20)] == [2] * 20
        for _ in range(20):
            assert 0 not in draw_without_replacement(weights, 3, rng, systematic)


def test_several_draws_are_without_replacement() -> None:
    """Ordered pairs: w_i / W, then w_j / (W - w_i)."""
    rng = np.random.default_rng(1)
    counts = Counter(tuple(draw_without_replacement(np.array(LOG_FLOWS), 2, rng)) for _ in range(6000))
    total = sum(FLOWS)
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    assert set(counts) <= set(pairs)
    expected = [FLOWS[i] / total * FLOWS[j] / (total - FLOWS[i]) for i, j in pairs]
    assert fit([counts[pair] for pair in pairs], expected) > ALPHA


@pytest.mark.parametrize(
    ("weights", "count", "inclusion"),
    [
        ((1.0, 2.0, 3.0, 4.0), 2, (0.2, 0.4, 0.6, 0.8)),
        # 90 is too heavy for 3 * 90 / 100: it is certain, and two places are left for weights of 10 in all.
        ((90.0, 1.0, 2.0, 3.0, 4.0), 3, (1.0, 0.2, 0.4, 0.6, 0.8)),
    ],
)
def test_systematic_inclusion_is_proportional(
    weights: tuple[float, ...], count: int, inclusion: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(2)
    draws = 4000
    included = Counter[int]()
    for _ in range(draws):
        chosen = draw_without_replacement(np.log(weights), count, rng, systematic=True)
        assert len(set(chosen)) == count
        included.update(chosen)
    for i, p in enumerate(inclusion):
        assert included[i] == draws if p == 1 else stats.binomtest(included[i], draws, p).pvalue > ALPHA


@pytest.mark.parametrize("draw", ["multinomial", "systematic"])
def test_visits_are_proportional_to_flow_through_the_driver(draw: str, plugins: Plugins) -> None:
    flows = {"a\n": 1.0, "b\n": 2.0, "c\n": 3.0}
    script: Script = {
        "q": [Step("a\n", 0.5, "end"), Step("b\n", 0.3, "end"), Step("c\n", 0.2, "end")],
        "end": [Step("z\n", 1.0)],
    }
    oracle = Oracle(lambda text: math.log(flows.get(text, 1.0)))
    # Sixteen proposals, so that all three states are open in nearly every tree; then one draw, with one proposal.
    common = {"slots": 16, "width": 16, "budget_trajectories": None, "budget_nodes": 17, "draw": draw}
    jobs = [("q", Settings.of(common, seed=seed)) for seed in range(1000)]
    seen: Counter[str] = Counter()
    for tree in search_all(ScriptedBackend(script, slots=64), plugins, jobs, oracle):
        children = [node for node in tree.nodes if node.parent == 0]
        if len(children) == 3:
            seen[tree.nodes[tree.nodes[4].parent or 0].text] += 1
    assert seen.total() > 900
    assert fit([seen[text] for text in flows], np.array(list(flows.values())) / 6) > ALPHA


def test_the_first_draw_waits_for_the_whole_root() -> None:
    """With room for several draws, a state of the root could be drawn before the others are known."""
    strategy = Arts(ReasoningTree(problem="1"), Budget(nodes=100), width=2, slots=6)
    asked = strategy.ask(100)
    assert len(asked) == 6
    for expansion in asked[:-1]:
        strategy.tell([Proposal(expansion, str(expansion.index), [expansion.index], 0.0, "delimiter", False, 0.0)])
        assert strategy.ask(100) == []
    strategy.tell([Proposal(asked[-1], "5", [5], 0.0, "delimiter", False, 0.0)])
    drawn = strategy.ask(100)
    assert len(drawn) == 6
    assert len({expansion.node for expansion in drawn}) == 3

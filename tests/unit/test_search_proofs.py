"""What the project promises of its searches, proved on scripts whose every probability is known."""

import json
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats
from scripted import Oracle, Script, ScriptedBackend, Step, random_script, search, search_all, traces

from arts_plugin.plugins import Plugins
from arts_plugin.search.arts import Arts, draw_without_replacement
from arts_plugin.search.base import Proposal
from arts_plugin.search.budget import Budget
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

ALPHA = 0.001
"""Level of every test of fit: seeds are fixed, so a test that passes once always does."""


def fit(counts: Sequence[int], expected: Sequence[float]) -> float:
    """p-value of the chi-square test that `counts` come from the distribution `expected`."""
    assert min(expected) * sum(counts) > 5, "too few draws for a chi-square test"
    return float(stats.chisquare(counts, np.array(expected) * sum(counts)).pvalue)


# Draws in proportion to flow.


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


# K = 1 from a root of N is best-of-N.

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


# Visibility amplification.

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


# Trees are reproducible.

BUDGETS = [
    {"budget_trajectories": 6},
    {"budget_trajectories": None, "budget_nodes": 23},
    {"budget_trajectories": None, "budget_tokens": 90, "max_step_tokens": 8},
    {"budget_trajectories": 7, "budget_tokens": 150, "budget_nodes": 40, "max_step_tokens": 3},
]
STRATEGIES = [
    {"strategy": "arts", "slots": 5, "width": 2},
    {"strategy": "arts", "slots": 9, "width": 3, "draw": "systematic"},
    {"strategy": "arts", "slots": 1, "width": 3, "beta": 0.0},
    {"strategy": "best_of_n", "slots": 4},
    {"strategy": "greedy"},
]


def shape(tree: ReasoningTree) -> dict[str, object]:
    """Everything but what the engine spent: cancelled work depends on what was under way."""
    record = json.loads(tree.to_json())
    del record["cost"], record["meta"]
    return dict(record)


def flow_of(text: str) -> float:
    return math.sin(len(text)) + text.count("0") - 0.5 * text.count("1")


@pytest.mark.parametrize("budget", BUDGETS, ids=["trajectories", "nodes", "tokens", "three"])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=["arts", "systematic", "narrow", "best_of_n", "greedy"])
def test_tree_depends_on_nothing_else(strategy: dict[str, object], budget: dict[str, object], plugins: Plugins) -> None:
    """Not on free slots, the order in which steps end, or the questions beside it."""
    script = {**random_script(4), **{f"{name}#": steps for name, steps in random_script(5).items()}}
    settings = Settings.of({**strategy, **budget}, seed=11)
    oracle = Oracle(flow_of)
    alone = shape(search_all(ScriptedBackend(script, slots=5), plugins, [("q", settings)], oracle)[0])
    assert len(alone["nodes"]) > 2  # type: ignore[arg-type]
    for slots in (1, 2, 3, 16, 64):
        backend = ScriptedBackend(script, slots=slots)
        assert shape(search_all(backend, plugins, [("q", settings)], oracle)[0]) == alone, f"{slots} slots"
    for order in range(6):
        backend = ScriptedBackend(script, slots=5, jitter=0.6, order=order)
        assert shape(search_all(backend, plugins, [("q", settings)], oracle)[0]) == alone, f"completion order {order}"
    others = [("q/0", Settings.of(slots=3, width=2, budget_trajectories=9, seed=i)) for i in range(5)]
    for place in (0, 3, 5):
        jobs = [*others[:place], ("q", settings), *others[place:]]
        for jitter in (0.0, 0.5):
            backend = ScriptedBackend(script, slots=6, jitter=jitter, order=place)
            assert shape(search_all(backend, plugins, jobs, oracle)[place]) == alone, f"at place {place} of a batch"


def test_completion_order_really_is_shuffled() -> None:
    """Guards the test above: the engine does report in another order."""

    def order_of(jitter: float, order: int) -> list[int]:
        backend = ScriptedBackend(random_script(4), slots=8, jitter=jitter, order=order)
        root = backend.open(backend.encode("q"), _generation(), 7)
        forks = [backend.fork(root, i) for i in range(8)]
        for state in forks:
            backend.submit(state, 50)
        ended = []
        while backend.n_active:
            ended += [forks.index(result.state) for result in backend.poll()]  # type: ignore[arg-type]
        return ended

    orders = {tuple(order_of(0.0, 0)), *(tuple(order_of(0.6, order)) for order in range(4))}
    assert len(orders) == 5
    assert all(sorted(order) == list(range(8)) for order in orders)


def _generation() -> object:
    from arts_plugin.backend import Generation

    return Generation()


def test_another_seed_makes_another_tree(plugins: Plugins) -> None:
    trees = [search(ScriptedBackend(random_script(4)), plugins, seed=seed) for seed in range(4)]
    assert len({tree.to_json().split('"nodes":')[1].split('"cost":')[0] for tree in trees}) == 4


def test_a_larger_pool_begins_with_the_smaller_one(plugins: Plugins) -> None:
    """The first k chains of best-of-N are best-of-k."""
    small, large = (
        search(ScriptedBackend(random_script(6)), plugins, strategy="best_of_n", budget_trajectories=n) for n in (4, 9)
    )
    texts = [t.text for t in large.trajectories()]
    assert len(set(texts)) > 1
    assert [t.text for t in small.trajectories()] == texts[:4]


@pytest.mark.parametrize("strategy", STRATEGIES[:3], ids=["arts", "systematic", "narrow"])
def test_a_larger_search_begins_with_the_smaller_one(strategy: dict[str, object], plugins: Plugins) -> None:
    script = random_script(4, depth=4, fan=7)
    small, large = (
        search(ScriptedBackend(script), plugins, **{**strategy, "budget_trajectories": n})  # type: ignore[arg-type]
        for n in (6, 14)
    )
    assert len(large.nodes) > len(small.nodes) > 4
    for mine, theirs in zip(small.nodes, large.nodes, strict=False):
        assert (mine.parent, mine.index, mine.text) == (theirs.parent, theirs.index, theirs.text)


def test_the_key_of_a_problem() -> None:
    """It depends on what shapes a step; not on the seed, which is mixed in later, nor on budgets or the strategy."""

    def key(prompt: str = "q", stops: tuple[str, ...] = (), **settings: object) -> int:
        backend = ScriptedBackend({"q": [Step("a.", 1.0)]})
        return Job(backend.encode(prompt), Settings.of(settings), stops).problem()

    same = [key(), key(seed=5), key(budget_trajectories=3), key(strategy="best_of_n"), key(width=7, slots=3)]
    assert len(set(same)) == 1
    others = [
        key("r"),
        key(stops=("x",)),
        key(temperature=0.5),
        key(delimiter="x"),
        key(max_step_tokens=3),
        key(top_k=1),
    ]
    assert len({*same, *others}) == 7


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


def test_merged_proposals_are_equal_and_unmerged_ones_differ(plugins: Plugins) -> None:
    tree = search(ScriptedBackend(random_script(4)), plugins, slots=12, width=4, budget_trajectories=30)
    assert max(node.count for node in tree.nodes) > 1
    for node in tree.nodes:
        tokens = [tuple(tree.nodes[child].token_ids) for child in node.children]
        assert len(set(tokens)) == len(tokens)
    independent = search(ScriptedBackend(random_script(4)), plugins, strategy="best_of_n", budget_trajectories=30)
    first = [tuple(independent.nodes[child].token_ids) for child in independent.nodes[0].children]
    assert len(first) == 30 > len(set(first))

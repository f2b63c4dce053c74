"""Trees are reproducible: what a tree depends on, and that a larger search begins with the smaller one."""

import json
import math

import pytest
from scripted import Oracle, ScriptedBackend, Step, random_script, search, search_all

from arts_plugin.plugins import Plugins
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

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

"""Budgets are hard, in each of the four currencies and together, and nothing that was paid for is lost."""

import logging
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from scripted import Oracle, Script, ScriptedBackend, Step, random_script, search, search_all

from arts_plugin import builtin, hookimpl
from arts_plugin.plugins import Plugins
from arts_plugin.search.arts import Arts
from arts_plugin.search.base import Expansion
from arts_plugin.search.budget import Budget, TokenMeter, ended_by_clock
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

NO_BUDGET = {"budget_trajectories": None}


class Clock:
    """Stands in for time.perf_counter: it moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Every poll takes a second where `on_poll=clock.tick`."""
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


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


def loop_script(length: int = 4) -> Script:
    """Traces that never end by themselves."""
    return {"q": [Step("a" * length + "\n", 0.5, "q", length), Step("b" * length + "\n", 0.5, "q", length)]}


def spent(tree: ReasoningTree) -> int:
    return tree.cost.decoded_tokens + tree.cost.refilled_tokens


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


@pytest.mark.parametrize("strategy", ["arts", "best_of_n"])
def test_tokens_are_spent_to_the_last(strategy: str, plugins: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    """Traces never end, so nothing but the budget can stop the search; it says nothing about strategies that stall."""
    with caplog.at_level(logging.WARNING):
        for tokens in (1, 2, 17, 50):
            for slots in (1, 3):
                settings = {"strategy": strategy, "slots": slots, "budget_tokens": tokens, **NO_BUDGET}
                tree = search(ScriptedBackend(loop_script(), slots=slots), plugins, **settings)
                assert tree.ended_by == "budget_tokens"
                assert tree.cost.decoded_tokens == tokens
                assert sum(len(node.token_ids) * node.count for node in tree.nodes[1:]) == tokens
    assert not [record.message for record in caplog.records if "strategy" in record.message]


def test_a_budget_that_goes_into_breadth_is_said_once(plugins: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    """Sixteen branches of a question share tokens that would finish two; with two branches, something is finished."""
    script = {"q": [Step("one\n", 1.0, "r")], "r": [Step("two\n", 1.0, "s")], "s": [Step("three", 1.0, None)]}
    for slots, finished in ((16, False), (2, True)):
        caplog.clear()
        tree = search(ScriptedBackend(script, slots=slots), plugins, slots=slots, budget_tokens=17, **NO_BUDGET)
        assert bool(tree.n_finished) is finished
        said = [r.message for r in caplog.records if "before any trajectory was finished" in r.message]
        assert len(said) == (not finished)
        assert all("starts with 16 branches" in message for message in said)


def test_refilled_tokens_are_paid_from_the_same_budget(plugins: Plugins) -> None:
    settings = {"budget_tokens": 400, "slots": 4, "width": 2, **NO_BUDGET}
    roomy = search(ScriptedBackend(loop_script()), plugins, **settings)
    tight = search(ScriptedBackend(loop_script(), room=0), plugins, **settings)
    assert roomy.cost.refilled_tokens == 0
    assert tight.cost.refilled_tokens > 50
    assert spent(tight) <= 400
    assert tight.n_proposals < roomy.n_proposals
    # The engine is told what a step may cost, refill and all; without a budget there is no such limit.
    backend = ScriptedBackend(loop_script(), room=0)
    search(backend, plugins, **settings)
    assert max(refill for _, _, refill in backend.submitted) > 0
    assert all(allowance == most + refill for most, allowance, refill in backend.submitted)
    unlimited = ScriptedBackend(loop_script(), room=0)
    search(unlimited, plugins, budget_nodes=30, **NO_BUDGET)
    assert {allowance for _, allowance, _ in unlimited.submitted} == {None}
    # It ended because not even a refill and one token were left.
    deepest = max(tight.nodes, key=lambda node: node.step)
    longest = 1 + sum(len(node.token_ids) for node in tight.path(deepest.id))
    assert 400 - spent(tight) < 1 + longest


def test_tokens_are_reserved_before_they_are_spent(plugins: Plugins) -> None:
    """Twelve branches of five tokens would like to run; a budget of twenty lets four of them."""
    backend = ScriptedBackend(loop_script(5), slots=12)
    settings = Settings.of(slots=12, max_step_tokens=5, budget_tokens=20, **NO_BUDGET)
    driver = SearchDriver(backend, plugins)
    list(driver.run([Job(backend.encode("q"), settings)]))
    assert backend.most_active == 4


@pytest.mark.parametrize("strategy", ["arts", "best_of_n"])
def test_states_are_dropped_as_soon_as_they_are_expanded(strategy: str, plugins: Plugins) -> None:
    """A chain of two hundred steps never holds more than its end and the step that is under way."""
    backend = ScriptedBackend(loop_script(1), slots=1)
    settings = {"strategy": strategy, "slots": 1, "width": 1, "budget_trajectories": 1, "budget_nodes": 200}
    assert search(backend, plugins, **settings).n_proposals == 200
    assert backend.most_live <= 2


def test_meter_reserves_whole_steps_unless_nothing_else_runs() -> None:
    meter = TokenMeter(10)
    assert meter.reserve(6, least=1) == 6
    assert meter.reserve(6, least=1) == 0  # the first may leave something over
    assert meter.reserve(4, least=1) == 4
    meter.settle(6, spent=2)
    assert meter.reserve(6, least=1) == 0
    meter.settle(4, spent=4)
    assert (meter.spent, meter.reserved) == (6, 0)
    assert meter.reserve(6, least=5) == 0
    assert meter.reserve(6, least=4) == 4
    meter.settle(4, spent=4)
    assert meter.reserve(1, least=1) == 0


def test_meter_without_a_limit_grants_everything() -> None:
    meter = TokenMeter(None)
    assert [meter.reserve(10**9, least=1) for _ in range(3)] == [10**9] * 3


@pytest.mark.parametrize("strategy", ["arts", "best_of_n", "greedy"])
@pytest.mark.parametrize("extra", [{}, {"budget_nodes": 10_000}, {"budget_tokens": 10_000}])
def test_seconds(strategy: str, extra: dict[str, int], plugins: Plugins, clock: Clock) -> None:
    """Every poll takes a second; steps of several lengths are under way when the time is up."""
    script = {"q": [Step("a\n", 0.4, "q"), Step("b..\n", 0.3, "q", 3), Step("c......\n", 0.3, "q", 7)]}
    backend = ScriptedBackend(script, slots=5, on_poll=clock.tick)
    tree = search(backend, plugins, strategy=strategy, slots=5, budget_seconds=22.5, **NO_BUDGET, **extra)
    assert tree.ended_by == "budget_seconds"
    assert backend.stats.decodes == 23
    assert tree.cost.seconds == 23
    assert tree.cost.decoded_tokens == backend.stats.decoded_tokens
    assert tree.chosen is not None
    assert not tree.trajectory(tree.chosen).finished
    # Everything that came to its end is in the tree; the rest was cancelled.
    kept = sum(len(node.token_ids) * node.count for node in tree.nodes[1:])
    assert 0 <= tree.cost.decoded_tokens - kept <= 5 * 7
    assert 1 <= backend.cancelled <= 5 or kept == tree.cost.decoded_tokens


def test_seconds_begin_at_admission(plugins: Plugins, clock: Clock) -> None:
    """The second question waits for the only slot while the first runs; that time is not its own."""
    script = {"q": [Step("a" * 9 + ".", 1.0, None, 10)]}
    settings = Settings.of(strategy="greedy", budget_seconds=12)
    backend = ScriptedBackend(script, slots=1, on_poll=clock.tick)
    for tree in search_all(backend, plugins, [("q", settings)] * 3):
        assert tree.ended_by == "budget_trajectories"
        assert tree.cost.seconds == 11
    assert clock.now == 133


def test_what_is_in_flight_is_cancelled_and_paid_for(plugins: Plugins) -> None:
    """One trajectory is enough, and ends after two polls; three long steps are then given up, two tokens into each."""
    script: Script = {"q": [Step("a.", 0.5), Step("b" * 30 + "\n", 0.5, "q", 30)]}
    for seed in range(40):
        backend = ScriptedBackend(script, slots=4)
        tree = search(backend, plugins, slots=4, budget_trajectories=1, seed=seed)
        if backend.cancelled == 3:
            break
    assert tree.ended_by == "budget_trajectories"
    assert backend.cancelled == 3
    assert tree.cost.decoded_tokens == 2 * 4
    assert len(tree.nodes) == 2


@pytest.mark.parametrize(("strategy", "extra"), [("arts", {}), ("best_of_n", {"budget_nodes": 1000})])
def test_results_told_out_of_turn_are_kept(
    strategy: str, extra: dict[str, int], plugins: Plugins, clock: Clock
) -> None:
    """A long step is first in line when the time is up; the short ones behind it have ended and may not be lost."""
    script: Script = {"q": [Step("a\n", 0.8, "q"), Step("b" * 50 + "\n", 0.2, "q", 50)]}
    out_of_turn = 0
    for seed in range(30):
        for polls in (1, 2, 3, 9):
            backend = ScriptedBackend(script, slots=4, on_poll=clock.tick)
            settings = {"strategy": strategy, "slots": 4, "budget_seconds": polls - 0.5, **NO_BUDGET, **extra}
            tree = search(backend, plugins, seed=seed, **settings)
            assert backend.stats.decodes == polls
            # A short step is one token, so whatever was decoded for a step that was not cancelled is in the tree.
            assert tree.cost.decoded_tokens == tree.n_proposals + sum(backend.cancelled_tokens)
            out_of_turn += bool(backend.cancelled) and tree.nodes[-1].index > 0
    assert out_of_turn > 10


def test_best_of_n_with_tokens_alone_starts_chain_after_chain(plugins: Plugins) -> None:
    script: Script = {"q": [Step("a\n", 0.7, "q"), Step("b.", 0.3)]}
    tree = search(
        ScriptedBackend(script, slots=3), plugins, strategy="best_of_n", slots=3, budget_tokens=200,
        max_step_tokens=4, **NO_BUDGET,
    )  # fmt: skip
    assert tree.ended_by == "budget_tokens"
    assert tree.cost.decoded_tokens == 200
    first = [tree.nodes[child] for child in tree.nodes[0].children]
    assert len(first) > 10
    assert sorted(node.index for node in first) == list(range(len(first)))
    assert sum(not leaf.terminal for leaf in tree.leaves()) <= 3


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


def test_a_budget_too_small_for_one_step_leaves_an_empty_tree(plugins: Plugins, clock: Clock) -> None:
    backend = ScriptedBackend(loop_script(), on_poll=clock.tick)
    tree = search(backend, plugins, budget_seconds=0.5, **NO_BUDGET)
    assert (len(tree.nodes), tree.chosen, tree.text, tree.answer) == (1, None, "", None)
    assert tree.ended_by == "budget_seconds"


def test_exhausted(plugins: Plugins) -> None:
    """A finite script and a budget beyond it: the tree is grown to its end, and every state once."""
    tree = search(ScriptedBackend(random_script(2, depth=3)), plugins, slots=3, width=3, budget_nodes=5000, **NO_BUDGET)
    assert tree.ended_by == "exhausted"
    assert all(leaf.terminal for leaf in tree.leaves())
    for node in tree.nodes:
        if node.children:
            assert sum(tree.nodes[child].count for child in node.children) == 3


def test_a_prompt_that_does_not_fit_is_refused_alone(plugins: Plugins) -> None:
    script = {"q": [Step("a.", 1.0)], "long": [Step("a.", 1.0)]}
    jobs = [(prompt, Settings.of(budget_trajectories=2)) for prompt in ("q", "long", "q")]
    oracle = Oracle(len)
    fine, refused, also_fine = search_all(ScriptedBackend(script, n_ctx=4), plugins, jobs, oracle)
    assert (refused.ended_by, len(refused.nodes), refused.chosen) == ("refused", 1, None)
    assert refused.error is not None and "4 tokens" in refused.error
    assert fine.error is None and also_fine.error is None
    assert fine.text == also_fine.text == "a."


def test_a_caller_who_stops_cancels_everything(plugins: Plugins) -> None:
    finished: list[ReasoningTree] = []

    class Watch:
        @hookimpl
        def arts_finished(self, tree: ReasoningTree) -> None:
            finished.append(tree)

    watch = Watch()
    plugins.register(watch)
    try:
        backend = ScriptedBackend(loop_script(), slots=4)
        settings = Settings.of(slots=2, budget_nodes=10_000, **NO_BUDGET)
        events = SearchDriver(backend, plugins).events(Job(backend.encode("q"), settings) for _ in range(2))
        for event, _ in zip(events, range(30), strict=False):
            assert event.kind == "expanded"
        assert backend.n_active
        events.close()
    finally:
        plugins.unregister(watch)
    assert [tree.ended_by for tree in finished] == ["cancelled"] * 2
    assert (backend.n_active, len(backend.live)) == (0, 0)
    assert sum(tree.cost.decoded_tokens for tree in finished) == backend.stats.decoded_tokens


class BrokenError(Exception):
    """Raised by a verifier in the test below."""


def test_an_exception_leaves_nothing_behind(plugins: Plugins) -> None:
    def score(text: str) -> float:
        if text.count("\n") > 2:
            raise BrokenError
        return 0.0

    backend, oracle = ScriptedBackend(loop_script(), slots=4), Oracle(score)
    settings = Settings.of(slots=4, budget_nodes=10_000, **NO_BUDGET)
    with pytest.raises(BrokenError):
        list(SearchDriver(backend, plugins, oracle).run([Job(backend.encode("q"), settings)]))
    assert (backend.n_active, len(backend.live), len(oracle.handles)) == (0, 0, 0)


def test_the_clock_ends_a_search_at_its_limit_and_not_before() -> None:
    assert ended_by_clock(Budget(seconds=2.0), 1.999) is None
    assert ended_by_clock(Budget(seconds=2.0), 2.0) == "budget_seconds"
    assert ended_by_clock(Budget(), 1e9) is None


def test_a_strategy_that_stalls_is_ended_and_named(plugins: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    class Lazy:
        """Asks for one step and then for nothing, without ever saying that it has ended."""

        ended_by = None

        def __init__(self, tree: ReasoningTree) -> None:
            self.tree, self.asked = tree, False

        def ask(self, free: int) -> list[Expansion]:
            first, self.asked = not self.asked, True
            return [Expansion(0, 0)] if first and free else []

        def tell(self, proposals: object) -> list[object]:
            from arts_plugin.search.base import Taken

            return [Taken(p, None) for p in proposals]  # type: ignore[attr-defined]

        def close(self, ended_by: object) -> list[object]:
            return []

    class Plugin:
        @hookimpl
        def arts_register_strategies(self, register: Callable[..., None]) -> None:
            register("lazy", lambda settings, tree: Lazy(tree))

    plugin = Plugin()
    plugins.register(plugin)
    try:
        with caplog.at_level(logging.WARNING):
            tree = search(ScriptedBackend(loop_script()), plugins, strategy="lazy")
    finally:
        plugins.unregister(plugin)
    assert tree.ended_by == "exhausted"
    assert len([record for record in caplog.records if "'lazy'" in record.message]) == 1

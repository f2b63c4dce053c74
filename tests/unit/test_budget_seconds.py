"""A budget of seconds, by a clock that the tests move: it begins with the search, and what has ended by then is kept."""

import time

import pytest
from budgeted import NO_BUDGET, loop_script
from scripted import Script, ScriptedBackend, Step, search, search_all

from arts_plugin.plugins import Plugins
from arts_plugin.search.budget import Budget, ended_by_clock
from arts_plugin.settings import Settings


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


def test_a_budget_too_small_for_one_step_leaves_an_empty_tree(plugins: Plugins, clock: Clock) -> None:
    backend = ScriptedBackend(loop_script(), on_poll=clock.tick)
    tree = search(backend, plugins, budget_seconds=0.5, **NO_BUDGET)
    assert (len(tree.nodes), tree.chosen, tree.text, tree.answer) == (1, None, "", None)
    assert tree.ended_by == "budget_seconds"


def test_the_clock_ends_a_search_at_its_limit_and_not_before() -> None:
    assert ended_by_clock(Budget(seconds=2.0), 1.999) is None
    assert ended_by_clock(Budget(seconds=2.0), 2.0) == "budget_seconds"
    assert ended_by_clock(Budget(), 1e9) is None

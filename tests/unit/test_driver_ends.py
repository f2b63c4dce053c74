"""How the driver ends what it runs: what nobody needs is cancelled or dropped, and nothing is left behind."""

import logging
from collections.abc import Callable

import pytest
from budgeted import NO_BUDGET, loop_script
from scripted import Oracle, Script, ScriptedBackend, Step, search, search_all

from arts_plugin import hookimpl
from arts_plugin.plugins import Plugins
from arts_plugin.search.base import Expansion
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree


@pytest.mark.parametrize("strategy", ["arts", "best_of_n"])
def test_states_are_dropped_as_soon_as_they_are_expanded(strategy: str, plugins: Plugins) -> None:
    """A chain of two hundred steps never holds more than its end and the step that is under way."""
    backend = ScriptedBackend(loop_script(1), slots=1)
    settings = {"strategy": strategy, "slots": 1, "width": 1, "budget_trajectories": 1, "budget_nodes": 200}
    assert search(backend, plugins, **settings).n_proposals == 200
    assert backend.most_live <= 2


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

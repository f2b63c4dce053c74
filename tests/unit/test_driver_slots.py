"""Who gets the engine's slots: never more than there are, to each its share, and what is left over to whoever wants it."""

from __future__ import annotations

import pytest
from scripted import ScriptedBackend, Step, random_script

from arts_plugin.plugins import Plugins
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

SLOTS = 8
LONG = {"long": [Step("x" * 9 + "\n", 1.0, "long", 10)]}
"""Steps of equal length, so that all of a round end in one poll."""


def jobs(backend: ScriptedBackend) -> list[Job]:
    """A wide search and three chains."""
    wide = Settings.of(strategy="best_of_n", budget_trajectories=64, max_gen_toks=100, slots=SLOTS)
    chain = {"strategy": "greedy", "budget_trajectories": 1, "max_gen_toks": 200, "slots": SLOTS}
    prompt = backend.encode("long")
    return [Job(prompt, wide), *(Job(prompt, Settings.of(**chain, seed=seed)) for seed in range(3))]


def watched(plugins: Plugins, fair: bool, order: int) -> list[tuple[int, list[int]]]:
    """At each poll: how many branches run, and of which search how many."""
    backend = ScriptedBackend(LONG, slots=SLOTS, n_ctx=400)
    driver = SearchDriver(backend, plugins, fair=fair)
    seen: list[tuple[int, list[int]]] = []
    backend.on_poll = lambda: seen.append((backend.n_active, [search.in_flight for search in driver._active]))
    list(driver.run(jobs(backend)[::order]))
    return seen


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("order", [1, -1])
def test_no_more_run_than_there_are_slots(fair: bool, order: int, plugins: Plugins) -> None:
    """Also where every step of a round ends in one poll."""
    assert max(running for running, _ in watched(plugins, fair, order)) == SLOTS


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_left_over_of_the_shares_is_used(order: int, plugins: Plugins) -> None:
    """Three chains want one slot each; the wide search has the other five for as long as they run."""
    seen = [shares for _, shares in watched(plugins, True, order) if len(shares) == 4]
    assert len(seen) >= 150
    assert {tuple(sorted(shares)) for shares in seen} == {(1, 1, 1, SLOTS - 3)}


def test_two_wide_searches_share_alike(plugins: Plugins) -> None:
    backend = ScriptedBackend(LONG, slots=SLOTS, n_ctx=400)
    driver = SearchDriver(backend, plugins, fair=True)
    seen: list[list[int]] = []
    backend.on_poll = lambda: seen.append([search.in_flight for search in driver._active])
    list(driver.run([jobs(backend)[0]] * 2))
    assert all(shares == [4, 4] for shares in seen if len(shares) == 2)


def test_who_comes_late_gets_a_share_with_the_next_step_that_ends(plugins: Plugins) -> None:
    backend = ScriptedBackend(LONG, slots=SLOTS, n_ctx=400)
    driver = SearchDriver(backend, plugins, fair=True)
    wide, late, *_ = jobs(backend)
    seen: list[list[int]] = []
    backend.on_poll = lambda: seen.append([search.in_flight for search in driver._active])

    class Door:
        """Lets the second in when the first has run for a while."""

        def __init__(self) -> None:
            self.rest = [late, wide]

        def __iter__(self) -> Door:
            return self

        def __next__(self) -> Job:
            if not self.rest or (len(self.rest) == 1 and len(seen) < 5):
                raise StopIteration
            return self.rest.pop()

    list(driver.run(Door()))
    assert seen[0] == [SLOTS]
    assert sorted(next(shares for shares in seen[10:] if len(shares) == 2)) == [1, SLOTS - 1]


@pytest.mark.parametrize("strategy", ["arts", "adaptive", "beam", "mcts", "smc", "best_of_n"])
def test_trees_do_not_depend_on_who_gets_what(strategy: str, plugins: Plugins) -> None:
    def trees(slots: int, fair: bool) -> list[ReasoningTree]:
        backend = ScriptedBackend(random_script(2), slots=slots)
        made = [
            Job(backend.encode("q"), Settings.of(strategy=strategy, budget_trajectories=6, slots=5, seed=seed))
            for seed in range(4)
        ]
        found = {id(job): tree for job, tree in SearchDriver(backend, plugins, fair=fair).run(made)}
        return [found[id(job)] for job in made]

    shapes = [
        [tuple((n.text, n.parent, n.count) for n in tree.nodes) for tree in trees(slots, fair)]
        for slots in (1, 3, 8)
        for fair in (False, True)
    ]
    assert all(shape == shapes[0] for shape in shapes)

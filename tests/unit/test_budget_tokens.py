"""A budget of tokens: reserved before they are spent, and spent to the last, refills and all."""

import logging

import pytest
from budgeted import NO_BUDGET, loop_script, spent
from scripted import Script, ScriptedBackend, Step, search

from arts_plugin.plugins import Plugins
from arts_plugin.search.budget import TokenMeter
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings


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

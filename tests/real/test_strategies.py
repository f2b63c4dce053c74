"""Every strategy on a real model, with its own verifier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arts_plugin import Arts
from arts_plugin.search.select import PARTICLES
from tests.models import THREADS, smollm2

QUESTIONS = [
    "Tom has 3 pens and buys 2 more. How many pens does he have now?",
    "A box holds 6 eggs. How many eggs are in 4 boxes?",
]
BUDGET = 4


@pytest.fixture(scope="module")
def arts() -> Iterator[Arts]:
    with Arts(
        model=smollm2(), n_ctx=4096, n_threads=THREADS, slots=8, max_gen_toks=24, max_step_tokens=16,
        budget_trajectories=BUDGET, temperature=1.0, delimiter=" ",
    ) as made:  # fmt: skip
        yield made


@pytest.mark.parametrize(
    "strategy", ["arts", "adaptive", "beam", "dvts", "mcts", "smc", "best_of_n", "self_consistency", "greedy"]
)
def test_a_search(strategy: str, arts: Arts) -> None:
    """Two questions in one engine: finished, chosen, paid for to the token, and nothing left in the cache."""
    trees = arts.solve_many(QUESTIONS, strategy=strategy)
    for tree in trees:
        assert tree.error is None and tree.strategy == strategy and tree.scorer == "rfm"
        assert tree.chosen is not None and tree.nodes[tree.chosen].terminal
        assert 1 <= tree.n_finished <= BUDGET
        kept = sum(len(node.token_ids) * node.count for node in tree.nodes[1:])
        assert kept <= tree.cost.decoded_tokens
        if strategy == "smc":
            assert sum(tree.meta[PARTICLES].values()) == BUDGET and "smc_log_z" in tree.meta
        if strategy in {"self_consistency", "smc"}:
            assert tree.select == "majority"
    assert arts.backend.n_active == 0

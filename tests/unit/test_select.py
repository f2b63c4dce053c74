"""Choosing among trajectories: every rule, ties, counts, and what there is to choose when nothing is finished."""

import math
from collections import Counter
from typing import Any

import pytest
from scipy import stats

from arts_plugin.errors import UnknownNameError
from arts_plugin.search.select import RULES, default_rule, select
from arts_plugin.tree import ReasoningTree


def tree_of(*leaves: dict[str, Any], problem: str = "1") -> ReasoningTree:
    """One finished one-token step for each leaf; the answer is also its text."""
    tree = ReasoningTree(problem=problem)
    for leaf in leaves:
        tree.add(0, **{"terminal": True, "token_ids": [1], "stop": "eos", **leaf})
    return tree


def chosen(tree: ReasoningTree, rule: str, seed: int = 0) -> int:
    leaf = select(tree, rule, seed=seed)
    assert leaf is not None
    return leaf


def test_flow_takes_the_highest_terminal_flow() -> None:
    tree = tree_of({"log_flow": -3.0, "count": 9}, {"log_flow": 2.0}, {"log_flow": 1.9})
    assert chosen(tree, "flow") == 2
    # Flows of unfinished states do not count.
    tree.add(0, log_flow=50.0, token_ids=[1])
    assert chosen(tree, "flow") == 2
    assert chosen(tree_of({"log_flow": -math.inf}, {"log_flow": -1e300}), "flow") == 2


def test_a_score_that_is_no_number_is_the_lowest() -> None:
    """One verifier's NaN neither wins nor stops the run, also where all are NaN."""
    nan = {"log_flow": math.nan, "answer": "1"}
    for rule in ("flow", "weighted_vote"):
        assert chosen(tree_of(nan, {"log_flow": -9.0, "answer": "2"}, nan), rule) == 2
        assert chosen(tree_of(nan, {"log_flow": math.nan, "answer": "2"}), rule) in {1, 2}


def test_flow_falls_back_on_the_mean_log_probability() -> None:
    tree = tree_of({"logprob": -4.0, "token_ids": [1, 2, 3, 4]}, {"logprob": -2.0, "token_ids": [1]})
    assert chosen(tree, "flow") == 1
    assert chosen(tree, "logprob") == 1


def test_logprob_ignores_flow() -> None:
    tree = tree_of({"logprob": -1.0, "log_flow": -9.0}, {"logprob": -2.0, "log_flow": 9.0})
    assert chosen(tree, "logprob") == 1
    assert chosen(tree, "flow") == 2


def test_majority_counts_equal_answers_and_merged_proposals() -> None:
    tree = tree_of(
        {"answer": "7", "log_flow": 5.0},
        {"answer": "$1,000$", "log_flow": -5.0},
        {"answer": "1000.0", "log_flow": -4.0},
    )
    assert chosen(tree, "majority") == 3  # the class 1000, and its better trajectory
    tree.nodes[1].count = 3
    assert chosen(tree, "majority") == 1


def test_trajectories_without_an_answer_do_not_vote() -> None:
    tree = tree_of({"answer": None, "count": 9, "log_flow": 9.0}, {"answer": "4", "log_flow": 0.0})
    assert chosen(tree, "majority") == 2
    assert chosen(tree, "weighted_vote") == 2
    assert chosen(tree_of({"log_flow": 1.0}, {"log_flow": 2.0}), "majority") == 2


def test_weighted_vote_sums_flows() -> None:
    """log(e^1 + e^1) > 1.6 > 1: two middling flows beat one good one, but not one that is better still."""
    pair = [{"answer": "a", "log_flow": 1.0}, {"answer": "a", "log_flow": 1.0}]
    assert chosen(tree_of(*pair, {"answer": "b", "log_flow": 1.6}), "weighted_vote") in {1, 2}
    assert chosen(tree_of(*pair, {"answer": "b", "log_flow": 1.8}), "weighted_vote") == 3
    # A merged proposal votes as often as it was drawn: 1 + log 3 > 1.8.
    assert (
        chosen(tree_of({"answer": "a", "log_flow": 1.0, "count": 3}, {"answer": "b", "log_flow": 1.8}), "weighted_vote")
        == 1
    )
    # Nothing is exponentiated on the way.
    far = tree_of(
        {"answer": "a", "log_flow": 5000.0}, {"answer": "b", "log_flow": 5001.0}, {"answer": "b", "log_flow": -math.inf}
    )
    assert chosen(far, "weighted_vote") == 2
    low = tree_of({"answer": "a", "log_flow": -5000.0}, {"answer": "b", "log_flow": -5001.0})
    assert chosen(low, "weighted_vote") == 1
    impossible = tree_of({"answer": "a", "log_flow": -math.inf}, {"answer": "b", "log_flow": -math.inf})
    assert chosen(impossible, "weighted_vote") in {1, 2}


def spread(leaves: list[dict[str, Any]], rule: str, draws: int = 1200) -> Counter[int]:
    """How often each leaf is chosen over many problems and seeds."""
    return Counter(chosen(tree_of(*leaves, problem=f"{i % 40:x}"), rule, seed=i // 40) for i in range(draws))


def test_ties_are_drawn_evenly_and_reproducibly() -> None:
    leaves = [{"answer": text, "log_flow": float(i)} for i, text in enumerate("abca")]
    leaves.append({"answer": "b", "log_flow": -1.0})
    counts = spread(leaves, "majority")
    assert set(counts) == {4, 2}  # the best of a and the best of b; c has one vote
    assert stats.binomtest(counts[2], counts.total()).pvalue > 0.001
    assert len({chosen(tree_of(*leaves), "majority", seed=3) for _ in range(5)}) == 1


def test_random_draws_in_proportion_to_counts() -> None:
    counts = spread([{"count": 1}, {"count": 2}, {"count": 5}], "random")
    expected = [counts.total() * share / 8 for share in (1, 2, 5)]
    assert stats.chisquare([counts[i] for i in (1, 2, 3)], expected).pvalue > 0.001


@pytest.mark.parametrize("rule", RULES)
def test_errors_are_chosen_only_where_there_is_nothing_else(rule: str) -> None:
    broken = {"stop": "error", "log_flow": 99.0, "logprob": -0.1, "answer": "5", "count": 50}
    sound = {"log_flow": -99.0, "logprob": -9.0, "answer": "6"}
    assert chosen(tree_of(broken, sound), rule) == 2
    assert chosen(tree_of(broken), rule) == 1


@pytest.mark.parametrize("rule", RULES)
def test_with_nothing_finished_the_best_unfinished_leaf_is_chosen(rule: str) -> None:
    tree = ReasoningTree()
    tree.add(0, log_flow=90.0, token_ids=[1])
    tree.add(1, log_flow=1.0, token_ids=[2])
    tree.add(1, log_flow=3.0, token_ids=[3])
    tree.add(0, log_flow=2.0, token_ids=[4])
    assert chosen(tree, rule) == 3  # the state above it is higher, but no leaf
    assert not tree.trajectory(3).finished
    assert select(ReasoningTree(), rule) is None


def test_an_unknown_rule_is_refused_with_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="'weighted_votes'; did you mean 'weighted_vote'"):
        select(tree_of({}), "weighted_votes")


def test_default_rules_exist() -> None:
    assert default_rule(True) == "flow"
    assert default_rule(False) == "majority"
    assert {default_rule(True), default_rule(False)} <= set(RULES)

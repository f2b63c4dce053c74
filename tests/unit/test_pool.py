"""Selectors over k-subsets, against every subset written out."""

import itertools
import math

import numpy as np
import pytest

from arts_plugin.evaluation.pool import (
    EXACT,
    SUBSETS,
    Bootstrap,
    PoolProblem,
    best_of_k,
    compare,
    is_rare,
    subsets_of,
    vote,
)
from arts_plugin.evaluation.statistics import bootstrap, oracle_at_k
from arts_plugin.evaluation.table import as_json, as_text, rows

RNG = np.random.default_rng(0)


def slow_best(scores: np.ndarray, correct: np.ndarray, k: int) -> float:
    values = []
    for subset in itertools.combinations(range(len(scores)), k):
        top = max(scores[i] for i in subset)
        values.append(np.mean([correct[i] for i in subset if scores[i] == top]))
    return float(np.mean(values))


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("levels", [2, 3, 100])
def test_best_of_k_is_the_mean_over_all_subsets(k: int, levels: int) -> None:
    """Also with many ties."""
    for _ in range(10):
        scores, correct = RNG.integers(levels, size=7).astype(float), RNG.random(7) < 0.4
        assert math.isclose(best_of_k(scores, correct, k), slow_best(scores, correct, k), abs_tol=1e-12)


def test_equal_scores_choose_at_random() -> None:
    correct = np.array([True, False, False, True, False])
    for k in range(1, 6):
        assert math.isclose(best_of_k(np.zeros(5), correct, k), 0.4)


def test_the_truth_as_score_is_the_oracle() -> None:
    correct = np.array([True, False, False, False, True, False])
    for k in range(1, 7):
        assert math.isclose(best_of_k(correct.astype(float), correct, k), oracle_at_k(6, 2, k))


def slow_vote(classes: np.ndarray, correct: np.ndarray, log_weight: np.ndarray, subset: np.ndarray) -> float:
    mass: dict[int, float] = {}
    for i in subset:
        if classes[i] >= 0:
            mass[classes[i]] = mass.get(classes[i], 0.0) + math.exp(log_weight[i])
    if not mass:
        return 0.0
    top = max(mass.values())
    tied = [c for c, m in mass.items() if m >= top * (1 - 1e-9)]
    return float(np.mean([correct[classes == c].mean() for c in tied]))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
@pytest.mark.parametrize("flat", [True, False])
def test_vote_agrees_with_a_loop(k: int, flat: bool) -> None:
    for _ in range(10):
        classes = RNG.integers(-1, 4, size=8)
        correct = classes == 1
        log_weight = np.zeros(8) if flat else RNG.normal(size=8) * 3
        subsets = subsets_of(8, k, 0)
        expected = np.mean([slow_vote(classes, correct, log_weight, subset) for subset in subsets])
        assert math.isclose(vote(classes, correct, log_weight, subsets), expected, abs_tol=1e-12)


def test_all_subsets_where_they_are_few() -> None:
    """Then votes are exact, and never beat the oracle of the same subsets; elsewhere no subset is taken twice."""
    for n, k in ((16, 2), (16, 4), (64, 2), (5, 3), (5, 5), (5, 1)):
        subsets = {tuple(subset) for subset in subsets_of(n, k, 0).tolist()}
        assert subsets == set(itertools.combinations(range(n), k)) and len(subsets) <= EXACT
    drawn = subsets_of(16, 8, 0).tolist()
    assert len({tuple(subset) for subset in drawn}) == len(drawn) == SUBSETS
    assert all(len(set(subset)) == 8 for subset in drawn)
    correct, classes = np.arange(16) == 3, np.arange(16)
    # All answers differ, so that a vote is a draw.
    for k in (2, 4):
        share = vote(classes, correct, np.zeros(16), subsets_of(16, k, 0))
        assert math.isclose(share, 1 / 16) and share <= oracle_at_k(16, 1, k)


def test_rarely_right() -> None:
    """1/16 to 1/8 of the traces, whatever their number."""
    rare = {n: [right for right in range(n + 1) if is_rare(right, n)] for n in (1, 4, 8, 16, 20, 64)}
    assert rare == {1: [], 4: [], 8: [1], 16: [1, 2], 20: [2], 64: [4, 5, 6, 7, 8]}
    found = compare([PoolProblem("p", ("1",) * 64, np.arange(64) < right, {}) for right in (0, 1, 4, 8, 9)], [64])
    assert found.rare.tolist() == [False, False, True, True, False]


def test_votes_with_flows_of_any_size() -> None:
    classes, correct = np.array([0, 0, 1, -1]), np.array([True, True, False, False])
    all_of_them = np.arange(4)[None, :]
    # Among the two light ones of a lot with a giant, the heavier decides.
    light = vote(np.array([0, 1, 2]), np.array([True, False, False]), np.array([1.0, 0.0, 5000.0]), np.array([[0, 1]]))
    assert light == 1.0
    for shift in (-2000.0, 0.0, 2000.0):
        assert vote(classes, correct, np.array([0.0, 0.0, 0.5, 9.0]) + shift, all_of_them) == 1.0
        assert vote(classes, correct, np.array([0.0, 0.0, 0.9, 9.0]) + shift, all_of_them) == 0.0
    assert vote(np.full(3, -1), np.zeros(3, bool), np.zeros(3), np.arange(3)[None, :]) == 0.0


def problem(number: int, n: int = 16) -> PoolProblem:
    right = RNG.random(n) < RNG.random() ** 2
    answers = tuple("42" if r else str(RNG.integers(5)) for r in right)
    scores = {"good": right * 1.0 + RNG.normal(size=n), "flat": np.zeros(n)}
    return PoolProblem(f"p{number}", answers, right, scores)


def test_comparison_of_selectors() -> None:
    found = compare([problem(i) for i in range(80)], [1, 4, 16])
    values = {s: {k: v.mean() for k, v in by_k.items()} for s, by_k in found.values.items()}
    for k in (1, 4, 16):
        assert math.isclose(values["best_of:flat"][k], values["random"][k], abs_tol=1e-9)
        assert values["vote:flat"][k] == values["majority"][k]
        assert values["random"][k] - 1e-9 <= values["best_of:good"][k] <= values["oracle"][k] + 1e-9
    assert math.isclose(values["majority"][1], values["random"][1])
    assert values["random"][16] < values["best_of:good"][16] < values["oracle"][16]
    assert (found.rare == ((found.n_correct == 1) | (found.n_correct == 2))).all()
    table = rows(found, Bootstrap(80, 500))
    by_name = {row.selector: row for row in table}
    gap = by_name["best_of:good"].gap_closed
    expected = (values["best_of:good"][16] - values["random"][16]) / (values["oracle"][16] - values["random"][16])
    assert gap is not None and math.isclose(gap.mean, expected) and gap.low < gap.mean < gap.high
    assert by_name["oracle"].gap_closed is not None and math.isclose(by_name["oracle"].gap_closed.low, 1.0)
    text = as_text(found, table)
    assert len(text.splitlines()) == 1 + len(table)
    assert len({len(line) for line in text.splitlines()}) == 1, "columns are aligned"
    assert as_json(found, table)["values"]["random"]["16"] == found.values["random"][16].tolist()


def test_pools_of_unequal_size_and_impossible_k_are_refused() -> None:
    with pytest.raises(ValueError, match=r"problems have \[8, 16\] traces"):
        compare([problem(0, 8), problem(1, 16)], [1])
    with pytest.raises(ValueError, match="between 1 and the 16"):
        compare([problem(0)], [17])


def test_bootstrap_of_a_mean_is_that_of_single_resamples() -> None:
    values = RNG.random(200)
    one, other = Bootstrap(200).mean(values), bootstrap(values)
    assert math.isclose(one.mean, other.mean)
    assert abs(one.low - other.low) < 0.005
    assert abs(one.high - other.high) < 0.005


def test_resamples_take_a_byte_each() -> None:
    """And give the intervals of the same draws in full."""
    rng = np.random.default_rng(3)
    top, bottom = rng.random(700), rng.integers(2, size=700).astype(float)
    boot = Bootstrap(700, 2000, seed=5)
    assert boot.counts.nbytes == 2000 * 700
    draws = np.random.default_rng(5).multinomial(700, np.full(700, 1 / 700), size=2000)
    ratios = (draws @ top) / (draws @ bottom)
    found = boot.ratio(top, bottom)
    assert np.allclose([found.low, found.high], np.percentile(ratios, [2.5, 97.5]))


def test_bootstrap_leaves_out_what_is_not_there() -> None:
    values = np.array([1.0, math.nan, 0.0, 1.0])
    assert math.isclose(Bootstrap(4).mean(values).mean, 2 / 3)
    assert math.isnan(Bootstrap(4).mean(values, np.zeros(4, bool)).mean)

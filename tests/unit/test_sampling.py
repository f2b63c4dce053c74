"""Drawing tokens: the block-wise filters against sorting the whole vocabulary, and draws against probabilities."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from scipy import special, stats

from arts_plugin.backend import FloatArray, Sampling
from arts_plugin.randomness import uniform
from arts_plugin.sampling import Adjustment, adjusted, candidates, log_normaliser, pick, pick_adjusted, top_indexes


def logits(rng: np.random.Generator, n: int, ties: bool) -> FloatArray:
    row = rng.normal(0, 4, n).astype(np.float32)
    return np.round(row) if ties else row


def naive(row: FloatArray, sampling: Sampling) -> dict[int, float]:
    """The same filters over the whole sorted vocabulary, one token at a time."""
    order = sorted(range(len(row)), key=lambda i: (-float(row[i]), i))
    if sampling.temperature == 0:
        return {order[0]: 1.0}
    if sampling.top_k:
        order = order[: sampling.top_k]
    if sampling.top_p < 1:
        shares = special.softmax(row[order].astype(np.float64))
        kept, mass = [], 0.0
        for token, share in zip(order, shares, strict=True):
            kept.append(token)
            mass += share
            if mass >= sampling.top_p:
                break
        order = kept
    best = float(row[order[0]])
    order = [i for i in order if sampling.min_p == 0 or math.exp(float(row[i]) - best) >= sampling.min_p]
    weights = special.softmax(row[order].astype(np.float64) / sampling.temperature)
    return dict(zip(order, weights.tolist(), strict=True))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("n", [1, 7, 64, 65, 1000, 6400, 10_001])
def test_top_indexes_are_those_of_a_full_stable_sort(n: int, ties: bool) -> None:
    rng = np.random.default_rng(n)
    for k in (1, 2, 5, 40, 999, n):
        for _ in range(5):
            row = logits(rng, n, ties)
            assert top_indexes(row, k).tolist() == np.argsort(-row, kind="stable")[:k].tolist()


def test_top_indexes_of_awkward_rows() -> None:
    flat = np.zeros(5000, dtype=np.float32)
    assert top_indexes(flat, 7).tolist() == list(range(7))
    # The largest stand in the piece that fills no block, and in one block.
    tail = np.arange(6407, dtype=np.float32)
    assert top_indexes(tail, 9).tolist() == list(range(6406, 6397, -1))
    masked = np.full(6400, -np.inf, dtype=np.float32)
    masked[[70, 5000]] = 1.0, 2.0
    assert top_indexes(masked, 3).tolist() == [5000, 70, 0]


@pytest.mark.parametrize("block", range(8))
def test_candidates_agree_with_the_whole_vocabulary(block: int) -> None:
    picks = random.Random(block)
    rng = np.random.default_rng(block)
    for _ in range(40):
        row = logits(rng, picks.choice([3, 64, 900, 3000]), ties=picks.random() < 0.5)
        sampling = Sampling(
            temperature=picks.choice([0.0, 0.3, 1.0, 2.5]),
            top_p=picks.choice([1.0, 0.99, 0.7, 0.1, 1e-9]),
            top_k=picks.choice([0, 1, 3, 40, 5000]),
            min_p=picks.choice([0.0, 0.0, 0.05, 0.9]),
        )
        ids, probabilities = candidates(row, sampling, float(log_normaliser(row[None])[0]))
        expected = naive(row, sampling)
        assert sorted(ids.tolist()) == sorted(expected), sampling
        assert len(ids) == len(set(ids.tolist()))
        for token, p in zip(ids.tolist(), probabilities.tolist(), strict=True):
            assert p == pytest.approx(expected[token], rel=1e-9, abs=1e-300)
        assert probabilities.sum() == pytest.approx(1)


def test_a_flat_nucleus_needs_more_than_the_first_thousand() -> None:
    """2,000 equal tokens: 0.9 of the mass is 1,800 of them."""
    row = np.zeros(2000, dtype=np.float32)
    ids, probabilities = candidates(row, Sampling(1.0, top_p=0.9, top_k=0), float(log_normaliser(row[None])[0]))
    assert abs(len(ids) - 1800) <= 1
    assert ids.tolist() == list(range(len(ids)))
    assert np.ptp(probabilities) == 0


def test_greedy_takes_the_first_of_equals() -> None:
    row = np.array([1, 3, 3, 2], dtype=np.float32)
    for u in (0.0, 0.5, 1 - 2**-53):
        assert pick(row, Sampling(temperature=0.0), float(log_normaliser(row[None])[0]), u) == 1


def test_a_temperature_next_to_nothing_is_greedy() -> None:
    row = np.array([30, 29, -5], dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        for temperature in (1e-4, 1e-30, 1e-305, 5e-324):
            ids, probabilities = candidates(row, Sampling(temperature, top_k=3, top_p=1.0), 30.3)
            assert dict(zip(ids.tolist(), probabilities.tolist(), strict=True)) == {0: 1.0, 1: 0.0, 2: 0.0}


def test_masked_tokens_are_never_drawn() -> None:
    row = np.array([-np.inf, 0, -np.inf, 0], dtype=np.float32)
    log_z = float(log_normaliser(row[None])[0])
    for sampling in (Sampling(1.0, 1.0, 0, 0.0), Sampling(0.6, 0.95, 50, 0.0), Sampling(2.0, 1.0, 0, 0.1)):
        drawn = {pick(row, sampling, log_z, u) for u in np.linspace(0, 1 - 2**-53, 101)}
        assert drawn == {1, 3}


def test_pick_is_the_inverse_cdf() -> None:
    """At each step of the cumulative distribution the next token begins."""
    row = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    for sampling in (Sampling(1.0, 1.0, 0, 0.0), Sampling(1.0, 1.0, 4, 0.0)):
        for u, token in [
            (0.0, 0),
            (0.499999, 0),
            (0.500001, 1),
            (0.749999, 1),
            (0.750001, 2),
            (0.875001, 3),
            (1 - 2**-53, 3),
        ]:
            assert pick(row, sampling, 0.0, u) == token


@pytest.mark.parametrize(
    "sampling", [Sampling(0.7, 0.9, 6, 0.0), Sampling(1.3, 1.0, 0, 0.02), Sampling(1.0, 1.0, 0, 0.0)]
)
def test_pick_draws_in_proportion(sampling: Sampling) -> None:
    row = np.random.default_rng(5).normal(0, 1.2, 12).astype(np.float32)
    log_z = float(log_normaliser(row[None])[0])
    expected = naive(row, sampling)
    draws = 5000
    counts = Counter(pick(row, sampling, log_z, uniform(99, i)) for i in range(draws))
    assert set(counts) <= set(expected)
    observed = [counts[token] for token in expected]
    assert min(expected.values()) * draws > 5
    assert stats.chisquare(observed, np.array(list(expected.values())) * draws).pvalue > 0.001


def test_log_normaliser_is_logsumexp() -> None:
    rows = np.random.default_rng(6).normal(0, 30, (9, 4001)).astype(np.float32)
    rows[3] += 1000
    rows[4] -= 1000
    rows[5, 1:] = -np.inf
    found = log_normaliser(rows)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, special.logsumexp(rows.astype(np.float64), axis=1), rtol=1e-6)


@pytest.mark.parametrize("bad", [[np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [np.inf, np.nan]])
def test_log_normaliser_of_invalid_logits_is_not_finite(bad: list[float]) -> None:
    rows = np.array([[0, 1], bad, [2, 3]], dtype=np.float32)
    with np.errstate(all="raise", under="ignore", invalid="ignore"):
        found = log_normaliser(rows)
    assert np.isfinite(found).tolist() == [True, False, True]


@pytest.mark.parametrize("repetition", [1.0, 1.3])
@pytest.mark.parametrize(("frequency", "presence"), [(0.0, 0.0), (0.5, 0.0), (0.0, 1.5), (0.25, -0.5)])
def test_adjusted_logits_are_those_of_a_plain_loop(repetition: float, frequency: float, presence: float) -> None:
    rng = np.random.default_rng(3)
    row = logits(rng, 300, False)
    before = rng.integers(0, 60, 200).astype(np.int32)
    trace, allowed = before[150:], rng.random(300) < 0.8
    sampling = Sampling(
        logit_bias=((7, 3.0), (50, -100.0)),
        repetition_penalty=repetition,
        frequency_penalty=frequency,
        presence_penalty=presence,
    )
    want = []
    for token in range(300):
        value = float(row[token]) + {7: 3.0, 50: -100.0}.get(token, 0.0)
        if token in before.tolist():
            value = value / repetition if value > 0 else value * repetition
        count = trace.tolist().count(token)
        value -= frequency * count + presence * (count > 0)
        want.append(value if allowed[token] else -np.inf)
    made = adjusted(row, sampling, Adjustment(before, trace, allowed))
    assert np.allclose(made, want, atol=1e-5)
    token, logprob = pick_adjusted(row, sampling, log_normaliser(row[None])[0], 0.4, Adjustment(before, trace, allowed))
    assert allowed[token]
    assert logprob == pytest.approx(float(row[token]) - log_normaliser(row[None])[0])


def test_nothing_allowed_is_invalid() -> None:
    nobody = Adjustment(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(300, np.bool_))
    row = logits(np.random.default_rng(0), 300, False)
    assert np.isnan(pick_adjusted(row, Sampling(), log_normaliser(row[None])[0], 0.5, nobody)[1])

"""What a search is worth: against enumeration, and against the definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from arts_plugin.evaluation.search_metrics import Scored, pool_values, ratio, ratio_stderr, tree_values


def traces(rng: np.random.Generator, n: int, flows: bool = True) -> list[Scored]:
    """Random ones; the answer decides what is right, as it does in a task."""
    right = str(rng.integers(3))
    made = []
    for _ in range(n):
        answer = str(rng.integers(3)) if rng.random() < 0.9 else None
        made.append(Scored(answer == right, answer, float(rng.normal()) if flows else None, float(-rng.random())))
    return made


@pytest.mark.parametrize("seed", range(20))
def test_pools_against_enumeration(seed: int) -> None:
    """Of all k-subsets, where votes take them all as well (k = n and k = 1) or the rule needs no vote."""
    rng = np.random.default_rng(seed)
    pool = traces(rng, 6)
    values = pool_values(pool, [1, 3, 6])
    assert values["pass@1"] == pytest.approx(np.mean([t.correct for t in pool]))
    for k in (3, 6):
        subsets = list(itertools.combinations(pool, k))
        best = [max(s, key=lambda t: t.log_flow or 0.0).correct for s in subsets]
        assert values[f"best_of@{k}_flow"] == pytest.approx(np.mean(best))
        likely = [max(s, key=lambda t: t.mean_logprob or 0.0).correct for s in subsets]
        assert values[f"best_of@{k}_logprob"] == pytest.approx(np.mean(likely))
        assert values[f"oracle@{k}"] == pytest.approx(np.mean([any(t.correct for t in s) for s in subsets]))
    for rule, weight in (("majority@6", lambda t: 1.0), ("weighted_vote@6", lambda t: math.exp(t.log_flow or 0.0))):
        mass: dict[str, float] = {}
        for trace in pool:
            if trace.answer is not None:
                mass[trace.answer] = mass.get(trace.answer, 0.0) + weight(trace)
        top = [a for a, m in mass.items() if m > max(mass.values()) - 1e-9]
        right = {t.answer for t in pool if t.correct}
        assert values[rule] == pytest.approx(np.mean([a in right for a in top]))
    base, oracle = values["pass@1"], values["oracle@6"]
    assert isinstance(base, float) and isinstance(oracle, float)
    flow = values["best_of@6_flow"]
    assert isinstance(flow, float)
    assert values["gap_closed_flow"] == pytest.approx((flow - base, oracle - base))
    assert "best_of@1_flow" not in values and "majority@1" not in values


def test_what_plain_strings_have() -> None:
    """Answers and nothing else: no rule that needs a score."""
    values = pool_values([Scored(True, "1"), Scored(False, "2"), Scored(True, "1")], [1, 2])
    assert {name.split("@")[0] for name in values} == {
        "pass", "majority", "oracle", "gap_closed_majority", "rare_majority", "rare_pass",
    }  # fmt: skip
    assert not any("flow" in name for name in tree_values([Scored(True, "1", None, -1.0)], [1], "majority"))


def test_rare_questions() -> None:
    """One or two of sixteen, four to eight of sixty-four."""
    for n, most in ((16, {1, 2}), (64, {4, 5, 6, 7, 8})):
        for right in (*range(10), n):
            pool = [Scored(i < right, str(i < right), float(i < right), -1.0) for i in range(n)]
            values = pool_values(pool, [n])
            rare = float(right in most)
            assert values["rare_flow"] == (rare, rare)
            assert values["rare_pass@1"] == (rare * right / n, rare)


def test_votes_of_few_subsets_do_not_beat_the_oracle() -> None:
    """Three traces that all differ: a vote of two is a draw of two."""
    values = pool_values([Scored(i == 0, str(i), None, -1.0 * i) for i in range(3)], [1, 2])
    assert values["majority@2"] == pytest.approx(1 / 3) and values["oracle@2"] == pytest.approx(2 / 3)
    for name, value in values.items():
        if name.startswith("gap_closed"):
            assert isinstance(value, tuple) and value[0] <= value[1] + 1e-12, name


def test_gaps_are_those_of_all_traces() -> None:
    """Twelve traces, of which no size that is reported takes all."""
    rng = np.random.default_rng(0)
    pool = traces(rng, 12)
    values, whole = pool_values(pool, [1, 2, 4, 8]), pool_values(pool, [1, 12])
    assert values["gap_closed_flow"] == whole["gap_closed_flow"]
    assert whole["gap_closed_majority"] == pytest.approx(
        (whole["majority@12"] - values["pass@1"], whole["oracle@12"] - values["pass@1"])
    )


def test_nothing_finished() -> None:
    """A question without traces is wrong by every rule, and has no gap."""
    assert all(v in (0.0, (0.0, 0.0)) for v in pool_values([], [1, 4]).values())
    assert all(v == 0.0 for v in tree_values([], [1, 4], "majority").values())


def test_a_question_without_traces_has_the_figures_of_the_others() -> None:
    """Whether there was a verifier is the run's to say."""
    likely, judged = Scored(True, "1", None, -1.0), Scored(True, "1", 0.5, -1.0)
    for trace, verifier in ((likely, False), (judged, True)):
        assert pool_values([], [1, 4], judged=verifier).keys() == pool_values([trace], [1, 4], judged=verifier).keys()
        empty, full = (tree_values(found, [1, 4], "majority", judged=verifier) for found in ([], [trace]))
        assert empty.keys() == full.keys() and ("choose_flow" in full) == verifier


def test_merged_proposals_count_as_often_as_they_were_drawn() -> None:
    found = [Scored(False, "2", 0.0, -1.0), Scored(True, "1", 0.0, -1.0, count=5)]
    drawn = [found[0], *[Scored(True, "1", 0.0, -1.0)] * 5]
    values = tree_values(found, [1, 2, 3, 6], "majority")
    assert values == tree_values(drawn, [1, 2, 3, 6], "majority")
    assert values["choose_majority"] == 1.0 and values["anytime@1"] == 0.0 and values["anytime@3"] == 1.0
    assert pool_values(found, [1, 2, 6]) == pool_values(drawn, [1, 2, 6])


def test_errors_are_chosen_only_for_want_of_others() -> None:
    """As the search does it."""
    broken = Scored(False, "2", 5.0, -1.0, stop="error")
    assert tree_values([broken, Scored(True, "1", 1.0, -1.0)], [2], "flow")["choose_flow"] == 1.0
    assert tree_values([broken], [1], "flow")["choose_flow"] == 0.0


def test_trees_in_the_order_of_their_ends() -> None:
    found = [Scored(False, "a", 2.0, -3.0), Scored(True, "b", 1.0, -1.0), Scored(True, "b", 0.0, -2.0)]
    values = tree_values(found, [1, 2, 3], "weighted_vote")
    assert values == {
        "choose_flow": 0.0, "choose_logprob": 1.0, "choose_majority": 1.0,
        "choose_weighted_vote": 0.0,  # e^2 against e^1 + e^0
        "oracle": 1.0,
        "anytime@1": 0.0, "anytime_oracle@1": 0.0, "anytime@2": 0.0, "anytime_oracle@2": 1.0,
        "anytime@3": 0.0, "anytime_oracle@3": 1.0,
    }  # fmt: skip
    assert tree_values(found, [3], "majority")["anytime@3"] == 1.0


def test_ratios_are_of_sums() -> None:
    """Never a mean of ratios; and the standard error is the bootstrap's."""
    pairs = [(1.0, 2.0), (0.0, 0.0), (3.0, 4.0)]
    assert ratio(pairs) == pytest.approx(4 / 6)
    assert math.isnan(ratio([(0.0, 0.0)])) and math.isnan(ratio_stderr([(1.0, 1.0), (0.0, 0.0)]))
    rng = np.random.default_rng(0)
    many = [(float(rng.random() < 0.3), 1.0) for _ in range(400)]
    share = ratio(many)
    assert ratio_stderr(many) == pytest.approx(math.sqrt(share * (1 - share) / 400), rel=0.1)

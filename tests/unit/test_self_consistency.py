"""Self-consistency ends early and chooses what the whole vote would have chosen."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from scipy import stats
from scripted import Script, ScriptedBackend, Step

from arts_plugin.answers.extract import extract_number
from arts_plugin.errors import SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.search.self_consistency import leaders, posterior_of_the_leader
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

N = 9


def script(*shares: float) -> Script:
    """Traces of one or two steps that end in the numbers 1, 2, ... with these probabilities."""
    ends = [Step(f"it is {i}", share) for i, share in enumerate(shares, 1)]
    return {"q": [Step("so\n", 0.5, "r"), *(Step(s.text, s.p / 2) for s in ends)], "r": ends}


def run(
    plugins: Plugins, shares: tuple[float, ...], backend: dict[str, object] | None = None, **settings: object
) -> ReasoningTree:
    made = ScriptedBackend(script(*shares), slots=4, **(backend or {}))  # type: ignore[arg-type]
    driver = SearchDriver(made, plugins, None, lambda settings: extract_number)
    given = {"budget_trajectories": N, "slots": 4, "select": "majority", **settings}
    ((_, tree),) = driver.run([Job(made.encode("q"), Settings.of(given))])
    assert not made.live
    return tree


def votes(tree: ReasoningTree) -> Counter[str]:
    return Counter(t.answer for t in tree.trajectories() if t.answer is not None)


SHARES = [(0.9, 0.1), (0.5, 0.5), (0.4, 0.3, 0.3), (1.0,)]


@pytest.mark.parametrize("shares", SHARES)
def test_a_vote_that_can_no_longer_change(shares: tuple[float, ...], plugins: Plugins) -> None:
    """It ends at the first trace after which no others could change the majority, and not before."""
    saved = 0
    for seed in range(60):
        whole = run(plugins, shares, strategy="best_of_n", seed=seed)
        early = run(plugins, shares, strategy="self_consistency", seed=seed)
        if early.ended_by == "budget_trajectories":
            assert early.n_finished == N
        else:
            assert early.ended_by == "decided"
            counts = votes(early)
            first, second = leaders(counts)
            assert first - second > N - early.n_finished
            (_, most), *_ = counts.most_common(1)
            assert most - 1 - second <= N - early.n_finished + 1, "one vote earlier it was open"
            full = votes(whole)
            assert [a for a, c in full.items() if c == max(full.values())] == [counts.most_common(1)[0][0]]
            assert early.chosen is not None and early.answer == counts.most_common(1)[0][0]
        saved += N - early.n_finished
    assert saved > 0


def test_its_traces_are_those_of_best_of_n(plugins: Plugins) -> None:
    """Chain for chain, so a figure of one is a figure of the other."""
    for seed in range(20):
        whole = {t.text for t in run(plugins, (0.4, 0.3, 0.3), strategy="best_of_n", seed=seed).trajectories()}
        early = run(plugins, (0.4, 0.3, 0.3), strategy="self_consistency", confidence=0.8, seed=seed)
        assert {t.text for t in early.trajectories()} <= whole


def test_where_it_ends_does_not_depend_on_the_batch(plugins: Plugins) -> None:
    for seed in range(20):
        trees = [
            run(plugins, (0.5, 0.3, 0.2), {"jitter": 0.6, "order": order}, strategy="self_consistency", seed=seed)
            for order in range(6)
        ]
        assert len({(tree.ended_by, tree.n_finished, tree.answer) for tree in trees}) == 1
        assert len({tuple(node.text for node in tree.nodes) for tree in trees}) == 1


def test_less_confidence_ends_sooner(plugins: Plugins) -> None:
    spent = [
        sum(run(plugins, (0.7, 0.3), strategy="self_consistency", confidence=c, seed=s).n_finished for s in range(80))
        for c in (0.6, 0.9, 1.0)
    ]
    assert spent[0] < spent[1] < spent[2] < 80 * N


@pytest.mark.parametrize(("first", "second"), list(itertools.product(range(7), range(7))))
def test_the_posterior_is_that_of_the_beta_distribution(first: int, second: int) -> None:
    assert posterior_of_the_leader(first, second) == pytest.approx(stats.beta(first + 1, second + 1).sf(0.5))


def test_the_posterior_is_calibrated() -> None:
    """Over coins drawn from the prior, of those stopped at 0.9 at least that share is right."""
    numbers, right = random.Random(0), []
    for _ in range(4000):
        p, counts = numbers.random(), [0, 0]
        for _ in range(60):
            counts[numbers.random() < p] += 1
            if posterior_of_the_leader(max(counts), min(counts)) >= 0.9:
                right.append((counts[1] > counts[0]) == (p > 0.5))
                break
    assert sum(right) / len(right) > 0.9 - 3 * math.sqrt(0.9 * 0.1 / len(right))


def test_of_five_answers_the_leader_beats_the_runner_up_but_is_less_surely_the_likeliest() -> None:
    """What the module says of the Beta criterion, and the setting of what it promises."""
    rng, likelier, likeliest = np.random.default_rng(0), [], []
    for _ in range(3000):
        p = rng.dirichlet(np.ones(5))
        counts = [0] * 5
        for answer in rng.choice(5, size=60, p=p):
            counts[answer] += 1
            second, first = sorted(range(5), key=counts.__getitem__)[-2:]
            if posterior_of_the_leader(counts[first], counts[second]) >= 0.95:
                likelier.append(p[first] > p[second])
                likeliest.append(p[first] == p.max())
                break
    assert np.mean(likelier) > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(likelier))
    assert 0.92 < np.mean(likeliest) < 0.945
    doc = next(field for field in fields(Settings) if field.name == "confidence").metadata["doc"]
    assert "likelier than the runner-up" in doc


@pytest.mark.parametrize("confidence", [0.5, 0, 1.2])
def test_confidence_out_of_range(confidence: float) -> None:
    with pytest.raises(SettingsError, match="confidence is"):
        Settings.of(confidence=confidence)

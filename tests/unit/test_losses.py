"""Losses against their equations: closed-form minimisers, slow twins, gradients, extremes."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from arts_plugin.errors import UnknownNameError
from arts_plugin.training.losses import (
    LOSSES,
    Forest,
    MeanFlowMatching,
    PairwiseReward,
    PointwiseProcessReward,
    ReasoningFlowMatching,
    SubTrajectoryBalance,
    leaf_fraction,
    log_sum_children,
    make_loss,
    path_minimum,
)

HIGH, LOW = math.log(10), math.log(0.1)


def forest(parents: list[int], right: set[int] = frozenset(), counts: dict[int, float] | None = None) -> Forest:
    """Trees from a list of parents; leaves are terminal, those in `right` are right."""
    n = len(parents)
    inner = set(parents)
    terminal = [i not in inner for i in range(n)]
    step, tree = [0] * n, [0] * n
    for i, parent in enumerate(parents):
        step[i] = 0 if parent < 0 else step[parent] + 1
        tree[i] = max(tree, default=0) + 1 if parent < 0 else tree[parent]
    reward = [(HIGH if i in right else LOW) if terminal[i] else 0.0 for i in range(n)]
    return Forest(
        parent=torch.tensor(parents),
        step=torch.tensor(step),
        tree=torch.tensor(tree),
        count=torch.tensor([(counts or {}).get(i, 1.0) for i in range(n)], dtype=torch.float64),
        terminal=torch.tensor(terminal),
        correct=torch.tensor([float(i in right) for i in range(n)], dtype=torch.float64),
        log_reward=torch.tensor(reward, dtype=torch.float64),
    )


# Two problems: a sparse fork with a chain beside it, and a single chain.
PARENTS = [-1, 0, 1, 1, 0, 4, 2, -1, 7, 8]
SPARSE = forest(PARENTS, right={6})


def children(tree: Forest, node: int) -> list[int]:
    return [i for i, parent in enumerate(tree.parent.tolist()) if parent == node]


def exact_flow(tree: Forest, node: int) -> float:
    """F(s): the reward of a leaf, the sum over the observed children elsewhere."""
    below = children(tree, node)
    return sum(exact_flow(tree, child) for child in below) if below else math.exp(float(tree.log_reward[node]))


def minimise(loss: object, tree: Forest) -> Tensor:
    f = torch.zeros(len(tree.parent), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [f], max_iter=2000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(f, tree)
        value.backward()
        return value

    optimiser.step(closure)
    return f.detach()


def test_minimiser_of_rfm_is_the_closed_form_flow() -> None:
    found = minimise(ReasoningFlowMatching(stop_gradient=False), SPARSE)
    expected = torch.tensor([math.log(exact_flow(SPARSE, i)) for i in range(len(PARENTS))], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert math.isclose(math.exp(found[0]), 10 + 0.1 + 0.1, rel_tol=1e-3)


def test_stop_gradient_has_the_same_fixed_point() -> None:
    """TD-style descent arrives at the same flows, from the leaves up."""
    f = torch.zeros(len(PARENTS), dtype=torch.float64, requires_grad=True)
    loss, optimiser = ReasoningFlowMatching(), torch.optim.SGD([f], lr=2.0)
    for _ in range(2000):
        optimiser.zero_grad()
        loss(f, SPARSE).backward()
        optimiser.step()
    expected = torch.tensor([math.log(exact_flow(SPARSE, i)) for i in range(len(PARENTS))], dtype=torch.float64)
    torch.testing.assert_close(f.detach(), expected, atol=1e-5, rtol=0)


def test_minimiser_of_the_mean_form_is_the_mean_reward_below() -> None:
    """With counts: a state's flow is the expected reward of its drawn children, however many were drawn."""
    tree = forest([-1, 0, 0], right={1}, counts={1: 3.0})
    for loss in (MeanFlowMatching(stop_gradient=False), SubTrajectoryBalance(stop_gradient=False)):
        found = minimise(loss, tree)
        assert math.isclose(math.exp(found[0]), (3 * 10 + 0.1) / 4, rel_tol=1e-4), loss
    # The observed sum takes each child once.
    assert math.isclose(math.exp(minimise(ReasoningFlowMatching(False), tree)[0]), 10.1, rel_tol=1e-4)


@pytest.mark.parametrize("name", ["rfm", "rfm_mean", "subtb"])
def test_a_chain_of_single_children_passes_flow_through(name: str) -> None:
    tree = forest([-1, 0, 1, 2, 3], right={4})
    found = minimise(make_loss(name, stop_gradient=False), tree)
    torch.testing.assert_close(found, torch.full((5,), HIGH, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients(name: str) -> None:
    f = torch.randn(len(PARENTS), dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = make_loss(name, stop_gradient=False)
    assert torch.autograd.gradcheck(lambda x: loss(x, SPARSE), (f,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["rfm", "rfm_mean"])
def test_stop_gradient_leaves_the_children_alone(name: str) -> None:
    """The leaf's gradient is that of its own regression."""
    tree = forest([-1, 0], right={1})
    f = torch.tensor([0.3, 1.7], dtype=torch.float64, requires_grad=True)
    make_loss(name)(f, tree).backward()
    assert math.isclose(float(f.grad[1]), 2 * (1.7 - HIGH) / 2)
    f.grad = None
    make_loss(name, stop_gradient=False)(f, tree).backward()
    assert not math.isclose(float(f.grad[1]), 2 * (1.7 - HIGH) / 2)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_ten_thousand_leaves_and_huge_flows_stay_finite(name: str, scale: float) -> None:
    n = 10_000
    tree = forest([-1] + [0] * n, right={1, 2})
    f = (torch.arange(n + 1, dtype=torch.float64) / n * scale).requires_grad_()
    value = make_loss(name, stop_gradient=False)(f, tree)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(f.grad).all()


def test_log_of_ten_thousand_equal_flows() -> None:
    tree = forest([-1] + [0] * 10_000)
    for level in (-1e5, 0.0, 1e5):
        f = torch.full((10_001,), level, dtype=torch.float64)
        assert math.isclose(float(log_sum_children(f, tree)[0]), level + math.log(10_000), rel_tol=1e-12)
        assert float(log_sum_children(f, tree)[1]) == -math.inf


# Slow twins.


def randoms(seed: int) -> tuple[Forest, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    parents = [-1]
    for i in range(1, 40):
        parents.append(-1 if i == 20 else int(torch.randint(20 * (i > 20), i, (1,), generator=generator)))
    leaves = set(range(40)) - set(parents)
    right = {leaf for leaf in leaves if leaf % 3 == 0}
    counts = {i: float(1 + i % 3) for i in range(40)}
    return forest(parents, right, counts), torch.randn(40, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("seed", range(5))
def test_helpers_agree_with_loops(seed: int) -> None:
    tree, f = randoms(seed)
    parents = tree.parent.tolist()

    def leaves(node: int) -> list[int]:
        below = children(tree, node)
        return [leaf for child in below for leaf in leaves(child)] if below else [node]

    def path(node: int) -> list[int]:
        return [*path(parents[node]), node] if parents[node] >= 0 else []

    sums, share, least = log_sum_children(f, tree), leaf_fraction(tree), path_minimum(f, tree)
    for node in range(40):
        below = children(tree, node)
        if below:
            assert math.isclose(float(sums[node]), math.log(sum(math.exp(float(f[c])) for c in below)), rel_tol=1e-9)
        weights = [(float(tree.count[leaf]), float(tree.correct[leaf])) for leaf in leaves(node)]
        assert math.isclose(
            float(share[node]), sum(w * c for w, c in weights) / sum(w for w, _ in weights), abs_tol=1e-12
        )
        if path(node):
            assert float(least[node]) == min(float(f[i]) for i in path(node))


@pytest.mark.parametrize("seed", range(5))
def test_subtb_agrees_with_every_stretch_written_out(seed: int) -> None:
    tree, f = randoms(seed)
    parents, decay = tree.parent.tolist(), 0.7

    def residual(node: int) -> float:
        below = children(tree, node)
        if not below:
            return float(f[node] - tree.log_reward[node])
        total = sum(float(tree.count[c]) for c in below)
        mean = sum(float(tree.count[c]) * math.exp(float(f[c])) for c in below) / total
        return float(f[node]) - math.log(mean)

    total = weight = 0.0
    for end in range(40):
        at, length, balance = end, 0, 0.0
        while at >= 0:
            balance += residual(at)
            total += decay**length * balance**2
            weight += decay**length
            at, length = parents[at], length + 1
    found = SubTrajectoryBalance(decay)(f, tree)
    assert math.isclose(float(found), total / weight, rel_tol=1e-9)


def test_pairwise_agrees_with_pairs_written_out() -> None:
    tree, f = randoms(2)
    least, values = path_minimum(f, tree), []
    for problem in set(tree.tree.tolist()):
        here = [i for i in range(40) if tree.terminal[i] and tree.tree[i] == problem]
        right, wrong = ([i for i in here if bool(tree.correct[i]) is kind] for kind in (True, False))
        pairs = [math.log1p(math.exp(float(least[w] - least[r]))) for r, w in itertools.product(right, wrong)]
        if pairs:
            values.append(sum(pairs) / len(pairs))
    assert math.isclose(float(PairwiseReward()(f, tree)), sum(values) / len(values), rel_tol=1e-9)


def test_pairwise_without_a_pair_is_zero_and_has_a_gradient() -> None:
    tree = forest([-1, 0, 0], right={1, 2})
    f = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = PairwiseReward()(f, tree)
    value.backward()
    assert value.item() == 0.0
    assert f.grad is not None


def test_prm_targets_are_shares_of_right_traces_below() -> None:
    """At the minimum the sigmoid of each step's output is that share; the prompt is no step."""
    tree = forest([-1, 0, 1, 1, 0], right={2})
    f = torch.tensor([9.0, 0.0, 40.0, -40.0, -40.0], dtype=torch.float64)
    assert float(PointwiseProcessReward()(f, tree)) < 1e-12


def test_unknown_loss() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'rfm'"):
        make_loss("rfn")

r"""Losses of flow verifiers and of the baselines they are compared with.

Every loss reads the head's outputs f [n] for all states of some trees, in nats (for flows f = log F), and the shape
of those trees, and gives a scalar. Nothing is exponentiated but differences from a maximum, so flows of any size and
states with any number of children are safe.

Source, unless another is named: Amortized Reasoning Tree Search, arXiv 2602.12846.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from arts_plugin.errors import unknown_name
from arts_plugin.value_head import Aggregate, Link


@dataclass(frozen=True, slots=True)
class Forest:
    """Trees laid end to end. Row i is a state; parents stand before their children.

    Attributes:
        parent: int64 [n], row of the parent; -1 for a root.
        step: int64 [n], steps from the prompt.
        tree: int64 [n], which problem the state belongs to.
        count: float [n], how many equal proposals it stands for.
        terminal: bool [n].
        correct: float [n], 1 or 0 for terminal states, 0 elsewhere.
        log_reward: float [n], log R of terminal states, 0 elsewhere.
    """

    parent: Tensor
    step: Tensor
    tree: Tensor
    count: Tensor
    terminal: Tensor
    correct: Tensor
    log_reward: Tensor

    def to(self, dtype: torch.dtype) -> Forest:
        """With its real numbers in another precision."""
        return replace(
            self, count=self.count.to(dtype), correct=self.correct.to(dtype), log_reward=self.log_reward.to(dtype)
        )

    def on(self, device: torch.device) -> Forest:
        """On another device."""
        return Forest(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    @property
    def inner(self) -> Tensor:
        """int64 [m]: rows that have observed children."""
        rows: Tensor = torch.unique(self.parent[self.parent >= 0])
        return rows


def log_sum_children(f: Tensor, forest: Forest, log_weight: Tensor | None = None) -> Tensor:
    """[n]: log of the sum over children of w(s') exp f(s'); -inf where there are none.

    A segment logsumexp: each child's exponent is taken relative to its siblings' maximum.
    """
    child = torch.nonzero(forest.parent >= 0).squeeze(1)
    parent = forest.parent[child]
    values = f[child] if log_weight is None else f[child] + log_weight[child]
    low = torch.full_like(f, -torch.inf)
    top = low.scatter_reduce(0, parent, values.detach(), "amax")
    total = torch.zeros_like(f).index_add(0, parent, torch.exp(values - top[parent]))
    has = total > 0
    # The dead branch must not see log(0): its gradient would be NaN, and NaN times zero is NaN.
    return torch.where(has, torch.log(torch.where(has, total, 1.0)) + torch.where(has, top, 0.0), low)


def leaf_fraction(forest: Forest) -> Tensor:
    """[n]: share of right ones among the finished traces below each state (its own outcome, for a leaf); NaN if none.

    The Monte-Carlo estimate of the state's value.
    """
    right = forest.correct * forest.count * forest.terminal
    total = forest.count * forest.terminal
    for depth in range(int(forest.step.max()) if len(forest.step) else 0, 0, -1):
        rows = torch.nonzero(forest.step == depth).squeeze(1)
        right = right.index_add(0, forest.parent[rows], right[rows])
        total = total.index_add(0, forest.parent[rows], total[rows])
    return right / total


def path_minimum(f: Tensor, forest: Forest) -> Tensor:
    """[n]: the least f over the steps from the prompt (excluded) to each state."""
    least = f
    for depth in range(2, int(forest.step.max()) + 1 if len(forest.step) else 0):
        rows = torch.nonzero(forest.step == depth).squeeze(1)
        least = least.index_copy(0, rows, torch.minimum(f[rows], least[forest.parent[rows]]))
    return least


class Loss:
    """Base: `is_flow` says whether f is a log-flow; `aggregate` and `link`, how a trace's score comes from its steps'."""

    name: ClassVar[str]
    is_flow: ClassVar[bool] = False
    aggregate: ClassVar[Aggregate] = "terminal"
    link: ClassVar[Link] = "identity"

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """The loss of outputs f [n] on `forest`: a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class ReasoningFlowMatching(Loss):
    r"""`rfm`: (f(s) - log sum_{s' in C(s)} F(s'))^2 for inner states, (f(s) - log R(s))^2 for leaves.

    C(s) are the *observed* children, each once. The mean over all states is taken.

    Args:
        stop_gradient: the children's side is a constant, as in TD learning; False lets gradient through both sides.
    """

    stop_gradient: bool = True
    name: ClassVar[str] = "rfm"
    is_flow: ClassVar[bool] = True

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """Scalar, nats squared."""
        inner = forest.inner
        below = self.below(f.detach() if self.stop_gradient else f, forest)
        flow = (f[inner] - below[inner]).square().sum()
        return (flow + _leaves(f, forest).sum()) / (len(inner) + forest.terminal.sum())

    def below(self, f: Tensor, forest: Forest) -> Tensor:
        """[n]: what the flow of each inner state should be."""
        return log_sum_children(f, forest)


@dataclass(frozen=True)
class MeanFlowMatching(ReasoningFlowMatching):
    r"""`rfm_mean`: the children's mean in place of their sum: f(s) = log (sum_{s'} c(s') F(s') / sum_{s'} c(s')).

    Children are drawn from the proposer, c counts equal draws, so the mean estimates E[F(child)], whatever the number
    of draws; the observed sum grows with it. Ours.
    """

    name: ClassVar[str] = "rfm_mean"

    def below(self, f: Tensor, forest: Forest) -> Tensor:
        """[n]: log of the children's mean flow."""
        log_count = forest.count.log()
        return log_sum_children(f, forest, log_count) - log_sum_children(torch.zeros_like(f), forest, log_count)


@dataclass(frozen=True)
class SubTrajectoryBalance(Loss):
    r"""`subtb`: sub-trajectory balance over every stretch of every path (Madan et al., arXiv 2209.12782).

    In a tree the backward policy is 1. With the proposer as forward policy, estimated by the observed children, the
    balance of the stretch s_m .. s_n is the sum of one-step residuals d_i = f(s_i) - log mean_{C(s_i)} F, plus
    f(s_n) - log R(s_n) where it ends in a leaf; its square is weighed by lambda^(n - m), and weights are normalised
    over all stretches.
    """

    decay: float = 0.9
    stop_gradient: bool = True
    name: ClassVar[str] = "subtb"
    is_flow: ClassVar[bool] = True

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """Scalar, nats squared."""
        below = MeanFlowMatching().below(f.detach() if self.stop_gradient else f, forest)
        inner = torch.zeros_like(forest.terminal)
        inner[forest.inner] = True
        zero = torch.zeros_like(f)
        # One residual a state: that of the edge below it, or of its reward.
        residual = torch.where(inner, f - torch.where(inner, below, 0.0), zero)
        residual = torch.where(forest.terminal, f - forest.log_reward, residual)
        ends = inner | forest.terminal
        # `sums[:, k]`: residuals of the k + 1 states that end at this row, itself included.
        total, weight = f.new_zeros(()), f.new_zeros(())
        at, sums = torch.nonzero(ends).squeeze(1), residual[ends]
        above, scale = forest.parent[at], 1.0
        while len(sums):
            total = total + scale * sums.square().sum()
            weight = weight + scale * len(sums)
            going = above >= 0
            sums = sums[going] + residual[above[going]]
            above, scale = forest.parent[above[going]], scale * self.decay
        return total / weight


@dataclass(frozen=True)
class TerminalRegression(Loss):
    """`leaf`: (f(s) - log R(s))^2 for leaves alone; inner states are never looked at."""

    name: ClassVar[str] = "leaf"
    is_flow: ClassVar[bool] = True

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """Scalar, nats squared."""
        return _leaves(f, forest).mean()


@dataclass(frozen=True)
class PointwiseProcessReward(Loss):
    """`prm`: (sigmoid f(s) - v(s))^2 for every step, v the share of right traces below it; a trace scores its minimum."""

    name: ClassVar[str] = "prm"
    aggregate: ClassVar[Aggregate] = "min"
    link: ClassVar[Link] = "log_sigmoid"

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """Scalar."""
        value = leaf_fraction(forest)
        steps = (forest.parent >= 0) & ~value.isnan()
        return (torch.sigmoid(f[steps]) - value[steps]).square().mean()


@dataclass(frozen=True)
class PairwiseReward(Loss):
    """`pairwise`: Bradley-Terry, -log sigmoid(r+ - r-) over (right, wrong) pairs of traces of one problem.

    r is a trace's score, the minimum of f over its steps. Problems weigh equally, whatever their number of pairs.
    """

    name: ClassVar[str] = "pairwise"
    aggregate: ClassVar[Aggregate] = "min"

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """Scalar; 0 where no problem has both a right and a wrong trace."""
        score = path_minimum(f, forest)
        losses = []
        for tree in torch.unique(forest.tree):
            here = forest.terminal & (forest.tree == tree)
            right, wrong = score[here & (forest.correct > 0.5)], score[here & (forest.correct < 0.5)]
            if len(right) and len(wrong):
                losses.append(functional.softplus(wrong[None, :] - right[:, None]).mean())
        return torch.stack(losses).mean() if losses else (f * 0).sum()


@dataclass(frozen=True)
class TerminalClassification(Loss):
    """`bce`: cross-entropy of sigmoid f(s) against right or wrong, leaves alone."""

    name: ClassVar[str] = "bce"
    link: ClassVar[Link] = "log_sigmoid"

    def __call__(self, f: Tensor, forest: Forest) -> Tensor:
        """Scalar, nats."""
        return functional.binary_cross_entropy_with_logits(f[forest.terminal], forest.correct[forest.terminal])


def _leaves(f: Tensor, forest: Forest) -> Tensor:
    return (f[forest.terminal] - forest.log_reward[forest.terminal]).square()


LOSSES: dict[str, type[Loss]] = {
    loss.name: loss
    for loss in (
        ReasoningFlowMatching,
        MeanFlowMatching,
        SubTrajectoryBalance,
        TerminalRegression,
        PointwiseProcessReward,
        PairwiseReward,
        TerminalClassification,
    )
}


def make_loss(name: str, *, stop_gradient: bool = True) -> Loss:
    """The loss of that name. `stop_gradient` means something to the losses that match flows.

    Raises:
        UnknownNameError: no such loss.
    """
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    if name in {"rfm", "rfm_mean", "subtb"}:
        return LOSSES[name](stop_gradient=stop_gradient)  # type: ignore[call-arg]
    return LOSSES[name]()

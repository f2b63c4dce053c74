"""Trains the value head: a forest of graded trees in, a head and its curves out. Seconds to minutes on a CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from arts_plugin.errors import ArtsError
from arts_plugin.training.dataset import LabelledTree, features_of
from arts_plugin.training.losses import Forest, Loss
from arts_plugin.value_head import Aggregate, StateFeature, ValueHead, path_least, state_features

DIVERGED = "training diverged: no epoch has a held-out loss that is a number; lower the learning rate"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How a head is trained.

    Attributes:
        feature: what it reads of a state.
        hidden: hidden units of each head.
        heads: heads trained from different seeds, whose outputs are averaged (they are saved as one wider head).
        reward_right, reward_wrong: R of right and wrong leaves (arXiv 2602.12846: 10 and 0.1).
        dropout, learning_rate, weight_decay: of AdamW and the head.
        batch_problems: trees in a step.
        epochs: at most; training stops after `patience` without a better validation figure.
        validation: share of problems held out.
        seed: of the split, the initial weights, dropout and the order of problems.
    """

    feature: StateFeature = "mean"
    hidden: int = 128
    heads: int = 3
    reward_right: float = 10.0
    reward_wrong: float = 0.1
    dropout: float = 0.1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_problems: int = 16
    epochs: int = 60
    patience: int = 10
    validation: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reward_right <= 0 or self.reward_wrong <= 0:
            raise ArtsError(
                f"rewards are {self.reward_right} and {self.reward_wrong}; both must be positive, since log R is regressed"
            )
        if not 0 < self.validation < 1:
            raise ArtsError(f"validation is {self.validation}; it is the share of problems held out, between 0 and 1")


@dataclass(slots=True)
class Curve:
    """One head's training: a row an epoch (training loss, validation loss, validation AUC), and which was kept."""

    rows: list[tuple[float, float, float]] = field(default_factory=list)
    best: int = 0


@dataclass(frozen=True, slots=True)
class Examples:
    """Trees as a forest, with the state features of their rows."""

    x: Tensor
    forest: Forest
    sizes: list[int]


def split(trees: Sequence[LabelledTree], share: float, seed: int) -> tuple[list[LabelledTree], list[LabelledTree]]:
    """Training and validation trees. A problem's side depends on its id and the seed alone, so that problems added
    later move none of the others.

    Raises:
        ArtsError: a side would be empty.
    """
    sides: tuple[list[LabelledTree], list[LabelledTree]] = ([], [])
    for tree in trees:
        key = hashlib.blake2b(f"{seed}/{tree.id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        sides[int.from_bytes(key, "big") / 2**64 < share].append(tree)
    if not sides[0] or not sides[1]:
        raise ArtsError(
            f"of {len(trees)} problems {len(sides[1])} fall on the validation side: too few to hold any out; make more trees"
        )
    return sides


def forest_of(trees: Sequence[LabelledTree], reward_right: float, reward_wrong: float) -> Forest:
    """Trees laid end to end, without features."""
    parent: list[int] = []
    steps, owner, count, terminal, correct = [], [], [], [], []
    for number, item in enumerate(trees):
        start = len(parent)
        for node in item.tree.nodes:
            parent.append(-1 if node.parent is None else start + node.parent)
            steps.append(node.step)
            owner.append(number)
            count.append(float(node.count))
            terminal.append(node.id in item.correct)
            correct.append(float(item.correct.get(node.id, False)))
    right = torch.tensor(correct)
    is_leaf = torch.tensor(terminal)
    reward = torch.where(right > 0.5, reward_right, reward_wrong).log() * is_leaf
    return Forest(
        parent=torch.tensor(parent),
        step=torch.tensor(steps),
        tree=torch.tensor(owner),
        count=torch.tensor(count),
        terminal=is_leaf,
        correct=right,
        log_reward=reward.float(),
    )


def examples(trees: Sequence[LabelledTree], settings: TrainingSettings) -> Examples:
    """Trees laid end to end, with the state features of their nodes.

    Raises:
        ArtsError: a tree has no features, or of another size than the others.
    """
    rows: list[npt.NDArray[np.float32]] = []
    size = None
    for item in trees:
        hidden = features_of(item)
        size = hidden.shape[1] if size is None else size
        if hidden.shape[1] != size:
            raise ArtsError(f"problem {item.id} has hidden states of size {hidden.shape[1]}, others {size}")
        rows.append(state_features(settings.feature, hidden, item.parents))
    forest = forest_of(trees, settings.reward_right, settings.reward_wrong)
    return Examples(torch.from_numpy(np.concatenate(rows)), forest, [len(item.tree.nodes) for item in trees])


def take(data: Examples, chosen: Sequence[int], starts: npt.NDArray[np.int64]) -> tuple[Tensor, Forest]:
    """The rows and the forest of some trees."""
    pieces = [np.arange(starts[i], starts[i] + data.sizes[i]) for i in chosen]
    rows = torch.from_numpy(np.concatenate(pieces))
    offset = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])[:-1]])
    shift = torch.from_numpy(np.concatenate([np.full(len(p), o - p[0]) for p, o in zip(pieces, offset, strict=True)]))
    old = data.forest
    parent = old.parent[rows]
    forest = Forest(
        parent=torch.where(parent < 0, parent, parent + shift),
        step=old.step[rows],
        tree=old.tree[rows],
        count=old.count[rows],
        terminal=old.terminal[rows],
        correct=old.correct[rows],
        log_reward=old.log_reward[rows],
    )
    return data.x[rows], forest


class Head(nn.Module):
    """The paper's head: Linear, GELU, Dropout, Linear to one output."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, width] -> [n]."""
        out: Tensor = self.second(self.dropout(nn.functional.gelu(self.first(x)))).squeeze(-1)
        return out


def fit(
    training: Sequence[LabelledTree],
    held_out: Sequence[LabelledTree],
    loss: Loss,
    settings: TrainingSettings,
    on_epoch: Callable[[int, int, float, float, float], None] | None = None,
) -> tuple[ValueHead, list[Curve]]:
    """Train `settings.heads` heads and join them; the head and one curve for each.

    Early stopping watches the within-problem AUC on the held-out problems (the validation loss where no held-out
    problem has both right and wrong traces). `on_epoch(head, epoch, training loss, validation loss, AUC)` is called
    after each epoch. The same arguments give the same head on the same machine.

    Raises:
        ArtsError: no epoch made sense.
    """
    data, watch = examples(training, settings), examples(held_out, settings)
    mean, deviation = data.x.mean(0), data.x.std(0).clamp_min(1e-6)
    data = Examples((data.x - mean) / deviation, data.forest, data.sizes)
    watch = Examples((watch.x - mean) / deviation, watch.forest, watch.sizes)
    heads, curves = [], []
    for number in range(settings.heads):

        def report(epoch: int, row: tuple[float, float, float], number: int = number) -> None:
            if on_epoch:
                on_epoch(number, epoch, *row)

        head, curve = _fit_one(data, watch, held_out, loss, settings, settings.seed * 1000 + number, report)
        heads.append(head)
        curves.append(curve)
    return _join(heads, mean, deviation), curves


def _fit_one(
    data: Examples,
    watch: Examples,
    held_out: Sequence[LabelledTree],
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
    report: Callable[[int, tuple[float, float, float]], None],
) -> tuple[Head, Curve]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(data.x.shape[1], settings.hidden, settings.dropout)
        # Flows of most states lie near the mean log-reward of the leaves; a head that starts there need not travel.
        if loss.is_flow:
            nn.init.constant_(head.second.bias, float(data.forest.log_reward[data.forest.terminal].mean()))
        optimiser = torch.optim.AdamW(head.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        order = np.random.default_rng(seed)
        starts = np.concatenate([[0], np.cumsum(data.sizes)[:-1]])
        curve, best, kept = Curve(), -np.inf, {k: v.clone() for k, v in head.state_dict().items()}
        for epoch in range(settings.epochs):
            head.train()
            losses = []
            shuffled = order.permutation(len(data.sizes))
            for start in range(0, len(shuffled), settings.batch_problems):
                x, forest = take(data, shuffled[start : start + settings.batch_problems].tolist(), starts)
                value = loss(head(x), forest)
                optimiser.zero_grad()
                value.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                losses.append(float(value.detach()))
            row = (float(np.mean(losses)), *_watch(head, watch, held_out, loss))
            curve.rows.append(row)
            report(epoch, row)
            figure = merit(row[1], row[2])
            if figure > best:
                best, curve.best, kept = figure, epoch, {k: v.clone() for k, v in head.state_dict().items()}
            elif epoch - curve.best >= settings.patience:
                break
    if best == -np.inf:
        raise ArtsError(DIVERGED)
    head.load_state_dict(kept)
    return head.eval(), curve


def merit(held_loss: float, auc: float) -> float:
    """What epochs are chosen by, the more the better: the AUC, or the loss where there is none; NaN if neither is a number."""
    return -held_loss if np.isnan(auc) else auc


@torch.no_grad()
def _watch(head: Head, watch: Examples, held_out: Sequence[LabelledTree], loss: Loss) -> tuple[float, float]:
    head.eval()
    outputs = head(watch.x)
    scores, start, per_tree = outputs.double().numpy(), 0, []
    for item, size in zip(held_out, watch.sizes, strict=True):
        per_tree.append(trace_scores(item, scores[start : start + size], loss.aggregate))
        start += size
    return float(loss(outputs, watch.forest)), within_problem_auc(held_out, per_tree)


def trace_scores(item: LabelledTree, outputs: npt.NDArray[np.float64], aggregate: Aggregate) -> npt.NDArray[np.float64]:
    """Scores of a tree's finished traces, in the order of `item.correct`, from the outputs at its states."""
    values = outputs if aggregate == "terminal" else path_least(outputs, item.parents)
    return np.asarray(values[list(item.correct)])


def within_problem_auc(trees: Sequence[LabelledTree], scores: Sequence[npt.NDArray[np.float64]]) -> float:
    """Probability that a right trace outscores a wrong one of the same problem (ties count half), averaged over the
    problems that have both; NaN if there are none, or a score is NaN, which compares with nothing."""
    areas = []
    for item, values in zip(trees, scores, strict=True):
        if np.isnan(values).any():
            return float("nan")
        right = np.array(list(item.correct.values()))
        if item.mixed:
            better = values[right][:, None] - values[~right][None, :]
            areas.append(float((better > 0).mean() + 0.5 * (better == 0).mean()))
    return float(np.mean(areas)) if areas else float("nan")


def _join(heads: Sequence[Head], mean: Tensor, deviation: Tensor) -> ValueHead:
    """One head whose output is the mean of theirs, the standardisation of its input folded into the first layer."""
    w1 = torch.cat([head.first.weight.detach() for head in heads]).double()
    b1 = torch.cat([head.first.bias.detach() for head in heads]).double()
    w2 = torch.cat([head.second.weight.detach()[0] for head in heads]).double() / len(heads)
    b2 = float(torch.cat([head.second.bias.detach() for head in heads]).double().mean())
    scaled = w1 / deviation.double()
    shifted = b1 - scaled @ mean.double()
    return ValueHead(scaled.float().numpy(), shifted.float().numpy(), w2.float().numpy(), b2)

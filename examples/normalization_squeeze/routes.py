"""Exact probabilities of every route of a problem under a model, by one forward pass over the tree of all routes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from model import PROMPT_TOKENS, STEP_TOKENS
from task import OPERATIONS, ROUTES, STEPS, Task, apply

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Shape:
    """The tree that all problems share; only the numbers in it differ.

    Attributes:
        paths: the operations that lead to each state, without the prompt's; parents stand before their children.
        parent: state -> its parent's place in `paths`, -1 for the prompt.
        mask: bool [1, 1, tokens, tokens], which tokens each token sees: those of its own path so far.
        position: int64 [1, tokens].
        before: int64 [tokens], the token that each token is predicted from (of the prompt's: unused).
    """

    paths: tuple[tuple[int, ...], ...]
    parent: tuple[int, ...]
    mask: torch.Tensor
    position: torch.Tensor
    before: torch.Tensor

    def first(self, state: int) -> int:
        """Where a state's tokens begin."""
        return PROMPT_TOKENS + STEP_TOKENS * state


@cache
def shape() -> Shape:
    """The tree of all routes, breadth first."""
    paths: list[tuple[int, ...]] = []
    level: list[tuple[int, ...]] = [()]
    for _ in range(STEPS):
        level = [(*path, operation) for path in level for operation in range(len(OPERATIONS))]
        paths += level
    place = {path: number for number, path in enumerate(paths)}
    parent = tuple(place.get(path[:-1], -1) for path in paths)
    size = PROMPT_TOKENS + STEP_TOKENS * len(paths)
    mask = torch.zeros(size, size, dtype=torch.bool)
    position, before = torch.zeros(1, size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    for token in range(PROMPT_TOKENS):
        mask[token, : token + 1] = True
        position[0, token] = token
    for state, above in enumerate(parent):
        last = PROMPT_TOKENS - 1 if above < 0 else PROMPT_TOKENS + STEP_TOKENS * (above + 1) - 1
        for token in range(PROMPT_TOKENS + STEP_TOKENS * state, PROMPT_TOKENS + STEP_TOKENS * (state + 1)):
            mask[token] = mask[last]
            mask[token, token] = True
            position[0, token], before[token] = position[0, last] + 1, last
            last = token
    return Shape(tuple(paths), parent, mask[None, None], position, before)


def tree_tokens(task: Task, words: Any) -> list[int]:
    """The tokens of a problem's tree of routes."""
    tree = shape()
    given: list[int] = []
    for path, above in zip(tree.paths, tree.parent, strict=True):
        given.append(apply(path[-1], task.start if above < 0 else given[above]))
    steps = "".join(f"{OPERATIONS[path[-1]]}={value:02d}\n" for path, value in zip(tree.paths, given, strict=True))
    ids: list[int] = words(task.prompt + steps).input_ids
    return ids


@torch.no_grad()
def log_probabilities(model: Any, words: Any, tasks: Sequence[Task], batch: int = 16) -> Floats:
    """[tasks, routes]: log-probability of each route, its end included, untempered.

    They sum to a little less than one: the rest is text that is no route.
    """
    tree, found, training = shape(), [], model.training
    model.eval()
    leaves = [tree.first(state) + STEP_TOKENS - 1 for state, path in enumerate(tree.paths) if len(path) == STEPS]
    ids = torch.tensor([tree_tokens(task, words) for task in tasks])
    for part in torch.split(ids, batch):
        many = len(part)
        logits = model(
            input_ids=part,
            attention_mask=tree.mask.expand(many, -1, -1, -1),
            position_ids=tree.position.expand(many, -1),
            use_cache=False,
        ).logits
        log_p = torch.log_softmax(logits.double(), dim=-1)
        each = log_p[:, tree.before].gather(2, part[:, :, None]).squeeze(2)
        step = each[:, PROMPT_TOKENS:].view(many, -1, STEP_TOKENS).sum(dim=2)
        total = torch.zeros_like(step)
        for state, above in enumerate(tree.parent):
            total[:, state] = step[:, state] + (total[:, above] if above >= 0 else 0.0)
        found.append(total[:, -len(ROUTES) :] + log_p[:, leaves, words.eos_token_id])
    model.train(training)
    made: Floats = torch.cat(found).numpy()
    return made


def pass_at(right: Floats | float, k: int) -> Floats:
    """Exact pass@k of independent traces: 1 - (1 - p)^k."""
    return np.asarray(-np.expm1(k * np.log1p(-np.minimum(right, 1 - 1e-12))))


def right_mass(log_p: Floats, tasks: Sequence[Task]) -> Floats:
    """[tasks]: the probability that a trace is right."""
    return np.array([np.exp(row[task.right]).sum() for row, task in zip(log_p, tasks, strict=True)])

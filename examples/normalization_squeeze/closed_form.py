r"""The closed form of the normalization squeeze (arXiv 2602.12846) and what is measured of it.

A softmax policy over traces that only raises the logits of the sampled set S_k has

    pi_{k+1}(tau) = pi_k(tau) / (1 + alpha_k)   for every tau outside S_k,

whatever the size of each raise. The mass outside S_k shrinks by the same factor, which gives alpha_k without knowing
the logits: 1 + alpha_k = (1 - pi_k(S_k)) / (1 - pi_{k+1}(S_k)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from task import Task

Floats = npt.NDArray[np.float64]


def log_factor(before: Floats, after: Floats, inside: npt.NDArray[np.bool_]) -> Floats:
    """-log(1 + alpha) from log-probabilities [..., routes] before and after an update and the sampled set."""
    outside = [1.0 - np.where(inside, np.exp(log_p), 0.0).sum(axis=-1) for log_p in (before, after)]
    made: Floats = np.log(np.maximum(outside[1], 1e-300)) - np.log(np.maximum(outside[0], 1e-300))
    return made


def measure(log_p: Floats, sampled: npt.NDArray[np.int16], tasks: Sequence[Task]) -> dict[str, Any]:
    """How routes that were never sampled changed, and how the closed form says they should have.

    Curves are means over problems of the mean log-ratio log pi_k / pi_0 over a problem's routes, one value an update:
        right, wrong: measured, for right and wrong routes that no update sampled.
        visits: the closed form, summed over the updates that the problem was part of, S_k what was sampled for it.
        mass: the closed form with S all routes that were ever sampled for the problem, over all updates.
    `own` is what part of `right` came about in updates that the problem was part of. `sharpening` is the slope of
    log pi_K / pi_0 on log pi_0 over a problem's routes that were never sampled, averaged: 0 if all shrink by one factor,
    as in the closed form; positive if the unlikelier lose more. `step` compares single updates of single problems: the measured mean change of
    log pi over right routes outside S_k against -log(1 + alpha_k).

    Args:
        log_p: [updates + 1, tasks, routes].
        sampled: [updates, tasks, routes], how often each was sampled.
    """
    log_p = log_p.astype(np.float64)
    seen, visited = sampled.sum(axis=0) > 0, sampled.sum(axis=2) > 0
    right = np.array([task.right for task in tasks])
    steps = log_factor(log_p[:-1], log_p[1:], sampled > 0)
    visits = np.concatenate([np.zeros((1, len(tasks))), np.cumsum(np.where(visited, steps, 0.0), axis=0)])
    mass = log_factor(np.broadcast_to(log_p[:1], log_p.shape), log_p, np.broadcast_to(seen, log_p.shape))
    change = log_p - log_p[:1]
    curves = {"visits": visits, "mass": mass}
    for name, which in (("right", right & ~seen), ("wrong", ~right & ~seen)):
        count = which.sum(axis=1)
        with np.errstate(invalid="ignore"):
            curves[name] = (change * which).sum(axis=2) / np.where(count, count, np.nan)
    use = (right & ~seen).any(axis=1)
    outside = right & ~seen
    own = np.where(visited[:, :, None], np.diff(log_p, axis=0), 0.0).sum(axis=0)
    own = (own * outside)[use].sum(axis=1) / outside[use].sum(axis=1)
    rows = np.linspace(0, len(log_p) - 1, min(len(log_p), 41)).round().astype(int)
    return {
        "updates": rows.tolist(),
        "curves": {name: _band(values[np.ix_(rows, np.flatnonzero(use))]) for name, values in curves.items()},
        "last": {name: [_short(x) for x in values[-1, use]] for name, values in curves.items()},
        "own": _band(own[None, :])[0],
        "visited": _short(visited[:, use].mean()),
        "sharpening": _band(_slopes(log_p[0], change[-1], ~seen)[None, :])[0],
        "routes": int((right & ~seen).sum()),
        "routes_right": int(right.sum()),
        "step": _single(log_p, sampled, right, visited, steps),
    }


def _single(log_p: Floats, sampled: Any, right: Any, visited: Any, predicted: Floats) -> dict[str, Any]:
    outside = right & (sampled == 0)
    count = outside.sum(axis=2)
    use = visited & (count > 0)
    moved = (np.diff(log_p, axis=0) * outside).sum(axis=2)[use] / count[use]
    expected = predicted[use]
    known = np.isfinite(moved) & np.isfinite(expected)
    moved, expected = moved[known], expected[known]
    thin = np.linspace(0, len(moved) - 1, min(len(moved), 400)).round().astype(int)
    return {
        "pairs": len(moved),
        "correlation": _short(np.corrcoef(expected, moved)[0, 1]),
        "slope": _short((expected * moved).sum() / (expected**2).sum()),
        "mean_measured": _short(moved.mean()),
        "mean_closed_form": _short(expected.mean()),
        "mean_absolute_difference": _short(np.abs(moved - expected).mean()),
        "sample": [[_short(x), _short(y)] for x, y in zip(expected[thin], moved[thin], strict=True)],
    }


def _slopes(before: Floats, change: Floats, which: npt.NDArray[np.bool_]) -> Floats:
    """[tasks]: least-squares slope of `change` on `before` over a task's routes of `which`."""
    count = which.sum(axis=1, keepdims=True)
    x, y = (np.where(which, v - (v * which).sum(axis=1, keepdims=True) / count, 0.0) for v in (before, change))
    made: Floats = (x * y).sum(axis=1) / (x**2).sum(axis=1)
    return made


def _band(values: Floats) -> list[list[float]]:
    """[rows, problems] -> for each row the mean and its 95 % bootstrap interval over problems."""
    rng = np.random.default_rng(0)
    values = values[:, np.isfinite(values).all(axis=0)]
    many = values.shape[1]
    weight = rng.multinomial(many, np.full(many, 1 / many), size=1000) / many
    low, high = np.percentile(values @ weight.T, [2.5, 97.5], axis=1)
    return [[_short(x) for x in row] for row in zip(values.mean(axis=1), low, high, strict=True)]


def _short(value: Any) -> float:
    return float(f"{float(value):.4g}")

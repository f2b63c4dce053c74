"""Which sequences begin with the same KV cells, so that attention reads those once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MEMBERS, LENGTH = 4, 48
"""Fewer sequences, or a shorter prefix, are not worth the calls that a group of their own costs in every layer."""


def shared_prefixes(views: Sequence[Array]) -> list[tuple[list[int], int]]:
    """Groups of sequences with the length of the prefix that all of a group share; 0 for those without one.

    Args:
        views: the cells of each sequence, int32. Equal cells at equal places are a shared prefix.

    The groups are those that leave the fewest cells to read: a batch of many questions with one few-shot text is split
    by question where the questions are longer than the text, and kept together where they are not.
    """
    groups, alone = _split(views, list(range(len(views))), 0)[1], []
    kept = []
    for members, length in groups:
        if len(members) >= MEMBERS and length >= LENGTH:
            kept.append((members, length))
        else:
            alone += members
    return [*kept, *([(sorted(alone), 0)] if alone else [])]


def _split(views: Sequence[Array], members: list[int], start: int) -> tuple[int, list[tuple[list[int], int]]]:
    """(cells to read, groups) of sequences that share their first `start` cells."""
    if len(members) < MEMBERS:
        return sum(len(views[i]) for i in members), [(members, 0)]
    length = common_prefix(views, members, start)
    together = length + sum(len(views[i]) - length for i in members)
    branches: dict[int, list[int]] = {}
    for i in members:
        # A sequence's newest cell is its own, so a sequence that ends here is a branch by itself.
        branches.setdefault(int(views[i][length]) if length < len(views[i]) else -1 - i, []).append(i)
    if len(branches) == 1:
        return together, [(members, length)]
    apart, groups = 0, []
    for branch in branches.values():
        cells, found = _split(views, branch, length)
        apart += cells
        groups += found
    return (apart, groups) if apart < together else (together, [(members, length)])


def common_prefix(views: Sequence[Array], members: list[int], start: int) -> int:
    """Length of the prefix that all members share; each keeps its last cell to itself."""
    stop = min(len(views[i]) for i in members) - 1
    if stop <= start:
        return min(start, stop)
    first = views[members[0]][start:stop]
    differs = np.zeros(stop - start, dtype=bool)
    for i in members[1:]:
        differs |= views[i][start:stop] != first
    return start + (int(differs.argmax()) if differs.any() else stop - start)

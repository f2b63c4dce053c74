"""A whole tree as one row of tokens, so that a verifier with a model of its own reads every shared prefix once.

The text of each node is tokenised by itself, in training and in use alike: a step's tokens never depend on what comes
after it, so a branch can be read step by step during a search and the states are those of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arts_plugin.errors import ArtsError
from arts_plugin.tree import ReasoningTree

Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class PackedTree:
    """The nodes of a tree, one after another; parents stand before their children.

    Attributes:
        tokens: int64 [n_tokens].
        positions: int64 [n_tokens], counted along each token's own path from the prompt.
        node: int64 [n_tokens], which node a token belongs to.
        ancestors: bool [n_nodes, n_nodes], whether column is row or an ancestor of it.
        ends: int64 [n_nodes], the place of the last token on the path to each node: where its state is read.
        alone: tokens that the same leaves would have if each were read by itself.
    """

    tokens: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    node: npt.NDArray[np.int64]
    ancestors: npt.NDArray[np.bool_]
    ends: npt.NDArray[np.int64]
    alone: int

    def mask(self) -> npt.NDArray[np.bool_]:
        """bool [n_tokens, n_tokens]: a token sees the tokens of its path, up to itself."""
        related = self.ancestors[self.node][:, self.node]
        return np.asarray(related & (self.positions[None] <= self.positions[:, None]))


def pack(tree: ReasoningTree, tokenize: Tokenize, tokenize_prompt: Tokenize | None = None) -> PackedTree:
    """Pack a tree.

    Args:
        tokenize: a step's text -> token ids.
        tokenize_prompt: the same for the prompt (with BOS, say); default: `tokenize`.

    Raises:
        ArtsError: the prompt has no token.
    """
    tokens: list[int] = []
    positions: list[int] = []
    owner: list[int] = []
    n = len(tree.nodes)
    ancestors = np.eye(n, dtype=bool)
    ends = np.zeros(n, dtype=np.int64)
    lengths = np.zeros(n, dtype=np.int64)
    for number, node in enumerate(tree.nodes):
        root = node.parent is None
        made = (tokenize_prompt or tokenize)(tree.prompt) if root else tokenize(node.text)
        if root and not made:
            raise ArtsError("the prompt has no token to begin from")
        before = 0
        if node.parent is not None:
            ancestors[number] |= ancestors[node.parent]
            before, ends[number] = int(lengths[node.parent]), ends[node.parent]
        lengths[number] = before + len(made)
        positions += range(before, before + len(made))
        tokens += made
        owner += [number] * len(made)
        if made:
            ends[number] = len(tokens) - 1
    alone = sum(int(lengths[node.id]) for node in tree.nodes if not node.children)
    as_array = [np.asarray(values, dtype=np.int64) for values in (tokens, positions, owner)]
    return PackedTree(as_array[0], as_array[1], as_array[2], ancestors, ends, alone)

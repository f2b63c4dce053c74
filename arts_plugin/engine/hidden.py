"""Hidden states of a tree that was generated before: each distinct token is computed once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from arts_plugin.backend import FloatArray
from arts_plugin.engine.kv import KvSequence
from arts_plugin.engine.room import make_room
from arts_plugin.engine.runtime import Row
from arts_plugin.errors import ArtsError, PromptTooLongError

if TYPE_CHECKING:
    from arts_plugin.engine.engine import BranchEngine


def tree_features(
    engine: BranchEngine, tokens: Sequence[Sequence[int]], parents: Sequence[int | None], cut: Sequence[int]
) -> FloatArray:
    """Post-norm hidden states at the last kept token of each node, float32 [n_nodes, n_embd].

    See `arts_plugin.backend.Backend.tree_features`.
    """
    if engine.n_active:
        raise ArtsError(f"{engine.n_active} branches are running; hidden states need an idle engine")
    if not engine.runtime.features:
        raise ArtsError("the backend was made without features=True")
    return _Walk(engine, tokens, parents, cut).run()


class _Walk:
    """Chain by chain: a chain follows first children to a leaf in one sequence; other children fork from it later."""

    def __init__(
        self, engine: BranchEngine, tokens: Sequence[Sequence[int]], parents: Sequence[int | None], cut: Sequence[int]
    ) -> None:
        self.engine, self.tokens, self.parents, self.cut = engine, tokens, parents, cut
        self.children: list[list[int]] = [[] for _ in tokens]
        for node, parent in enumerate(parents):
            if parent is not None:
                self.children[parent].append(node)
        self.out = np.zeros((len(tokens), engine.vocabulary.n_embd), dtype=np.float32)

    def run(self) -> FloatArray:
        """All rows of the tree."""
        engine, prompt = self.engine, array("i", self.tokens[0])
        if not prompt or len(prompt) >= engine.n_ctx:
            raise PromptTooLongError(f"the prompt has {len(prompt)} tokens, and the context {engine.n_ctx}")
        base = self._begin(prompt)
        try:
            make_room(engine, 1)
            self.out[0] = self._rows(base, prompt[-1:])[0]
            for child in self.children[0]:
                self._chain(child, prompt, [self.out[0]])
        finally:
            engine.keep_recent(base)
        return self.out

    def _begin(self, tokens: array[int]) -> KvSequence:
        """A sequence with all of `tokens` but the last, copied from the one that shares most of them."""
        sequence = self.engine.begin_sequence(tokens)
        if sequence is None:
            raise ArtsError(
                f"the KV cache of {self.engine.kv.n_cells} cells cannot hold a trace of {len(tokens)} tokens"
            )
        return sequence

    def _chain(self, start: int, before: array[int], path: list[FloatArray]) -> None:
        """Compute the chain from `start`, and what branches off it.

        `before` are the tokens up to it; `path` the hidden states at the prompt's last token and at each one since.
        """
        chain = [start]
        while self.children[chain[-1]]:
            chain.append(self.children[chain[-1]][0])
        fresh = array("i", [token for node in chain for token in self.tokens[node]])
        if not fresh:
            for node in chain:
                self.out[node] = path[max(0, len(path) - self.cut[node] - 1)]
            return
        sequence = self._begin(before + fresh[:1])
        try:
            if not make_room(self.engine, len(fresh)):
                raise ArtsError(f"the KV cache of {self.engine.kv.n_cells} cells cannot hold {len(fresh)} more tokens")
            states, end = [*path, *self._rows(sequence, fresh)], len(path)
            for node in chain:
                end += len(self.tokens[node])
                self.out[node] = states[max(0, end - self.cut[node] - 1)]
                for sibling in self.children[node][1:]:
                    self._chain(sibling, before + fresh[: end - len(path)], states[:end])
        finally:
            self.engine.kv.drop(sequence)

    def _rows(self, sequence: KvSequence, tokens: array[int]) -> list[FloatArray]:
        found: list[FloatArray] = []
        runtime = self.engine.runtime
        for start in range(0, len(tokens), runtime.feature_rows):
            batch = [Row(sequence, token) for token in tokens[start : start + runtime.feature_rows]]
            hidden = runtime.rows(batch, features=True).hidden
            assert hidden is not None
            found += [row.copy() for row in hidden]
        return found

"""The KV cache: which sequence holds which tokens in which cells.

A cell holds the keys and values of one token. A copied sequence shares the cells of its source, and a cell is free
again when no sequence refers to it, so each distinct token of a tree is stored once. The books are kept here for every
runtime: llama.cpp tells nobody how many cells are in use, and the hf backend addresses its tensors by them.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class CacheFullError(Exception):
    """No cell or no sequence id is free. Caught by the engine, which makes room."""


class Memory(Protocol):
    """The runtime's side of the cache, told of what happens to sequences."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Sequence `target` shares the first `length` tokens of `source`."""
        ...

    def remove(self, sequence: int, start: int) -> None:
        """The tokens of a sequence from position `start` on are gone."""
        ...

    def clear(self) -> None:
        """All cells are free, and handed out in order again."""
        ...

    def first_position(self, sequence: int) -> int:
        """The first position that is still whole in every layer (layers with a sliding window may overwrite)."""
        ...


class KvSequence:
    """A sequence: its id, the tokens that were computed into it, and the cells that hold them."""

    __slots__ = ("cells", "id", "tokens")

    def __init__(self, id: int, tokens: array[int], cells: array[int]) -> None:
        self.id, self.tokens, self.cells = id, tokens, cells

    def __len__(self) -> int:
        return len(self.tokens)


class KvCache:
    """Books over a unified cache.

    Args:
        memory: the runtime's side.
        n_cells, n_sequences: its capacity.
        window: how far back a sliding-window layer sees, in tokens; 0 if the model has none.
    """

    def __init__(self, memory: Memory, n_cells: int, n_sequences: int, window: int = 0) -> None:
        self._memory = memory
        self.n_cells, self._window = n_cells, window
        self._references = np.zeros(n_cells, dtype=np.int32)
        self._free_cells = array("i", range(n_cells - 1, -1, -1))
        self._free_ids = list(range(n_sequences - 1, -1, -1))
        self.sequences: dict[int, KvSequence] = {}

    @property
    def free(self) -> int:
        """Cells that are not in use."""
        return len(self._free_cells)

    def limit(self, n_cells: int) -> None:
        """Hand out no cell from `n_cells` on any more: the device has no memory for them. None of them is in use."""
        kept = [cell for cell in self._free_cells if cell < n_cells]
        self.n_cells -= len(self._free_cells) - len(kept)
        self._free_cells = array("i", kept)

    @property
    def used(self) -> int:
        """Cells in use: each distinct token of the trees, once."""
        return self.n_cells - len(self._free_cells)

    @property
    def free_ids(self) -> int:
        """Sequences that can still be made."""
        return len(self._free_ids)

    @property
    def has_free_id(self) -> bool:
        """Whether another sequence can be made."""
        return bool(self._free_ids)

    def new(self, source: KvSequence | None = None, length: int | None = None) -> KvSequence:
        """An empty sequence, or one that shares the first `length` tokens of `source` (default: all).

        Raises:
            CacheFullError: no sequence id is free.
        """
        if not self._free_ids:
            raise CacheFullError("no sequence id is free")
        made = KvSequence(self._free_ids.pop(), array("i"), array("i"))
        self.sequences[made.id] = made
        if source is not None and (length is None or length > 0):
            end = len(source) if length is None else length
            made.tokens, made.cells = source.tokens[:end], source.cells[:end]
            self._references[_view(made.cells)] += 1
            self._memory.copy(source.id, made.id, end)
        return made

    def append(self, sequence: KvSequence, tokens: Sequence[int]) -> None:
        """Book cells for tokens that are about to be computed at the end of `sequence`.

        Raises:
            CacheFullError: fewer cells are free than tokens given; nothing was booked.
        """
        if len(tokens) > len(self._free_cells):
            raise CacheFullError(f"{len(tokens)} cells wanted, {len(self._free_cells)} free")
        for token in tokens:
            cell = self._free_cells.pop()
            self._references[cell] = 1
            sequence.tokens.append(token)
            sequence.cells.append(cell)

    def take_back(self, sequence: KvSequence, count: int) -> None:
        """Undo `append` for tokens that were not computed after all."""
        if count:
            end = len(sequence) - count
            self._release(sequence.cells[end:])
            sequence.tokens, sequence.cells = sequence.tokens[:end], sequence.cells[:end]
            self._memory.remove(sequence.id, end)

    def drop(self, sequence: KvSequence) -> None:
        """Forget a sequence; its cells become free unless others share them."""
        del self.sequences[sequence.id]
        self._release(sequence.cells)
        self._memory.remove(sequence.id, 0)
        self._free_ids.append(sequence.id)

    def clear(self) -> None:
        """Drop what is left, and hand out cells from the first one on."""
        for sequence in list(self.sequences.values()):
            self.drop(sequence)
        self._free_cells = array("i", range(self.n_cells - 1, -1, -1))
        self._memory.clear()

    def _release(self, cells: array[int]) -> None:
        held = _view(cells)
        self._references[held] -= 1
        self._free_cells.extend(held[self._references[held] == 0].tolist())

    def holds(self, sequence: KvSequence) -> bool:
        """Whether a sequence has not been dropped."""
        return self.sequences.get(sequence.id) is sequence

    def common(self, sequence: KvSequence, tokens: array[int]) -> int:
        """How many tokens at its beginning a sequence has in common with `tokens`."""
        return _common_prefix(_view(sequence.tokens), _view(tokens))

    def best_source(self, tokens: array[int], limit: int) -> tuple[KvSequence | None, int]:
        """The sequence that shares the longest prefix with `tokens`, and how long it is, at most `limit`."""
        wanted = _view(tokens)[:limit]
        best, length = None, 0
        for sequence in self.sequences.values():
            shared = _common_prefix(_view(sequence.tokens), wanted)
            if shared > length and self.is_whole(sequence, shared):
                best, length = sequence, shared
        return best, length

    def is_whole(self, sequence: KvSequence, length: int) -> bool:
        """Whether what the first `length` tokens leave in a sliding window has not been overwritten."""
        if self._window == 0 or length == len(sequence):
            return True
        return self._memory.first_position(sequence.id) <= max(0, length - self._window)


def _view(values: array[int]) -> npt.NDArray[np.int32]:
    return np.frombuffer(values, dtype=np.int32) if len(values) else np.empty(0, dtype=np.int32)


def _common_prefix(left: npt.NDArray[np.int32], right: npt.NDArray[np.int32]) -> int:
    size = min(len(left), len(right))
    differ = left[:size] != right[:size]
    first = int(differ.argmax()) if size else 0
    return first if size and differ[first] else size

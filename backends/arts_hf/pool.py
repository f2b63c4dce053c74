"""The KV pool: the keys and values of every token of every branch, one cell a token, in tensors that grow in chunks."""

from __future__ import annotations

import torch

_CHUNK = 128
_GROWTH = 8


class NoMemory:
    """The pool needs no word of copies and removals: sequences are lists of cells, which the books keep."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Nothing: shared cells are shared by their numbers."""

    def remove(self, sequence: int, start: int) -> None:
        """Nothing: a free cell is overwritten."""

    def clear(self) -> None:
        """Cells are addressed by number."""

    def first_position(self, sequence: int) -> int:
        """Every cell stays whole."""
        return 0


class KvPool:
    """For each layer a tensor [cells, k_width + v_width], made when the layer first writes.

    The books hand out the lowest free cells first, so the tensors need to be only as long as the fullest moment:
    they grow by an eighth, at least `_CHUNK` cells, and one layer at a time, so that little is held twice. One cell more
    than the books know is there for rows that are padding.

    Attributes:
        growth: the share by which it grows, 1 / growth; more at once where every growth costs more than memory.
    """

    def __init__(self) -> None:
        self._layers: dict[int, torch.Tensor] = {}
        self._shapes: dict[int, tuple[int, int, int]] = {}
        self._cells = self._growths = 0
        self._tight = False
        self.growth = _GROWTH

    @property
    def spare(self) -> int:
        """The cell that belongs to nobody."""
        return self._cells - 1

    @property
    def state(self) -> tuple[int, int]:
        """Changes when a layer's tensor was replaced, or will be by what it writes next."""
        return self._growths, self._cells

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(layer.numel() * layer.element_size() for layer in self._layers.values())

    @property
    def cell_bytes(self) -> int:
        """Memory of one cell in all layers."""
        return sum(layer.shape[1] * layer.element_size() for layer in self._layers.values())

    @property
    def devices(self) -> set[torch.device]:
        """Where the layers lie."""
        return {layer.device for layer in self._layers.values()}

    @property
    def n_layers(self) -> int:
        """Layers that have written."""
        return len(self._layers)

    def reserve(self, cells: int) -> None:
        """Make room for the cells 0 to `cells` - 1 and the spare one in each layer, once it is written to."""
        if cells >= self._cells:
            more = 0 if self._tight else max(_CHUNK, self._cells // self.growth)
            self._cells = max(cells + 1, self._cells + more)

    def shrink(self) -> tuple[bool, int]:
        """After an allocation that failed: undo a growth that did not come to every layer.

        Returns:
            whether a smaller growth can still be tried, and the cells that every layer has beside the spare one.
        """
        whole = min(map(len, self._layers.values()), default=0)
        if whole >= self._cells:
            return False, max(0, self._cells - 1)
        first, self._tight, self._cells = not self._tight, True, whole
        return first, max(0, whole - 1)

    def write(self, layer: int, cells: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store `key` and `value` [n, heads, width] in `cells` [n]."""
        pool = self._layers.get(layer)
        if pool is None or len(pool) < self._cells:
            pool = self._grow(layer, pool, key, value)
        split = key.shape[1] * key.shape[2]
        pool[:, :split].index_copy_(0, cells, key.reshape(len(key), -1))
        pool[:, split:].index_copy_(0, cells, value.reshape(len(value), -1))

    def _grow(self, layer: int, old: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        width = key.shape[1] * key.shape[2] + value.shape[1] * value.shape[2]
        pool = torch.empty(self._cells, width, dtype=key.dtype, device=key.device)
        if old is not None:
            pool[: len(old)] = old
        self._layers[layer] = pool
        self._growths += 1
        self._shapes[layer] = (key.shape[1], key.shape[2], value.shape[2])
        return pool

    def read(self, layer: int, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `cells` [batch, length] as views [batch, heads, length, width]."""
        heads, k_width, v_width = self._shapes[layer]
        found = self._layers[layer].index_select(0, cells.reshape(-1)).view(*cells.shape, -1)
        split = heads * k_width
        key = found[..., :split].view(*cells.shape, heads, k_width)
        value = found[..., split:].view(*cells.shape, heads, v_width)
        return key.transpose(1, 2), value.transpose(1, 2)

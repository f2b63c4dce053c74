"""Attention over the KV pool, registered with transformers as `arts_tree`.

A forward pass is one flat row of tokens that belong to many branches. Each token sees the cells of its own sequence
and nothing else. Position equals the index in a sequence, so every mask (causal, sliding window, padding) follows
from lengths. There are two ways through:

- one new token for each of many sequences (decoding): a prefix that several of them share is read once for all of them
  (cascade attention: the parts are joined by their log-sum-exps), what is left of each is gathered into [sequences,
  longest] and attended to in one call, with the query heads that share a key head laid along the query axis, so that
  no key is repeated;
- many new tokens of one sequence (prefill): the sequence's cells, with a causal mask aligned to its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from arts_hf.pool import KvPool
from arts_hf.prefixes import shared_prefixes
from arts_plugin.engine.kv import KvSequence
from arts_plugin.errors import ModelError

NAME = "arts_tree"
Array = npt.NDArray[Any]
_SLACK, _GROUP = 1.35, 16


@dataclass(frozen=True, slots=True)
class Gathered:
    """Cells of sequences of similar length, padded.

    `rows` [n]: which of the plan's sequences, None if all; `cells` [n, longest]; `mask` [n, 1, 1, longest], None if
    nothing is padded.
    """

    rows: torch.Tensor | None
    cells: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Shared:
    """Sequences that begin with the same cells: `prefix` [length], and `tails`, what each has of its own."""

    prefix: torch.Tensor
    tails: Gathered


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens `start` to `end` - 1 of the flat row, at the end of one sequence whose `cells` they are the last of."""

    start: int
    end: int
    cells: torch.Tensor


@dataclass(slots=True)
class Plan:
    """Who sees what in one forward pass.

    Args:
        pool: where keys and values are.
        new_cells: cell of each token of the flat row [n].
        rows: places in the flat row of tokens that are the only new ones of their sequence, None if all are.
        sequences: those sequences' cells and lengths.
        segments: the other sequences.
        windows: filled with the window that each layer asked for.
    """

    pool: KvPool
    device: torch.device
    new_cells: torch.Tensor
    rows: torch.Tensor | None
    sequences: list[KvSequence]
    segments: list[Segment]
    windows: dict[int, int]
    _gathered: dict[int, list[Gathered | Shared]] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int], torch.Tensor] = field(default_factory=dict)

    @property
    def decodes(self) -> bool:
        """Whether there are single tokens."""
        return bool(self.sequences)

    def gathered(self, window: int) -> list[Gathered | Shared]:
        """Cells that the single tokens see through a window (0: all of them): those that share a prefix together, the
        others in groups of similar length."""
        longest = max(map(len, self.sequences))
        reach = window if 0 < window < longest else 0  # a window that nobody has come to is none
        if reach not in self._gathered:
            views = [np.frombuffer(sequence.cells, dtype=np.int32) for sequence in self.sequences]
            self._gathered[reach] = self._near(views, reach) if reach else self._all(views)
        return self._gathered[reach]

    def _near(self, views: list[Array], window: int) -> list[Gathered | Shared]:
        return self._padded([view[-window:] for view in views], range(len(views)))

    def _all(self, views: list[Array]) -> list[Gathered | Shared]:
        found: list[Gathered | Shared] = []
        alone: list[int] = []
        for members, length in shared_prefixes(views):
            if length == 0:
                alone += members
                continue
            prefix = torch.from_numpy(views[members[0]][:length].copy()).to(self.device, non_blocking=True)
            tails = self._padded([views[i][length:] for i in members], members)
            found += [Shared(prefix, part) for part in tails if isinstance(part, Gathered)]
        return [*found, *self._padded([views[i] for i in alone], alone)] if alone else found

    def _padded(self, views: list[Array], rows: Sequence[int]) -> list[Gathered | Shared]:
        groups = similar([len(view) for view in views])
        whole = len(groups) == 1 and len(rows) == len(self.sequences) and list(rows) == sorted(rows)
        return [
            _pad([views[i] for i in group], None if whole else [rows[i] for i in group], self.device)
            for group in ([list(range(len(views)))] if whole else groups)
        ]

    def mask(self, segment: Segment, window: int, groups: int) -> torch.Tensor:
        """bool [groups * n, length]: what a segment's tokens see, once for each query head that shares a key head."""
        key = (segment.start, window, groups)
        if key not in self._masks:
            length, n = len(segment.cells), segment.end - segment.start
            at = torch.arange(length - n, length, device=self.device)[:, None]
            seen = torch.arange(length, device=self.device)[None]
            mask = seen <= at
            if window:
                mask &= seen > at - window
            self._masks[key] = mask.repeat(groups, 1)
        return self._masks[key]


def similar(lengths: Sequence[int]) -> list[list[int]]:
    """Indexes by length, longest first, in groups that padding does not swell by more than `_SLACK`; small groups are
    joined to the next, since each costs a call in every layer."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    groups: list[list[int]] = [[]]
    for i in order:
        group = groups[-1]
        if len(group) >= _GROUP and lengths[i] * _SLACK < lengths[group[0]]:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _pad(views: list[Any], group: list[int] | None, device: torch.device) -> Gathered:
    lengths = np.fromiter((len(view) for view in views), dtype=np.int64, count=len(views))
    cells = np.zeros((len(views), int(lengths.max())), dtype=np.int32)
    for row, view in zip(cells, views, strict=True):
        row[: len(view)] = view
    mask = None
    if lengths.min() < cells.shape[1]:
        seen = np.arange(cells.shape[1])[None] < lengths[:, None]
        mask = torch.from_numpy(seen).to(device, non_blocking=True)[:, None, None]
    rows = None if group is None else torch.tensor(group).to(device, non_blocking=True)
    return Gathered(rows, torch.from_numpy(cells).to(device, non_blocking=True), mask)


_active: Plan | None = None


@contextmanager
def using(plan: Plan) -> Iterator[None]:
    """Forward passes in this block follow `plan`. One thread owns the model, so one plan is active at most."""
    global _active
    before, _active = _active, plan
    try:
        yield
    finally:
        _active = before


def tree_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, n, width], key and value [1, kv_heads, n, width] -> [1, n, heads, width].

    Raises:
        ModelError: the model's attention wants something that is not done here (sinks, soft caps).
    """
    plan = _active
    if plan is None:
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others)  # type: ignore[no-any-return]
    odd = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    if odd:
        raise ModelError(f"the attention of {type(module).__name__} uses {', '.join(odd)}, which arts_tree has not")
    window = sliding_window or 0
    layer = module.layer_idx
    plan.windows[layer] = window
    # Layers may lie on several devices; on one, `to` is nothing.
    plan.pool.write(layer, plan.new_cells.to(key.device), key[0].transpose(0, 1), value[0].transpose(0, 1))
    flat = query[0].transpose(0, 1)  # [n, heads, width]
    single = _single(plan, layer, flat, window, scaling) if plan.decodes else None
    if single is not None and plan.rows is None:
        return single[None], None
    out = flat.new_empty(flat.shape[0], flat.shape[1], value.shape[-1])
    if single is not None and plan.rows is not None:
        out[plan.rows.to(out.device)] = single
    for segment in plan.segments:
        out[segment.start : segment.end] = _segment(plan, layer, flat, segment, window, scaling)
    return out[None], None


def _single(plan: Plan, layer: int, flat: torch.Tensor, window: int, scaling: float | None) -> torch.Tensor:
    """One new token of each of many sequences: [n, heads, width]."""
    query = flat if plan.rows is None else flat[plan.rows.to(flat.device)]
    found = [
        (seen.tails.rows, _cascade(plan, layer, query, seen, scaling))
        if isinstance(seen, Shared)
        else (seen.rows, _attend(plan, layer, query, seen, scaling))
        for seen in plan.gathered(window)
    ]
    if len(found) == 1:
        return found[0][1]
    out = query.new_empty(query.shape[0], query.shape[1], found[0][1].shape[2])
    for rows, part in found:
        out[rows if rows is None else rows.to(out.device)] = part
    return out


def _attend(plan: Plan, layer: int, query: torch.Tensor, seen: Gathered, scaling: float | None) -> torch.Tensor:
    if seen.rows is not None:
        query = query[seen.rows.to(query.device)]
    key, value = plan.pool.read(layer, seen.cells.to(query.device))
    mask = None if seen.mask is None else seen.mask.to(query.device)
    grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[2])
    found = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return found.reshape(query.shape[0], query.shape[1], -1)


def _cascade(plan: Plan, layer: int, query: torch.Tensor, seen: Shared, scaling: float | None) -> torch.Tensor:
    """Attention to a shared prefix, computed once for all sequences, and to their own tails, joined exactly: the parts'
    sums are brought to a common maximum. In float32, as fused attention accumulates."""
    if seen.tails.rows is not None:
        query = query[seen.tails.rows.to(query.device)]
    n, heads, width = query.shape
    first_key, first_value = plan.pool.read(layer, seen.prefix[None].to(query.device))
    key, value = plan.pool.read(layer, seen.tails.cells.to(query.device))
    kv_heads = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    grouped = (query.float() * scale).view(n, kv_heads, -1, width)
    # Over the prefix all queries of a key head are one matrix: [kv_heads, n * group, width].
    together = grouped.transpose(0, 1).reshape(kv_heads, -1, width)
    before = (together @ first_key[0].float().transpose(1, 2)).view(kv_heads, n, -1, first_key.shape[2])
    after = grouped @ key.float().transpose(2, 3)  # [n, kv_heads, group, tail]
    if seen.tails.mask is not None:
        after = after.masked_fill(~seen.tails.mask.to(query.device), -torch.inf)
    largest = torch.maximum(before.amax(3).transpose(0, 1), after.amax(3))[..., None]  # [n, kv_heads, group, 1]
    before = before.sub_(largest.transpose(0, 1)).exp_()
    after = after.sub_(largest).exp_()
    total = before.sum(3).transpose(0, 1)[..., None] + after.sum(3, keepdim=True)
    mixed = (before.view(kv_heads, -1, first_key.shape[2]) @ first_value[0].float()).view(
        kv_heads, n, -1, value.shape[3]
    )
    mixed = mixed.transpose(0, 1) + after @ value.float()
    return (mixed / total).to(query.dtype).reshape(n, heads, -1)


def _segment(
    plan: Plan, layer: int, flat: torch.Tensor, segment: Segment, window: int, scaling: float | None
) -> torch.Tensor:
    """The new tokens at the end of one sequence: [n, heads, width]."""
    key, value = plan.pool.read(layer, segment.cells[None].to(flat.device))
    query = flat[segment.start : segment.end]
    n, heads, width = query.shape
    kv_heads = key.shape[1]
    if n == len(segment.cells) and not 0 < window < n:
        # A sequence from its beginning: without a mask, the kernels of flash attention take it.
        whole = functional.scaled_dot_product_attention(
            query.transpose(0, 1)[None], key, value, is_causal=True, scale=scaling, enable_gqa=heads != kv_heads
        )
        return whole[0].transpose(0, 1)
    # Heads that share a key head lie along the query axis: [1, kv_heads, group * n, width].
    grouped = query.view(n, kv_heads, -1, width).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, width)
    tiled = plan.mask(segment, window, heads // kv_heads).to(flat.device)
    found = functional.scaled_dot_product_attention(grouped, key, value, attn_mask=tiled, scale=scaling)
    return found.view(kv_heads, heads // kv_heads, n, -1).permute(2, 0, 1, 3).reshape(n, heads, -1)


def tree_mask(*arguments: Any, **named: Any) -> Any:
    """None under a plan, which knows who sees whom; otherwise the mask of sdpa, to which attention then falls back."""
    return None if _active is not None else sdpa_mask(*arguments, **named)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)

"""Attention inside one packed tree, for training and for scoring whole trees: registered with transformers as
`arts_packed`.

A tree is cut into segments, runs of nodes without a fork. A segment's tokens see the segments above it and, causally,
themselves: so attention costs what the paths are long, and not the square of the whole tree. The plan goes through the
model as an argument and is no global: a layer whose activations are computed again in the backward pass gets it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from arts_plugin.errors import ModelError
from arts_plugin.training.packing import PackedTree

NAME = "arts_packed"
MOST_SEGMENTS = 96
"""Each is a call in every layer; a bushier tree is read with one mask over all of it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`tokens` [n]: places in the packed row; `seen` [m]: of what they see, themselves last; `distance` [n, m]: how far
    back each seen token stands, negative for those that come after."""

    tokens: torch.Tensor
    seen: torch.Tensor
    distance: torch.Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """A packed tree's segments; `order` [n_tokens]: where each token's row is among all segments' rows."""

    parts: list[Segment]
    order: torch.Tensor


def segments_of(packed: PackedTree, device: torch.device) -> Segments | None:
    """The segments of a packed tree; None for one with more than `MOST_SEGMENTS`."""
    n = len(packed.ancestors)
    depth = packed.ancestors.sum(axis=1)
    # The parent is the deepest proper ancestor.
    proper = np.where(packed.ancestors & ~np.eye(n, dtype=bool), depth[None], 0)
    parents = np.where(depth > 1, proper.argmax(axis=1), -1)
    children = np.bincount(parents[parents >= 0], minlength=n)
    of = np.arange(n)
    for node in range(n):
        if parents[node] >= 0 and children[parents[node]] == 1:
            of[node] = of[parents[node]]
    heads = [int(head) for head in np.unique(of)]
    if len(heads) > MOST_SEGMENTS:
        return None
    places = {head: np.flatnonzero(of[packed.node] == head) for head in heads}
    parts: list[Segment] = []
    for head in heads:
        above = [h for h in heads if h != head and packed.ancestors[head, h]]
        above.sort(key=lambda h: int(depth[h]))
        own = places[head]
        if not len(own):
            continue
        seen = np.concatenate([*(places[h] for h in above), own])
        distance = packed.positions[own][:, None] - packed.positions[seen][None]
        parts.append(Segment(*(torch.from_numpy(a).to(device) for a in (own, seen, distance))))
    order = torch.empty(len(packed.tokens), dtype=torch.long, device=device)
    order[torch.cat([part.tokens for part in parts])] = torch.arange(len(packed.tokens), device=device)
    return Segments(parts, order)


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    arts_segments: Segments | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, n, width], key and value [1, kv_heads, n, width] -> [1, n, heads, width].

    Raises:
        ModelError: the model's attention wants something that is not done here, or was not told who sees whom.
    """
    if arts_segments is None:
        if attention_mask is None:
            raise ModelError(
                f"{type(module).__name__} does not hand its arguments on to its attention: no packed trees"
            )
        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        return sdpa(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others)  # type: ignore[no-any-return]
    odd = [name for name in ("softcap", "s_aux") if others.get(name) is not None]
    if odd:
        raise ModelError(f"the attention of {type(module).__name__} uses {', '.join(odd)}, which {NAME} has not")
    found = []
    for part in arts_segments.parts:
        near = part.distance >= 0
        if sliding_window:
            near &= part.distance < sliding_window
        found.append(
            functional.scaled_dot_product_attention(
                query.index_select(2, part.tokens),
                key.index_select(2, part.seen),
                value.index_select(2, part.seen),
                attn_mask=near,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(found, dim=2).index_select(2, arts_segments.order).transpose(1, 2), None


def packed_mask(*arguments: Any, **named: Any) -> Any:
    """None where no mask was given: segments say who sees whom. (One that was given does not come here.)"""
    return None if named.get("attention_mask") is None else sdpa_mask(*arguments, **named)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, packed_mask)

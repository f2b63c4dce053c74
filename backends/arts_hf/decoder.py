"""A transformers decoder under the KV books: flat forward passes over the pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from arts_hf import attention
from arts_hf.attention import Array, Plan, Segment
from arts_hf.graphs import Recorder, StepGraphs
from arts_hf.pool import KvPool, NoMemory
from arts_plugin.engine.kv import CacheFullError, KvCache, KvSequence
from arts_plugin.errors import ModelError

MAX_SEQUENCES = 1 << 14
_DEVIATION = {True: 1e-3, False: 0.15}
"""Relative distance of hidden states that rounding explains, in float32 and in the shorter types."""

_REPEATED = {True: 1e-4, False: 1e-2}
"""The same between a step and its recording: the same kernels in the same shape."""
_GROWTH = 2
"""A pool that grows lies elsewhere, and every recording is made anew: by half, then."""

Item = tuple[KvSequence, int]


class PoolDecoder:
    """Hidden states of many sequences that share their beginnings.

    Args:
        network: a model of transformers, with or without a head. Its attention is switched to `arts_tree`.
        name: what it is called in messages.
        n_ctx: KV cells, at most.
        n_batch: tokens of one forward pass, at most.
        eager: whether attention is plain matrix products, in place of whatever kernel torch chooses.

    Raises:
        ModelError: the model's attention cannot be put over the pool, or gives other hidden states there.
    """

    def __init__(self, network: Any, name: str, n_ctx: int, n_batch: int, eager: bool = False) -> None:
        self.network, self.name, self.n_batch = network, name, n_batch
        self._kernels: Callable[[], AbstractContextManager[Any]] = (
            (lambda: sdpa_kernel(SDPBackend.MATH)) if eager else nullcontext
        )
        self.decoder = network.get_decoder()
        self._windows = _windows(network, name)
        self.device: torch.device = network.get_input_embeddings().weight.device
        self._no_mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        self.pool = KvPool()
        self.kv = KvCache(NoMemory(), n_ctx, MAX_SEQUENCES)
        self.windows: dict[int, int] = {}
        self.graphs: StepGraphs | None = None
        self._check()

    def record_steps(self, record: Recorder) -> None:
        """Record decoding steps from now on, and repeat them in place of running them."""
        self.pool.growth = _GROWTH
        off = _REPEATED[self.network.dtype == torch.float32]
        self.graphs = StepGraphs(self._decode, self.pool, self.device, set(self._windows), off, record, self.name)

    def _rounding(self) -> float:
        return _DEVIATION[self.network.dtype == torch.float32 and not getattr(self.network, "is_quantized", False)]

    def hidden(self, items: Sequence[Item]) -> torch.Tensor:
        """Compute tokens at the ends of sequences, several of one in order: hidden states [n, n_embd].

        Raises:
            CacheFullError: not enough cells; nothing was computed.
        """
        return self._forward(items)

    def hidden_at(self, items: Sequence[Item], at: Sequence[int]) -> torch.Tensor:
        """The same for any number of items, in passes of at most `n_batch`: hidden states of the items `at` (ascending)."""
        if len(items) > self.kv.free:
            raise CacheFullError(f"{len(items)} cells wanted, {self.kv.free} free")
        found = []
        for start in range(0, len(items), self.n_batch):
            hidden = self._forward(items[start : start + self.n_batch])
            wanted = [i - start for i in at if start <= i < start + len(hidden)]
            found.append(hidden[torch.tensor(wanted, dtype=torch.long, device=hidden.device)])
        return torch.cat(found)

    # Forward passes.
    def _forward(self, items: Sequence[Item]) -> torch.Tensor:
        """Book and compute tokens at the ends of their sequences: hidden states [n, n_embd].

        What does not fit into the device's memory is computed in halves; if it is the pool that cannot grow, the cache is
        full from then on at the size that it has.
        """
        if len(items) > self.kv.free:
            raise CacheFullError(f"{len(items)} cells wanted, {self.kv.free} free")
        for sequence, token in items:
            self.kv.append(sequence, (token,))
        try:
            return self._compute(items)
        except BaseException as error:
            # Also what was interrupted: a cell that is booked and was never written would be shared later.
            for sequence in {id(item[0]): item[0] for item in items}.values():
                self.kv.take_back(sequence, sum(1 for item in items if item[0] is sequence))
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            again, whole = self.pool.shrink()
            again |= self.graphs is not None and self.graphs.release()
            if not again and whole and whole < self.kv.n_cells and len(items) > whole - self.kv.used:
                self.kv.limit(whole)
                raise CacheFullError(f"{self.device} has memory for {whole} cells") from error
            if not again and len(items) == 1:
                raise ModelError(f"{self.device} has no memory left for a single token: {error}") from error
        # Only here is what the failed pass held let go of, with its traceback.
        torch.cuda.empty_cache()
        if again:
            return self._forward(items)
        half = len(items) // 2
        return torch.cat([self._forward(items[:half]), self._forward(items[half:])])

    def _compute(self, items: Sequence[Item]) -> torch.Tensor:
        fresh, singles, places, several = self._laid_out(items)
        if self.graphs is not None and not several and (found := self.graphs.run(fresh, singles)) is not None:
            return found
        segments = [
            Segment(start, end, self._upload(np.array(sequence.cells, dtype=np.int64)))
            for sequence, start, end in several
        ]
        tokens, positions, cells = self._upload(fresh)
        rows = self._upload(np.array(places)) if segments and singles else None
        plan = Plan(self.pool, self.device, cells, rows, singles, segments, self.windows)
        with torch.inference_mode(), attention.using(plan):
            return self._decode(tokens, positions)

    def _decode(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # A mask of four dimensions is taken as it is (and our attention looks at none). Without one, transformers looks
        # for packed sequences in the positions, for which the host would wait.
        with self._kernels():
            out = self.decoder(
                input_ids=tokens[None], position_ids=positions[None], attention_mask=self._no_mask, use_cache=False
            )
        return out.last_hidden_state[0]  # type: ignore[no-any-return]

    def _laid_out(
        self, items: Sequence[Item]
    ) -> tuple[Array, list[KvSequence], list[int], list[tuple[KvSequence, int, int]]]:
        """The flat row: token, position and cell of each item [3, n]; the sequences with one new token and its place, and
        those with several, from the first to behind the last."""
        n = len(items)
        fresh = np.empty((3, n), dtype=np.int64)
        singles: list[KvSequence] = []
        places: list[int] = []
        several: list[tuple[KvSequence, int, int]] = []
        start = 0
        while start < n:
            sequence, end = items[start][0], start + 1
            while end < n and items[end][0] is sequence:
                end += 1
            length = len(sequence)
            fresh[0, start:end] = [token for _, token in items[start:end]]
            fresh[1, start:end] = range(length - (end - start), length)
            fresh[2, start:end] = sequence.cells[length - (end - start) :]
            if end - start == 1:
                singles.append(sequence)
                places.append(start)
            else:
                several.append((sequence, start, end))
            start = end
        self.pool.reserve(int(fresh[2].max()) + 1)
        return fresh, singles, places, several

    def _upload(self, values: Any) -> torch.Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)

    # Whether this model can be run like this at all.
    def _check(self) -> None:
        """Compare forked decoding over the pool with the model's own forward pass on a few tokens.

        Many architectures differ in their attention; those that cannot be put over the pool give wrong numbers and no
        error, so every model is tried once when it is loaded.
        """
        name = self.name
        tokens = sample_tokens(self.network)
        with torch.inference_mode():
            want = self.decoder(input_ids=torch.tensor([tokens], device=self.device), use_cache=False)
        try:
            self.network.set_attn_implementation(attention.NAME)
            base = self.kv.new()
            self._forward([(base, token) for token in tokens[:6]])
            twin = self.kv.new(base)
            self._forward([(base, tokens[0]), (twin, tokens[6])])
            got = self._forward([(twin, token) for token in tokens[7:]])[-1]
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{name} ({type(self.network).__name__}) cannot be decoded as a tree: {type(error).__name__}: {error}"
            ) from error
        self.kv.drop(base)
        self.kv.drop(twin)
        expected = want.last_hidden_state[0, -1].float()
        self.deviation = float((expected - got.float()).norm() / expected.norm())
        n_layers = self.network.config.get_text_config().num_hidden_layers
        odd = [i for i, window in enumerate(self._windows) if self.windows.get(i, window) != window]
        if self.pool.n_layers != n_layers:
            problem = f"only {self.pool.n_layers} of its {n_layers} layers are attention that can be shared by branches"
        elif odd:
            problem = (
                f"by its config layer {odd[0]} sees {self._windows[odd[0]] or 'all'} tokens, and its attention asks for "
                f"{self.windows[odd[0]] or 'all'}"
            )
        elif not self.deviation < self._rounding():
            problem = f"its hidden states then differ by {self.deviation:.1%} from those of its own forward pass"
        else:
            return
        raise ModelError(
            f"{name} ({type(self.network).__name__}) cannot be decoded as a tree: {problem}; use a decoder-only model "
            "with plain causal or sliding-window attention in every layer"
        )


def sample_tokens(network: Any) -> list[int]:
    """A dozen tokens to try a model with."""
    n_vocab = network.get_input_embeddings().weight.shape[0]
    return [(7919 * i + 13) % min(n_vocab, 5000) for i in range(1, 13)]


def _windows(network: Any, name: str) -> list[int]:
    """How far back each layer sees by the model's config, in tokens; 0 is everything.

    Raises:
        ModelError: a layer is neither full nor sliding-window attention.
    """
    config = network.config.get_text_config()
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        used = getattr(config, "use_sliding_window", True)
        return [window if used else 0] * config.num_hidden_layers
    odd = [kind for kind in kinds if kind not in {"full_attention", "sliding_attention"}]
    if odd:
        raise ModelError(f"{name} ({type(network).__name__}) cannot be decoded as a tree: it has layers of {odd[0]}")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]

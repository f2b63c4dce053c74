"""A llama.cpp context: batches in, logits and hidden states out."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arts_llama_cpp.bindings import last_errors
from arts_llama_cpp.model import LlamaModel
from arts_plugin.backend import FloatArray, Sampling
from arts_plugin.engine.kv import CacheFullError, KvCache, KvSequence
from arts_plugin.engine.runtime import Draw, Row, default_threads
from arts_plugin.errors import ArtsError, ModelError, SettingsError
from arts_plugin.sampling import Adjustment, log_normaliser, pick, pick_adjusted
from arts_plugin.settings import Settings

_CACHE_TYPES = {
    **{"f32": 0, "f16": 1, "bf16": 30, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8},
    "iq4_nl": 20,
}
"""ggml's numbers of the types that a KV cache may have."""
MAX_SEQUENCES = 256  # llama.cpp's own limit


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of a batch's rows [n, vocabulary], their logsumexp [n] and hidden states [n, n_embd], as the engine draws
    from them: views into llama.cpp's buffers until `keep` copies a row."""

    logits: FloatArray
    log_z: npt.NDArray[np.float64]
    hidden: FloatArray | None = None

    def draw(
        self,
        rows: Sequence[int],
        sampling: Sampling,
        uniforms: Sequence[float],
        adjustments: Sequence[Adjustment] = (),
    ) -> list[Draw]:
        """See `arts_plugin.engine.runtime.NextTokens`."""
        if adjustments:
            return [
                pick_adjusted(self.logits[row], sampling, float(self.log_z[row]), u, adjustment)
                for row, u, adjustment in zip(rows, uniforms, adjustments, strict=True)
            ]
        return [self._draw(row, sampling, u) for row, u in zip(rows, uniforms, strict=True)]

    def _draw(self, row: int, sampling: Sampling, u: float) -> Draw:
        logits, log_z = self.logits[row], float(self.log_z[row])
        if not math.isfinite(log_z):
            return 0, math.nan
        token = pick(logits, sampling, log_z, u)
        return token, float(logits[token]) - log_z

    def keep(self, row: int) -> Logits:
        """One row, copied."""
        return Logits(self.logits[row : row + 1].copy(), self.log_z[row : row + 1].copy())


class _Memory:
    """llama.cpp's sequences, as the books see them."""

    def __init__(self, lib: Any, handle: Any) -> None:
        self._lib, self._handle = lib, handle

    def copy(self, source: int, target: int, length: int) -> None:
        self._lib.llama_memory_seq_cp(self._handle, source, target, 0, length)

    def remove(self, sequence: int, start: int) -> None:
        self._lib.llama_memory_seq_rm(self._handle, sequence, start, -1)

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._handle, False)

    def first_position(self, sequence: int) -> int:
        return int(self._lib.llama_memory_seq_pos_min(self._handle, sequence))


class LlamaContext:
    """One unified cache for all branches. Rows are decoded together; prefixes are prefilled without outputs.

    With hidden states on, llama.cpp makes every token of a batch an output, vocabulary projection included. They are
    therefore switched off for prefill, and the last token of a prefix is always a row.
    """

    feature_rows = 64  # each of them costs a vocabulary projection, wanted or not
    score_rows = 128  # each of them is as wide as the vocabulary
    # From 64 rows on, ggml's flash attention on a CPU adds up cells in tiles, and what else is computed moves a score.
    score_batch = 63
    steady_rows: int | None = 32

    def __init__(self, model: LlamaModel, settings: Settings, features: bool) -> None:
        self.model, self.features, self.lib = model, features, model.lib
        params = self.lib.llama_context_default_params()
        params.n_seq_max = min(MAX_SEQUENCES, self.lib.llama_max_parallel_sequences())
        # llama.cpp aborts the process if a batch (or the context) is smaller than the sequences are many. That is also
        # as many rows as the engine ever asks for: one for each running branch and each point to be branched from.
        params.n_ctx = max(settings.n_ctx, params.n_seq_max)
        params.n_batch = max(settings.n_ubatch, params.n_seq_max)
        params.n_ubatch = settings.n_ubatch
        params.n_threads = params.n_threads_batch = settings.n_threads or default_threads()
        params.kv_unified = True
        params.swa_full = True  # forks and refills need what a sliding window would have thrown away
        params.embeddings = features
        params.pooling_type = self.lib.LLAMA_POOLING_TYPE_NONE
        params.type_k = _cache_type("cache_type_k", settings.cache_type_k)
        params.type_v = _cache_type("cache_type_v", settings.cache_type_v)
        if settings.flash_attn is not None:
            params.flash_attn_type = int(settings.flash_attn)
        last_errors()
        self.handle: Any = self.lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise ModelError(
                f"llama.cpp made no context of n_ctx={settings.n_ctx} for {model.path.name}: "
                f"{last_errors() or 'out of memory?'}; a smaller n_ctx or slots needs less"
            )
        self.n_batch: int = self.lib.llama_n_batch(self.handle)
        self.n_threads: int = params.n_threads
        n_cells = min(settings.n_ctx, self.lib.llama_n_ctx(self.handle))
        memory = self.lib.llama_get_memory(self.handle)
        # With `swa_full` too, llama.cpp may reuse cells of window layers that lie behind their sequence's window.
        window = self.lib.llama_model_n_swa(model.handle)
        self.kv = KvCache(_Memory(self.lib, memory), n_cells, params.n_seq_max, window)
        self._batch = self.lib.llama_batch_init(self.n_batch, 0, 1)
        self._embeddings = features

    def prefill(self, sequence: KvSequence, tokens: Sequence[int]) -> None:
        """Compute `tokens` at the end of `sequence`, outputs discarded.

        Raises:
            CacheFullError: not enough cells; what fitted stays in the sequence.
        """
        self.prefill_all([(sequence, token) for token in tokens])

    def prefill_all(self, items: Sequence[tuple[KvSequence, int]]) -> None:
        """The same for tokens of several sequences, in order."""
        self._set_embeddings(False)
        for start in range(0, len(items), self.n_batch):
            self._decode([(sequence, token, False) for sequence, token in items[start : start + self.n_batch]])

    def rows(self, rows: Sequence[Row], features: bool) -> Logits:
        """Compute one token for each row, together; see `arts_plugin.engine.runtime.Runtime`."""
        self._set_embeddings(features)
        self._decode([(row.sequence, row.token, True) for row in rows])
        made = self._logits(len(rows))
        if not features:
            return made
        hidden = self._output(self.lib.llama_get_embeddings(self.handle), len(rows), self.model.n_embd)
        return Logits(made.logits, made.log_z, hidden)

    def score(self, rows: Sequence[Row], wanted: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """Log-probabilities of wanted tokens after each row; a row of which none is wanted costs no logits."""
        if len(rows) > self.kv.free:
            raise CacheFullError(f"{len(rows)} cells wanted, {self.kv.free} free")
        found: list[list[tuple[float, bool]]] = []
        for start in range(0, len(rows), self.score_batch):
            part = slice(start, start + self.score_batch)
            found += self._score(rows[part], wanted[part])
        return found

    def _score(self, rows: Sequence[Row], wanted: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        self._set_embeddings(False)
        self._decode([(row.sequence, row.token, bool(tokens)) for row, tokens in zip(rows, wanted, strict=True)])
        found: list[list[tuple[float, bool]]] = [[] for _ in rows]
        asked = [i for i, tokens in enumerate(wanted) if tokens]
        made = self._logits(len(asked))
        for i, row, log_z in zip(asked, made.logits, made.log_z, strict=True):
            best = int(row.argmax())
            found[i] = [(float(row[token]) - float(log_z), token == best) for token in wanted[i]]
        return found

    def _logits(self, n_rows: int) -> Logits:
        logits = self._output(self.lib.llama_get_logits(self.handle), n_rows, self.model.n_vocab)
        return Logits(logits, log_normaliser(logits), None)

    def _output(self, pointer: Any, n_rows: int, width: int) -> FloatArray:
        return np.ctypeslib.as_array(pointer, shape=(n_rows * width,)).reshape(n_rows, width)

    def _set_embeddings(self, on: bool) -> None:
        if on != self._embeddings:
            self.lib.llama_set_embeddings(self.handle, on)
            self._embeddings = on

    def _decode(self, items: Sequence[tuple[KvSequence, int, bool]]) -> None:
        if len(items) > self.kv.free:
            raise CacheFullError(f"{len(items)} cells wanted, {self.kv.free} free")
        if len(items) > self.n_batch:
            raise ArtsError(f"a batch of {len(items)} tokens; the context takes {self.n_batch}")
        batch = self._batch
        for i, (sequence, token, output) in enumerate(items):
            batch.token[i] = token
            batch.pos[i] = len(sequence)
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence.id
            batch.logits[i] = output
            self.kv.append(sequence, (token,))
        batch.n_tokens = len(items)
        status = self.lib.llama_decode(self.handle, batch)
        if status == 0:
            return
        for sequence in {id(item[0]): item[0] for item in items}.values():
            self.kv.take_back(sequence, sum(1 for item in items if item[0] is sequence))
        if status == 1:
            raise CacheFullError("llama.cpp found no slot for the batch")
        raise ModelError(f"llama_decode failed with status {status}: {last_errors() or 'no reason given'}")

    def close(self) -> None:
        """Free the context."""
        if self.handle:
            self.lib.llama_batch_free(self._batch)
            self.lib.llama_free(self.handle)
            self.handle = None

    def apply_lora(self, file: Path) -> None:
        """Switch an adapter on for all that is computed from now on.

        Raises:
            ModelError: it cannot be loaded, or belongs to another model.
        """
        last_errors()
        adapter = self.lib.llama_adapter_lora_init(self.model.handle, os.fsencode(file))
        if not adapter:
            raise ModelError(f"llama.cpp cannot load {file}: {last_errors() or 'no reason given'}")
        adapters = (self.lib.llama_adapter_lora_p_ctypes * 1)(adapter)
        if self.lib.llama_set_adapters_lora(self.handle, adapters, 1, (ctypes.c_float * 1)(1.0)):
            raise ModelError(f"llama.cpp does not apply {file}: {last_errors() or 'no reason given'}")


def _cache_type(setting: str, name: str) -> int:
    if name.lower() not in _CACHE_TYPES:
        raise SettingsError(f"{setting} is {name!r}; it is one of {', '.join(_CACHE_TYPES)}")
    return _CACHE_TYPES[name.lower()]

"""A transformers model under the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from arts_hf.decoder import MAX_SEQUENCES, PoolDecoder, sample_tokens
from arts_hf.graphs import CudaRecorder
from arts_hf.head import TopTokens, VocabularyHead
from arts_hf.memory import cells_that_fit
from arts_hf.pool import NoMemory
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.engine.kv import KvCache, KvSequence
from arts_plugin.engine.runtime import Row, fitting_slots
from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings

_NARROW, _WIDE = 64, 1024
_MOST_SLOTS = 256
_LOGITS_OFF = 0.25
"""Nats that rounding explains: both are made from the same hidden states."""


class HfRuntime(PoolDecoder):
    """See `arts_plugin.engine.runtime.Runtime`.

    Raises:
        ModelError: see `PoolDecoder`; or the model has no language-model head.
    """

    feature_rows = 256
    score_rows = 256
    steady_rows: int | None = None  # its matrix products choose their kernels by shape

    def __init__(self, model: Any, vocabulary: HfVocabulary, settings: Settings, features: bool) -> None:
        self.model, self.features = vocabulary, features
        self.head = VocabularyHead(_output_embeddings(model, vocabulary.name), _finish(model.config.get_text_config()))
        narrow = 0 < settings.top_k < _NARROW or settings.temperature == 0
        self.k = min(_NARROW if narrow else _WIDE, vocabulary.n_vocab)
        n_batch = max(settings.n_ubatch, 2 * settings.slots)
        super().__init__(model, vocabulary.name, settings.n_ctx, n_batch, settings.attn_implementation == "eager")
        self._check_logits(model)
        if (
            settings.cuda_graphs
            and {device.type for device in self.pool.devices} == {"cuda"}
            and len(self.pool.devices) == 1
        ):
            self.record_steps(CudaRecorder(self.device))
        self.slots = settings.slots or self._fitting(settings)

    def _fitting(self, settings: Settings) -> int:
        """`slots=auto`: the cache becomes as large as they need; it only takes memory as it is filled."""
        aside = 3 * 4 * _MOST_SLOTS * self.model.n_vocab  # logits, and copies of them
        cells = cells_that_fit(self.pool.devices, self.pool.cell_bytes, aside)
        slots = fitting_slots(cells, settings.max_gen_toks, _MOST_SLOTS)
        self.n_batch = max(settings.n_ubatch, 2 * slots)
        # Branches, and the open states and prompts that they came from.
        wanted = max(settings.n_ctx, 2 * slots * settings.max_gen_toks)
        self.kv = KvCache(NoMemory(), min(wanted, max(cells, settings.n_ctx)), MAX_SEQUENCES)
        return slots

    def _check_logits(self, model: Any) -> None:
        """Whether our head makes the logits that the model makes: an architecture may do something of its own to them.

        Raises:
            ModelError: it does, and it is not known here.
        """
        tokens = torch.tensor([sample_tokens(model)], device=self.device)
        with torch.inference_mode():
            want = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
            hidden = self.decoder(input_ids=tokens, use_cache=False).last_hidden_state[0, -1:]
            got = self.head.logits(hidden.to(self.device))[0].to(want.device)
        off = float((got.log_softmax(0) - want.log_softmax(0)).abs().max())
        if not off < _LOGITS_OFF:
            raise ModelError(
                f"{self.name} ({type(model).__name__}) does something to its logits that is not known here: its "
                f"log-probabilities differ by up to {off:.2g} nats from those of its output embeddings"
            )

    # What the engine asks for.
    def prefill(self, sequence: KvSequence, tokens: Sequence[int]) -> None:
        """Compute `tokens` at the end of `sequence`, outputs discarded."""
        for start in range(0, len(tokens), self.n_batch):
            self.hidden([(sequence, token) for token in tokens[start : start + self.n_batch]])

    def rows(self, rows: Sequence[Row], features: bool) -> TopTokens:
        """Compute one token for each row, together."""
        hidden = self.hidden([(row.sequence, row.token) for row in rows])
        with torch.inference_mode():
            return TopTokens.of(self.head, hidden, self.k, features, self.model.n_vocab)

    def score(self, rows: Sequence[Row], wanted: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """Log-probabilities of wanted tokens after each row; a row of which none is wanted costs no logits."""
        hidden = self.hidden([(row.sequence, row.token) for row in rows])
        found: list[list[tuple[float, bool]]] = [[] for _ in rows]
        asked = [i for i, tokens in enumerate(wanted) if tokens]
        with torch.inference_mode():
            scores = self.head.score(hidden[torch.tensor(asked, device=hidden.device)], [wanted[i] for i in asked])
        for i, values in zip(asked, scores, strict=True):
            found[i] = values
        return found


def _output_embeddings(model: Any, name: str) -> Any:
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no language-model head to propose tokens with")
    return head


def _finish(config: Any) -> Any:
    """What some architectures do between their output embeddings and their logits."""
    cap = getattr(config, "final_logit_softcapping", None)
    if cap:
        return lambda logits: torch.tanh(logits / cap) * cap
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return (lambda logits: logits * scale) if scale != 1 else None

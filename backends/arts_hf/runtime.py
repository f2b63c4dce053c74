"""A transformers model under the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from arts_hf.decoder import PoolDecoder
from arts_hf.head import TopTokens, VocabularyHead
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.engine.kv import KvSequence
from arts_plugin.engine.runtime import Row
from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings

_NARROW, _WIDE = 64, 1024


class HfRuntime(PoolDecoder):
    """See `arts_plugin.engine.runtime.Runtime`.

    Raises:
        ModelError: see `PoolDecoder`; or the model has no language-model head.
    """

    feature_rows = 256
    score_rows = 256

    def __init__(self, model: Any, vocabulary: HfVocabulary, settings: Settings, features: bool) -> None:
        self.model, self.features = vocabulary, features
        self.head = VocabularyHead(_output_embeddings(model, vocabulary.name), _finish(model.config.get_text_config()))
        narrow = 0 < settings.top_k < _NARROW or settings.temperature == 0
        self.k = min(_NARROW if narrow else _WIDE, vocabulary.n_vocab)
        super().__init__(model, vocabulary.name, settings.n_ctx, max(settings.n_ubatch, 2 * settings.slots))

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
        """Log-probabilities of wanted tokens after each row."""
        hidden = self.hidden([(row.sequence, row.token) for row in rows])
        with torch.inference_mode():
            return self.head.score(hidden, wanted)


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

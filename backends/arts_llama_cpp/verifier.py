"""A LoRA verifier on llama.cpp: a second model with an exported adapter (`arts export`), reading on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arts_llama_cpp.context import LlamaContext
from arts_llama_cpp.model import LlamaModel
from arts_plugin import gguf_file
from arts_plugin.backbone_verifier import Item, ValueBackboneVerifier, body_settings
from arts_plugin.backend import FloatArray
from arts_plugin.checkpoint import GGUF_ADAPTER, Card
from arts_plugin.engine.kv import CacheFullError
from arts_plugin.engine.runtime import Row
from arts_plugin.errors import ModelError
from arts_plugin.locate import locate
from arts_plugin.settings import Settings
from arts_plugin.value_head import ValueHead


class LlamaBody:
    """See `arts_plugin.backbone_verifier.Body`."""

    def __init__(self, context: LlamaContext) -> None:
        self.context, self.kv, self.n_batch = context, context.kv, context.n_batch

    def tokenize(self, text: str) -> Sequence[int]:
        """A step's tokens."""
        return self.context.model.tokenize(text)

    def tokenize_prompt(self, text: str) -> Sequence[int]:
        """A prompt's tokens, with BOS if the model wants one."""
        return self.context.model.encode(text).token_ids

    def states(self, items: Sequence[Item], at: Sequence[int]) -> FloatArray:
        """All items but those `at` in one batch without outputs, then those: with hidden states on, every token of a
        batch would cost a vocabulary projection."""
        if len(items) > self.kv.free:
            raise CacheFullError(f"{len(items)} cells wanted, {self.kv.free} free")
        wanted = set(at)
        self.context.prefill_all([item for i, item in enumerate(items) if i not in wanted])
        rows = [Row(*items[i]) for i in at]
        found: list[FloatArray] = []
        for start in range(0, len(rows), self.n_batch):
            hidden = self.context.rows(rows[start : start + self.n_batch], features=True).hidden
            assert hidden is not None
            found.append(hidden.copy())
        return np.concatenate(found) if found else np.empty((0, self.context.model.n_embd), dtype=np.float32)

    def close(self) -> None:
        """Free context and model; adapters go with it."""
        self.context.close()
        self.context.model.close()


def load(folder: Path, card: Card, head: ValueHead, settings: Settings) -> ValueBackboneVerifier:
    """Load the GGUF model that the card names, or `verifier_model`, with the adapter beside the card.

    Raises:
        ModelError: the model or the adapter cannot be loaded, or they do not belong together.
    """
    assert card.backbone is not None
    settings = body_settings(card, settings)
    try:
        path = locate(settings.model)
        model = LlamaModel(path, settings)
    except ModelError as error:
        raise ModelError(
            f"verifier {card.name!r} needs its model {settings.model}: {error}; verifier_model= names another place"
        ) from error
    if (found := gguf_file.tensor_digest(path)) != card.backbone.digest:
        raise ModelError(
            f"verifier {card.name!r} was exported for {card.backbone.name} ({card.backbone.digest[:23]}...), and {path} "
            f"holds other weights ({found[:23]}...)"
        )
    try:
        context = _adapted(model, folder / GGUF_ADAPTER, settings)
    except BaseException:
        model.close()
        raise
    return ValueBackboneVerifier(LlamaBody(context), head, card)


def _adapted(model: LlamaModel, file: Path, settings: Settings) -> LlamaContext:
    """A context in which the adapter is on."""
    context = LlamaContext(model, settings, features=True)
    try:
        context.apply_lora(file)
    except BaseException:
        context.close()
        raise
    return context

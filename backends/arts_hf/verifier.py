"""A LoRA verifier on transformers: the body that reads for `arts_plugin.backbone_verifier`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arts_hf import attention, backbone, loading, memory
from arts_hf.packed import NAME as PACKED
from arts_hf.runtime import HfRuntime
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.backbone_verifier import Item, ValueBackboneVerifier, body_settings
from arts_plugin.backend import FloatArray
from arts_plugin.checkpoint import Card
from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings
from arts_plugin.training.packing import pack
from arts_plugin.tree import ReasoningTree
from arts_plugin.value_head import ValueHead, path_least

_PACKED = 8192
"""Tokens of a tree that is scored in one pass, at most."""


class HfBody:
    """See `arts_plugin.backbone_verifier.Body`."""

    def __init__(self, runtime: HfRuntime) -> None:
        self.runtime, self.kv, self.n_batch = runtime, runtime.kv, runtime.n_batch

    def tokenize(self, text: str) -> Sequence[int]:
        """A step's tokens."""
        return self.runtime.model.tokenize(text)

    def tokenize_prompt(self, text: str) -> Sequence[int]:
        """A prompt's tokens, with BOS if the model wants one."""
        return self.runtime.model.encode(text).token_ids

    def states(self, items: Sequence[Item], at: Sequence[int]) -> FloatArray:
        """Flat forward passes, one if the items are not many."""
        return np.asarray(self.runtime.hidden_at(items, at).float().cpu().numpy())

    def close(self) -> None:
        """Let go of the model."""
        closed: Any = None
        self.runtime = self.kv = closed
        memory.give_back()


class HfVerifier(ValueBackboneVerifier):
    """A LoRA verifier that scores recorded trees in one packed pass each."""

    body: HfBody

    def score_recorded(self, tree: ReasoningTree) -> npt.NDArray[np.float64]:
        """The scores of all states of a recorded tree, [n_nodes]."""
        runtime = self.body.runtime
        packed = pack(tree, self.body.tokenize, self.body.tokenize_prompt)
        if len(packed.tokens) > _PACKED:  # its mask grows with the square
            return super().score_recorded(tree)
        runtime.network.set_attn_implementation(PACKED)
        try:
            with torch.inference_mode():
                hidden = backbone.hidden_states(runtime.network, packed)
        finally:
            runtime.network.set_attn_implementation(attention.NAME)
        self.computed_tokens += len(packed.tokens)
        rows = hidden[torch.from_numpy(packed.ends).to(hidden.device)].float().cpu().numpy()
        outputs = self.outputs(rows)
        if self.card.aggregate == "terminal":
            return outputs
        return path_least(outputs, [node.parent for node in tree.nodes])


def load(folder: Path, card: Card, head: ValueHead, settings: Settings) -> HfVerifier:
    """Load the backbone that the card names, or `verifier_model`, and put the adapter on.

    Raises:
        ModelError: the backbone or the adapter cannot be loaded, or they do not belong together.
    """
    assert card.backbone is not None
    settings = body_settings(card, settings)
    try:
        loaded = loading.load(settings)
    except ModelError as error:
        raise ModelError(
            f"verifier {card.name!r} needs its model {settings.model}: {error}; verifier_model= names another place"
        ) from error
    if (found := loading.digest(loaded.source)) != card.backbone.digest:
        raise ModelError(
            f"verifier {card.name!r} was trained on {card.backbone.name} ({card.backbone.digest[:23]}...), and "
            f"{loaded.source} holds other weights ({found[:23]}...)"
        )
    body = backbone.adapted(loaded.model, folder / backbone.ADAPTER)
    vocabulary = HfVocabulary(loaded.tokenizer, body.config, body.generation_config, card.backbone.name)
    return HfVerifier(HfBody(HfRuntime(body.eval(), vocabulary, settings, features=True)), head, card)

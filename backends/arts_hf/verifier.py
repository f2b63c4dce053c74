"""A LoRA verifier on transformers: the body that reads for `arts_plugin.backbone_verifier`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arts_hf import attention, backbone, loading
from arts_hf.runtime import HfRuntime
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.backbone_verifier import N_CTX, Item, ValueBackboneVerifier
from arts_plugin.backend import FloatArray
from arts_plugin.checkpoint import Card
from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings
from arts_plugin.training.packing import pack
from arts_plugin.tree import ReasoningTree
from arts_plugin.value_head import ValueHead, path_least


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
        """One flat forward pass for all items."""
        hidden = self.runtime.hidden(items)
        index = torch.tensor(at, dtype=torch.long, device=hidden.device)
        return np.asarray(hidden[index].float().cpu().numpy())


class HfVerifier(ValueBackboneVerifier):
    """A LoRA verifier that scores recorded trees in one packed pass each."""

    body: HfBody

    def score_recorded(self, tree: ReasoningTree) -> npt.NDArray[np.float64]:
        """The scores of all states of a recorded tree, [n_nodes]."""
        runtime = self.body.runtime
        packed = pack(tree, self.body.tokenize, self.body.tokenize_prompt)
        runtime.network.set_attn_implementation("sdpa")
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


def load(folder: Path, card: Card, head: ValueHead, *, n_ctx: int = N_CTX, **options: Any) -> HfVerifier:
    """Load the backbone that the card names and put the adapter on.

    Args:
        options: settings of the model: dtype, device, or another place for the backbone (`model`).

    Raises:
        ModelError: the backbone or the adapter cannot be loaded, or they do not belong together.
    """
    assert card.backbone is not None
    settings = Settings.of({"model": card.backbone.source, "n_ctx": n_ctx, **options})
    try:
        loaded = loading.load(settings)
    except ModelError as error:
        raise ModelError(f"verifier {card.name!r} needs its model {card.backbone.source}: {error}") from error
    if (found := loading.digest(loaded.source)) != card.backbone.digest:
        raise ModelError(
            f"verifier {card.name!r} was trained on {card.backbone.name} ({card.backbone.digest[:23]}...), and "
            f"{loaded.source} holds other weights ({found[:23]}...)"
        )
    body = backbone.put_on(loaded.model, folder / backbone.ADAPTER).merge_and_unload()
    vocabulary = HfVocabulary(loaded.tokenizer, body.config, body.generation_config, card.backbone.name)
    return HfVerifier(HfBody(HfRuntime(body.eval(), vocabulary, settings, features=True)), head, card)

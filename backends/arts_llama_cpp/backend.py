"""The backend that the core sees: a model, a context and an engine behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from arts_llama_cpp.context import MAX_SEQUENCES, LlamaContext
from arts_llama_cpp.model import LlamaModel
from arts_plugin import gguf_file
from arts_plugin.backend import Message, ModelInfo, Prompt
from arts_plugin.engine.engine import RECENT_PROMPTS, BranchEngine
from arts_plugin.engine.runtime import fitting_slots
from arts_plugin.errors import SettingsError
from arts_plugin.locate import locate
from arts_plugin.settings import Settings

MAX_SLOTS = (MAX_SEQUENCES - RECENT_PROMPTS) // 2
"""A running branch and the point it came from each hold a sequence, of which llama.cpp has 256."""


class LlamaCppBackend(BranchEngine):
    """llama.cpp in process, as `arts_plugin.backend.Backend` describes it.

    Args:
        features: whether hidden states at step ends are wanted.

    Raises:
        ModelError: the model cannot be found, loaded or forked.
        SettingsError: more slots than llama.cpp has sequences for.
    """

    any_thread = True

    def __init__(self, settings: Settings, *, features: bool = False) -> None:
        if settings.slots > MAX_SLOTS:
            raise SettingsError(
                f"slots is {settings.slots}; llama.cpp's {MAX_SEQUENCES} sequences allow for {MAX_SLOTS}"
            )
        slots = settings.slots or fitting_slots(settings.n_ctx, settings.max_gen_toks, MAX_SLOTS)
        path = locate(settings.model)
        model = LlamaModel(path, settings)
        self.lora = None if settings.lora is None else Path(settings.lora).expanduser()
        try:
            if self.lora is not None:
                gguf_file.check(self.lora)
            context = LlamaContext(model, settings, features)
            if self.lora is not None:
                context.apply_lora(self.lora)
        except BaseException:
            model.close()
            raise
        self.model, self.context = model, context
        super().__init__(context, slots)

    @cached_property
    def info(self) -> ModelInfo:
        """The model that is loaded."""
        return self.model.info(self.n_ctx)

    @cached_property
    def _digest(self) -> str:
        digest = gguf_file.tensor_digest(self.model.path)
        return digest if self.lora is None else gguf_file.adapted_digest(digest, self.lora)

    def digest(self) -> str:
        """SHA-256 of the tensor data: files that differ only in metadata have the same."""
        return self._digest

    def encode(self, text: str) -> Prompt:
        """A plain prompt."""
        return self.model.encode(text)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """A chat in the model's template."""
        return self.model.encode_chat(messages, add_generation_prompt)

    def close(self) -> None:
        """Free context and model."""
        self.context.close()
        self.model.close()

"""The backend that the core sees: a transformers model, its runtime and the shared engine behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from arts_hf import loading, memory
from arts_hf.loading import Loaded
from arts_hf.runtime import HfRuntime
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.backend import Message, ModelInfo, Prompt
from arts_plugin.engine.engine import BranchEngine
from arts_plugin.engine.runtime import default_threads
from arts_plugin.gguf_file import adapted_digest, model_name
from arts_plugin.locate import commit
from arts_plugin.settings import Settings


class HfBackend(BranchEngine):
    """transformers in process, as `arts_plugin.backend.Backend` describes it.

    Args:
        features: whether hidden states at step ends are wanted.

    Raises:
        ModelError: the model cannot be found, loaded or decoded as a tree.
        SettingsError: a dtype or device that is not there.
    """

    any_thread = True

    def __init__(self, settings: Settings, *, features: bool = False) -> None:
        torch.set_num_threads(settings.n_threads or default_threads())
        self._begin(loading.load(settings), settings, features)

    @classmethod
    def of(
        cls, model: Any, tokenizer: Any, settings: Settings, *, features: bool = False, generation_config: Any = None
    ) -> HfBackend:
        """A backend for a model that is in memory already. Its attention is switched to `arts_tree`; whoever gave it
        switches it back.

        Args:
            generation_config: says which tokens end a generation, in place of the model's own.
        """
        made = cls.__new__(cls)
        made._in_memory = True
        loaded = Loaded(model, tokenizer, Path(model.config._name_or_path or "in memory"))
        made._begin(loaded, settings, features, generation_config)
        return made

    _in_memory = False

    def _begin(self, loaded: Loaded, settings: Settings, features: bool, generation_config: Any = None) -> None:
        self.source, self.network = loaded.source, loaded.model
        self.quantized = settings.quantize
        self.lora = None if settings.lora is None else Path(settings.lora).expanduser()
        name = self.source.stem if self.source.suffix == ".gguf" else self.source.name
        ends = generation_config or getattr(self.network, "generation_config", None)
        self.model = HfVocabulary(
            loaded.tokenizer,
            self.network.config,
            ends,
            name,
            settings.enable_thinking,
            generation_config is not None,
            settings.parse_special,
        )
        runtime = HfRuntime(self.network, self.model, settings, features)
        super().__init__(runtime, runtime.slots)

    @cached_property
    def info(self) -> ModelInfo:
        """The model that is loaded."""
        return ModelInfo(
            name=self.model.name,
            n_ctx=self.n_ctx,
            n_vocab=self.model.n_vocab,
            n_embd=self.model.n_embd,
            bos=-1 if self.model.bos is None else self.model.bos,
            eos=self.model.eos,
            n_params=sum(p.numel() for p in self.network.parameters()),
            chat_template=self.model.chat_template,
            details={
                "file": self.source.name,
                "general.name": model_name(self.source) if self.source.is_file() else "",
                "description": f"{type(self.network).__name__} {self._weights()} on {self.runtime_device()}",
                "bytes": sum(p.numel() * p.element_size() for p in self.network.parameters()),
                "n_ctx_train": self.model.n_ctx_train,
                "dtype": self._weights(),
                "sha": getattr(self.network.config, "_commit_hash", None) or commit(self.source),
                "special_tokens": self.model.special_tokens(),
            },
            n_pair=self.n_ctx + 1,  # a continuation's last token is never computed
        )

    def _weights(self) -> str:
        dtype = str(self.network.dtype).removeprefix("torch.")
        return f"{self.quantized}, {dtype}" if self.quantized else dtype

    def runtime_device(self) -> str:
        """Where the model's input goes."""
        return str(self.network.get_input_embeddings().weight.device)

    @cached_property
    def _digest(self) -> str:
        # What is in memory may have been tuned since it was loaded.
        if self._in_memory:
            return loading.digest_of(self.network)
        made = loading.digest(self.source)
        if self.lora is not None:
            made = adapted_digest(made, self.lora)
        return loading.rounded(made, self.quantized) if self.quantized else made

    def digest(self) -> str:
        """SHA-256 of the tensor data: for a GGUF file the same as under llama.cpp."""
        return self._digest

    def encode(self, text: str) -> Prompt:
        """A plain prompt."""
        return self.model.encode(text)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """A chat in the model's template."""
        return self.model.encode_chat(messages, add_generation_prompt)

    def close(self) -> None:
        """Free the model."""
        closed: Any = None
        self.network = self.runtime = closed
        memory.give_back()

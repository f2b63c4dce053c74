"""A loaded GGUF model: its vocabulary, its tokeniser and its chat template."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from arts_llama_cpp.bindings import last_errors, llama
from arts_plugin import chat, gguf_file, locate
from arts_plugin.backend import Message, ModelInfo, Prompt
from arts_plugin.engine.guide_process import nobody_waits
from arts_plugin.errors import ArtsError, ModelError, PromptTooLongError
from arts_plugin.marks import Cutter
from arts_plugin.settings import Settings

# LLAMA_TOKEN_ATTR_*: what the tokeniser finds in text when it is told to look for special tokens.
_UNKNOWN, _CONTROL, _USER_DEFINED, _STRIPS_RIGHT = 1 << 0, 1 << 3, 1 << 4, 1 << 8


class LlamaModel:
    """Weights and vocabulary. Free with `close`.

    Raises:
        ModelError: the file is missing, damaged, not a GGUF, or of an architecture that cannot be forked.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        gguf_file.check(path)
        self.path = path
        self.lib = llama()
        params = self.lib.llama_model_default_params()
        params.n_gpu_layers = settings.n_gpu_layers
        params.main_gpu = settings.main_gpu
        if settings.split_mode is not None:
            params.split_mode = settings.split_mode
        if settings.tensor_split is not None:
            self._split = self._tensor_split(settings.tensor_split)
            params.tensor_split = self._split
        last_errors()
        self.handle: Any = self.lib.llama_model_load_from_file(os.fsencode(path), params)
        if not self.handle:
            raise ModelError(f"llama.cpp cannot load {path}: {last_errors() or 'no reason given'}")
        self._refuse_what_cannot_fork()
        self.vocab = self.lib.llama_model_get_vocab(self.handle)
        self.n_vocab: int = self.lib.llama_vocab_n_tokens(self.vocab)
        self.n_embd: int = self.lib.llama_model_n_embd(self.handle)
        self.n_ctx_train: int = self.lib.llama_model_n_ctx_train(self.handle)
        self.eog = frozenset(t for t in range(self.n_vocab) if self.lib.llama_vocab_is_eog(self.vocab, t))
        self.bos: int = self.lib.llama_vocab_bos(self.vocab)
        self.adds_bos: bool = self.lib.llama_vocab_get_add_bos(self.vocab) and self.bos >= 0
        template = self.lib.llama_model_chat_template(self.handle, None)
        self.chat_template: str | None = template.decode("utf-8", "replace") if template else None
        self._chat_options = chat.options(settings.enable_thinking)
        self._parse_special = settings.parse_special
        self._pieces: dict[int, bytes] = {}
        self._cutters: dict[bool, Cutter] = {}

    def _tensor_split(self, text: str) -> Any:
        try:
            shares = [float(share) for share in re.split(r"[;/ ]+", text.strip())]
        except ValueError as error:
            raise ModelError(f"tensor_split is {text!r}; it takes numbers separated by `;`, like 3;1") from error
        size = self.lib.llama_max_devices()
        if len(shares) > size:
            raise ModelError(f"tensor_split names {len(shares)} devices; this build of llama.cpp knows {size}")
        return (ctypes.c_float * size)(*shares)

    def _refuse_what_cannot_fork(self) -> None:
        kinds = {
            "recurrent": self.lib.llama_model_is_recurrent,
            "hybrid (attention and recurrence)": self.lib.llama_model_is_hybrid,
            "a diffusion model": self.lib.llama_model_is_diffusion,
            "an encoder": self.lib.llama_model_has_encoder,
        }
        for kind, test in kinds.items():
            if test(self.handle):
                self.close()
                raise ModelError(
                    f"{self.path.name} is {kind}: its memory cannot be shared or cut in the middle of a sequence, which a "
                    "tree of branches needs; use a decoder-only attention model"
                )

    def info(self, n_ctx: int) -> ModelInfo:
        """What is told about the model."""
        text = ctypes.create_string_buffer(256)
        self.lib.llama_model_desc(self.handle, text, 256)
        return ModelInfo(
            name=self.path.stem,
            n_ctx=n_ctx,
            n_vocab=self.n_vocab,
            n_embd=self.n_embd,
            bos=self.bos,
            eos=self.lib.llama_vocab_eos(self.vocab),
            n_params=self.lib.llama_model_n_params(self.handle),
            chat_template=self.chat_template,
            details={
                "file": self.path.name,
                "general.name": self.metadata("general.name"),
                "description": text.value.decode("utf-8", "replace"),
                "bytes": self.lib.llama_model_size(self.handle),
                "n_ctx_train": self.n_ctx_train,
                # "llama 135M Q4_1": architecture, size, types of the weights.
                "dtype": " ".join(text.value.decode("utf-8", "replace").split()[2:]),
                "sha": locate.commit(self.path),
                "special_tokens": self.special_tokens(),
            },
            n_pair=n_ctx + 1,  # a continuation's last token is never computed
        )

    def metadata(self, key: str) -> str:
        """A text of the file's metadata; empty if it is not there."""
        text = ctypes.create_string_buffer(256)
        length = self.lib.llama_model_meta_val_str(self.handle, key.encode(), text, 256)
        return text.value.decode("utf-8", "replace") if length >= 0 else ""

    def special_tokens(self, *more: str) -> dict[str, tuple[str, int]]:
        """(text, id) of `bos`, `eos`, `pad` and `more`, those that there are."""
        ids = {kind: getattr(self.lib, f"llama_vocab_{kind}")(self.vocab) for kind in ("bos", "eos", "pad", *more)}
        return {kind: (self._token_text(token), token) for kind, token in ids.items() if token >= 0}

    # Tokens.
    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Tokens of `text`, without BOS. `special`: whether `<|im_end|>` and its like become control tokens.

        Raises:
            ArtsError: nobody waits for them any more.
        """
        tokens: list[int] = []
        gone = nobody_waits.get()
        for piece in [text] if len(text) < Cutter.LEAST else self._cutter(special).cut(text):
            if gone():
                raise ArtsError("nobody waits for the tokens of this text any more")
            tokens += self._tokens(piece, special)
        return tokens

    def _tokens(self, text: str, special: bool) -> list[int]:
        # A lone surrogate is no text; as "?" it costs its own question nothing worse.
        data = text.encode("utf-8", "replace")
        size = len(data) + 16
        buffer = (self.lib.llama_token * size)()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), buffer, size, False, special)
        if count < 0:
            buffer = (self.lib.llama_token * -count)()
            count = self.lib.llama_tokenize(self.vocab, data, len(data), buffer, -count, False, special)
        if count < 0:
            raise PromptTooLongError(f"llama.cpp could not tokenise a text of {len(data)} bytes")
        return list(buffer[:count])

    def _cutter(self, special: bool) -> Cutter:
        """Cuts text at the tokens that llama.cpp looks for before all others."""
        if special not in self._cutters:
            wanted = _UNKNOWN | _CONTROL | _USER_DEFINED if special else _USER_DEFINED
            kinds = {token: self.lib.llama_vocab_get_attr(self.vocab, token) for token in range(self.n_vocab)}
            marks = {token: self._token_text(token) for token, kind in kinds.items() if kind & wanted}
            self._cutters[special] = Cutter(
                marks.values(), [text for token, text in marks.items() if kinds[token] & _STRIPS_RIGHT]
            )
        return self._cutters[special]

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token stands for none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)  # one of its own: threads ask at the same time
        size = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self.lib.llama_token_to_piece(self.vocab, token, buffer, -size, 0, False)
        return buffer.raw[:size]

    def controls(self, text: str) -> Mapping[int, str]:
        """The control tokens that `text` spells: id -> spelling."""
        found = {self._special.get(spelled, -1): spelled for spelled in self._special_pattern.findall(text)}
        return {token: spelled for token, spelled in found.items() if token >= 0 and not self.piece(token)}

    def spelling(self, token: int) -> str | None:
        """The text of a control token, or of another that the tokeniser never splits; None for any other id."""
        text = self._token_text(token) if token < self.n_vocab else ""
        return text if text and self._special.get(text) == token else None

    def encode(self, text: str) -> Prompt:
        """A plain prompt: user text, so no special tokens unless they are asked for; BOS if the model wants one."""
        tokens = self.tokenize(text, self._parse_special)
        first = self.adds_bos and not (self._parse_special and tokens[:1] == [self.bos])
        return Prompt(text, tuple([self.bos, *tokens] if first else tokens))

    # Chat.
    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """A chat in the model's template. What looks like a special token inside a message stays ordinary text.

        Raises:
            ModelError: the model has no chat template, or its template fails.
        """
        rendered = self.render(messages, add_generation_prompt)
        tokens = chat.encode(rendered, self._special_pattern, self.tokenize)
        if self.adds_bos and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)  # a template that carries its own BOS must not get a second one
        return Prompt(rendered.text, tuple(tokens), chat.last_user(messages))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> chat.Rendered:
        """The chat as text, in the model's own Jinja template: it came with the model's file, and is rendered with limits."""
        if not self.chat_template:
            raise ModelError(
                f"{self.path.name} has no chat template (a base model?); use chat=plain, or a model that was tuned for chat"
            )
        return chat.render(
            self.chat_template,
            messages,
            self.path.name,
            **{f"{kind}_token": text for kind, (text, _) in self.special_tokens("sep").items()},
            add_generation_prompt=add_generation_prompt,
            **self._chat_options,
        )

    def _token_text(self, token: int) -> str:
        text = self.lib.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    @cached_property
    def _special(self) -> dict[str, int]:
        """The tokens that the tokeniser looks for in text, by their texts."""
        attr = self.lib.llama_vocab_get_attr
        ids = (t for t in range(self.n_vocab) if attr(self.vocab, t) & (_UNKNOWN | _CONTROL | _USER_DEFINED))
        return {self._token_text(token): token for token in ids}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        return chat.special_pattern(self._special)

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            self.lib.llama_model_free(self.handle)
            self.handle = None

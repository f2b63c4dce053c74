"""A transformers tokeniser as the engine and the prompts need it: bytes of tokens, ends of generation, chats."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from arts_plugin import chat
from arts_plugin.backend import Message, Prompt
from arts_plugin.errors import ModelError

_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>"),
    *(
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<reponame>",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
)
"""Tokens that end a generation, whatever a generation config forgot to say. llama.cpp knows them by text too, so that
the same model ends in the same places under both backends."""
_SPACE = "\u2581"


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of bytes in byte-level BPE (Radford et al. 2019, GPT-2)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _longest(config: Any) -> int:
    """Positions that a model can be run at. Where the rotation of all tokens depends on the longest sequence of a batch
    (LongRoPE, dynamic NTK), a branch would depend on its neighbours beyond the length where that begins."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    longest = getattr(config, "max_position_embeddings", None) or 1 << 20
    if rope.get("rope_type", rope.get("type")) not in {"longrope", "dynamic"}:
        return int(longest)
    first = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    return int(min(longest, first or longest))


def _ids(value: Any) -> list[int]:
    """Token ids, however a config spells them: one, several, none."""
    found = value.tolist() if hasattr(value, "tolist") else value
    return [token for token in (found if isinstance(found, (list, tuple)) else [found]) if isinstance(token, int)]


class HfVocabulary:
    """Vocabulary and sizes of a loaded model.

    Args:
        ends_only_there: whether `generation_config` alone says what ends a generation; otherwise it is whatever the model, its
            tokeniser or the names of its tokens say.
        parse_special: whether special tokens in a plain prompt become control tokens.

    Raises:
        ModelError: the tokeniser is not a fast one.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        generation_config: Any,
        name: str,
        enable_thinking: bool | None = None,
        ends_only_there: bool = False,
        parse_special: bool = False,
    ) -> None:
        self.tokenizer, self.name = tokenizer, name
        self._chat_options = chat.options(enable_thinking)
        self._parse_special = parse_special
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(f"{name} has no fast tokeniser (tokenizer.json); convert it with transformers first")
        text = config.get_text_config()
        self.n_embd: int = text.hidden_size
        self.n_vocab: int = text.vocab_size
        self.n_ctx_train: int = _longest(text)
        self.chat_template: str | None = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        self.bos: int | None = tokenizer.bos_token_id
        self._added = dict(tokenizer.added_tokens_decoder)
        told = getattr(generation_config, "eos_token_id", None)
        self.eog = frozenset(_ids(told)) if ends_only_there else self._ends(config, told)
        self.eos: int = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else -1
        self._pieces: dict[int, bytes] = {}

    def _ends(self, config: Any, told: Any) -> frozenset[int]:
        vocabulary = self.tokenizer.get_vocab()
        named = [vocabulary[text] for text in _ENDS if text in vocabulary]
        return frozenset([*_ids(config.eos_token_id), *_ids(told), *_ids(self.tokenizer.eos_token_id), *named])

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokeniser puts BOS before a text."""
        ids = self.tokenizer("a").input_ids
        return self.bos is not None and ids[:1] == [self.bos]

    @cached_property
    def _alphabet(self) -> dict[str, int] | None:
        """The byte alphabet, if this vocabulary is spelled in it."""
        decoder = json.dumps(json.loads(self.tokenizer.backend_tokenizer.to_str()).get("decoder"))
        return _byte_alphabet() if '"ByteLevel"' in decoder else None

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token stands for none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return b"" if added.special else added.content.encode()
        text = self.tokenizer.convert_ids_to_tokens(token)
        if text is None:  # ids beyond the vocabulary, which models pad to a round number
            return b""
        if self._alphabet is not None:
            return bytes(self._alphabet[c] for c in text if c in self._alphabet)
        byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text)
        return bytes([int(byte.group(1), 16)]) if byte else text.replace(_SPACE, " ").encode()

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Tokens of `text`, without BOS. `special`: whether `<|im_end|>` and its like become control tokens."""
        # A lone surrogate is no text; as "?" it costs its own question nothing worse.
        clean = text.encode("utf-8", "replace").decode()
        return list(self.tokenizer(clean, add_special_tokens=False, split_special_tokens=not special).input_ids)

    def continuation(self, text: str) -> list[int]:
        """Tokens of `text` where other text stands before it.

        SentencePiece's vocabularies put a space before what they take for the beginning of a text; a line break, which is
        a token of its own there, stands in for what came before.
        """
        if not self._adds_space:
            return self.tokenize(text)
        return self.tokenize("\n" + text)[len(self.tokenize("\n")) :]

    @cached_property
    def _adds_space(self) -> bool:
        return self.tokenize("\na") != [*self.tokenize("\n"), *self.tokenize("a")]

    def encode(self, text: str) -> Prompt:
        """A plain prompt: user text, so no special tokens unless they are asked for; BOS if the model wants one."""
        tokens = self.tokenize(text, self._parse_special)
        own = self._parse_special and tokens[:1] == [self.bos]
        return Prompt(
            text, tuple([self.bos, *tokens] if self.bos is not None and self.adds_bos and not own else tokens)
        )

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """A chat in the model's template.

        Raises:
            ModelError: the model has no chat template, or its template fails.
        """
        text, tokens = chat.encode(
            messages, self.special, lambda safe: self._render(safe, add_generation_prompt), self.tokenize
        )
        if self.bos is not None and self.adds_bos and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)  # a template that carries its own BOS must not get a second one
        return Prompt(text, tuple(tokens), chat.last_user(messages))

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Finds the texts of added tokens."""
        return chat.special_pattern(token.content for token in self._added.values())

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        if not self.chat_template:
            raise ModelError(
                f"{self.name} has no chat template (a base model?); use chat=plain, or a model that was tuned for chat"
            )
        try:
            return chat.render(
                self.chat_template,
                messages,
                bos_token=self.tokenizer.bos_token or "",
                eos_token=self.tokenizer.eos_token or "",
                add_generation_prompt=add_generation_prompt,
                **self._chat_options,
            )
        except Exception as error:
            raise ModelError(f"the chat template of {self.name} failed: {type(error).__name__}: {error}") from error

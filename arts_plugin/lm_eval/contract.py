"""What lm-eval and its users read of a model beside its answers: sizes, special tokens, and the facts in results.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lm_eval.api.model import TemplateLM

from arts_plugin.api import Arts
from arts_plugin.backend import Backend
from arts_plugin.errors import ModelError
from arts_plugin.lm_eval import host
from arts_plugin.locate import EMBEDDED_NAME, is_embedded
from arts_plugin.run import versions


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokeniser as lm-eval writes it down, under the names of transformers'. A token that the model lacks is None."""

    name_or_path: str
    vocab_size: int | None
    bos_token: str | None
    bos_token_id: int | None
    eos_token: str | None
    eos_token_id: int | None
    pad_token: str | None
    pad_token_id: int | None

    @classmethod
    def of(cls, backend: Backend) -> Tokenizer:
        """That of a loaded model."""
        info = backend.info
        named: dict[str, tuple[str, int]] = info.details.get("special_tokens", {})
        parts: dict[str, Any] = {"bos_token_id": _known(info.bos), "eos_token_id": _known(info.eos)}
        for kind in ("bos", "eos", "pad"):
            text, token = named.get(kind, (None, parts.get(f"{kind}_token_id")))
            parts |= {f"{kind}_token": text, f"{kind}_token_id": token}
        return cls(info.name, info.n_vocab or None, **parts)


def _known(token: int) -> int | None:
    return token if token >= 0 else None


class DescribedLM(TemplateLM):
    """The part of an lm-eval model that only tells."""

    arts: Arts
    backend_engine: Backend

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results; the folder of the results is named here where nothing else names it."""
        info, settings = self.backend_engine.info, self.arts.settings
        embedded = settings.backend != "server" and is_embedded(settings.model)
        host.name_results(EMBEDDED_NAME if embedded else info.name)
        return {
            "model_name": info.name,
            "model_num_parameters": info.n_params,
            "model_dtype": info.details.get("dtype", ""),
            "model_revision": settings.revision or "main",
            "model_sha": info.details.get("sha", ""),
            "model_digest": self.backend_engine.digest(),
            "arts_settings": settings.shaping(),
            "arts_versions": versions(),
        }

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its trajectory together, at most."""
        return self.backend_engine.info.n_ctx

    @property
    def max_gen_toks(self) -> int:
        """Tokens of a trajectory where the task sets no limit."""
        return self.arts.settings.max_gen_toks

    @property
    def batch_size(self) -> int:
        """Branches that are decoded at once."""
        return self.backend_engine.slots

    @property
    def vocab_size(self) -> int | None:
        """Tokens in the vocabulary; None where a server does not tell."""
        return self.tokenizer.vocab_size

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokeniser's facts; `tok_encode` and `tok_decode` use it."""
        return Tokenizer.of(self.backend_engine)

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's cache keys for rendered requests, and of their files' names."""
        return self.backend_engine.info.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's template, as lm-eval records it."""
        return self.backend_engine.info.chat_template or ""

    def tok_decode(self, tokens: Iterable[int] | int, skip_special_tokens: bool = True) -> str:
        """The text of tokens; special tokens have none.

        Raises:
            ModelError: the tokens are a server's, or their special ones are wanted.
        """
        piece = getattr(getattr(self.backend_engine, "vocabulary", None), "piece", None)
        if piece is None or not skip_special_tokens:
            raise ModelError(
                f"backend={self.arts.settings.backend} tells no texts of "
                + ("tokens" if piece is None else "special tokens; leave skip_special_tokens at True")
            )
        ids = [tokens] if isinstance(tokens, int) else tokens
        return b"".join(piece(int(token)) for token in ids).decode("utf-8", "replace")

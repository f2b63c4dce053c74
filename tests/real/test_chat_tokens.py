"""Chats of many families of templates as a real vocabulary's tokens: those of transformers, under both backends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.settings import Settings
from tests.models import model
from tests.unit.chat_templates import TEMPLATES

pytest.importorskip("torch")
pytest.importorskip("transformers")

from arts_hf.loading import load
from arts_hf.vocabulary import HfVocabulary

TURNS = [
    {"role": "user", "content": " What is 2 plus 3? \n"},
    {"role": "assistant", "content": "<think>\nAdd.\n</think>\n\nFive \u6f22\u5b57"},
    {"role": "user", "content": "\n\nAnd <b>{{ twice }}</b> that? \U0001f600"},
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    """SmolLM2's tokeniser and config in transformers."""
    return load(Settings.of(model=model("smollm2"), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaCppBackend]:
    """The same vocabulary in llama.cpp."""
    backend = LlamaCppBackend(Settings.of(model=model("smollm2"), n_ctx=512))
    yield backend
    backend.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers(
    name: str, loaded: Any, llama: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = HfVocabulary(loaded.tokenizer, loaded.model.config, loaded.model.generation_config, "smollm2")
    monkeypatch.setattr(vocabulary, "chat_template", TEMPLATES[name])
    monkeypatch.setattr(llama.model, "chat_template", TEMPLATES[name])
    system = [] if name in {"gemma-2", "mistral-v1"} else [{"role": "system", "content": "Be brief."}]
    for messages in ([*system, *TURNS], TURNS[:1], [*system, *TURNS[:1]]):
        theirs = loaded.tokenizer.apply_chat_template(
            messages, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
        )
        assert list(vocabulary.encode_chat(messages).token_ids) == theirs
        assert list(llama.encode_chat(messages).token_ids) == theirs

"""llama.cpp's tokeniser on long texts, which it is given in pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from arts_llama_cpp.model import LlamaModel
from arts_plugin.engine.guide_process import nobody_waits
from arts_plugin.errors import ArtsError
from arts_plugin.marks import Cutter
from arts_plugin.settings import Settings
from tests.models import model


@pytest.fixture(scope="module", params=["smollm2", "qwen2.5", "gemma3"])
def loaded(request: pytest.FixtureRequest) -> Iterator[LlamaModel]:
    made = LlamaModel(Path(model(request.param)), Settings())
    yield made
    made.close()


@pytest.mark.parametrize("special", [False, True])
def test_pieces_are_tokenised_as_the_whole(special: bool, loaded: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands around the special tokens, cut behind each of them that can be cut behind."""
    rng = random.Random(1)
    attribute = loaded.lib.llama_vocab_get_attr
    marks = [loaded._token_text(t) for t in range(loaded.n_vocab) if attribute(loaded.vocab, t) & (1 | 8 | 16)]
    others = ["a", " ", "\n", "\n\n", "  ", "Hello, world", "é漢字", "<", ">", "<|", "|>", "12", "\t", "😀", "<unused"]
    monkeypatch.setattr(Cutter, "MARKS", 1)
    monkeypatch.setattr(Cutter, "LEAST", 0)
    pieces = 0
    for _ in range(150):
        parts = [rng.choice(marks) if rng.random() < 0.3 else rng.choice(others) for _ in range(rng.randint(1, 60))]
        text = "".join(part[: rng.randint(1, len(part))] if rng.random() < 0.1 else part for part in parts)
        pieces += len(list(loaded._cutter(special).cut(text)))
        assert loaded.tokenize(text, special) == loaded._tokens(text, special), text
    assert pieces > 1000 or not special


def test_a_text_that_nobody_waits_for_is_not_tokenised_to_its_end(loaded: LlamaModel) -> None:
    mark = loaded._token_text(loaded.lib.llama_vocab_eos(loaded.vocab))
    told = nobody_waits.set(lambda: True)
    try:
        with pytest.raises(ArtsError, match="nobody waits"):
            loaded.tokenize(f"{mark}a" * 10_000, special=True)
    finally:
        nobody_waits.reset(told)

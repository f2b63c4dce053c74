"""Patterns of many fixed texts, against an alternation of all of them."""

from __future__ import annotations

import random
import re

import pytest

from arts_plugin.marks import any_of


@pytest.mark.parametrize("seed", range(20))
def test_it_finds_what_an_alternation_finds(seed: int) -> None:
    rng = random.Random(seed)
    texts = ["".join(rng.choice("a<|.\n") for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 30))]
    text = "".join(rng.choice("a<|.\n") for _ in range(400))
    plain = re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))))
    assert re.findall(any_of(texts), text) == plain.findall(text)


def test_none() -> None:
    assert re.search(any_of([]), "text") is None
    assert re.search(any_of([""]), "text") is None


def test_texts_that_begin_one_another() -> None:
    """The compiler of patterns would recurse as deep as there are texts."""
    texts = ["a" * n for n in range(1, 3000)]
    assert re.findall(any_of(texts), "a" * 4000) == ["a" * 2999, "a" * 1001]

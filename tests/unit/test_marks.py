"""Patterns of many fixed texts, against an alternation of all of them."""

from __future__ import annotations

import random
import re

import pytest

from arts_plugin.marks import Cutter, any_of


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


def test_a_text_of_many_marks_is_cut_behind_few_of_them() -> None:
    cutter = Cutter(["<a>", "\n\n"])
    for text in ("<a>x" * 10_000, "y\n\n" * 10_000, "<a>" * 10_000):
        pieces = list(cutter.cut(text))
        assert "".join(pieces) == text
        assert max(len(re.findall("<a>|\n\n", piece)) for piece in pieces) <= Cutter.MARKS


@pytest.mark.parametrize(
    ("marks", "strips", "text", "pieces"),
    [
        (["<a>"], [], "x<a>y", ["x<a>", "y"]),
        (["<a>"], [], "x<a>", ["x<a>"]),
        (["<a>"], ["<a>"], "x<a> y", ["x<a> y"]),  # the space is the mark's
        (["ab", "bcd"], [], "abcd", ["abcd"]),  # whichever is found first
        (["xab", "abc"], [], "xabcd", ["xabcd"]),
        (["\n", "\n\n"], [], "a\n\n\nb", ["a\n\n\nb"]),
        ([], [], "abc", ["abc"]),
    ],
)
def test_it_is_cut_only_where_the_tokeniser_cuts(
    marks: list[str], strips: list[str], text: str, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cutter, "MARKS", 1)
    assert list(Cutter(marks, strips).cut(text)) == pieces

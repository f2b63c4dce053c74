"""Many fixed texts, a vocabulary's special tokens, in a long text: found, and cut at, in time linear in its length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import groupby, takewhile

_DEEPEST = 40


def any_of(texts: Iterable[str]) -> str:
    """The pattern that matches, at a place, the longest of these texts that stands there; nothing, if there are none.

    An alternation of all would be tried text by text at every character: a vocabulary of 6000 special tokens takes a minute
    for a megabyte of `<`. What begins alike is compared once here.
    """
    found = sorted({text for text in texts if text})
    return _of(found, 0) if found else "(?!)"


def _of(texts: list[str], depth: int) -> str:
    """The same for sorted texts. An empty one among them may match nothing."""
    if depth == _DEEPEST:  # the compiler of patterns recurses
        return f"(?:{'|'.join(map(re.escape, sorted(texts, key=len, reverse=True)))})"
    branches = [_branch(list(group), depth) for _, group in groupby(filter(None, texts), key=lambda text: text[0])]
    body = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return body if all(texts) else f"(?:{body})?"


def _branch(texts: list[str], depth: int) -> str:
    """Sorted texts that begin with the same character."""
    pairs = zip(texts[0], texts[-1], strict=False)
    shared = texts[0][: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))]
    rest = [text[len(shared) :] for text in texts]
    return re.escape(shared) + (_of(rest, depth + 1) if any(rest) else "")


class Cutter:
    """Cuts a long text where a tokeniser that looks for fixed texts first cuts it as well, so that its pieces are tokenised
    one by one as the whole would be. llama.cpp takes time quadratic in how many of those a text has.

    Args:
        marks: what the tokeniser looks for, the longest first.
        strips: those of them that swallow the white space behind them.
    """

    LEAST = 4096
    """Characters of a text that is worth the making of one of these."""
    MARKS = 256

    def __init__(self, marks: Iterable[str], strips: Iterable[str] = ()) -> None:
        found = set(marks)
        self._pattern, self._strips = re.compile(any_of(found)), frozenset(strips)
        self._longest = max(map(len, found), default=0)

    def cut(self, text: str) -> Iterator[str]:
        """The pieces of `text`: one behind every few hundred marks, if none overlaps another there."""
        at, seen = 0, 0
        for match in self._pattern.finditer(text):
            seen += 1
            if seen == self.MARKS:
                seen = 0
                if self._ends_piece(text, match):
                    yield text[at : match.end()]
                    at = match.end()
        yield text[at:]

    def _ends_piece(self, text: str, mark: re.Match[str]) -> bool:
        first, end = mark.span()
        if mark.group() in self._strips and text[end : end + 1].isspace():
            return False
        return end < len(text) and not self._straddled(text, first) and not self._straddled(text, end)

    def _straddled(self, text: str, place: int) -> bool:
        """Whether a mark could stand on both sides of a place."""
        begins = range(max(0, place - self._longest + 1), place)
        return any((mark := self._pattern.match(text, at)) and mark.end() > place for at in begins)

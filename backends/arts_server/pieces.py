"""Which bytes of a text each of its tokens stands for. Servers tell both, and engines spell a token alone otherwise than in
its place."""

from __future__ import annotations

from collections.abc import Sequence

from arts_server.faults import RetryError, shown

_SPELT = str.maketrans({"\u0120": " ", "\u010a": "\n", "\u0109": "\t", "\u010d": "\r", "\u2581": " "})
"""How byte-level vocabularies and SentencePiece write white space; some engines show it so."""


def pieces(tokens: Sequence[str], text: str) -> list[bytes]:
    """The bytes that each token stands for. Together they are `text`; the last may go beyond it, where the text was cut at a
    stop string.

    A token that is not in the text is a control token and stands for none, unless text is left over where it stood: then
    it is one whose own spelling tells nothing (an end inside a character, a number in place of a text), and what is left
    over is divided among its like. A token that ends inside a character may also come as an empty string and the character
    with the one after it: each gets some of its bytes.

    Raises:
        RetryError: there is text that no token stands for.
    """
    found: list[bytes] = []
    silent: list[int] = []  # tokens without bytes since the last that has some
    at = 0
    for token in tokens:
        start, spelt = _place(token, text, at, bool(silent))
        if start is None:
            silent.append(len(found))
            found.append(b"")
            continue
        skipped = text[at:start]
        if skipped.strip():
            _divide(found, silent, skipped.encode())
            silent, skipped = [], ""
        data = (skipped + spelt).encode()
        shared = 0 if spelt.isascii() else min(len(silent), len(data) - 1)
        for i in range(shared):
            found[silent[i]] = data[i : i + 1]
        found.append(data[shared:])
        silent = []
        at = min(start + len(spelt), len(text))
    if at < len(text):
        if not silent:
            raise RetryError(f"a reply with text that none of its tokens stands for: {shown(text[at:])}")
        _divide(found, silent, text[at:].encode())
    return found


def _place(token: str, text: str, at: int, resume: bool) -> tuple[int | None, str]:
    """Where a token stands in what is left of the text, and how it is spelt there.

    Args:
        resume: whether tokens before it may stand for what lies between.
    """
    if not token:
        return None, ""
    for spelt in (token, token.translate(_SPELT)):
        for start in (
            (at, at + 1) if text[at : at + 1] == " " else (at,)
        ):  # SentencePiece drops a space from what it spells alone
            if text.startswith(spelt, start) or (start < len(text) and spelt.startswith(text[start:])):
                return start, spelt
        if resume and spelt.strip() and "�" not in spelt and (start := text.find(spelt, at)) >= 0:
            return start, spelt
    return None, ""


def _divide(found: list[bytes], places: Sequence[int], data: bytes) -> None:
    """Share bytes among tokens: as many to each, what is left over to the last."""
    each = len(data) // len(places)
    for i, place in enumerate(places):
        found[place] = data[i * each : (i + 1) * each if i + 1 < len(places) else None]

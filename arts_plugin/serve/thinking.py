"""Which parts of a trajectory are its thinking, and which its answer; in a stream as in a whole reply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal


def parted(text: str, think_end: str | None) -> tuple[str, str]:
    """(thinking, answer) of a trajectory; where its thinking never ended, all of it is. The first end counts, as in
    `arts_plugin.prompts.answer_of`: a stream has said the rest as the answer before it can see another."""
    parting = Parting(think_end)
    parts = [*parting.feed(text), *parting.rest()]
    return "".join(p for p, thinking in parts if thinking), "".join(p for p, thinking in parts if not thinking)


class Parting:
    """Tells thinking from answer in a text that comes in pieces, which may end inside the words that part the two.

    Neither those words nor the blank lines around them belong to either.

    Args:
        think_end: what ends thinking, `</think>` for example; the same without its slash may open it. None: there is no
            thinking.
    """

    def __init__(self, think_end: str | None) -> None:
        self._end = think_end or ""
        self._start = self._end.replace("/", "", 1) if "/" in self._end else ""
        self._place: Literal["opening", "opened", "thinking", "between", "answer"] = (
            "opening" if self._start else "thinking" if self._end else "answer"
        )
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, whether it is thinking) of all that is certain with the next piece."""
        self._held += text
        self._open()
        if self._place == "opened":
            self._pass_blanks("thinking")
        if self._place == "thinking":
            yield from self._think()
        if self._place == "between":
            self._pass_blanks("answer")
        if self._place == "answer" and self._held:
            yield self._held, False
            self._held = ""

    def rest(self) -> Iterator[tuple[str, bool]]:
        """What was held back because it might have become one of the words. The text has ended."""
        if self._held and self._place in {"opening", "thinking"}:
            yield self._held, True
        self._held = ""

    def _open(self) -> None:
        """See whether the text begins with the word that opens thinking."""
        if self._place != "opening":
            return
        begun = self._held.lstrip()
        if begun.startswith(self._start):
            self._held, self._place = begun[len(self._start) :], "opened"
        elif not self._start.startswith(begun):
            self._place = "thinking"

    def _pass_blanks(self, to: Literal["thinking", "answer"]) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._place = to

    def _think(self) -> Iterator[tuple[str, bool]]:
        before, end, after = self._held.partition(self._end)
        if end:
            self._held, self._place = after, "between"
        else:
            kept = _begun(before, self._end)
            before, self._held = before[: len(before) - kept], before[len(before) - kept :]
        if before:
            yield before, True


def _begun(text: str, word: str) -> int:
    """How many characters at the end of `text` may be the beginning of `word`."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if word.startswith(text[-n:])), 0)

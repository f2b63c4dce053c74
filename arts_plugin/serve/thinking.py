"""Which parts of a trajectory are its thinking, and which its answer; in a stream as in a whole reply.

What tells that a reply is thinking, in this order: the prompt has opened it (templates that end in `<think>`); the reply
begins with the text that opens it; its end comes. Without any of them there is no thinking, and all of it is the answer. A
stream cannot wait for the last: where the end shows how thinking is opened (`</think>`) and neither the prompt nor the
reply has opened it, it goes out as the answer from its first character on. Where that cannot be told (an end like
`<|channel|>final<|message|>`), it is held back until the end comes or the search is over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from arts_plugin.ends import opener
from arts_plugin.prompts import before_stop
from arts_plugin.serve.protocol import Kind
from arts_plugin.tree import ReasoningTree

Place = Literal["opening", "opened", "thinking", "between", "answer", "unopened", "unsure"]


@dataclass(frozen=True, slots=True)
class Said:
    """A reply: its thinking, its answer, and whether a stop string cut the answer here rather than in the engine."""

    thinking: str
    answer: str
    stopped: bool


def said(tree: ReasoningTree, kind: Kind) -> Said:
    """The chosen trajectory as a whole reply."""
    parting = parting_of(tree, kind, whole=True)
    return _read(parting, tree.text)


def parting_of(tree: ReasoningTree, kind: Kind, *, whole: bool = False) -> Parting | Uncut:
    """What parts the trajectories of a tree for a reply of that kind."""
    known = tree.meta.get("think_end"), tree.meta.get("think_begun", ""), tree.meta.get("stops", ())
    return Parting(*known, whole=whole) if kind == "chat" else Uncut(*known)


def parted(text: str, think_end: str | None, begun: str = "", stops: Sequence[str] = ()) -> tuple[str, str]:
    """(thinking, answer) of a whole text. The first end counts, as in `arts_plugin.prompts.answer_of`."""
    found = _read(Parting(think_end, begun, stops, whole=True), text)
    return found.thinking, found.answer


def _read(parting: Parting | Uncut, text: str) -> Said:
    parts = [*parting.feed(text), *parting.rest()]
    thinking, answer = ("".join(part for part, thought in parts if thought is wanted) for wanted in (True, False))
    return Said(thinking, answer, parting.stopped)


class Parting:
    """Tells thinking from answer in a text that comes in pieces, which may end inside the words that part the two.

    Neither those words nor the blank lines around them belong to either.

    Args:
        think_end: what ends thinking, `</think>` for example. None: there is no thinking.
        begun: whether the prompt has "opened" the thinking, or "closed" it already; see `arts_plugin.ends.begun`.
        stops: strings that end an answer. Engines look for them after the thinking alone; where there is none, they are
            looked for here.
        whole: whether all of the text comes at once, so that nothing need be said before it is certain.

    Attributes:
        stopped: whether the answer was cut at a stop string here.
    """

    def __init__(
        self, think_end: str | None, begun: str = "", stops: Sequence[str] = (), *, whole: bool = False
    ) -> None:
        self._end, self._stops, self._whole = think_end or "", tuple(stop for stop in stops if stop), whole
        self._start = opener(think_end)
        self._begun, self.stopped = begun, False
        self._place: Place = "opening" if self._start or begun == "opened" else "unsure"
        if not think_end or begun == "closed":
            self._place = "answer"
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """(part, whether it is thinking) of all that is certain with the next piece."""
        self._held += text
        self._open()
        if self._place == "opened":
            self._pass_blanks("thinking")
        if self._place in {"thinking", "unsure"}:
            yield from self._think()
        if self._place == "unopened":
            yield from self._answer_until_end()
        if self._place == "between":
            self._pass_blanks("answer")
        if self._place == "answer" and self._held:
            yield self._held, False
            self._held = ""

    def rest(self) -> Iterator[tuple[str, bool]]:
        """What was held back because it might have become one of the words. The text has ended."""
        thought = self._place == "thinking" or (self._place == "opening" and self._begun == "opened")
        if self._place not in {"opened", "between"} and not self.stopped:
            part = self._held if thought else self._before_stop()
            if part:
                yield part, thought
        self._held = ""

    def _open(self) -> None:
        """See whether the text begins with the word that opens thinking."""
        if self._place != "opening":
            return
        begun = self._held.lstrip()
        if self._start and begun.startswith(self._start):
            self._held, self._place = begun[len(self._start) :], "opened"
        elif not self._start.startswith(begun):
            opened = self._begun == "opened"
            self._place = "thinking" if opened else "unsure" if self._whole else "unopened"

    def _pass_blanks(self, to: Literal["thinking", "answer"]) -> None:
        self._held = self._held.lstrip()
        if self._held:
            self._place = to

    def _think(self) -> Iterator[tuple[str, bool]]:
        before, end, after = self._held.partition(self._end)
        if end:
            self._held, self._place = after, "between"
        elif self._place == "unsure":
            before = ""
        else:
            kept = _begun(before, self._end)
            before, self._held = before[: len(before) - kept], before[len(before) - kept :]
        if before:
            yield before, True

    def _answer_until_end(self) -> Iterator[tuple[str, bool]]:
        """What nothing has opened is the answer, up to the first stop string; what follows an end all the same is, too."""
        before, end, after = self._held.partition(self._end)
        stopped, said = self.stopped, self._before_stop(before)
        if end:
            self._held, self._place, self.stopped = after, "between", False
        else:
            kept = max(_begun(before, word) for word in (self._end, *self._stops))
            said = said[: len(before) - kept]
            self._held = before[-kept:] if kept else ""
        if said and not stopped:
            yield said, False

    def _before_stop(self, text: str | None = None) -> str:
        """What is held, up to the first stop string."""
        text = self._held if text is None else text
        if self._place == "answer":
            return text  # the engine has looked for them
        found = before_stop(text, self._stops)
        self.stopped = self.stopped or found != text
        return found


class Uncut:
    """The same for a text completion, which is thinking and answer in one, but for what follows a stop string where there
    is no thinking: it goes out once that is certain."""

    def __init__(self, think_end: str | None, begun: str = "", stops: Sequence[str] = ()) -> None:
        self._end, self._start, self._stops = think_end or "", opener(think_end), stops
        self._certain = not think_end or begun != "" or not stops
        self._held, self.stopped = "", False

    def feed(self, text: str) -> Iterator[tuple[str, bool]]:
        """See `Parting.feed`; nothing is thinking."""
        self._held += text
        opened = bool(self._start) and self._held.lstrip().startswith(self._start)
        self._certain = self._certain or opened or self._end in self._held
        if self._certain and self._held:
            yield self._held, False
            self._held = ""

    def rest(self) -> Iterator[tuple[str, bool]]:
        """What was held back. The text has ended."""
        found = before_stop(self._held, self._stops)
        self.stopped, self._held = found != self._held, ""
        if found:
            yield found, False


def _begun(text: str, word: str) -> int:
    """How many characters at the end of `text` may be the beginning of `word`."""
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if word.startswith(text[-n:])), 0)

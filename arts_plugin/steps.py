"""Where a step ends: delimiters and stop strings, found on decoded text across token boundaries.

A backend feeds a `StepScanner` the bytes of every token it samples. The scanner decodes them incrementally (a
character may be spread over several tokens), finds the first stop string in the *trace* (it may begin in an earlier
step) and the first delimiter in the *step*, and knows which tokens lie wholly before a cut.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Literal

from arts_plugin.errors import SettingsError

REGEX_PREFIX = "regex:"
_MARKS = re.compile("[\ud800-\udfff]")


def mark(number: int) -> str:
    """What a control token is found by in a scanner's text: half a surrogate pair, which no decoded bytes can hold."""
    return chr(0xD800 + number)


def visible(text: str) -> str:
    """`text` without the marks of control tokens."""
    return text if text.isascii() else _MARKS.sub("", text)


@dataclass(frozen=True, slots=True)
class Delimiter:
    """What ends a step: a literal string, or a regular expression spelled `regex:PATTERN`."""

    spec: str

    def __post_init__(self) -> None:
        if not self.spec or self.spec == REGEX_PREFIX:
            raise SettingsError(f"delimiter is {self.spec!r}; it must not be empty (a newline is the default)")
        self.pattern()

    def pattern(self) -> re.Pattern[str]:
        """The compiled expression.

        Raises:
            SettingsError: not a regular expression, or one that matches the empty string.
        """
        source = self.spec[len(REGEX_PREFIX) :] if self.spec.startswith(REGEX_PREFIX) else re.escape(self.spec)
        try:
            pattern = re.compile(source)
        except re.error as error:
            raise SettingsError(f"delimiter {self.spec!r} is not a regular expression: {error}") from error
        if pattern.match(""):
            raise SettingsError(f"delimiter {self.spec!r} matches the empty string, so no step would have any text")
        return pattern


@dataclass(frozen=True, slots=True)
class StepEnd:
    """Why a step ended, found by `StepScanner.push`.

    For a stop string, `keep_tokens` of this step's tokens lie wholly before it; when it began in an earlier step (or
    with the last bytes of one), `cut_chars` and `cut_tokens` say how much of what lies before this step goes with it.
    """

    reason: Literal["delimiter", "stop"]
    keep_tokens: int
    cut_chars: int = 0
    cut_tokens: int = 0


class StepScanner:
    """Scans one trace. `fork` before branching; `begin_step` before each step.

    Args:
        delimiter: what ends a step.
        stops: strings that end the trace, at the first place where one of them begins.
        think_end: the text that ends the model's thinking. Stop strings are looked for only after it, and after the white
            space that follows it: a thought may hold any of them. None: there is no thinking.
    """

    __slots__ = (
        *("_before", "_before_ends", "_blank", "_delimiter", "_ends", "_from", "_pending", "_reach", "_stops", "_text"),
        *("_think_end", "thinking"),
    )

    def __init__(self, delimiter: Delimiter, stops: tuple[str, ...] = (), think_end: str | None = None) -> None:
        self._delimiter = delimiter.pattern()
        self._stops = tuple(stop for stop in stops if stop)
        self._think_end = think_end or ""
        # What completes in this step, a stop string or the end of thinking, can begin at most this many characters before it.
        self._reach = max((len(text) for text in (*self._stops, self._think_end)), default=1) - 1
        self.thinking = bool(think_end)
        """Whether the end of thinking is still to come."""
        self._from = 0  # where stop strings may begin, counted in _before + _text, once the thinking is over
        self._blank = False  # whether the white space that follows the end of thinking has to be passed first
        self._before = ""  # the last characters of earlier steps
        self._before_ends: list[int] = []  # where each of the tokens that made them ends, counted in _before
        self._text = ""
        # len(_text) after each token of this step, and one more after a token that ends inside the next character.
        self._ends: list[int] = []
        self._pending = b""  # bytes of a character that is not complete

    def fork(self) -> StepScanner:
        """A scanner that goes on from here independently."""
        twin = object.__new__(StepScanner)
        for name in StepScanner.__slots__:
            value = getattr(self, name)
            setattr(twin, name, list(value) if isinstance(value, list) else value)
        return twin

    @property
    def text(self) -> str:
        """The text of the step so far, complete characters only."""
        return visible(self._text)

    @property
    def tail_tokens(self) -> int:
        """How many tokens of earlier steps a stop string that ends in this step could take back."""
        return len(self._before_ends)

    def begin_step(self) -> None:
        """Start a new step; bytes of an unfinished character stay pending and open its text."""
        text = self._before + self._text
        ends = self._before_ends + [len(self._before) + end for end in self._ends]
        shift = max(0, len(text) - self._reach) if self._reach > 0 else len(text)
        self._before = text[shift:]
        # A token that ends exactly at the shift lies wholly before anything a stop string could take back.
        self._before_ends = [end - shift for end in ends if end > shift]
        self._from = max(0, self._from - shift)
        self._text, self._ends = "", []

    def push(self, piece: bytes, mark: str = "") -> StepEnd | None:
        """Take in one token; the end of the step if this token brought it about.

        Args:
            piece: the bytes that it stands for.
            mark: what a control token, which stands for none, is to be found by; see `arts_plugin.ends.TraceEnds`.
        """
        seen = len(self._text)
        self._text += self._decode(piece, final=False) + mark
        self._ends.append(len(self._text) + bool(self._pending))
        if (self.thinking or self._blank) and len(self._text) > seen:
            self._find_think_end()
        return self._find_stop(seen) or self._find_delimiter()

    def flush(self) -> str:
        """Finish the trace: an incomplete character becomes U+FFFD. Returns the step's text."""
        if self._pending:
            self._text += self._decode(b"", final=True)
            if self._ends:
                self._ends[-1] = len(self._text)
        return self.text

    def cut(self, end: StepEnd) -> None:
        """Keep only what lies before the stop string of `end`."""
        if end.reason == "stop":
            self._text = self._text[: max(0, self._stop_start())]
            self._ends = self._ends[: end.keep_tokens]
            self._pending = b""

    def _decode(self, piece: bytes, final: bool) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(self._pending + piece, final)
        self._pending = b"" if final else decoder.getstate()[0]
        return text

    def _find_think_end(self) -> None:
        """See whether the thinking is over, and where the answer begins."""
        whole = self._before + self._text
        if self.thinking and (at := whole.find(self._think_end)) >= 0:
            self.thinking, self._blank, self._from = False, True, at + len(self._think_end)
        if self._blank:
            self._from += len(whole[self._from :]) - len(whole[self._from :].lstrip())
            self._blank = self._from == len(whole)

    def _stop_start(self) -> int:
        """Start of the earliest stop string, counted from the start of the step (negative: before it); or a miss."""
        whole = self._before + self._text
        found = [at for stop in self._stops if (at := whole.find(stop, self._from)) >= 0]
        return min(found) - len(self._before) if found else len(self._text) + 1

    def _find_stop(self, seen: int) -> StepEnd | None:
        if not self._stops or self.thinking or len(self._text) == seen:
            return None
        at = self._stop_start()
        if at > len(self._text):
            return None
        cut = len(self._before) + at
        return StepEnd(
            "stop",
            keep_tokens=sum(1 for end in self._ends if end <= at),
            cut_chars=len(visible(self._before[cut:])),
            cut_tokens=sum(1 for end in self._before_ends if end > cut),
        )

    def _find_delimiter(self) -> StepEnd | None:
        # A blank run is no step: the search begins at the first character that is not white space, so leading
        # blank lines join the step that follows (README, notes on decisions).
        text = self.text
        start = len(text) - len(text.lstrip())
        if start == len(text) or not self._delimiter.search(text, start):
            return None
        return StepEnd("delimiter", keep_tokens=len(self._ends))

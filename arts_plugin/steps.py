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
    """Scans one trace. `fork` before branching; `begin_step` before each step."""

    __slots__ = ("_before", "_before_ends", "_delimiter", "_ends", "_pending", "_reach", "_stops", "_text")

    def __init__(self, delimiter: Delimiter, stops: tuple[str, ...] = ()) -> None:
        self._delimiter = delimiter.pattern()
        self._stops = tuple(stop for stop in stops if stop)
        # A stop string that completes in this step can begin at most this many characters before it.
        self._reach = max((len(stop) for stop in self._stops), default=1) - 1
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
        return self._text

    @property
    def tail_tokens(self) -> int:
        """How many tokens of earlier steps a stop string that ends in this step could take back."""
        return len(self._before_ends)

    def begin_step(self) -> None:
        """Start a new step; bytes of an unfinished character stay pending and open its text."""
        text = self._before + self._text
        ends = self._before_ends + [len(self._before) + end for end in self._ends]
        shift = max(0, len(text) - self._reach) if self._reach else len(text)
        self._before = text[shift:]
        # A token that ends exactly at the shift lies wholly before anything a stop string could take back.
        self._before_ends = [end - shift for end in ends if end > shift]
        self._text, self._ends = "", []

    def push(self, piece: bytes) -> StepEnd | None:
        """Take in one token's bytes; the end of the step if this token brought it about."""
        seen = len(self._text)
        self._text += self._decode(piece, final=False)
        self._ends.append(len(self._text) + bool(self._pending))
        return self._find_stop(seen) or self._find_delimiter()

    def flush(self) -> str:
        """Finish the trace: an incomplete character becomes U+FFFD. Returns the step's text."""
        if self._pending:
            self._text += self._decode(b"", final=True)
            if self._ends:
                self._ends[-1] = len(self._text)
        return self._text

    def cut(self, end: StepEnd) -> None:
        """Keep only what lies before the stop string of `end`."""
        if end.reason == "stop":
            self._text = "" if end.cut_chars else self._text[: self._stop_start()]
            self._ends = self._ends[: end.keep_tokens]
            self._pending = b""

    def _decode(self, piece: bytes, final: bool) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(self._pending + piece, final)
        self._pending = b"" if final else decoder.getstate()[0]
        return text

    def _stop_start(self) -> int:
        """Start of the earliest stop string, counted from the start of the step (negative: before it); or a miss."""
        whole = self._before + self._text
        found = [at for stop in self._stops if (at := whole.find(stop)) >= 0]
        return min(found) - len(self._before) if found else len(self._text) + 1

    def _find_stop(self, seen: int) -> StepEnd | None:
        if not self._stops or len(self._text) == seen:
            return None
        at = self._stop_start()
        if at > len(self._text):
            return None
        cut = len(self._before) + at
        return StepEnd(
            "stop",
            keep_tokens=sum(1 for end in self._ends if end <= at),
            cut_chars=max(0, -at),
            cut_tokens=sum(1 for end in self._before_ends if end > cut),
        )

    def _find_delimiter(self) -> StepEnd | None:
        # A blank run is no step: the search begins at the first character that is not white space, so leading
        # blank lines join the step that follows (README, notes on decisions).
        start = len(self._text) - len(self._text.lstrip())
        if start == len(self._text) or not self._delimiter.search(self._text, start):
            return None
        return StepEnd("delimiter", keep_tokens=len(self._ends))

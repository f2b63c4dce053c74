"""Texts that know which of their characters a template wrote, through all that a template does to texts.

A chat template joins its own control tokens with what people wrote, and may trim, split or re-order that first. The value
of a `Traced` text is the one that a plain `str` would have: every operation computes it with `str` itself, and traces
the characters beside it. What is not traced here gives a plain `str`, which counts as written by others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

from markupsafe import Markup

_CONVERSION = re.compile(
    r"%(?:\((?P<key>[^()]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?P<precision>\.(?:\*|\d*))?[hlL]?(?P<type>.)"
)


class Traced(str):
    """A text with, for each character, 1 if the template wrote it and 0 if not."""

    _own: bytes

    def __new__(cls, text: object = "", own: bytes | None = None) -> Traced:
        self = super().__new__(cls, text)
        self._own = bytes(len(self)) if own is None else own
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> Any:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented  # the other says what that is: Markup escapes what stands before it
        return Traced(str.__add__(self, other), self._own + own(other))

    def __radd__(self, other: Any) -> Any:
        return Traced(str.__add__(other, self), own(other) + self._own) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: Any) -> Any:
        if not hasattr(times, "__index__"):
            return NotImplemented
        return Traced(str.__mul__(self, times), self._own * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> Any:
        return _interpolated(self, values)

    def __getitem__(self, key: Any) -> Traced:
        text = str.__getitem__(self, key)
        return Traced(text, self._own[key] if isinstance(key, slice) else bytes((self._own[key],)))

    def __iter__(self) -> Iterator[Traced]:
        return (Traced(char, bytes((mark,))) for char, mark in zip(str.__iter__(self), self._own, strict=True))

    # Parts.
    def strip(self, chars: str | None = None, /) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Traced:
        text = str.lstrip(self, chars)
        return Traced(text, self._own[len(self) - len(text) :])

    def rstrip(self, chars: str | None = None, /) -> Traced:
        text = str.rstrip(self, chars)
        return Traced(text, self._own[: len(text)])

    def removeprefix(self, prefix: str, /) -> Traced:
        text = str.removeprefix(self, prefix)
        return Traced(text, self._own[len(self) - len(text) :])

    def removesuffix(self, suffix: str, /) -> Traced:
        text = str.removesuffix(self, suffix)
        return Traced(text, self._own[: len(text)])

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return self._parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return self._parts(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[Any]:
        return self._parts(str.splitlines(self, keepends), None)

    def partition(self, sep: str, /) -> tuple[Any, Any, Any]:
        before, between, after = self._parts(str.partition(self, sep), "")
        return before, between, after

    def rpartition(self, sep: str, /) -> tuple[Any, Any, Any]:
        before, between, after = self._parts(str.rpartition(self, sep), "")
        return before, between, after

    def _parts(self, texts: Iterable[str], sep: str | None) -> list[Any]:
        """`texts`, which follow one another in this text with `sep` between them (None: with what they do not begin with)."""
        parts, at = [], 0
        for text in texts:
            at = str.find(self, text, at) if sep is None else at
            parts.append(Traced(text, self._own[at : at + len(text)]))
            at += len(text) + len(sep or "")
        return parts

    # Other texts of the same characters.
    def join(self, texts: Iterable[str], /) -> Traced:
        texts = list(texts)
        return Traced(str.join(self, texts), self._own.join(map(own, texts)))

    def replace(self, old: str, new: str, /, count: SupportsIndex = -1) -> Any:
        text = str.replace(self, old, new, count)
        if not old:
            return made_of(text, self, new)
        return Traced(text, own(new).join(part._own for part in self.split(old, count)))

    def lower(self) -> Any:
        return made_of(str.lower(self), self)

    def upper(self) -> Any:
        return made_of(str.upper(self), self)

    def casefold(self) -> Any:
        return made_of(str.casefold(self), self)

    def swapcase(self) -> Any:
        return made_of(str.swapcase(self), self)

    def capitalize(self) -> Any:
        return made_of(str.capitalize(self), self)

    def title(self) -> Any:
        return made_of(str.title(self), self)

    def center(self, width: SupportsIndex, fill: str = " ", /) -> Traced:
        text = str.center(self, width, fill)
        more = len(text) - len(self)
        left = more // 2 + (more & len(text) & 1)  # where the odd one goes depends on the width
        return Traced(text, own(fill) * left + self._own + own(fill) * (more - left))

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> Traced:
        text = str.ljust(self, width, fill)
        return Traced(text, self._own + own(fill) * (len(text) - len(self)))

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> Traced:
        text = str.rjust(self, width, fill)
        return Traced(text, own(fill) * (len(text) - len(self)) + self._own)


class TracedMarkup(Markup):
    """Text that was marked safe. Its operations are those of `Markup`, which escape; what they give is not traced."""

    _own: bytes | None = None

    @classmethod
    def of(cls, value: Any) -> Markup:
        """`value`, marked safe."""
        if not isinstance(value, Traced):
            return Markup(value)
        self = cls(value)
        self._own = value._own
        return self

    def __str__(self) -> str:
        return str.__str__(self) if self._own is None else Traced(str.__str__(self), self._own)


def own(text: str) -> bytes:
    """The marks of any text; others wrote a plain one."""
    marks: bytes | None = getattr(text, "_own", None)
    return bytes(len(text)) if marks is None else marks


def written(value: Any) -> Any:
    """A constant of a template, with every text in it marked as the template's own."""
    if isinstance(value, Markup):
        return TracedMarkup.of(written(str.__str__(value)))
    if isinstance(value, str):
        return Traced(value, b"\1" * len(value)) if type(value) is str else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(written, value))
    return {written(key): written(item) for key, item in value.items()} if isinstance(value, dict) else value


def made_of(text: str, *sources: Any) -> Traced:
    """`text`, made of `sources` in a way that is not followed: traced character by character where it is as long as the only
    one, else the template's own if they all are."""
    if len(sources) == 1 and isinstance(sources[0], str) and len(sources[0]) == len(text):
        return Traced(text, own(sources[0]))
    ours = all(
        all(own(source)) if isinstance(source, str) else source is None or isinstance(source, (bool, int, float))
        for source in sources
    )
    return Traced(text, (b"\1" if ours else b"\0") * len(text))


def shown(value: Any) -> str:
    """`value` as a template prints it. Numbers are the template's own: `'<|image_' ~ loop.index ~ '|>'` is a control token."""
    if value is None or isinstance(value, (bool, int, float)):
        return Traced(str(value), b"\1" * len(str(value)))
    return str(value)


def joined(values: Iterable[Any]) -> Traced:
    """All of `values`, one after the other."""
    texts = list(map(shown, values))
    return Traced("".join(texts), b"".join(map(own, texts)))


def _interpolated(text: Traced, values: Any) -> Traced:
    """`text % values`."""
    whole = str.__mod__(text, values)
    if not all(text._own):
        return Traced(whole)
    rest = iter(values if isinstance(values, tuple) else (values,))
    parts: list[str] = []
    at = 0
    for match in _CONVERSION.finditer(text):
        parts.append(text[at : match.start()])
        at = match.end()
        if match["type"] == "%":
            parts.append(text[at - 1 : at])
            continue
        stars = [next(rest) for part in (match["width"], match["precision"]) if part and part.endswith("*")]
        value = values[match["key"]] if match["key"] is not None else next(rest)
        if match["type"] == "s" and isinstance(value, str) and not match["width"] and not match["precision"]:
            parts.append(value)
        else:
            spec = re.sub(r"^%\([^()]*\)", "%", match.group())
            part = str.__mod__(spec, (*stars, value))
            parts.append(
                part if match["type"] == "c" else made_of(part, value)
            )  # a number that somebody wrote as a character
    made = joined([*parts, text[at:]])
    return made if made == whole else Traced(whole)

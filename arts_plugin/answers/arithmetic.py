r"""Arithmetic in an answer, worked out as an exact fraction: `7/2`, `\frac12`, `2 1/2`, `1.5\cdot10^{3}`, `2006!`, `eighteen`."""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_BITS = 1 << 17
"""Bits of the largest number that is worked out; above, the text stands for itself."""
_MAX_DEPTH = 40
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?P<exponent>[eE][+-]?\d+)?"
    r"|(?P<sign>\\frac(?![A-Za-z])|\\cdot(?![A-Za-z])|[-+*/^!(){}]))"
)
_WHOLE = re.compile(r"\d+")
_PROPER = re.compile(r"\s*(\d+)\s*/\s*(\d+)(?![\d.])|\s*\\frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


class TooLargeError(ValueError):
    """The text is arithmetic, and its value is too large to be worked out."""


def value(text: str) -> Fraction | None:
    """The exact value of arithmetic in the spelling of `arts_plugin.answers.spelling`; None for what is none.

    Raises:
        TooLargeError: see `MAX_BITS`.
    """
    if not any(character.isdigit() for character in text):
        return words(text)
    try:
        return _Arithmetic(text).whole()
    except (SyntaxError, ZeroDivisionError):
        return None


class _Arithmetic:
    """A parser by recursive descent. SyntaxError says that the text is no arithmetic."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0

    def whole(self) -> Fraction:
        found = self._sum()
        if self._text[self._at :].strip():
            raise SyntaxError
        return found

    def _sum(self) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise SyntaxError
        total = self._product()
        while (sign := self._next("+-")) is not None:
            term = self._product()
            total = _bounded(total + term if sign == "+" else total - term)
        self._depth -= 1
        return total

    def _product(self) -> Fraction:
        product = self._signed()
        while True:
            if (sign := self._next("*/", "\\cdot")) is not None:
                factor = self._signed()
                product = _bounded(product / factor if sign == "/" else product * factor)
            elif self._peek() in {"(", "{", "\\frac"}:
                product = _bounded(product * self._power())
            else:
                return product

    def _signed(self) -> Fraction:
        sign = self._next("+-")
        found = self._power()
        return -found if sign == "-" else found

    def _power(self) -> Fraction:
        base = self._atom()
        while self._next("!") is not None:
            base = _factorial(base)
        if self._next("^") is None:
            return base
        sign = self._next("+-")
        exponent = self._power()
        return _raised(base, -exponent if sign == "-" else exponent)

    def _atom(self) -> Fraction:
        found = _TOKEN.match(self._text, self._at)
        if found is None:
            raise SyntaxError
        self._at = found.end()
        if found["number"]:
            return self._number(found["number"], found["exponent"])
        if found["sign"] == "\\frac":
            above = self._group("{")
            return above / self._group("{")
        if found["sign"] in {"(", "{"}:
            self._at = found.end() - 1
            return self._group(found["sign"])
        raise SyntaxError

    def _number(self, digits: str, exponent: str | None) -> Fraction:
        if exponent is not None:
            power = int(exponent[1:]) if len(exponent) < 8 else MAX_BITS
            return _bounded(_decimal(digits) * _raised(Fraction(10), Fraction(power)))
        mixed = _PROPER.match(self._text, self._at) if _WHOLE.fullmatch(digits) else None
        # `2 1/2` needs its space, or it would be 21/2.
        if mixed is not None and (mixed[3] or self._text[self._at].isspace()):
            above, below = (int(part) for part in mixed.groups() if part is not None)
            if above >= below:
                raise SyntaxError
            self._at = mixed.end()
            return int(digits) + Fraction(above, below)
        return _decimal(digits)

    def _group(self, opening: str) -> Fraction:
        if self._next(opening) is None:
            raise SyntaxError
        found = self._sum()
        if self._next({"(": ")", "{": "}"}[opening]) is None:
            raise SyntaxError
        return found

    def _peek(self) -> str | None:
        found = _TOKEN.match(self._text, self._at)
        return None if found is None else found["sign"]

    def _next(self, signs: str, *names: str) -> str | None:
        found = _TOKEN.match(self._text, self._at)
        if found is None or found["sign"] is None or not (found["sign"] in names or found["sign"] in set(signs)):
            return None
        self._at = found.end()
        return found["sign"]


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").removesuffix("."))


def _bounded(found: Fraction) -> Fraction:
    if max(found.numerator.bit_length(), found.denominator.bit_length()) > MAX_BITS:
        raise TooLargeError
    return found


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise SyntaxError  # a root: exact only as algebra
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and size * abs(exponent.numerator) > MAX_BITS:
        raise TooLargeError
    return base**exponent.numerator if base or exponent > 0 else _no_power(exponent)


def _no_power(exponent: Fraction) -> Fraction:
    if exponent < 0:
        raise ZeroDivisionError
    raise SyntaxError  # 0^0


def _factorial(found: Fraction) -> Fraction:
    if found.denominator != 1 or found < 0:
        raise SyntaxError
    if found > 8000:
        raise TooLargeError
    return Fraction(math.factorial(found.numerator))


_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = {word: number for number, word in enumerate(_ONES)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_WORD = re.compile(r"[a-z]+")


def words(text: str) -> Fraction | None:
    """The number that English words say ("one hundred and five", "minus two"); None for other words."""
    found = _WORD.findall(text.casefold())
    if not found or not re.fullmatch(r"[a-zA-Z\s-]+", text):
        return None
    negative = found[0] in {"minus", "negative"}
    total = part = 0
    said = False
    for word in found[negative:]:
        if word in _SMALL:
            part, said = part + _SMALL[word], True
        elif word == "hundred" and said:
            part *= 100
        elif word in SCALES and said:
            total, part = total + part * SCALES[word], 0
        elif word != "and" or not said:
            return None
    return Fraction(-(total + part) if negative else total + part) if said else None

r"""What an answer says: a value, and, where it names them, a variable (`x = 5`) and a unit (`5 cm`).

Values are nested tuples that begin with their kind, so that equal values are equal tuples:

    ("number", "7/2")                    exactly, in hexadecimal digits
    ("text", "blue")                     words, and whatever is no mathematics
    ("algebra", "x(x+1)")                to be resolved by `arts_plugin.answers.algebra`
    ("list" or "set", element, ...)      in any order
    ("[", ")", element, ...)             coordinates and intervals, in their order
    ("matrix", row, ...), ("named", variable, value), ("union", set, ...)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from arts_plugin.answers import arithmetic
from arts_plugin.answers.spelling import MAX_LENGTH, closing, plain, split_top
from arts_plugin.answers.units import is_unit, unit_of

Value = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer's value, and the variable and the unit that it names (None: it names none)."""

    value: Value
    variable: str | None = None
    unit: str | None = None

    @property
    def number(self) -> Fraction | None:
        """The value, if it is a number."""
        return _number(self.value[1]) if self.value[0] == "number" else None


def number_key(number: Fraction) -> Value:
    """The value of a number; hexadecimal, which takes linear time however long it is."""
    return ("number", f"{number.numerator:x}/{number.denominator:x}")


def _number(key: str) -> Fraction:
    above, _, below = key.partition("/")
    return Fraction(int(above, 16), int(below, 16))


_COMMA = re.compile(r"(?<!\d),|,(?!\d{3}(?!\d))|;|(?<=[\s}])(?:and|or)(?=[\s\\])|\\text\s*\{\s*,?\s*(?:and|or)\s*\}")
_ANY_COMMA = re.compile(r"[,;]")
_EQUALS = re.compile(r"(?<![<>!=:\\])=(?!=)|\\(?:equiv|implies|Rightarrow)(?![A-Za-z])")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_ORDER = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<|>")
_ELEMENT = re.compile(r"(.+?)\\in(?![A-Za-z])(.+)")
_CHOICE = re.compile(r"\(?([A-Za-z])\)?|\(([A-Z])\)\s+[\w$\\].*|\(([A-Z])\)\\text.*", re.DOTALL)
_VARIABLE = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z])(?:_\{?\w+\}?|')?(?:\([A-Za-z](?:,\s*[A-Za-z])*\))?")
_NAME = re.compile(r"(?:\\text\s*\{[^{}]*\}|[A-Za-z][A-Za-z' ]+)[\s:]*")
_TITLE = re.compile(r"(?:[A-Za-z][A-Za-z' ]{2,}:|\\text\s*\{[^{}]*:\s*\})\s*(.+)", re.DOTALL)
_ASIDE = re.compile(r"(.*[\d})])\s*\([A-Za-z][A-Za-z ,']+\)", re.DOTALL)
_CONSTANT = re.compile(r"\\(?:pi|infty|emptyset)|[ei]")
_MATRIX = re.compile(r"\\begin\s*\{([bpvBV]?)matrix\}(.*)\\end\s*\{\1matrix\}", re.DOTALL)
_MONEY = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<unit>\\dollar|\\pounds|\\euro|\\yen|(?:USD|EUR|GBP|JPY|Rs)\.?(?=\s*[\d.]))\s*(?P<rest>.*)",
    re.DOTALL,
)
_AMOUNT = re.compile(r"(?:[-+()\d.,/*^!{}\s]|\\(?:frac|cdot)(?![A-Za-z])|(?<=\d)[eE](?=[+-]?\d))+")
_ANGLE = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z]).*\\deg")
_MEASURED = re.compile(
    r"(?P<amount>.+?)\s*(?P<rest>\\text\s*\{[^{}]*\}\s*(?:\^\s*\{?\s*[23]\s*\}?)?|\\deg|%)", re.DOTALL
)
_MATHEMATICS = re.compile(r"\\[A-Za-z]+|[-+*/^_=<>!|\d(){}\[\]]")
_FUNCTIONS = re.compile(r"(?<![A-Za-z\\])(?:sin|cos|tan|log|ln|exp|sqrt|max|min|gcd|lcm|mod)(?![A-Za-z])")
_WORD = re.compile(r"(?<![A-Za-z\\{])[A-Za-z]{4,}")
_BASED = re.compile(r"\d\s*_|_\s*\{?\\text|\\ldots|:")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_SECOND = re.compile(r"(?:,|\band\b|\bplus\b)\s*\}?\s*\\?\$?(?:\d|\\frac)")
_INCHES = re.compile(r"(?:\\text\s*\{)?\s*([A-Za-z]+)\s*\}?\s*\d[\d./ ]*(?:\\text\s*\{)?\s*([A-Za-z]+)[.\s}]*")
_DEGREES = re.compile(r"\{?(\d+(?:\.\d+)?)\s*\\deg\s*\}?")
_REPEATING = re.compile(r"(\d+)?\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")
_ABOUT = re.compile(r"(.*?)\\approx(?![A-Za-z])(.*)", re.DOTALL)
_ABOUTS = re.compile(
    r"(?:about|approximately|approx\.?|roughly|around|exactly|only|just|(?:a|the)\s+total\s+of|total\s+of|\\sim)\s+(.+)",
    re.IGNORECASE | re.DOTALL,
)
_NEGATIVE = re.compile(r"(?:\\text\s*\{\s*)?(?:minus|negative)\s*\}?\s*(?=[\d\\.$])", re.IGNORECASE)
# A short sentence around a number, which nothing bounds or negates.
_SENTENCE = re.compile(
    r"(?:[A-Za-z][A-Za-z' ]*\s)?(?:is|are|has|have|had|was|were|costs?|pays?|makes?|gets?|needs?|earns?|equals?|answer)\s+(?=[-\d\\.])(.+)",
    re.DOTALL,
)
_NOT = re.compile(r"\b(?:not|no|never|n't|less|more|fewer|greater|least|most|than|between|if)\b", re.IGNORECASE)
_LED = re.compile(r"\\text\s*\{[^{}]*\}\s*(?=[-\d\\.])(.+)", re.DOTALL)
_DEPTH = 6


@lru_cache(maxsize=1 << 16)
def read(answer: str) -> Reading:
    """What an answer says, as far as that can be told without algebra."""
    text = plain(answer)
    if len(text) > MAX_LENGTH:
        return Reading(("text", text.casefold()))
    try:
        return _read(text, 0)
    except arithmetic.TooLargeError:
        return Reading(("text", "".join(text.split()).casefold()))


def _read(text: str, depth: int) -> Reading:
    text = text.strip()
    if not text or depth > _DEPTH:
        return Reading(("text", text.casefold()))
    if (choice := _CHOICE.fullmatch(text)) is not None:
        return Reading(("text", (choice[1] or choice[2] or choice[3]).casefold()))
    if (number := _worked_out(text)) is not None:
        return Reading(number_key(number))
    for attempt in (_list, _chain, _order, _element, _union, _bracketed, _matrix, _both_signs, _amount):
        if (found := attempt(text, depth + 1)) is not None:
            return found
    return Reading(_leaf(text))


def _worked_out(text: str) -> Fraction | None:
    text = _REPEATING.sub(_repeated, text)
    return None if _BASED.search(text) else arithmetic.value(text)


def _repeated(found: re.Match[str]) -> str:
    whole, once, again = found[1] or "0", found[2], found[3]
    above = int(whole + once + again) - int(whole + once)
    return f"(\\frac{{{above}}}{{{(10 ** len(again) - 1) * 10 ** len(once)}}})"


def _leaf(text: str) -> Value:
    spelled = _FUNCTIONS.sub(lambda found: "\\" + found[0], text)
    if "\\text" in spelled or _WORD.search(spelled) or _BASED.search(spelled) or not _MATHEMATICS.search(spelled):
        return _words(text)
    # Angles in degrees, where a function wants radians.
    return ("algebra", " ".join(_DEGREES.sub(r"{(\\frac{\1\\pi}{180})}", spelled).split()))


def _words(text: str) -> Value:
    return ("text", "".join(_TEXT.sub(r"\1", text).split()).strip(".,;:").casefold())


def _list(text: str, depth: int) -> Reading | None:
    parts = split_top(text, _COMMA)
    if len(parts) < 2 or not _mathematical(parts):
        return None
    found = [_read(part, depth) for part in parts if part.strip()]
    names = {reading.variable for reading in found}
    first = found[0].variable
    units = {reading.unit for reading in found if reading.unit}
    if len(units) > 1:
        return Reading(_words(text))
    unit = next(iter(units), None)
    if len(names - {None}) <= 1 and (first or len(names) == 1):
        return Reading(("list", *(reading.value for reading in found)), first, unit)
    return Reading(("list", *(_named(reading) for reading in found)), None, unit)


def _mathematical(parts: list[str]) -> bool:
    """Whether the parts of a list are short enough to be elements of one: a sentence has commas as well."""
    return all(len(part.split()) <= 4 or _MATHEMATICS.search(part) for part in parts)


def _named(reading: Reading) -> Value:
    return reading.value if reading.variable is None else ("named", reading.variable, reading.value)


def _chain(text: str, depth: int) -> Reading | None:
    """`x = 5`, `5 = x`, `Area = 12`, `9 + 9 = 18`, `x = 2 + 3 = 5`; other equations are algebra."""
    if (titled := _TITLE.fullmatch(text)) is not None:
        return _read(titled[1], depth)
    if (about := _ABOUT.fullmatch(text)) is not None:
        exact = about[1].strip()
        if not exact or _is_variable(exact):
            return replace(_read(about[2], depth), variable="".join(exact.split()) or None)
        return _read(exact, depth)
    parts = [part.strip() for part in split_top(text, _EQUALS)]
    if len(parts) < 2 or not all(parts):
        return None
    first, last = parts[0], parts[-1]
    if _is_variable(first):
        return replace(_read(last, depth), variable="".join(first.split()))
    if _NAME.fullmatch(first):
        return _read(last, depth)
    if _is_variable(last):
        return replace(_read(parts[-2], depth), variable="".join(last.split()))
    if len(parts) > 2 or (_read(first, depth).number is not None and _read(last, depth).number is not None):
        return _read(last, depth)
    return Reading(_leaf(text))


def _is_variable(text: str) -> bool:
    return _VARIABLE.fullmatch(text) is not None and _CONSTANT.fullmatch(text) is None


def _order(text: str, depth: int) -> Reading | None:
    """`x > 4`, `4 < x`, `2 \\le x < 5` as intervals of x."""
    signs = [sign for sign in _ORDER.findall(text) if sign]
    parts = [part.strip() for part in split_top(text, _ORDER)]
    if len(parts) != len(signs) + 1 or not 2 <= len(parts) <= 3 or not all(parts):
        return None
    upward = [sign in {"<", r"\le"} for sign in signs]
    if len(set(upward)) == 1 and not upward[0]:
        parts, signs = parts[::-1], [{">": "<", r"\ge": r"\le"}[sign] for sign in signs[::-1]]
    elif len(set(upward)) > 1:
        return None
    low, high, closed = ("algebra", r"-\infty"), ("algebra", r"\infty"), ["(", ")"]
    if len(parts) == 3 and _is_variable(parts[1]):
        variable, low, high = parts[1], _read(parts[0], depth).value, _read(parts[2], depth).value
        closed = ["[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"]
    elif len(parts) == 2 and _is_variable(parts[0]):
        variable, high = parts[0], _read(parts[1], depth).value
        closed[1] = "]" if signs[0] == r"\le" else ")"
    elif len(parts) == 2 and _is_variable(parts[1]):
        variable, low = parts[1], _read(parts[0], depth).value
        closed[0] = "[" if signs[0] == r"\le" else "("
    else:
        compact = "".join((parts[0], *(s + p for s, p in zip(signs, parts[1:], strict=True))))
        return Reading(("text", "".join(compact.split())))
    return Reading((closed[0], closed[1], low, high), "".join(variable.split()))


def _element(text: str, depth: int) -> Reading | None:
    found = _ELEMENT.fullmatch(text)
    if found is None or not _is_variable(found[1].strip()):
        return None
    return replace(_read(found[2], depth), variable="".join(found[1].split()))


def _union(text: str, depth: int) -> Reading | None:
    parts = split_top(text, _UNION)
    return Reading(("union", *(_read(part, depth).value for part in parts))) if len(parts) > 1 else None


def _bracketed(text: str, depth: int) -> Reading | None:
    escaped = text.startswith(r"\{") and text.endswith(r"\}")
    inside = text[2:-2] if escaped else text[1:-1]
    if escaped:
        if closing(text, 1) != len(text) - 1:
            return None
    elif text[0] not in "([" or closing(text, 0) != len(text) - 1:
        return None
    parts = split_top(inside, _ANY_COMMA)
    if text[0] == "(" and text[-1] == ")" and len(parts) == 1:
        return _read(inside, depth)
    elements = [_named(_read(part, depth)) for part in parts]
    if escaped:
        return Reading(("set", *elements)) if inside.strip() else Reading(("text", r"\emptyset"))
    return Reading((text[0], text[-1], *elements))


def _matrix(text: str, depth: int) -> Reading | None:
    found = _MATRIX.fullmatch(text)
    if found is None:
        return None
    rows = [row.split("&") for row in found[2].split("\\\\") if row.strip()]
    kind = "determinant" if found[1] in {"v", "V"} else "matrix"
    return Reading((kind, *(tuple(_read(cell, depth).value for cell in row) for row in rows)))


def _both_signs(text: str, depth: int) -> Reading | None:
    if text.count(r"\pm") != 1:
        return None
    both = [_read(re.sub(r"\+?\s*\\pm\s*", sign, text), depth) for sign in "+-"]
    return Reading(("list", *(reading.value for reading in both)), both[0].variable, both[0].unit)


def _amount(text: str, depth: int) -> Reading | None:
    """A number and its unit or what it counts: `18 cm`, `\\dollar 18`, `18 red apples`, `2\\pi \\text{ cm}`."""
    if (money := _MONEY.fullmatch(text)) is not None and money["rest"]:
        paid = _read(money["sign"] + money["rest"], depth)
        return replace(paid, unit=unit_of(money["unit"])) if paid.value[0] in {"number", "algebra"} else None
    if (aside := _ASIDE.fullmatch(text)) is not None:
        return _read(aside[1], depth)
    if (stated := _stated(text, depth)) is not None:
        return stated
    found = _AMOUNT.match(text)
    rest = "" if found is None else text[found.end() :]
    if found is not None and _counts(rest, spaced=found[0][-1:].isspace()):
        number = _worked_out(found[0].rstrip(" /"))  # `18/hour`
        if number is not None and _is_compound(rest):
            return Reading(_words(text))
        if number is not None:
            scale = re.match(r"(thousand|million|billion|trillion)s?\b", rest.casefold())
            if scale is not None:
                number *= arithmetic.SCALES[scale[1]]
            return Reading(number_key(number), unit=unit_of(rest))
    measured = _MEASURED.fullmatch(text)
    if measured is not None and not _ANGLE.search(text):
        reading = _read(measured["amount"], depth)
        if reading.value[0] != "text":
            return replace(reading, unit=reading.unit or unit_of(measured["rest"]))
    return None


def _stated(text: str, depth: int) -> Reading | None:
    """The number in `about 18`, `minus 7`, `She has 18 pens`, `\\text{Total } 18`."""
    for pattern in (_ABOUTS, _SENTENCE, _LED):
        found = pattern.fullmatch(_NEGATIVE.sub("-", text))
        if found is not None and not _NOT.search(text) and (reading := _read(found[1], depth)).number is not None:
            return reading
    negative, found_one = _NEGATIVE.subn("-", text)
    return _read(negative, depth) if found_one else None


def _is_compound(rest: str) -> bool:
    """Whether a second amount stands behind a number: `5 feet 6 inches`, `2 hours and 5 minutes`, `3 pens, 2 books`."""
    second = _INCHES.fullmatch(rest)
    return _SECOND.search(rest) is not None or (second is not None and is_unit(second[1]) and is_unit(second[2]))


def _counts(rest: str, *, spaced: bool) -> bool:
    """Whether what stands behind a number is a word or a unit, and no variable: `18 apples`, `18cm`, but `3x` and `3 x`."""
    word = re.match(r"[A-Za-z]+", rest)
    if word is None:
        return re.match(r"%|\\(?:deg|dollar|pounds|euro|yen|text)(?![A-Za-z])", rest) is not None
    name = word[0]
    if _FUNCTIONS.fullmatch(name) and not is_unit(name):
        return False
    if len(name) == 1:  # `18 A of them`, but `3 x` and `3 x y`
        return bool(re.match(r"[A-Za-z]\s+[a-z]{2,}", rest))
    return len(name) > 3 or is_unit(name) or spaced


def resolved(value: Value, algebra: Callable[[str], Value]) -> Value:
    """The value with its algebra resolved, and what has no order in one order."""
    kind = value[0]
    if kind == "algebra":
        return algebra(value[1])
    if kind in {"number", "text"}:
        return value
    if kind == "named":
        return ("named", value[1], resolved(value[2], algebra))
    if kind in {"matrix", "determinant"}:
        return (kind, *(tuple(resolved(cell, algebra) for cell in row) for row in value[1:]))
    if kind in {"list", "set", "union"}:
        elements = sorted({resolved(element, algebra) for element in value[1:]}, key=repr)
        return elements[0] if kind == "list" and len(elements) == 1 else (kind, *elements)
    return (kind, value[1], *(resolved(element, algebra) for element in value[2:]))

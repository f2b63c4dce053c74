r"""Units that an answer names, in one spelling: `\text{ centimeters}^2` and `sq cm` are `cm^2`; of other words nothing is kept."""

from __future__ import annotations

import re

_SPELLINGS = {
    "%": "% percent pct percents",
    "deg": r"\deg degree degrees",
    "$": r"\dollar dollar dollars usd bucks",
    "cent": "cent cents",
    "gbp": r"\pounds gbp",
    "eur": r"\euro euro euros eur",
    "yen": r"\yen yen jpy",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "m": "m meter meters metre metres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "ft foot feet",
    "yd": "yd yard yards",
    "mi": "mi mile miles",
    "mg": "mg milligram milligrams",
    "g": "g gram grams",
    "kg": "kg kilogram kilograms kgs",
    "lb": "lb lbs pound pounds",
    "oz": "oz ounce ounces",
    "ton": "ton tons tonne tonnes",
    "ml": "ml milliliter milliliters millilitre millilitres",
    "l": "l liter liters litre litres",
    "gal": "gal gallon gallons",
    "s": "s sec secs second seconds",
    "min": "min mins minute minutes",
    "h": "h hr hrs hour hours",
    "day": "day days",
    "week": "week weeks",
    "month": "month months",
    "year": "yr yrs year years",
    "rad": "rad radian radians",
    "mph": "mph",
    "km/h": "kmh kph",
}
_UNIT = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
_RAISED = {"square": "^2", "squared": "^2", "sq": "^2", "cubic": "^3", "cubed": "^3", "cu": "^3"}
_WORD = re.compile(r"\\[A-Za-z]+|[A-Za-z]+|%|\^\s*\{?\s*([23])\s*\}?|/")
_AFTER = {"per", "/", "a", "an"}


def unit_of(text: str) -> str | None:
    """The unit that is named first, with its power; None where no unit of the table is named before a "per"."""
    unit, power = None, ""
    for found in _WORD.finditer(text.replace("\\text", " ")):
        word = found[0].casefold()
        if found[1] and unit:
            power = f"^{found[1]}"
        elif word in _RAISED:
            power = _RAISED[word]
        elif word in _UNIT and unit is None:
            unit = _UNIT[word]
        elif word in _AFTER and unit is not None:
            break
    return None if unit is None else unit + power


def is_unit(word: str) -> bool:
    """Whether the word alone is a unit."""
    return word.casefold() in _UNIT

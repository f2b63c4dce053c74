"""Graders: does an answer agree with the gold one? Registered by name, so that a plugin can bring its own."""

from __future__ import annotations

import re
from fractions import Fraction

from arts_plugin.evaluation.extract import canonical


def grade_exact(answer: str, gold: str) -> bool:
    """Equal after `canonical`: number formatting, `$`, `%` and case do not matter."""
    return canonical(answer) == canonical(gold)


def grade_numeric(answer: str, gold: str) -> bool:
    """Equal as exact rational numbers (`3/4` is `0.75`); False where either is no number."""
    left, right = _fraction(answer), _fraction(gold)
    return left is not None and left == right


_CHOICE = re.compile(r"^\W*(?:answer|option|choice)?\W*([A-Za-z])(?:\W|$)", re.IGNORECASE)


def grade_choice(answer: str, gold: str) -> bool:
    """Multiple choice: equal letters, however they are written (`(B)`, `b.`, `B) 12 apples`, `\\text{B}`)."""
    letters = [_CHOICE.match(canonical(text)) for text in (answer, gold)]
    return all(letters) and len({found.group(1).casefold() for found in letters if found}) == 1


def _fraction(text: str) -> Fraction | None:
    plain = canonical(text)
    if len(plain) > 100:  # a number longer than any answer; Fraction("1e999999999") would fill the memory
        return None
    try:
        return None if "e" in plain.lower() else Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None

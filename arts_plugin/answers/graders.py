"""Graders: does an answer agree with the gold one? Registered by name, so that a plugin can bring its own."""

from __future__ import annotations

import re

from arts_plugin.answers import equality
from arts_plugin.answers.reading import read
from arts_plugin.answers.spelling import MAX_LENGTH, plain
from arts_plugin.errors import ArtsError
from arts_plugin.hookspecs import Grader


def grade_exact(answer: str, gold: str) -> bool:
    """Equal as votes see it (`arts_plugin.answers.equality`). An empty answer is never right."""
    return bool(answer.strip()) and len(answer) <= MAX_LENGTH and equality.same(answer, gold)


def math_grader() -> Grader:
    """`grade_exact`, where math-verify is installed.

    Raises:
        ArtsError: it is not, so that algebra would be compared as text.
    """
    if equality.algebra().value("a + b") is None:
        raise ArtsError(
            "grader math needs math-verify, which is not installed or does not start (pip install 'math-verify[antlr4_11_0]', or "
            "arts-plugin[math])"
        )
    return grade_exact


def grade_numeric(answer: str, gold: str) -> bool:
    """Equal as exact numbers (`3/4` is `0.75`), and in their units where both name one; False where either is no number."""
    left, right = read(answer), read(gold)
    return left.number is not None and right.number is not None and equality.same(answer, gold)


_CHOICE = re.compile(
    r"(?:the\s+)?(?:(?:final|correct|best|right)\s+)*(?:answer|option|choice)?(?:\s+is)?[\s:(\[{]*([A-Za-z])(?![\w'\u2019])(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
# What makes words of the letters A and I, and two choices of one.
_OPERATOR = re.compile(r"\s*[=+*/^<>_]|\s*-\s*\d")
_WORDY = re.compile(r"\s+(?!because|since|as\b|which|with\b|is\b)[a-z]")
_SECOND = re.compile(r"\s*(?:,|/|&|and|or|\+)\s*\(?[A-Za-z]\)?(?![A-Za-z'])", re.IGNORECASE)


def choice_of(answer: str) -> str | None:
    """The letter that an answer to a multiple-choice question chooses, a capital (`(B)`, `b.`, `B) 12 apples`); None for none."""
    found = _CHOICE.match(re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", plain(answer)).strip())
    if found is None:
        return None
    letter, rest = found[1], found["rest"]
    if (
        _SECOND.match(rest.lstrip(")"))
        or _OPERATOR.match(rest)
        or (letter in "aAI" and _WORDY.match(rest))
        or (letter.islower() and rest[:1] == " ")
    ):
        return None
    return letter.upper()


def grade_choice(answer: str, gold: str) -> bool:
    """Multiple choice: equal letters, however they are written; what stands behind the letter does not matter."""
    return (letter := choice_of(answer)) is not None and letter == choice_of(gold)

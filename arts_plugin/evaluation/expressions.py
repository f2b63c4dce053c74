"""Arithmetic expressions in model text: found, and worked out exactly.

For puzzles whose answer is an expression (Game of 24, Countdown). The text is parsed, never evaluated: only numbers,
the four operations, signs and parentheses are understood, in fractions, and what is too long or too deep is no
expression.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from arts_plugin.evaluation.extract import extract_boxed

MAX_LENGTH = 200
_MAX_DIGITS = 12
_SPELLED = (
    ("\\\\times|\\\\cdot|\u00d7|\u00b7", "*"),
    ("\\\\div|\u00f7", "/"),
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\left|\\right|\\[,;:! ]|\$", ""),
    ("\u2212|\u2013", "-"),
    (r"[\[{]", "("),
    (r"[\]}]", ")"),
)
_RUN = re.compile(r"[\d(][\d\s.+*/()-]*[\d)]")
_ARITHMETIC = re.compile(r"[\d\s.+*/()-]+")
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def extract_expression(text: str) -> str | None:
    """The last expression with an operation in it: boxed, or else anywhere; without `= value`. None if there is none."""
    boxed = extract_boxed(text)
    for place in (boxed, text) if boxed else (text,):
        plain = _plain(place)
        found = [run for run in _RUN.findall(plain.replace("=", "\n")) for run in run.splitlines()]
        runs = [run.strip() for run in found if _worth(run)]
        if runs:
            return str(runs[-1])
    return None


def _worth(run: str) -> bool:
    value = work_out(run)
    return value is not None and len(value[1]) > 1


def _plain(text: str) -> str:
    for pattern, plain in _SPELLED:
        text = re.sub(pattern, plain, text)
    return text


def work_out(expression: str) -> tuple[Fraction, list[int]] | None:
    """The exact value, and the whole numbers in it in order. None for what is no expression or divides by nought."""
    text = expression.strip()
    if len(text) > MAX_LENGTH or not _ARITHMETIC.fullmatch(text) or "//" in text or "**" in text:
        return None
    if any(len(digits) > _MAX_DIGITS or (digits[0] == "0" and len(digits) > 1) for digits in re.findall(r"\d+", text)):
        return None
    try:
        numbers: list[int] = []
        return _value(ast.parse(text, mode="eval").body, numbers), numbers
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left = _value(node.left, numbers)
        return _BINARY[type(node.op)](left, _value(node.right, numbers))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, numbers)
        return -value if isinstance(node.op, ast.USub) else value
    raise ValueError(f"{type(node).__name__} is no arithmetic")


def reaches(expression: str | None, numbers: Sequence[int], target: int) -> bool:
    """Whether an expression uses each of `numbers` exactly once, and nothing else, and equals `target`."""
    found = work_out(expression) if expression else None
    return found is not None and found[0] == target and Counter(found[1]) == Counter(numbers)

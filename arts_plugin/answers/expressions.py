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

from arts_plugin.answers.extract import extract_boxed

MAX_LENGTH = 200
_FULLWIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_MAX_DIGITS = 12
_FRACTION = re.compile(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}")
_FRACTIONS_DEEP = 8
_SPELLED = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        (r"\\\\", "\n"),
        (r"\\\*", "*"),
        # Only in pairs around operands: 9**9 is a power, which is no arithmetic of ours.
        (r"(?<![\d)])\*\*(?=[\d(])((?:[^*\n]|\*(?!\*))+)(?<=[\d)])\*\*(?![\d(])", r"\1"),
        ("\\\\times|\\\\cdot|\u00d7|\u00b7|\u22c5|\u2217", "*"),
        (r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", " * "),
        (r"(?<=[\d)])[^\S\n]+\((?=[^\S\n])", " * ("),
        ("\\\\div|\u00f7", "/"),
        # A fraction that was not unfolded is not to be taken for what stands in its braces.
        (r"\\[dt]?frac[^\n=]*", "?"),
        # Before brackets are read: these only say where mathematics begins and ends.
        (r"\\[()\[\]]|\$", " "),
        (r"\\left|\\right|\\[,;:! ]|&", ""),
        ("\u2212|\u2013", "-"),
        (r"[\[{]", "("),
        (r"[\]}]", ")"),
        (r"\n[^\S\n]*(?==)", " "),
    )
)
_ELSE = re.compile(r"[^\d\s.+*/()=-]+|[\r\n]+")
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[-+*/()=]|\s+|\.")
# Marks of our own, none of which is in a stretch of arithmetic.
_BREAK, _ASIDE, _SIGN = "|", "@", "~"
_ARITHMETIC = re.compile(r"[\d\s.+*/()-]+")
_BINARY: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def extract_expression(text: str) -> str | None:
    """The expression with the most numbers, the last among equals: boxed, or else anywhere. None if none has an operation.

    The others are what it comes down to, or checks of its parts. Of a chain `a = b = c` it is the first among equals. Marks
    around it (lists, emphasis, brackets that never close) are left out.
    """
    boxed = extract_boxed(text)
    for place in (boxed, text) if boxed else (text,):
        best, most = None, 1
        for stretch in reversed(_ELSE.split(_plain(place))):
            for chain in reversed(_chains(stretch)):
                found, size = _fullest(chain)
                if size > most:
                    best, most = found, size
        if best is not None:
            return best
    return None


def extract_compact(text: str) -> str | None:
    """`extract_expression` without its spaces, for voting: what is right is not for a vote to know."""
    found = extract_expression(text)
    return None if found is None else "".join(found.split())


def _fullest(chain: Sequence[str]) -> tuple[str | None, int]:
    worked = [(piece, work_out(piece)) for piece in chain]
    sizes = {piece: len(value[1]) for piece, value in worked if value is not None}
    best = max(sizes, key=sizes.__getitem__, default=None)
    return best, 0 if best is None else sizes[best]


def _plain(text: str) -> str:
    text = text.translate(_FULLWIDTH)
    for _ in range(_FRACTIONS_DEEP):  # the innermost first
        text, unfolded = _FRACTION.subn(r"((\1)/(\2))", text)
        if not unfolded:
            break
    for pattern, plain in _SPELLED:
        text = pattern.sub(plain, text)
    return text


def _chains(stretch: str) -> list[list[str]]:
    """Expressions with `=` between them, in a stretch of text in which nothing else occurs; asides come first."""
    first, *others = re.split(f"([{_BREAK}{_ASIDE}])", _marked(_TOKEN.findall(stretch)))
    asides = [chain for mark, chain in zip(others[::2], others[1::2], strict=True) if mark == _ASIDE]
    plain = [chain for mark, chain in zip(others[::2], others[1::2], strict=True) if mark == _BREAK]
    return [
        [side.strip("+-*/ \t\n").replace(_SIGN, "-") for side in chain.split("=")] for chain in [*asides, first, *plain]
    ]


def _marked(tokens: Sequence[str]) -> str:
    """The text, with a mark where a chain ends: where one operand follows another, at a full stop, at odd brackets.

    A bracket that follows an operand without a space is multiplied with it.
    """
    odd = _odd_brackets(tokens)
    marked = []
    before, spaced = "", False
    for at, token in enumerate(tokens):
        if token.isspace():
            spaced = True
            marked.append(token)
            continue
        after_operand = before == ")" or before.isdigit()
        if token == "." or at in odd:
            marked.append(_ASIDE if after_operand and odd.get(at, -1) > at else _BREAK)
            before = ""
        else:
            if after_operand and (token == "(" or token[0].isdigit()):
                marked.append(_BREAK if spaced or token != "(" else "*")
            sign = token == "-" and before == "=" and not "".join(tokens[at + 1 : at + 2]).isspace()
            marked.append(_SIGN if sign else token)  # elsewhere a minus in front may be a dash
            before = token[-1]
        spaced = False
    return "".join(marked)


def _odd_brackets(tokens: Sequence[str]) -> dict[int, int]:
    """Brackets that are none of arithmetic: they have no partner, or hold an equation. Place -> the partner's place, or -1."""
    opened: list[int] = []
    odd: dict[int, int] = {}
    equations: list[int] = []
    for at, token in enumerate(tokens):
        if token == "=":
            equations.append(at)
        elif token == "(":
            opened.append(at)
        elif token == ")" and not opened:
            odd[at] = -1
        elif token == ")":
            start = opened.pop()
            if equations and equations[-1] > start:
                odd[start], odd[at] = at, start
    return {**odd, **dict.fromkeys(opened, -1)}


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

r"""Finding the answer inside a model's text, for voting.

This decides which trajectories vote together, not what is right: scoring belongs to the task. Model text is data:
it is searched and compared, never evaluated.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from arts_plugin.errors import SettingsError
from arts_plugin.hookspecs import Extractor

_NUMBER = r"[-+]?\$?\d(?:[\d,]*\d)?(?:\.\d+)?(?:/\d+)?%?"
_LAST_NUMBER = re.compile(_NUMBER)
_HASHES = re.compile(r"####[ \t]*([^\n]+)")
_PHRASE = re.compile(r"\banswer\s+is\b[\s:]*", re.IGNORECASE)
_LATEX = re.compile(r"\\(?:[dt]?frac|sqrt|pi|left|text|begin)\b")
MAX_LENGTH = 400


def extract_auto(text: str) -> str | None:
    r"""The last `\boxed{}`, else the last `#### x`, else the last "the answer is x", else the last number."""
    return extract_boxed(text) or extract_hashes(text) or extract_phrase(text) or extract_number(text)


def extract_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` holds, braces balanced."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for at in range(begin, min(len(text), begin + MAX_LENGTH)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at].strip() or None
    return None


def extract_hashes(text: str) -> str | None:
    """What follows the last `####`, to the end of its line (GSM8K's own format)."""
    found = _HASHES.findall(text)
    return found[-1].strip()[:MAX_LENGTH] or None if found else None


def extract_phrase(text: str) -> str | None:
    """What follows the last "answer is": its number (after the last `=`, if it calculates), else the first clause."""
    rests = (text[match.end() :] for match in reversed(list(_PHRASE.finditer(text))))
    line = next((rest.split("\n", 1)[0] for rest in rests if rest), "")
    clause = re.split(r"\.(?:\s|$)", line)[0].rsplit("=", 1)[-1].strip().strip("*$ ")
    if "\\boxed{}" in clause:  # the instruction, echoed
        return None
    number = None if _LATEX.search(clause) else _LAST_NUMBER.search(clause)
    return (number.group() if number else clause)[:MAX_LENGTH] or None


def extract_number(text: str) -> str | None:
    """The last number in the text."""
    found = _LAST_NUMBER.findall(text)
    return found[-1][:MAX_LENGTH] if found else None


def extract_text(text: str) -> str | None:
    """The whole text, stripped: for tasks whose answer is the text."""
    return text.strip()[:MAX_LENGTH] or None


def regex_extractor(pattern: str) -> Extractor:
    """The last match of `pattern`: its first group if it has one.

    Raises:
        SettingsError: not a regular expression.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"extract: {pattern!r} is not a regular expression: {error}") from error

    def extract(text: str) -> str | None:
        matches = list(compiled.finditer(text))
        if not matches:
            return None
        return (matches[-1].group(1) if compiled.groups else matches[-1].group()) or None

    return extract


def canonical(answer: str) -> str:
    """A spelling in which equal answers are equal strings: `$1,000.00.` and `1000` are one class."""
    text = answer.strip().strip("$").strip().rstrip(".").strip()
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[!,;: ]|\\(?:left|right)\b|\\%|%|\\\$|\$", "", text).strip()
    number = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    try:
        value = Decimal(number)
    except InvalidOperation:
        return re.sub(r"\s+", " ", text).casefold()
    if not value.is_finite():
        return text.casefold()
    # By hand: normalize() would round to 28 digits, and raise where the exponent is huge.
    sign, digits, exponent = value.as_tuple()
    kept = "".join(map(str, digits)).rstrip("0")
    if not kept:
        return "0"
    plain = Decimal((sign, tuple(map(int, kept)), int(exponent) + len(digits) - len(kept)))
    return f"{plain:f}" if abs(plain.adjusted()) < 40 else str(plain)

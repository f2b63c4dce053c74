r"""One spelling for the many ways in which LaTeX, Unicode and Markdown write the same answer."""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 400
"""Characters of an answer that is still looked at: longer ones are no answers."""

_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b\u207f]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_SIGNS = {
    "\u00d7": r"\cdot ", "\u22c5": r"\cdot ", "\u00b7": r"\cdot ", "\u2219": r"\cdot ", "\u2217": r"\cdot ",
    "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ",
    "\u221e": r"\infty ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2205": r"\emptyset ",
    "\u00b1": r"\pm ", "\u00b0": r"\deg ", "\u00ba": r"\deg ", "\u2026": r"\ldots ", "\u20ac": r"\euro ",
    "\u00a3": r"\pounds ", "\u00a5": r"\yen ", "\u2212": "-", "\ufe63": "-", "\uff0d": "-", "\u2010": "-", "\u2011": "-",
    "\u03c0": r"\pi ", "\u03b8": r"\theta ", "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03b3": r"\gamma ",
    "\u03bb": r"\lambda ", "\u03bc": r"\mu ", "\u03c6": r"\phi ", "\u03c9": r"\omega ", "\u03c3": r"\sigma ",
}  # fmt: skip
_UNICODE = re.compile("[" + "".join(_SIGNS) + "]")
_ROOT = re.compile(r"\u221a\s*(?:(\d+(?:\.\d+)?|[A-Za-z])|\(([^()]*)\)|(?=\{))")
# An en dash behind a number makes a range; elsewhere it is a minus.
_DASH = re.compile(r"(?<![\d%)])(\s*)[\u2013\u2014](?=\s*[\d.$\\])")
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])")
_SPACE = re.compile(r"(?<!\\)\\[;: ]|\\q?quad(?![A-Za-z])|~|\s")
_RULES = tuple(
    (re.compile(pattern), plain)
    for pattern, plain in (
        # Digits that are grouped are one number; so they are joined before commas and spaces get another meaning.
        (r"(?<=\d)(?:\{,\}|,?\\[!,]|\\ )(?=\d{3}(?!\d))", ""),
        (r"(?<!\\)\\[!,]", " "),
        (r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:large|Large|LARGE|huge|Huge|bf|it|small|mathstrut)(?![A-Za-z])", " "),
        (r"\\\$|\bUS\s*\$", r"\\dollar "),
        (r"(?<!\\)\\[()\[\]]|\$|\*\*|(?<![A-Za-z0-9])__|__(?![A-Za-z0-9])|`", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![A-Za-z])\.?", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\le(?:q|qslant)(?![A-Za-z])|<=", r"\\le "),
        (r"\\ge(?:q|qslant)(?![A-Za-z])|>=", r"\\ge "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\neq(?![A-Za-z])|!=", r"\\ne "),
        (r"\\(?:dots|cdots|dotsc|dotsb)(?![A-Za-z])|\.\.\.", r"\\ldots "),
        (r"\\(?:times|ast)(?![A-Za-z])|(?<=[\d)}])\s*\*\s*(?=[\d(\\.-])", r"\\cdot "),
        (r"(?<=\d)\s*[xX]\s*(?=\d)", r"\\cdot "),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\%", "%"),
        (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}|\\deg(?:ree)?(?![A-Za-z])|(?=\\deg ))|\\degrees?(?![A-Za-z])", r"\\deg "),
        (r"(?:\\deg\s*){2,}", r"\\deg "),
        (r"\\(?:text(?:normal|rm|up|it|sf|tt|md)|mathrm|mathit|mathsf|rm|mbox|hbox|operatorname)(?=\s*\{)", r"\\text"),
        (r"\\frac\s*(\d)\s*(\d|[A-Za-z](?![A-Za-z]))", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*(\w)", r"\1{\2}"),
        (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
        (r"\+\s*-", "-"),
        (r"-\s*-(?=\s*[\d(])", "+"),
    )
)  # fmt: skip
_WRAPPED = re.compile(r"\\(?:boxed|fbox|textbf|mathbf|boldsymbol|bm|bf|emph|underline)\s*\{([^{}]*)\}")
_WHOLE_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_NESTED = 8


def plain(answer: str) -> str:
    r"""The answer in one spelling: `\frac`, `\cdot`, `\text`, no emphasis, no `$`, grouped digits joined, ordinary spaces.

    What is left of units is `\deg`, `\dollar`, `\pounds`, `\euro`, `\yen`, `%` and words. Of an answer of more than
    `MAX_LENGTH` characters only the spaces are changed.
    """
    if len(answer) > MAX_LENGTH:
        return " ".join(answer.split())
    text = _RAISED.sub(
        lambda found: "^{" + unicodedata.normalize("NFKC", found[0]).replace("\u2212", "-") + "}", answer
    )
    text = _VULGAR.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]), text)
    text = _UNICODE.sub(lambda found: _SIGNS[found[0]], text)
    text = _ROOT.sub(
        lambda found: "\\sqrt" + ("{" + (found[1] or found[2]) + "}" if found[1] or found[2] else ""), text
    )
    text = _DASH.sub(r"\1-", unicodedata.normalize("NFKC", text))
    text = "".join(_ascii_digit(character) for character in text)
    for _ in range(_NESTED):  # the innermost first
        text, unwrapped = _WRAPPED.subn(r" \1 ", text)
        if not unwrapped:
            break
    for pattern, spelled in _RULES:
        text = pattern.sub(spelled, text)
    text = " ".join(_SPACE.sub(" ", text).split())
    return _bare(_GROUPED.sub(lambda found: found[0].replace(" ", ""), text))


def _ascii_digit(character: str) -> str:
    return character if character.isascii() else str(unicodedata.digit(character, character))


def _bare(text: str) -> str:
    r"""The text without a full stop, a pair of braces or one `\text{}` around it."""
    while True:
        before = text
        text = text.rstrip(" .,;:\\")
        if not re.match(r"\.\d", text):
            text = text.lstrip(" .,;:")
        if len(text) > 1 and text[0] in "\"'\u201c\u2018" and text[-1] in "\"'\u201d\u2019":
            text = text[1:-1]
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            text = text[1:-1]
        if (whole := _WHOLE_TEXT.fullmatch(text)) is not None:
            text = whole[1]
        if text == before:
            return text


def closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed, by whichever bracket (`[2,5)`); -1 if it is not."""
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth -= 1
            if depth == 0:
                return at
    return -1


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between matches of `separator` that stand in no bracket."""
    depths, depth = [], 0
    for character in text:
        if character in ")]}":
            depth -= 1
        depths.append(depth)
        if character in "([{":
            depth += 1
    parts, start = [], 0
    for found in separator.finditer(text):
        if depths[found.start()] == 0:
            parts.append(text[start : found.start()])
            start = found.end()
    return [*parts, text[start:]]

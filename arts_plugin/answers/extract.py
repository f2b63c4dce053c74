r"""Finding the answer inside a model's text, for voting and for grading. Model text is searched, never evaluated.

What is found is handed on as it is written, units and all; what it says is for `arts_plugin.answers.reading` to tell.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from arts_plugin.answers.spelling import MAX_LENGTH
from arts_plugin.errors import SettingsError
from arts_plugin.hookspecs import Extractor

_DIGITS = r"\d+(?:(?:,|\{,\}|,?\\[,!]|[\u00a0\u2009\u202f])\d+)*"
_FRACTION = r"\\[dtc]?frac(?:\{\d+\}\{\d+\}|\d\d)"
# A sign belongs to a number that follows no other operand: 10-4 ends in 4.
_SIGN = r"(?<![\w)\]}])[-+\u2212\u2013]"
_AMOUNT = rf"(?:{_DIGITS}(?:\.\d+)?(?:\s?{_FRACTION}|(?: \d+)?/\d+)?|(?<![\d.])\.\d+|{_FRACTION})"
_NUMBER = re.compile(
    rf"(?:{_SIGN})?(?:\\?\$|[\u20ac\u00a3])?(?:{_SIGN})?{_AMOUNT}(?:\\?%|\s(?:thousand|million|billion|trillion)\b)?"
)
_SPACED = re.compile(rf"(?:{_SIGN})?(?:\\?\$)?\d{{1,3}}(?: \d{{3}})+(?![\d/])(?:\.\d+)?")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|[{}]")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s*([-\u2212]?\d[\d,]*(?:\.\d+)?|[A-Za-z](?![A-Za-z]))")
_HASHES = re.compile(r"####+[ \t]*([^\n]*)")
_PHRASE = re.compile(
    r"(?:\b(?:answers?|(?:correct|right|best)\s+(?:option|choice))\s+(?:is|are|was|equals|(?:would|should|must|will)\s+be)\b"
    r"|(?:(?:^|\n)[ \t*_#>]*|\bfinal\s)answer[*_]*\s*:)[\s:*]*(?:(?:\\\[|\$\$)[ \t]*\n\s*)?",
    re.IGNORECASE,
)
_CORRECT = re.compile(
    r"(?:\b(?:option|choice|answer)\s+\(?([A-Z])\)?|\(([A-Z])\))\s+is\s+(?:the\s+)?(?:correct|right|best)\b",
    re.IGNORECASE,
)
_WORDS = 6
"""Words of an answer without a number, at most: longer ones are sentences."""
_LABEL = re.compile(r"\W*(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?|result)\s*[:=]?[\s*]*", re.IGNORECASE)
_HEADING = re.compile(
    r"\s*[*_]*(?:step|part|case)\s*\d|\s*[*_]*(?:step|part|case|final answer|answer|solution|conclusion|summary|explanation)\b[\s\d:.*]*$",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"\s*\d+[.):]\s+[A-Za-z]")
_NEGATED = re.compile(r"(?:not|n't|never)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"(?<![ie]\.[eg])(?<!\bapprox)\.(?:[\s*\"']|$)|\n", re.IGNORECASE)
_RESTATED = re.compile(
    r"\b(?:i\.e\.,?|that is,?|which (?:is|equals)|or simply)\s*(?=[-\u2212]?[\d$\\.])", re.IGNORECASE
)
_DANGLING = re.compile(r"\s*(?:[-+*/=]|\\cdot|\\times)\s*$")
_DOLLARS = re.compile(r"\$\$?(?=[^\s$])([^$\n]*[^\s$\\])\$\$?(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_NEGATIVE = re.compile(r"^(?:minus|negative)\s+(?=[\d\\.$])", re.IGNORECASE)
_JOINED = re.compile(r"\s*(?:,|,?\s*and|,?\s*or)\s*")
_LETTER = re.compile(
    r"(?:(?:option|choice|letter)\s+)?(?:[(\[{<]\s*(?P<in>[A-Za-z])\s*[)\]}>]|(?P<bare>[A-Z\uff21-\uff3a])(?![\w'\u2019]))(?P<rest>.*)",
    re.DOTALL,
)
_PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}|[a-z]\s+[a-z]{2,}\s")
_NAMES = re.compile(r"(?:sin|cos|tan|log|ln|exp|sqrt|max|min|gcd|lcm|mod|deg)(?![a-z])|\b(?:and|or)\b")


def extract_auto(text: str) -> str | None:
    r"""The last `\boxed{}`, else the last `#### x`, else the last "the answer is x", else the last number."""
    return extract_boxed(text) or extract_hashes(text) or extract_phrase(text) or extract_number(text)


def extract_boxed(text: str) -> str | None:
    r"""What the last `\boxed{...}` that is closed holds; `\boxed 9` holds 9."""
    opened: list[int | None] = []
    found, place = None, -1
    for match in _BOX.finditer(text):
        mark = match[0]
        if mark[-1] == "{" and mark != "\\{":
            opened.append(match.end() if mark != "{" else None)
        elif mark == "}" and opened:
            start = opened.pop()
            if start is not None and match.start() - start <= MAX_LENGTH and text[start : match.start()].strip():
                found, place = text[start : match.start()].strip(), match.start()
    for bare in _BARE_BOX.finditer(text):
        if bare.start() > place:
            found = bare[1]
    return found


def extract_hashes(text: str) -> str | None:
    """What follows the last `####`, to the end of its line (GSM8K's own format); headings of Markdown are none."""
    for match in reversed(list(_HASHES.finditer(text))):
        said = match[1][:MAX_LENGTH].strip()
        behind = text[match.end() : match.end() + MAX_LENGTH].strip()
        if label := _LABEL.match(said):
            said = said[label.end() :].strip()
        if said and not _is_heading(said, followed=bool(behind)):
            return said
    return None


def _is_heading(line: str, *, followed: bool) -> bool:
    if _HEADING.match(line):
        return True
    if not followed:
        return False
    return _NUMBERED.match(line) is not None or re.match(r"[*_\s]*[A-Za-z][A-Za-z]", line) is not None


def extract_phrase(text: str) -> str | None:
    """What the last "answer is" says: a letter to choose, mathematics, or a number, after the last `=` if it calculates."""
    for rest in _said(text):
        clause = _clause(rest)
        if _NEGATED.match(clause) or "\\boxed{}" in clause:  # the instruction, echoed
            continue
        if clause and (found := _of_clause(clause)):
            return found
    correct = list(_CORRECT.finditer(text))
    return None if not correct else correct[-1][1] or correct[-1][2]


def _said(text: str) -> Iterator[str]:
    for match in reversed(list(_PHRASE.finditer(text))):
        yield text[match.end() : match.end() + MAX_LENGTH]


def _clause(rest: str) -> str:
    clause = _CLAUSE.split(rest, maxsplit=1)[0]
    return _DANGLING.sub("", _RESTATED.split(clause)[-1].strip().strip("*:").strip())


def _of_clause(clause: str) -> str | None:
    chosen = _LETTER.match(clause.lstrip("*$ \"'"))
    if chosen is not None and (letter := _chosen(chosen)):
        return letter
    if formula := _formula(clause):
        return formula
    clause = _NEGATIVE.sub("-", clause.strip("*$ ").rstrip("!"))  # an exclamation; a factorial stands between $ signs
    if not _is_prose(clause):
        return clause
    calculated = clause.rsplit("=", 1)[-1].strip("*$ ")
    number = _first_number(calculated) or _first_number(clause)
    return number or (clause if len(clause.split()) <= _WORDS else None)


def _formula(clause: str) -> str | None:
    """The first formula between $ signs or brackets of LaTeX, with those that a comma or an "and" joins to it."""
    found, end = "", 0
    for match in _DOLLARS.finditer(clause):
        formula = next(part for part in match.groups() if part).strip()
        if _is_prose(formula) or (found and not _JOINED.fullmatch(clause, end, match.start())):
            continue
        found, end = f"{found}, {formula}" if found else formula, match.end()
    return found or None


def _chosen(found: re.Match[str]) -> str | None:
    """The letter of a clause that begins with one: `(B) 12 apples`, `B because ...`; not `I don't know`, not `A number`."""
    rest = found["rest"]
    if found["bare"] and re.match(r"\s+[-\u2013]\s.*[A-Za-z]{3}", rest, re.DOTALL):
        return found["bare"]
    if re.match(r"\)?\s*(?:,|/|&|and|or)\s*\(?[A-Z]\)?(?![\w'])|\s*[-+*/^=<>_\\(\[|]", rest):
        return None
    if found["in"]:
        return f"({found['in']})" if not re.match(r"\s*[+*/^=-]", rest) else None
    if re.match(r"[).:,;*\s\"']*$|[).:]\s", rest) or re.match(r",|\s+(?:because|since|as|which|is)\b", rest):
        return found["bare"]
    return found["bare"] if found["bare"] not in "AI" and re.match(r"\s+[a-z]", rest) else None


def _is_prose(text: str) -> bool:
    return _PROSE.search(_NAMES.sub("", re.sub(r"\\text\s*\{[^{}]*\}", "", text))) is not None


def _first_number(text: str) -> str | None:
    found = _NUMBER.search(text)
    if found is None:
        return None
    spaced = _SPACED.match(text, found.start())
    return (spaced or found)[0].strip()


def extract_number(text: str) -> str | None:
    """The last number in the text."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match
    return found[0].strip()[:MAX_LENGTH] if found else None


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

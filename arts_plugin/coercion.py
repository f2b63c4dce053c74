"""Values as hosts hand them over ("8", 8.0, "true", a literal backslash-n), and the types that settings want."""

from __future__ import annotations

import codecs
import math
import os
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from arts_plugin.errors import SettingsError

_LARGEST_BIAS = 10_000  # logits are float32; far larger ones would make them infinite


def unescape(text: str) -> str:
    r"""Turn backslash escapes that survived a shell or a comma-separated list into characters (`\n`, `\t`, `\\`...).

    A `regex:` pattern is left alone: its backslashes are its own.
    """
    if "\\" not in text or text.startswith("regex:"):
        return text
    return re.sub(r"\\(?:[nrt0\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})", _unescape_one, text)


def _unescape_one(match: re.Match[str]) -> str:
    return codecs.decode(match.group().encode("ascii"), "unicode_escape")


def convert(name: str, value: Any, hint: Any, default: Any) -> Any:
    """`value` as the type `hint`: str, bool, int, float, a Literal, or one of them or None.

    Raises:
        SettingsError: it cannot be read as that; the message names the setting `name`.
    """
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if value is None or (optional and isinstance(value, str) and value.strip().lower() in {"", "none", "null"}):
        if optional:
            return None
        raise SettingsError(f"{name} is {value!r}, but it needs a value; its default is {default!r}")
    kind = next(arg for arg in get_args(hint) if arg is not type(None)) if optional else hint
    return _convert(name, value, kind)


def check_range(name: str, value: Any, low: float | None, above: float | None, high: float | None) -> None:
    """
    Raises:
        SettingsError: `value` is below `low`, not above `above`, or above `high`.
    """
    if low is not None and value < low:
        raise SettingsError(f"{name} is {value}; it must be at least {low:g}")
    if above is not None and value <= above:
        raise SettingsError(f"{name} is {value}; it must be more than {above:g}")
    if high is not None and value > high:
        raise SettingsError(f"{name} is {value}; it must be at most {high:g}")


_LONGEST_NAME, _LONGEST_PATH = 255, 4095
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


def _convert(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        # YAML reads a bare `true` or `off`; for chat these have one meaning each.
        spelled = {True: "template", False: "plain"}.get(value, value) if isinstance(value, bool) else value
        if spelled not in choices:
            raise SettingsError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, choices))}")
        return spelled
    if kind is bool:
        word = str(value).strip().lower()
        if word not in _TRUE | _FALSE:
            raise SettingsError(f"{name} is {value!r}; it must be true or false")
        return word in _TRUE
    if kind is str:
        return str(value)  # lm-eval reads `007` as 7 and `1e3` as a float: a string takes what is left
    return number(name, value, kind)


def number(name: str, value: Any, kind: type) -> int | float:
    """`value` as an int or a float.

    Raises:
        SettingsError: it is no finite number, or no whole one.
    """
    if isinstance(value, bool):
        raise SettingsError(f"{name} is {value!r}; it must be a number")
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise SettingsError(f"{name} is {value!r}; it must be a number") from None
    if not math.isfinite(found):
        raise SettingsError(f"{name} is {value!r}; it must be a finite number")
    if kind is int:
        if found != int(found):
            raise SettingsError(f"{name} is {value!r}; it must be a whole number")
        # int("9007199254740993") keeps what a float would round.
        return int(value) if isinstance(value, int) or (isinstance(value, str) and is_int(value)) else int(found)
    return found


def is_int(text: str) -> bool:
    """Whether a text spells a whole number."""
    return re.fullmatch(r"\s*[+-]?\d+\s*", text) is not None


def biases(text: str | None) -> tuple[tuple[int, float], ...]:
    """((token, bias), ...) of the setting `logit_bias`, by token.

    Raises:
        SettingsError: it cannot be read.
    """
    found: dict[int, float] = {}
    for pair in filter(None, (part.strip() for part in (text or "").split(";"))):
        token, _, bias = pair.partition(":")
        if not is_int(token) or int(token) < 0:
            raise SettingsError(
                f"logit_bias has {pair!r}; it takes `id:bias` pairs, separated by `;`, like 42:-100;7:2.5"
            )
        value = float(number("logit_bias", bias, float))
        if abs(value) > _LARGEST_BIAS:
            raise SettingsError(f"logit_bias has {pair!r}; a bias lies between -{_LARGEST_BIAS} and {_LARGEST_BIAS}")
        found[int(token)] = value
    return tuple(sorted(found.items()))


def check_text(name: str, value: str) -> None:
    """Raises SettingsError for half of a surrogate pair, which is in no text that a model reads or writes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SettingsError(
            f"{name} is {value!r:.80}; character {error.start + 1} is half of a surrogate pair, which no text has"
        ) from None


def check_name(name: str, value: str) -> None:
    """
    Raises:
        SettingsError: `value` can be the name of no file, or of anything else.
    """
    shown = f"{value!r:.80}"
    if "\0" in value:
        raise SettingsError(f"{name} is {shown}; it has a NUL character, which no name can have")
    try:
        parts = os.fsencode(value).split(os.fsencode(os.sep))
    except UnicodeEncodeError:
        raise SettingsError(f"{name} is {shown}; it has half of a surrogate pair, which no name can have") from None
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise SettingsError(f"{name} is {shown}; there is no user of that name: {error}") from None
    longest, whole = max(map(len, parts)), len(os.fsencode(value))
    if longest > _LONGEST_NAME or whole > _LONGEST_PATH:
        raise SettingsError(
            f"{name} is {shown}; its longest part has {longest} bytes and all of it {whole}, and file systems take "
            f"{_LONGEST_NAME} and {_LONGEST_PATH}"
        )


def names_a_file(name: str, value: str) -> bool:
    """Whether the value of `grammar` or `json_schema` is no text of its own."""
    return ("::=" if name == "grammar" else "{") not in value


def inlined(name: str, value: str) -> str:
    """The text of a grammar or schema, which may be given as a file: a run says itself what it followed."""
    if not names_a_file(name, value):
        check_text(name, value)
        return value
    check_name(name, value)
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{name} is {value!r:.200}: neither a file that can be read nor one itself ({error})"
        ) from error

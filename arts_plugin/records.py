"""Whether what a JSON file says fits the fields of a dataclass: files are edited, truncated and written by others."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_Test = Callable[[Any], bool]
_LARGEST = 1 << 63
"""Whole numbers below it fit into an int64, which arrays are made of."""


def check_fields(kind: type, values: Mapping[str, Any], without: Collection[str] = ()) -> None:
    """Check values for a dataclass against the types of its fields.

    Args:
        without: fields that a record never holds.

    Raises:
        ValueError: a field is unknown or has a value of another type, or a whole number that no array can hold.
    """
    known = _tests(kind)
    for name, value in values.items():
        if name not in known or name in without:
            raise ValueError(f"{name!r:.80} is no field of a {kind.__name__.lower()}")
        if not known[name](value):
            raise ValueError(f"{name} is {_shown(value)}; it must be {_words(get_type_hints(kind)[name])}")


def _shown(value: Any) -> str:
    """A value's beginning, without writing out all of what may be large."""
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) >= _LARGEST:
        return "a number of more than 64 bits"
    return f"{value!r:.80}"


def _fit(numbers: list[int]) -> bool:
    return not numbers or (min(numbers) >= -_LARGEST and max(numbers) < _LARGEST)


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list", tuple: "a list"}


def _words(hint: Any) -> str:
    """What a type hint asks for."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if hint is type(None):
        return "null"
    return _WORDS.get(origin or hint, "an object")


@cache
def _tests(kind: type) -> dict[str, _Test]:
    return {name: _test(hint) for name, hint in get_type_hints(kind).items()}


def _test(hint: Any) -> _Test:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        tests = [_test(one) for one in inner]
        return lambda value: any(test(value) for test in tests)
    if origin is Literal:
        return lambda value: isinstance(value, str) and value in inner
    if origin is list and inner == (int,):  # token ids, of which there are many
        return lambda value: isinstance(value, list) and set(map(type, value)) <= {int} and _fit(value)
    if origin in (list, tuple):  # JSON has lists for both
        item = _test(inner[0])
        return lambda value: isinstance(value, list) and all(map(item, value))
    if origin is dict:
        content = _test(inner[1])
        return lambda value: isinstance(value, dict) and all(map(content, value.values()))
    if hint is Any:
        return lambda value: True
    if hint is int:
        return lambda value: type(value) is int and -_LARGEST <= value < _LARGEST
    if hint is float:
        return lambda value: type(value) is float or (type(value) is int and -_LARGEST <= value < _LARGEST)
    if hint is type(None):
        return lambda value: value is None
    wanted = dict if is_dataclass(hint) else hint if isinstance(hint, type) else object
    return lambda value: isinstance(value, wanted)

"""What the fields of a reply may be: a server may be broken, or somebody else's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from arts_server.faults import RetryError, shown

_LARGEST = 1 << 31
"""Above every token's number and every count of tokens."""
_ROUNDING = 1e-3
"""By which the log-probability of what is certain may come out above 0 in half precision."""


def logprob(value: Any) -> float:
    """A log-probability.

    Raises:
        RetryError: it is none: no number, not finite, or positive by more than rounding explains.
    """
    found = number(value, "a log-probability")
    if not math.isfinite(found) or found > _ROUNDING:
        raise RetryError(f"a log-probability that is none: {shown(value)}")
    return min(found, 0.0)


def number(value: Any, what: str) -> float:
    """A number, which may be infinite or NaN.

    Raises:
        RetryError: it is none, or a whole one that no float can hold.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise RetryError(f"{what} that is too large for a number") from None
    raise RetryError(f"{what} that is no number: {shown(value)}")


def token_ids(value: Any, where: str) -> list[int]:
    """The numbers of tokens.

    Raises:
        RetryError: they are none.
    """
    if not isinstance(value, list) or not all(type(token) is int and 0 <= token < _LARGEST for token in value):
        raise RetryError(f"{where} with what is no list of tokens: {shown(value)}")
    return value


def count(value: Any) -> int | None:
    """A count of tokens; None for what is none, for that is only missed in the books."""
    return value if type(value) is int and 0 <= value < _LARGEST else None


def check_size(texts: Sequence[str], text: str, most: int) -> None:
    """Whether a continuation is as long as was asked for, roughly: some servers count the end as well, and a token may be many
    characters. Far more would be hours of work.

    Raises:
        RetryError: it is far longer.
    """
    if len(texts) > 2 * most + 64 or len(text) > 256 * (most + 64):
        raise RetryError(
            f"a reply of {len(texts)} tokens and {len(text)} characters, where {most} tokens were asked for"
        )

"""Keys of servers: each from the environment, for its own hosts alone, and shown nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from arts_plugin.errors import SettingsError

VARIABLES = {
    "base_url": "ARTS_API_KEY",
    "features_url": "ARTS_FEATURES_API_KEY",
    "reward_url": "ARTS_REWARD_API_KEY",
}
"""Setting with addresses -> environment variable with their key. Not OPENAI_API_KEY, which is meant for another address."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Which key goes to which server.

    Attributes:
        option: the setting that names the servers.
        base: the roots of `base_url`. Its key goes to another option's servers only where these share scheme and host with
            one of them, and have no key of their own.
    """

    option: str = "base_url"
    base: Sequence[str] = ()

    @property
    def variable(self) -> str:
        """Where a key for these servers is looked for."""
        return VARIABLES[self.option]

    def headers(self, root: str) -> dict[str, str]:
        """What a request to a server carries.

        Raises:
            SettingsError: a key that no HTTP header can hold.
        """
        key = _key(self.variable)
        if key is None and _place(root) in map(_place, self.base):
            key = _key(VARIABLES["base_url"])
        return {"authorization": f"Bearer {key}"} if key else {}


HIDDEN = "***"
_SECRET = 8
"""Characters from which on a key is a secret in what a model writes: `EMPTY` and `none` are words."""
_BEFORE = 4096


def redact(text: str) -> str:
    """`text` without the keys, however they are quoted: some proxies show what they were sent."""
    for pattern in _patterns(1):
        text = pattern.sub(HIDDEN, text)
    return text


def redact_after(before: str, text: str) -> str:
    """The same of a model's `text`, which goes on from `before`: a key may have begun there."""
    before = before[-_BEFORE:]
    for pattern in _patterns(_SECRET):
        whole, at = before + text, len(before)
        for found in reversed(list(pattern.finditer(whole))):
            if found.end() > at:
                whole = whole[: max(found.start(), at)] + HIDDEN + whole[found.end() :]
        text = whole[at:]
    return text


def _patterns(least: int) -> Iterator[re.Pattern[str]]:
    """What matches each key of at least so many characters."""
    for variable in VARIABLES.values():
        key = os.environ.get(variable, "").strip()
        if len(key) >= least:
            # Each quoting, by JSON or by Python, may double backslashes and put more of them before quotes.
            yield re.compile("".join(r"\\{1,8}" if char == "\\" else r"\\{0,8}" + re.escape(char) for char in key))


def _place(root: str) -> tuple[str, str | None]:
    parts = urlsplit(root)
    return parts.scheme, parts.hostname


def _key(variable: str) -> str | None:
    """The key that a variable holds; the error does not show it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{variable} has a character that no HTTP header can hold; set it to the key alone")
    return key or None

"""Keys of servers: each from the environment, for its own hosts alone, and shown nowhere."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
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


def redact(text: str) -> str:
    """`text` without the keys, however they are quoted: some proxies show what they were sent."""
    for variable in VARIABLES.values():
        key = os.environ.get(variable, "").strip()
        if key:
            # Each quoting, by JSON or by Python, may double backslashes and put more of them before quotes.
            pattern = "".join(r"\\{1,8}" if char == "\\" else r"\\{0,8}" + re.escape(char) for char in key)
            text = re.sub(pattern, "***", text)
    return text


def _place(root: str) -> tuple[str, str | None]:
    parts = urlsplit(root)
    return parts.scheme, parts.hostname


def _key(variable: str) -> str | None:
    """The key that a variable holds; the error does not show it."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{variable} has a character that no HTTP header can hold; set it to the key alone")
    return key or None

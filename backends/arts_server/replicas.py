"""The servers behind one backend: their addresses, how busy each is, and which are left alone after failures."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from arts_plugin.errors import SettingsError
from arts_server.keys import VARIABLES

FAILURES = 3
"""Failures in a row after which a replica is left alone for a while."""
FIRST_REST, _LONGEST_REST = 1.0, 30.0
_ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1")


@dataclass(slots=True, eq=False)
class Replica:
    """One server and its circuit: closed while it answers, open (it is left alone until `until`) after `FAILURES` failures
    in a row, and then tried with one request.

    Attributes:
        root: its address, without `/v1`.
        in_flight: branches that it works on for us.
        failures: those since its last success. What fails together, or began before the last one was known, is one.
        failed_at: when the last was counted.
        reason: what it was.
    """

    root: str
    in_flight: int = 0
    failures: int = 0
    until: float = 0.0
    trying: bool = False
    failed_at: float = float("-inf")
    reason: str = ""

    def ready(self) -> bool:
        """Whether a request may go there now."""
        if self.failures < FAILURES:
            return True
        return not self.trying and time.monotonic() >= self.until

    def begin(self) -> float:
        """A request is on its way; beyond the limit of failures it is a trial, and the only one. The time, which `failed`
        wants."""
        self.trying = self.failures >= FAILURES
        return time.monotonic()

    def succeeded(self) -> None:
        """It answered."""
        self.failures, self.trying = 0, False

    def failed(self, began: float, reason: object) -> None:
        """A request that began then was not answered; each failure beyond the limit doubles the rest."""
        self.trying = False
        if began < self.failed_at:  # a server that goes down takes all its connections with it
            return
        self.failed_at, self.reason = time.monotonic(), str(reason)
        self.failures += 1
        if self.failures >= FAILURES:
            beyond = min(self.failures - FAILURES, 16)
            self.until = self.failed_at + min(_LONGEST_REST, FIRST_REST * 2.0**beyond)


def addresses(text: str | None, option: str = "base_url", user: str = "backend=server") -> list[str]:
    """The roots of `base_url` or another `option`: one or many, separated by `;`, with or without `/v1`.

    Raises:
        SettingsError: there is none, or one is no http address, names a user, or has a query.
    """
    roots: list[str] = []
    for part in (text or "").split(";"):
        address = part.strip().rstrip("/")
        if not address:
            continue
        shown = "an address with a user in it" if "@" in address else repr(address)
        try:
            parts = urlsplit(address)
            good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise SettingsError(f"{option} has {shown}; an address looks like http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise SettingsError(
                f"{option} has more in it than an address ({parts.scheme}://{parts.hostname}...): a key comes from the "
                f"environment, as {VARIABLES[option]}"
            )
        root = next((address.removesuffix(end) for end in _ENDPOINTS if address.endswith(end)), address)
        if root not in roots:
            roots.append(root)
    if not roots:
        raise SettingsError(f"{user} needs {option}=, http://127.0.0.1:8000/v1 for example")
    return roots


def choose(
    replicas: Sequence[Replica],
    home: Replica | None,
    branches: int,
    share: float,
    avoid: Collection[Replica] = (),
) -> Replica | None:
    """Where a request of so many branches goes: to its question's home, which has its prompt in the cache, unless that one
    has more than its share of the work and another is less busy. None while all are left alone.

    Args:
        share: branches that each replica would have, were all alike.
        avoid: those that have just failed this request; they are asked again if no other is ready.
    """
    ready = [replica for replica in replicas if replica.ready()]
    ready = [replica for replica in ready if replica not in avoid] or ready
    if not ready:
        return None
    idlest = min(ready, key=lambda replica: replica.in_flight)
    if home in ready and home is not None:
        crowded = home.in_flight + branches > max(share, branches) and idlest.in_flight + branches <= share
        return idlest if crowded else home
    return idlest

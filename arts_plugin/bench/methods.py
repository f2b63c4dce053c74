"""What is compared: greedy decoding, a pool of independent samples, and searches that may spend what the pool spent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arts_plugin.errors import SettingsError, unknown_name
from arts_plugin.plugins import Plugins
from arts_plugin.randomness import digest
from arts_plugin.settings import AUTO_SLOTS, OF_THE_RUN, Settings

GREEDY, SAMPLES = "greedy", "samples"
_MANY = 64
_LONGEST = 100
_BUDGETS = frozenset({"budget_tokens", "budget_seconds", "budget_nodes"})
_AS_WIDE = frozenset({"beam", "dvts", "self_consistency", "smc"})
"""Strategies that are as wide as their `budget_trajectories`: with that of the others they would spend all on one round."""


@dataclass(frozen=True, slots=True)
class Method:
    """One of them.

    Attributes:
        name: what it is called in tables.
        changes: settings in which it differs from the others.
        matched: whether it may spend on a question what the pool spent on the same.
    """

    name: str
    changes: dict[str, Any]
    matched: bool = False

    def folder(self, out: Path) -> Path:
        """Where its run lies: in `out` under its name, or where that can be no file's, under what is left of it and a digest."""
        safe = re.sub(r"[^\w ,.=+:*()\[\]{}^$\\-]", "_", self.name)[:_LONGEST].lstrip(".")
        return out / (self.name if safe == self.name else f"{safe}-{digest(self.name):016x}")


def methods(searches: Sequence[str], traces: int, settings: Settings, registry: Plugins) -> list[Method]:
    """Greedy, the pool, and the searches, in the order in which they run.

    Args:
        searches: `strategy` or `strategy,setting=value,...` each.
        traces: N, samples in the pool.

    Raises:
        SettingsError: a search that cannot be read, is named twice, or sets what all share.
        UnknownNameError: a strategy that nobody registered.
    """
    found = [
        Method(GREEDY, {"strategy": "greedy", "budget_trajectories": 1}),
        Method(SAMPLES, {"strategy": "best_of_n", "budget_trajectories": traces}),
    ]
    for text in searches:
        strategy, *rest = (part.strip() for part in text.split(","))
        if strategy not in registry.registrations("strategy"):
            raise unknown_name("strategy", strategy, registry.registrations("strategy"))
        if strategy in {"greedy", "best_of_n", "sdf"}:
            raise SettingsError(f"--search {text}: {strategy} is no search that a token budget could be matched for")
        changes: dict[str, Any] = {}
        for part in rest:
            name, sign, value = part.partition("=")
            if not sign:
                raise SettingsError(f"--search {text}: {part!r} is not setting=value")
            changes[name] = value
        if shared := (OF_THE_RUN | _BUDGETS | {"strategy"}) & changes.keys():
            raise SettingsError(f"--search {text}: {', '.join(sorted(shared))} must be the same for all; leave it out")
        settings.with_(changes)  # an unknown setting or a bad value is told before anything runs
        name = " ".join([strategy, *rest])
        if any(method.name == name for method in found):
            raise SettingsError(f"--search {text} is there twice")
        # Something must end a search; where it is not the width, this is never in the way of the tokens.
        most = {"budget_trajectories": traces if strategy in _AS_WIDE else _MANY * traces}
        # A root as wide as all branches of all questions would be all that the tokens buy.
        width = {"slots": min(settings.slots, traces) if settings.slots != AUTO_SLOTS else traces}
        found.append(Method(name, {"strategy": strategy, **most, **width, **changes}, matched=True))
    return found

"""One budget object, in four currencies, all hard."""

from __future__ import annotations

from dataclasses import dataclass

from arts_plugin.settings import Settings
from arts_plugin.tree import EndedBy


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits for one question; None is no limit.

    Attributes:
        trajectories: finished proposals, merged ones counted each.
        tokens: generated and refilled proposer tokens.
        seconds: wall-clock time from admission.
        nodes: proposed steps, merged ones counted each.
    """

    trajectories: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    nodes: int | None = None

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """The `budget_*` settings."""
        return cls(settings.budget_trajectories, settings.budget_tokens, settings.budget_seconds, settings.budget_nodes)


class TokenMeter:
    """Keeps a token budget: what a branch may cost is reserved before it runs, so the budget is never exceeded."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.spent = 0
        self.reserved = 0

    def reserve(self, wanted: int, least: int) -> int:
        """Set aside up to `wanted` tokens; 0 if not even `least` can be had now.

        A branch gets less than it wants only when nothing else is in flight, because what others leave over of
        their reservations will be free again.
        """
        if self.limit is None:
            self.reserved += wanted
            return wanted
        left = self.limit - self.spent - self.reserved
        granted = wanted if left >= wanted else left if self.reserved == 0 else 0
        if granted < least:
            return 0
        self.reserved += granted
        return granted

    def settle(self, reserved: int, spent: int) -> None:
        """Replace a reservation by what the branch really cost."""
        self.reserved -= reserved
        self.spent += spent


def ended_by_clock(budget: Budget, elapsed: float) -> EndedBy | None:
    """Whether the time is up."""
    return "budget_seconds" if budget.seconds is not None and elapsed >= budget.seconds else None

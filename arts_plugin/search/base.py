"""The ask/tell seam between strategies and the driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from arts_plugin.backend import FloatArray
from arts_plugin.search.budget import Budget
from arts_plugin.tree import EndedBy, Node, ReasoningTree, StopReason


@dataclass(frozen=True, slots=True)
class Expansion:
    """A wish for one one-step proposal from `node`, its `index`-th. `last`: no other will be asked from this node."""

    node: int
    index: int
    last: bool = False


@dataclass(slots=True)
class Proposal:
    """What came of an expansion: a step, scored. `state` is the engine's handle, which strategies only pass on."""

    expansion: Expansion
    text: str
    token_ids: list[int]
    logprob: float
    stop: StopReason
    terminal: bool
    log_flow: float | None = None
    cut_chars: int = 0
    cut_tokens: int = 0
    answer: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    feature: FloatArray | None = None
    end_token: int | None = None
    state: object = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a proposal: a new node, one it was `merged` into, or nothing (it came after the end)."""

    proposal: Proposal
    node: Node | None
    merged: bool = False


class Strategy(Protocol):
    """A decoding strategy for one question.

    The contract: every expansion that `ask` returns is told about exactly once, in any order, unless the driver
    ends the search; `ask` may return fewer than `free` expansions, or none while it waits for results; what it asks
    for next depends on what was told, never on `free` or on timing, so that trees are reproducible.

    A strategy may also have a list `released`: nodes from which nothing more will be asked for though no expansion of
    theirs was the `last`. The driver gives their states back and empties the list. And it may have `temperature`, in
    place of the setting's, and `chains`; see `arts_plugin.backend.Generation`.
    """

    tree: ReasoningTree
    ended_by: EndedBy | None
    """Set by the strategy once it will ask for nothing more; results still in flight are then of no use."""

    def ask(self, free: int) -> list[Expansion]:
        """At most `free` expansions to run now."""
        ...

    def tell(self, proposals: Sequence[Proposal]) -> list[Taken]:
        """Take in results; what became of each that is settled (now, or told earlier and settled only now)."""
        ...

    def close(self, ended_by: EndedBy) -> list[Taken]:
        """The search has ended: by the strategy's own word, or for the driver's reason `ended_by`.

        Results that were told but not settled yet are settled now: nothing that was finished is lost.
        """
        ...


class TreeStrategy:
    """What strategies share: a launch queue under the node budget, and adding proposals under the trajectory budget."""

    temperature: float | None = None
    """Overrides the user's temperature (0 for greedy); None leaves it."""

    def __init__(self, tree: ReasoningTree, budget: Budget) -> None:
        self.tree = tree
        self.budget = budget
        self.ended_by: EndedBy | None = None
        self._queue: deque[Expansion] = deque()
        self._launched = 0  # expansions that were ever queued
        self._settled = 0  # proposals taken in
        self.released: list[int] = []

    def ask(self, free: int) -> list[Expansion]:
        """The next expansions in the queue, at most `free`."""
        if self.ended_by:
            return []
        return [self._queue.popleft() for _ in range(min(free, len(self._queue)))]

    def close(self, ended_by: EndedBy) -> list[Taken]:
        """Nothing is left to settle."""
        self.ended_by = self.ended_by or ended_by
        return []

    def launch(self, node: int, count: int, keep: bool = False) -> int:
        """Queue up to `count` proposals from `node`; how many the node budget allowed. `keep`: more may follow."""
        return len(self.queued(node, count, keep))

    def queued(self, node: int, count: int, keep: bool = False) -> list[Expansion]:
        """The same; the expansions themselves."""
        allowed = count if self.budget.nodes is None else min(count, self.budget.nodes - self._launched)
        first = sum(self.tree.nodes[child].count for child in self.tree.nodes[node].children)
        asked = [Expansion(node, first + i, last=not keep and i == allowed - 1) for i in range(allowed)]
        self._queue.extend(asked)
        self._launched += len(asked)
        return asked

    def take(self, proposal: Proposal, merge: bool) -> Taken:
        """Put a proposal into the tree, or, past the end, nowhere."""
        self._settled += 1
        if self.ended_by:
            return Taken(proposal, None)
        parent = proposal.expansion.node
        if merge and (twin := self._twin(parent, proposal)):
            twin.count += 1
            return self._count(Taken(proposal, twin, merged=True))
        node = self.tree.add(
            parent,
            index=proposal.expansion.index,
            text=proposal.text,
            token_ids=list(proposal.token_ids),
            logprob=proposal.logprob,
            log_flow=proposal.log_flow,
            scores=dict(proposal.scores),
            terminal=proposal.terminal,
            stop=proposal.stop,
            cut_chars=proposal.cut_chars,
            cut_tokens=proposal.cut_tokens,
            answer=proposal.answer,
            feature=proposal.feature,
            end_token=proposal.end_token,
        )
        return self._count(Taken(proposal, node))

    def _twin(self, parent: int, proposal: Proposal) -> Node | None:
        for child in self.tree.nodes[parent].children:
            node = self.tree.nodes[child]
            same_end = (node.terminal, node.stop, node.cut_tokens) == (
                proposal.terminal, proposal.stop, proposal.cut_tokens,
            )  # fmt: skip
            if same_end and node.token_ids == proposal.token_ids and node.text == proposal.text:
                return node
        return None

    def _count(self, taken: Taken) -> Taken:
        if taken.proposal.terminal and self.tree.n_finished == self.budget.trajectories:
            self.ended_by = "budget_trajectories"
        return taken

    def _nodes_spent(self) -> bool:
        return self.budget.nodes is not None and self._launched >= self.budget.nodes

"""A verifier with a model of its own, read incrementally: it keeps its KV for each branch, forks with the tree and only
ever computes new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import FloatArray
from arts_plugin.checkpoint import Card
from arts_plugin.engine.kv import CacheFullError, KvCache, KvSequence
from arts_plugin.errors import ArtsError
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree
from arts_plugin.value_head import Link, ValueHead
from arts_plugin.verifier import StateView

N_CTX = 32768
"""KV cells of a verifier, unless it is given fewer: it holds the tokens of all open states of a round of questions."""

Item = tuple[KvSequence, int]
PathAggregate = Literal["terminal", "last", "min", "product", "mean"]
"""A path's score from its steps' outputs; `terminal` and `last` are the same."""


class Body(Protocol):
    """A language model that reads: what a backend offers for a verifier.

    Attributes:
        n_batch: tokens of one call, at most.
    """

    kv: KvCache
    n_batch: int

    def tokenize(self, text: str) -> Sequence[int]:
        """A step's tokens. Ordinary text: no message can pass for a special token."""
        ...

    def tokenize_prompt(self, text: str) -> Sequence[int]:
        """A prompt's tokens, likewise; with BOS if the model wants one."""
        ...

    def states(self, items: Sequence[Item], at: Sequence[int]) -> FloatArray:
        """Compute tokens at the ends of sequences (several of one in order), and book their cells.

        Returns:
            post-norm hidden states at the items `at`, each the last of its sequence: float32 [len(at), n_embd].

        Raises:
            CacheFullError: not enough cells; nothing was computed.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...


@dataclass(slots=True, eq=False)
class Branch:
    """A state's side here.

    Attributes:
        tokens: all of them from the prompt on.
        sequence: their KV; it may be given up and computed again.
        computed: tokens computed for it, and not yet asked for by `tokens_read`.
        waiting: forks that have not been scored, and will want `sequence`.
        dropped: whether there will be no more forks.
    """

    parent: Branch | None
    tokens: list[int] = field(default_factory=list)
    sequence: KvSequence | None = None
    hidden: FloatArray | None = None
    path: PathScore | None = None
    used: int = 0
    waiting: int = 0
    dropped: bool = False
    computed: int = 0


@dataclass(frozen=True, slots=True)
class PathScore:
    """What a path's score is made of: its last output, the least, the sum and the log of the sum of exp over its steps."""

    last: float
    least: float = np.inf
    total: float = 0.0
    log_total: float = -np.inf
    steps: int = 0

    @classmethod
    def root(cls, output: float) -> PathScore:
        """State 0, which is no step."""
        return cls(output)

    def then(self, output: float) -> PathScore:
        """One step further."""
        log_total = float(np.logaddexp(self.log_total, output))
        return PathScore(output, min(self.least, output), self.total + output, log_total, self.steps + 1)

    def value(self, aggregate: PathAggregate) -> float:
        """The score of the path. Outputs are logarithms: `product` adds them, `mean` takes the mean of their exp."""
        if self.steps == 0 or aggregate in {"terminal", "last"}:
            return self.last
        if aggregate == "min":
            return self.least
        return self.total if aggregate == "product" else self.log_total - float(np.log(self.steps))


def body_settings(card: Card, settings: Settings) -> Settings:
    """The settings of a verifier's model, of those of the search that it serves: revision and adapter are the proposer's."""
    assert card.backbone is not None
    return settings.with_(
        model=settings.verifier_model or card.backbone.source,
        revision=None,
        lora=None,
        parse_special=False,
        n_ctx=max(N_CTX, settings.n_ctx),
    )


def linked(outputs: npt.NDArray[np.float64], link: Link) -> npt.NDArray[np.float64]:
    """A head's outputs through a card's link."""
    return outputs if link == "identity" else -np.logaddexp(0.0, -outputs)


class BackboneVerifier:
    """Scores states by a language model of its own; see `arts_plugin.verifier.Verifier`. A subclass says what is read
    of a state and what is made of it.

    Args:
        body: the model.
        name: under which scores are kept in a tree.
        aggregate: how a path's score comes from its steps.
    """

    needs = frozenset({"text"})

    is_flow: bool

    def __init__(self, body: Body, name: str, aggregate: PathAggregate) -> None:
        self.body, self.name, self.aggregate = body, name, aggregate
        self._held: dict[int, Branch] = {}
        self._clock = 0
        self.computed_tokens = 0

    def close(self) -> None:
        """Free the model."""
        self._held.clear()
        self.body.close()

    # The search's side.
    def open(self, prompt: str) -> Branch:
        """State 0."""
        return Branch(None)

    def fork(self, handle: object) -> Branch:
        """A state one step further."""
        parent = _branch(handle)
        parent.waiting += 1
        return Branch(parent)

    def drop(self, handle: object) -> None:
        """The state will not be forked again; its KV goes when its last fork has been scored.

        A search drops a state as soon as its last proposal is under way, long before that has been scored.
        """
        branch = _branch(handle)
        branch.dropped = True
        if branch.hidden is None:
            self._served(branch.parent)  # never scored, and never to be
        self._release(branch)

    def _served(self, parent: Branch | None) -> None:
        if parent is not None:
            parent.waiting -= 1
            self._release(parent)

    def _release(self, branch: Branch) -> None:
        if branch.dropped and branch.waiting == 0:
            self._give_up(branch)

    def tokens_read(self, handle: object) -> int:
        """Tokens that were computed for a state since this was last asked."""
        branch = _branch(handle)
        count, branch.computed = branch.computed, 0
        return count

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """log F (or the reward) of each state, [n]; new tokens of all states are computed together."""
        if not states:
            return np.empty(0)
        branches = [_branch(state.handle) for state in states]
        fresh = {id(b): (b, s) for b, s in zip(branches, states, strict=True) if b.hidden is None}
        while fresh:
            # A state and its children may come together; parents are computed first, since children share their KV.
            wave = [pair for pair in fresh.values() if id(pair[0].parent) not in fresh]
            for branch, state in wave:
                self._read(branch, state)
            self._compute([branch for branch, _ in wave])
            for branch, _ in wave:
                self._served(branch.parent)
                self._release(branch)
                del fresh[id(branch)]
        rows = np.stack([branch.hidden for branch in branches if branch.hidden is not None])
        for branch, output in zip(branches, self.outputs(rows).tolist(), strict=True):
            if branch.path is None:
                parent = branch.parent
                if parent is None or parent.path is None:
                    branch.path = PathScore.root(output)
                else:  # a step without text is no step to judge again
                    branch.path = parent.path if _unmoved(branch) else parent.path.then(output)
        return np.array([branch.path.value(self.aggregate) for branch in branches if branch.path is not None])

    def _read(self, branch: Branch, state: StateView) -> None:
        """The prompt is read once, and every other state by its last step."""
        parent = branch.parent
        step = self.read_prompt(state) if parent is None else self.read_step(state, parent.parent is None)
        branch.tokens = [*(parent.tokens if parent else ()), *step]

    # What a verifier reads, and what it makes of it.
    def read_prompt(self, state: StateView) -> Sequence[int]:
        """Tokens of a question."""
        return self.body.tokenize_prompt(state.prompt)

    def read_step(self, state: StateView, first: bool) -> Sequence[int]:
        """Tokens of a state's last step, at the last of which it is judged; none leaves the state where it was."""
        return self.body.tokenize(state.step_text)

    def outputs(self, rows: FloatArray) -> npt.NDArray[np.float64]:
        """The judgement of states by what the body said of them [n, width]: [n]."""
        raise NotImplementedError

    def _compute(self, branches: Sequence[Branch]) -> None:
        """Hidden states at the ends of some branches, in as few forward passes as the cache allows."""
        waiting = list(branches)
        while waiting:
            batch: list[Branch] = []
            rows = 0
            for branch in waiting:
                missing = self._missing(branch)
                if batch and rows + missing > self.body.n_batch:
                    break
                batch.append(branch)
                rows += missing
            if not self._pass(batch, rows):
                parent = batch[0].parent
                if len(batch) == 1 and parent is not None and parent.sequence is not None:
                    self._give_up(parent)  # alone, and from the prompt on, it may still fit
                    continue
                if len(batch) == 1:
                    raise ArtsError(
                        f"verifier {self.name!r}: its KV cache of {self.body.kv.n_cells} cells cannot hold a trace of "
                        f"{len(batch[0].tokens)} tokens"
                    )
                self._compute(batch[: len(batch) // 2])
                waiting = waiting[len(batch) // 2 :]
                continue
            waiting = waiting[len(batch) :]

    def _missing(self, branch: Branch) -> int:
        parent = branch.parent
        have = len(parent.sequence) if parent is not None and parent.sequence is not None else 0
        return len(branch.tokens) - have

    def _pass(self, batch: Sequence[Branch], rows: int) -> bool:
        """One forward pass; whether there was room for it."""
        keep = {id(b.parent) for b in batch}
        if not self._make_room(rows, len(batch), keep):
            return False
        items: list[Item] = []
        ends: list[tuple[Branch, int]] = []
        try:
            for branch in batch:
                source = branch.parent.sequence if branch.parent is not None else None
                branch.sequence = self.body.kv.new(source)
                self._hold(branch)
                fresh = branch.tokens[len(branch.sequence) :]
                items += [(branch.sequence, token) for token in fresh]
                branch.computed += len(fresh)
                if not _unmoved(branch):
                    ends.append((branch, len(items) - 1))
            hidden = self.body.states(items, [end for _, end in ends]) if items else ()
        except BaseException as error:
            for branch in batch:
                self._give_up(branch)
                branch.computed = 0
            if isinstance(error, CacheFullError):
                return False
            raise
        self.computed_tokens += len(items)
        for (branch, _), row in zip(ends, hidden, strict=True):
            branch.hidden = row
        for branch in batch:
            if branch.parent is not None and _unmoved(branch):
                branch.hidden = branch.parent.hidden
        return True

    def _make_room(self, cells: int, ids: int, keep: set[int]) -> bool:
        """Give up the branches that were used longest ago, but those of `keep`; whether there is room now."""
        kv = self.body.kv
        idle = sorted((b for b in self._held.values() if id(b) not in keep), key=lambda b: b.used)
        for branch in idle:
            if kv.free >= cells and kv.free_ids >= ids:
                break
            self._give_up(branch)
        return kv.free >= cells and kv.free_ids >= ids

    def _hold(self, branch: Branch) -> None:
        self._clock += 1
        branch.used = self._clock
        if branch.parent is not None:
            branch.parent.used = self._clock
        self._held[id(branch)] = branch

    def _give_up(self, branch: Branch) -> None:
        if branch.sequence is not None:
            self.body.kv.drop(branch.sequence)
            branch.sequence = None
        self._held.pop(id(branch), None)

    # Recorded trees.
    def score_recorded(self, tree: ReasoningTree) -> npt.NDArray[np.float64]:
        """The scores of all states of a recorded tree, [n_nodes], depth by depth, as the search would ask for them."""
        scores = np.zeros(len(tree.nodes))
        handles: dict[int, Branch] = {}
        level = [node for node in tree.nodes if node.parent is None]
        while level:
            for node in level:
                handles[node.id] = self.open(tree.prompt) if node.parent is None else self.fork(handles[node.parent])
            asked = str(tree.meta.get("question") or tree.prompt)
            views = [
                StateView(tree.prompt, "", (), node.text, (), 0.0, None, node.terminal, handles[node.id], asked)
                for node in level
            ]
            for node, score in zip(level, self.score(views).tolist(), strict=True):
                scores[node.id] = score
            for node in level:
                if node.parent is not None and node.id == tree.nodes[node.parent].children[-1]:
                    self.drop(handles.pop(node.parent))
                if not node.children:
                    self.drop(handles.pop(node.id))
            level = [tree.nodes[child] for node in level for child in node.children]
        return scores


class ValueBackboneVerifier(BackboneVerifier):
    """A value head on a language model of the verifier's own: the paper's (arXiv 2602.12846).

    Args:
        body: the model, adapters applied.
        head: reads its hidden state at the last token of a state.
        card: name, aggregate and link.
    """

    def __init__(self, body: Body, head: ValueHead, card: Card) -> None:
        super().__init__(body, card.name, card.aggregate)
        self.head, self.card, self.is_flow = head, card, card.is_flow

    def outputs(self, rows: FloatArray) -> npt.NDArray[np.float64]:
        """The head's output through its link."""
        return linked(self.head(rows), self.card.link)


def _unmoved(branch: Branch) -> bool:
    """Whether a state stands where its parent stood: its step had no text."""
    return branch.parent is not None and len(branch.tokens) == len(branch.parent.tokens)


def _branch(handle: object) -> Branch:
    if not isinstance(handle, Branch):
        raise ArtsError(f"a verifier was given a handle that is not its own: {handle!r}")
    return handle

"""What the model hands to lm-eval: strings that carry their tree's trajectories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from arts_plugin.prompts import answer_of
from arts_plugin.tree import ReasoningTree, Trajectory


class Answer(str):
    """A chosen trajectory's text, with all trajectories of its search beside it.

    lm-eval keeps answers in its cache by pickling them and calls `type(answer)(gold)` when it compares: so this
    takes one positional argument, and holds nothing but plain Python values.

    Attributes:
        trajectories: one dict a finished trajectory (leaf, text, answer, logprob, tokens, log_flow, count, stop, chosen).
        cost: what the search cost (see `arts_plugin.tree.Cost`).
        search: strategy, selection rule, scorer, which limit ended the search, the error if there was one, the run folder
            and key of the tree if it is kept, and as `own` the settings that the task had of its own.
    """

    trajectories: list[dict[str, Any]]
    cost: dict[str, Any]
    search: dict[str, Any]

    def __new__(cls, text: str = "", payload: dict[str, Any] | None = None) -> Self:
        """A plain string where there is no payload."""
        answer = super().__new__(cls, text)
        values = payload or {}
        answer.trajectories = values.get("trajectories", [])
        answer.cost = values.get("cost", {})
        answer.search = values.get("search", {})
        return answer

    def __reduce__(self) -> tuple[type[Answer], tuple[str, dict[str, Any]]]:
        payload = {"trajectories": self.trajectories, "cost": self.cost, "search": self.search}
        return type(self), (str(self), payload)

    @classmethod
    def of(cls, tree: ReasoningTree, text: str | None = None, run: str | None = None) -> Answer:
        """The answer of a tree; `text` replaces the chosen trajectory's. Thinking is left out where the settings told its end."""
        return cls(_answer_in(tree, tree.text if text is None else text), payload_of(tree, run))


def payload_of(tree: ReasoningTree, run: str | None = None, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What the answers of a tree carry: one object for all of them, in memory and in a pickle that holds several."""
    return {
        "trajectories": [_plain(tree, t) for t in tree.trajectories()],
        "cost": {name: getattr(tree.cost, name) for name in tree.cost.__slots__},
        "search": {
            "strategy": tree.strategy,
            "select": tree.select,
            "scorer": tree.scorer,
            "ended_by": tree.ended_by,
            "error": tree.error,
            "run": run,
            "key": tree.meta.get("key"),
            "own": dict(own or {}),
        },
    }


def _answer_in(tree: ReasoningTree, text: str) -> str:
    return answer_of(text, tree.meta.get("think_end"), tree.meta.get("stops", ()))


def _plain(tree: ReasoningTree, trajectory: Trajectory) -> dict[str, Any]:
    return {
        "leaf": trajectory.leaf,
        "text": _answer_in(tree, trajectory.text),
        "answer": trajectory.answer,
        "logprob": trajectory.logprob,
        "tokens": len(trajectory.token_ids),
        "log_flow": trajectory.log_flow,
        "count": trajectory.count,
        "stop": trajectory.stop,
        "chosen": trajectory.leaf == tree.chosen,
    }


def handed_out(
    tree: ReasoningTree, repeats: int, run: str | None = None, own: Mapping[str, Any] | None = None
) -> list[Answer]:
    """`repeats` answers of one search: the chosen one first, then the others as often as they were drawn.

    Unfinished trajectories follow where there are too few; where even they do not suffice, empty answers do, which a
    task counts as wrong. Greedy decoding has one trajectory, which is what it would find again.
    """
    others = [t for t in tree.trajectories() for _ in range(t.count)]
    chosen = next((t for t in others if t.leaf == tree.chosen), None)
    if chosen is not None:
        others.remove(chosen)
    texts = [tree.text, *(t.text for t in others)]
    texts += [tree.trajectory(node.id).text for node in tree.leaves() if not node.terminal and node.id != tree.chosen]
    filler = tree.text if tree.strategy == "greedy" else ""
    payload = payload_of(tree, run, own)
    return [Answer(_answer_in(tree, text), payload) for text in [*texts, *[filler] * repeats][:repeats]]

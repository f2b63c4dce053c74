"""An answer's trajectories as a filter of a task leaves them, and the figures that they make."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from arts_plugin.evaluation.search_metrics import Scored, Values, pool_values, tree_values

COSTS = frozenset({"proposer_tokens", "verifier_tokens", "seconds"})
_INDEPENDENT = frozenset({"best_of_n", "greedy"})
_FAR = 1000.0
"""Between scores that are numbers and those that are none: exp(-1000) is nothing beside 1, so the worst have no vote."""


class Entry(dict[str, Any]):
    """One trajectory in lm-eval's sample log, which writes everything as `str` makes it: as JSON, to be read again."""

    def __str__(self) -> str:
        # JSON has no NaN and no infinities: they are spelled as in trees.
        plain = {key: repr(value) if _odd(value) else value for key, value in self.items()}
        return json.dumps(plain, ensure_ascii=False, default=str)


class Entries(list[Entry]):
    """What one filter made of an answer's trajectories.

    Attributes:
        chosen: what it made of the answer itself.
        search, cost: see `arts_plugin.lm_eval.answer.Answer`; empty for a plain string.
        id: the question's, with its task's name.
        filter: the filter's name.
    """

    chosen: Any
    search: dict[str, Any]
    cost: dict[str, Any]
    id: str
    filter: str

    @property
    def odd(self) -> bool:
        """Whether some trajectory's score is NaN or infinite."""
        return any(_odd(entry["log_flow"]) or _odd(entry["mean_logprob"]) for entry in self)


def figures(entries: Entries, ks: Sequence[int]) -> Values:
    """What one question's trajectories add to a task's metrics, and what finding them cost."""
    judged = entries.search.get("scorer", "logprob") != "logprob"
    flows, logprobs = (ranked([entry[name] for entry in entries]) for name in ("log_flow", "mean_logprob"))
    # Equal proposals were merged with a count; each draw is a trace.
    traces = [
        Scored(
            correct=bool(entry["correct"]),
            answer=entry["vote"],
            log_flow=flow if judged else None,
            mean_logprob=logprob,
        )
        for entry, flow, logprob in zip(entries, flows, logprobs, strict=True)
        for _ in range(entry["count"])
    ]
    answered = sum(trace.answer is not None for trace in traces)
    values: Values = {"answer_coverage": (float(answered), float(len(traces)))}
    if entries.search.get("strategy", "best_of_n") in _INDEPENDENT:
        values.update(pool_values(traces, ks, judged=judged))
    else:
        values.update(tree_values(traces, ks, entries.search["select"], judged=judged))
    if cost := entries.cost:
        values["traces"] = float(len(traces))
        values["proposer_tokens"] = float(cost["decoded_tokens"] + cost["refilled_tokens"])
        values["verifier_tokens"] = float(cost["verifier_tokens"])
        values["seconds"] = float(cost["seconds"])
    return values


def ranked(scores: Sequence[float | None]) -> list[float | None]:
    """Log-scores of one question's traces with every NaN and infinity replaced by a number of the same rank.

    As in the search, NaN is the lowest; so is -inf, and neither weighs anything in a vote against scores that are
    numbers. +inf is the highest. Among themselves they are equal.
    """
    known = [score for score in scores if score is not None and not _odd(score)]
    low, high = min(known, default=0.0) - _FAR, max(known, default=0.0) + _FAR
    return [score if score is None or not _odd(score) else high if score == math.inf else low for score in scores]


def _odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

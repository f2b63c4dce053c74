"""Every strategy ends under a trajectory budget alone, whatever the flows say and however little the proposer has to say."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from scripted import Oracle, Script, ScriptedBackend, Step, random_script, search

from arts_plugin.plugins import Plugins

N, POLLS = 7, 20_000
STRATEGIES = ["arts", "adaptive", "beam", "dvts", "mcts", "smc", "best_of_n", "self_consistency", "greedy", "sdf"]
Flow = Callable[[str], float]


def among(*values: float) -> Flow:
    """Any of them, by the text."""
    return lambda text: random.Random(text).choice(values)


FLOWS: dict[str, Flow] = {
    "inconsistent": among(1.0, 2.0, -3.0),
    "constant": lambda text: 0.0,
    "falling": lambda text: -5.0 * text.count("\n"),
    "rising": lambda text: 5.0 * text.count("\n"),
    "nan": lambda text: math.nan,
    "odd": among(math.nan, -math.inf, math.inf, 1.0, 2.0, -3.0),
}


def chain(fan: int, depth: int = 5) -> Script:
    """`fan` distinct steps at each of `depth` states, all of which lead to the same."""
    return {
        "q" if i == 0 else str(i): [
            Step(f"{i}.{j}\n", 1 / fan, str(i + 1) if i + 1 < depth else None) for j in range(fan)
        ]
        for i in range(depth)
    }


SCRIPTS: dict[str, Script] = {"one": chain(1), "two": chain(2), "random": random_script(3)}


class TooLongError(Exception):
    """It should have ended long ago."""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_ends(strategy: str, flow: str, script: str, plugins: Plugins) -> None:
    for seed in range(6):
        polls = 0

        def poll() -> None:
            nonlocal polls
            polls += 1
            if polls > POLLS:
                raise TooLongError

        tree = search(
            ScriptedBackend(SCRIPTS[script], slots=6, on_poll=poll), plugins, oracle=Oracle(FLOWS[flow]),
            strategy=strategy, budget_trajectories=N, width=1 + seed % 3, slots=1 + seed, beta=(0.0, 1.0, 8.0)[seed % 3],
            seed=seed,
        )  # fmt: skip
        assert tree.ended_by in {"budget_trajectories", "exhausted", "decided"}
        assert 1 <= tree.n_finished <= N, "budgets are hard"

"""The core's own plugin: strategies, the log-probability scorer, graders and extractors.

It comes through the entry-point group like anybody's. Factories import what they need when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arts_plugin.hookspecs import hookimpl

Register = Callable[[str, Callable[..., Any]], None]


@hookimpl
def arts_register_strategies(register: Register) -> None:
    """arts, adaptive, beam, dvts, mcts, smc, best_of_n, self_consistency, greedy, and sdf, which makes training data."""
    register("arts", _arts)
    register("adaptive", _adaptive)
    register("beam", _beam)
    register("dvts", _dvts)
    register("mcts", _mcts)
    register("smc", _smc)
    register("best_of_n", _best_of_n)
    register("self_consistency", _self_consistency)
    register("greedy", _greedy)
    register("sdf", _sdf)


@hookimpl
def arts_register_verifiers(register: Register) -> None:
    """logprob, which stands in while there is no trained verifier."""
    register("logprob", _logprob)


@hookimpl
def arts_register_graders(register: Register) -> None:
    """exact, numeric, choice and math."""
    from arts_plugin.answers import graders

    register("exact", lambda: graders.grade_exact)
    register("numeric", lambda: graders.grade_numeric)
    register("choice", lambda: graders.grade_choice)
    register("math", _math)


@hookimpl
def arts_register_extractors(register: Register) -> None:
    """auto and its parts, expression, and text."""
    from arts_plugin.answers import extract

    register("auto", lambda: extract.extract_auto)
    register("boxed", lambda: extract.extract_boxed)
    register("hashes", lambda: extract.extract_hashes)
    register("phrase", lambda: extract.extract_phrase)
    register("number", lambda: extract.extract_number)
    register("expression", _expression)
    register("text", lambda: extract.extract_text)


def _expression() -> Any:
    from arts_plugin.answers.expressions import extract_compact

    return extract_compact


def _math() -> Any:
    from arts_plugin.answers.graders import math_grader

    return math_grader()


def _arts(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.arts import Arts

    return _drawing(Arts, settings, tree)


def _adaptive(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.adaptive import Adaptive

    return _drawing(Adaptive, settings, tree)


def _drawing(kind: Any, settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget

    return kind(
        tree,
        Budget.of(settings),
        width=settings.width,
        slots=settings.slots,
        beta=settings.beta,
        seed=settings.seed,
        draw=settings.draw,
    )


def _beam(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.beam import Beam
    from arts_plugin.search.budget import Budget

    beams = settings.budget_trajectories or settings.slots
    return Beam(tree, Budget.of(settings), beams=beams, width=settings.width)


def _dvts(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget
    from arts_plugin.search.dvts import Dvts

    beams = settings.budget_trajectories or settings.slots
    return Dvts(tree, Budget.of(settings), beams=beams, width=settings.width)


def _mcts(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget
    from arts_plugin.search.mcts import Mcts

    return Mcts(tree, Budget.of(settings), width=settings.width, slots=settings.slots, beta=settings.beta)


def _smc(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget
    from arts_plugin.search.smc import Smc

    particles = settings.budget_trajectories or settings.slots
    return Smc(tree, Budget.of(settings), particles=particles, beta=settings.beta, seed=settings.seed)


def _best_of_n(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.best_of_n import BestOfN
    from arts_plugin.search.budget import Budget

    return BestOfN(tree, Budget.of(settings), slots=settings.slots)


def _self_consistency(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget
    from arts_plugin.search.self_consistency import SelfConsistency

    return SelfConsistency(tree, Budget.of(settings), slots=settings.slots, confidence=settings.confidence)


def _greedy(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget
    from arts_plugin.search.greedy import Greedy

    return Greedy(tree, Budget.of(settings))


def _sdf(settings: Any, tree: Any) -> Any:
    from arts_plugin.search.budget import Budget
    from arts_plugin.search.sdf import SparseDeepFork

    return SparseDeepFork(
        tree,
        Budget.of(settings),
        traces=settings.width,
        fork_probability=settings.fork_probability,
        seed=settings.seed,
        slots=settings.slots,
    )


def _logprob(settings: Any) -> Any:
    from arts_plugin.verifier import LogprobScorer

    return LogprobScorer()

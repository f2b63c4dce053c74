"""The pluggy hooks of project `arts`. A plugin implements any of them with `arts_plugin.hookimpl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from arts_plugin.backend import Backend
    from arts_plugin.search.base import Strategy
    from arts_plugin.settings import Settings
    from arts_plugin.tree import Node, ReasoningTree
    from arts_plugin.verifier import Verifier

hookspec = pluggy.HookspecMarker("arts")
hookimpl = pluggy.HookimplMarker("arts")


class BackendFactory(Protocol):
    """Makes a backend; called at most once a run, and only when its name is asked for."""

    def __call__(self, settings: Settings, *, features: bool) -> Backend: ...


class StrategyFactory(Protocol):
    """Makes the strategy of one question, which grows `tree` under `settings`."""

    def __call__(self, settings: Settings, tree: ReasoningTree) -> Strategy: ...


class VerifierFactory(Protocol):
    """Makes a verifier."""

    def __call__(self, settings: Settings) -> Verifier: ...


Extractor = Callable[[str], str | None]
"""Finds the answer in a model's text."""

Grader = Callable[[str, str], bool]
"""(answer, gold) -> whether they agree."""


@hookspec
def arts_register_backends(register: Callable[[str, BackendFactory], None]) -> None:
    """Call `register(name, factory)` for each backend that the plugin brings."""


@hookspec
def arts_register_strategies(register: Callable[[str, StrategyFactory], None]) -> None:
    """Call `register(name, factory)` for each decoding strategy that the plugin brings."""


@hookspec
def arts_register_verifiers(register: Callable[[str, VerifierFactory], None]) -> None:
    """Call `register(name, factory)` for each verifier that the plugin brings."""


@hookspec
def arts_register_graders(register: Callable[[str, Callable[[], Grader]], None]) -> None:
    """Call `register(name, factory)` for each grader that the plugin brings."""


@hookspec
def arts_register_extractors(register: Callable[[str, Callable[[], Extractor]], None]) -> None:
    """Call `register(name, factory)` for each answer extractor that the plugin brings."""


@hookspec
def arts_expanded(tree: ReasoningTree, nodes: Sequence[Node]) -> Any:
    """`nodes` have just been added to `tree` (or merged into it, with a higher count)."""


@hookspec
def arts_scored(tree: ReasoningTree, nodes: Sequence[Node]) -> Any:
    """`nodes` have just been given their `log_flow`; called right after `arts_expanded`."""


@hookspec
def arts_finished(tree: ReasoningTree) -> Any:
    """The search of `tree` has ended: its budget or its open states are spent and a trajectory is chosen."""

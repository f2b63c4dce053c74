"""Searches with backend `server` on scripted servers: the fixtures, and what such searches find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from scripted_server import ScriptedServer

from arts_plugin.api import Arts
from arts_plugin.plugins import Plugins
from arts_plugin.tree import ReasoningTree

Serve = Callable[..., ScriptedServer]
Make = Callable[..., Arts]
QUESTIONS = ["one", "two", "three"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is told in hundredths of what it is for users."""
    monkeypatch.setattr("arts_server.transport.FIRST_PAUSE", 0.005)
    monkeypatch.setattr("arts_server.transport.TICK", 0.01)
    monkeypatch.setattr("arts_server.replicas.FIRST_REST", 0.01)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Makes servers and stops them."""
    made: list[ScriptedServer] = []

    def make(**keywords: Any) -> ScriptedServer:
        made.append(ScriptedServer(**keywords))
        return made[-1]

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def registry(plugins: Plugins) -> Iterator[Plugins]:
    """The built-in plugins and this backend."""
    from arts_server import plugin

    plugins.register(plugin, "server")
    yield plugins
    plugins.unregister(plugin)


@pytest.fixture
def arts(registry: Plugins) -> Make:
    """Makes searches on a server."""

    def make(*servers: ScriptedServer, **settings: Any) -> Arts:
        urls = ";".join(server.url for server in servers)
        defaults = {
            "backend": "server",
            "base_url": urls,
            "verifier": "none",
            "strategy": "best_of_n",
            "budget_trajectories": 6,
            "slots": 8,
            "timeout": 20.0,
        }
        return Arts(registry=registry, **{**defaults, **settings})

    return make


def found(trees: list[ReasoningTree]) -> list[list[str]]:
    """The texts of each tree's finished trajectories."""
    return [sorted(trajectory.text for trajectory in tree.trajectories()) for tree in trees]


def reference(serve: Serve, arts: Make, **settings: Any) -> list[list[str]]:
    """What a run without failures finds."""
    with arts(serve(), **settings) as search:
        texts = found(search.solve_many(QUESTIONS))
    assert all(len(group) == 6 and all("The answer is" in text for text in group) for group in texts)
    return texts

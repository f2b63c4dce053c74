"""Plugins that would end the process, or give what nobody asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripted import Oracle, ScriptedBackend, random_script

from arts_plugin import builtin, hookimpl
from arts_plugin.errors import ArtsError
from arts_plugin.plugins import KINDS, Plugins
from arts_plugin.search.driver import SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree


def warnings(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def searched(
    plugins: Plugins,
    backend: ScriptedBackend | None = None,
    oracle: Oracle | None = None,
    extractor: Callable[[str], Any] | None = None,
    **settings: Any,
) -> ReasoningTree:
    backend = backend or ScriptedBackend(random_script(4))
    wanted = Settings.of(slots=6, width=2, budget_trajectories=6, **settings)
    driver = SearchDriver(backend, plugins, oracle, extractor and (lambda settings: extractor))
    ((_, tree),) = driver.run([Job(backend.encode("q"), wanted)])
    return tree


LEAVING = [SystemExit, SystemExit(0), SystemExit("a script"), type("Leave", (BaseException,), {})]


@pytest.mark.parametrize("way", LEAVING, ids=repr)
class TestNobodyEndsTheProcess:
    """A plugin is a guest: what it raises to leave is an error like others, wherever it raises it."""

    def test_while_it_registers(self, way: BaseException, caplog: pytest.LogCaptureFixture) -> None:
        class Plugin:
            @hookimpl
            def arts_register_graders(self, register: Callable[..., None]) -> None:
                raise way

        plugins = Plugins(load=False)
        plugins.register(Plugin(), "culprit")
        plugins.register(builtin, "builtin")
        assert "exact" in plugins.registrations("grader")
        assert len(warnings(caplog, "wanted to end the process")) == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_while_it_makes_something(self, kind: str, way: BaseException) -> None:
        def factory(*args: Any, **keywords: Any) -> Any:
            raise way

        class Plugin:
            def __init__(self) -> None:
                hook = hookimpl(lambda register: register("mine", factory))
                setattr(self, {"strategy": "arts_register_strategies"}.get(kind, f"arts_register_{kind}s"), hook)

        plugins = Plugins(load=False)
        plugins.register(Plugin(), "culprit")
        with pytest.raises(ArtsError, match=f"{kind} 'mine' of arts plugin 'culprit' wanted to end the process"):
            plugins.make(kind, "mine")

    def test_as_an_observer(self, way: BaseException, caplog: pytest.LogCaptureFixture) -> None:
        class Leaving:
            @hookimpl
            def arts_expanded(self, tree: ReasoningTree) -> None:
                raise way

        plugins = Plugins(load=False)
        plugins.register(builtin, "builtin")

        plugins.register(Leaving(), "observer")
        assert searched(plugins).n_finished == 6
        assert len(warnings(caplog, "is no longer called")) == 1

    @pytest.mark.parametrize("where", ["ask", "tell", "score", "extract"])
    def test_in_a_search(self, where: str, way: BaseException, caplog: pytest.LogCaptureFixture) -> None:
        """Who searches hears of it, with all states given back; of an extractor, only the votes are lost."""

        def leave(*args: Any) -> Any:
            raise way

        plugins = Plugins(load=False)
        plugins.register(builtin, "builtin")
        made = plugins.registrations("strategy")["arts"].factory

        def factory(settings: Any, tree: Any) -> Any:
            strategy = made(settings, tree)
            if where in {"ask", "tell"}:
                setattr(strategy, where, leave)
            return strategy

        class Plugin:
            @hookimpl
            def arts_register_strategies(self, register: Callable[..., None]) -> None:
                register("leaving", factory)

        plugins.register(Plugin(), "culprit")
        backend, oracle = ScriptedBackend(random_script(4)), Oracle(lambda text: 0.0)
        if where == "score":
            oracle.score = leave  # type: ignore[method-assign]
        if where == "extract":
            tree = searched(plugins, backend, oracle, leave, strategy="leaving")
            assert tree.n_finished == 6 and "wanted to end the process" in tree.meta["errors"][0]
        else:
            with pytest.raises(ArtsError, match="wanted to end the process"):
                searched(plugins, backend, oracle, strategy="leaving")
        assert not backend.live and not oracle.handles


@pytest.mark.parametrize("found", [7, 7.5, True, b"7", ["7"], object()])
def test_an_extractor_gives_text(found: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Anything else would break whoever shows or counts it, much later."""
    plugins = Plugins(load=False)
    plugins.register(builtin, "builtin")
    tree = searched(plugins, extractor=lambda text: found)
    assert all(node.answer is None for node in tree.nodes) and tree.n_finished == 6
    assert f"which is {type(found).__name__}; an answer is text, or None" in tree.meta["errors"][0]
    assert len(warnings(caplog, "such trajectories have no vote")) == 1

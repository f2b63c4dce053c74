"""Plugins: found through entry points, guarded one by one, and never in each other's way."""

import logging
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import ScriptedBackend, random_script, search

from arts_plugin import builtin, hookimpl
from arts_plugin.errors import UnknownNameError
from arts_plugin.plugins import KINDS, Plugins
from arts_plugin.tree import ReasoningTree

Install = Callable[..., None]

GOOD = """
    from arts_plugin import hookimpl

    @hookimpl
    def arts_register_graders(register):
        register("strict", lambda: str.__eq__)
"""
BROKEN = {
    "ImportError": "import no_such_module_anywhere",
    "RuntimeError": "raise RuntimeError('no license')",
    "SystemExit": "import sys; sys.exit('this is a script')",
    "Leave": "class Leave(BaseException): pass\nraise Leave('what no handler expects')",
    "PluginValidationError": """
        from arts_plugin import hookimpl

        @hookimpl
        def arts_finished(tree, colour):
            pass
    """,
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs distributions of one module each, found before anything that is really installed."""
    modules: list[str] = []

    def add(name: str, source: str | None, entry: str, version: str = "1.2", target: str | None = None) -> None:
        site = tmp_path / name
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[arts]\n{entry} = {target or f'{name}_module'}\n")
        if source is not None:
            (site / f"{name}_module.py").write_text(textwrap.dedent(source))
        modules.append(f"{name}_module")
        monkeypatch.syspath_prepend(site)

    # What an installed arts-plugin declares; where it really is installed, this one is found in its place.
    add("arts_plugin", None, "builtin", target="arts_plugin.builtin")
    yield add
    for module in modules:
        sys.modules.pop(module, None)


def warnings(caplog: pytest.LogCaptureFixture, word: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if word in record.getMessage()]


def test_entry_points_are_loaded(install: Install) -> None:
    install("third", GOOD, "third")
    plugins = Plugins()
    assert plugins.make("grader", "strict")("a", "a")
    assert {"arts", "best_of_n", "greedy"} <= plugins.registrations("strategy").keys()
    info = next(info for info in plugins.infos() if info.name == "third")
    assert (info.origin, info.version, info.problem) == ("third", "1.2", None)
    assert info.hooks == ("arts_register_graders",)
    assert info.provides == (("grader", "strict"),)


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_once_and_the_rest_works(
    kind: str, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("first", GOOD.replace("strict", "one"), "first")
    install("culprit", BROKEN[kind], "culprit", version="6.6")
    install("last", GOOD.replace("strict", "two"), "last")
    plugins = Plugins()
    for name in KINDS:
        plugins.registrations(name)
    assert {"one", "two", "exact"} <= plugins.registrations("grader").keys()
    assert "logprob" in plugins.registrations("verifier")
    (warning,) = warnings(caplog, "culprit")
    assert kind in warning or (kind == "ImportError" and "ModuleNotFoundError" in warning)
    (info,) = (info for info in plugins.infos() if info.name == "culprit")
    assert (info.origin, info.version, info.provides) == ("culprit", "6.6", ())
    assert info.problem is not None and info.problem in warning


def test_a_misspelt_hook_is_named(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """pluggy itself would never call it, and never say so."""
    install("typo", GOOD.replace("arts_register_graders", "arts_register_grader"), "typo")
    plugins = Plugins()
    (warning,) = warnings(caplog, "'typo'")
    assert "there is no hook 'arts_register_grader'; did you mean 'arts_register_graders'" in warning
    assert "exact" in plugins.registrations("grader")
    assert next(info for info in plugins.infos() if info.name == "typo").problem is not None


@pytest.mark.parametrize("target", ["no_such_module_anywhere", "arts_plugin.builtin:no_such_thing"])
def test_an_entry_point_that_leads_nowhere(target: str, install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install("astray", None, "astray", target=target)
    assert "arts" in Plugins().registrations("strategy")
    assert len(warnings(caplog, "'astray'")) == 1


@pytest.mark.parametrize("value", ["None", "..."])
def test_an_entry_point_that_is_nothing(value: str, install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """None would be a name that is blocked, for pluggy, and then nobody would hear of it."""
    install("empty", f"plugin = {value}", "empty", target="empty_module:plugin")
    plugins = Plugins()
    assert "arts" in plugins.registrations("strategy")
    (warning,) = warnings(caplog, "'empty'")
    (info,) = (info for info in plugins.infos() if info.name == "empty")
    assert info.problem is not None and ("is None" if value == "None" else "no hook") in info.problem
    assert info.problem in warning


def test_nobody_takes_a_builtins_place(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by the name of the entry point nor by the name that is registered."""
    usurper = """
        from arts_plugin import hookimpl

        @hookimpl
        def arts_register_strategies(register):
            register("arts", lambda settings, tree: "usurper")
    """
    install("aaa", usurper, "builtin")
    install("bbb", usurper, "bbb")
    plugins = Plugins()
    assert plugins.registrations("strategy")["arts"].plugin == "builtin"
    assert plugins.registrations("strategy")["arts"].factory is builtin._arts
    assert len(warnings(caplog, "aaa")) == 1
    assert len(warnings(caplog, "'bbb': strategy 'arts' is already registered by 'builtin'")) == 1


def test_two_plugins_of_one_name(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """One stays, one is named; a broken one does not keep a sound one out."""
    install("one", GOOD.replace("strict", "one"), "same")
    install("two", GOOD.replace("strict", "two"), "same")
    install("sound", GOOD, "shared")
    install("culprit", "raise RuntimeError", "shared")
    plugins = Plugins()
    graders = plugins.registrations("grader").keys()
    assert len(graders & {"one", "two"}) == 1
    assert len(warnings(caplog, "'same'")) == 1
    assert "strict" in graders


def test_a_hook_that_raises_is_reported_and_the_rest_works(caplog: pytest.LogCaptureFixture) -> None:
    class Plugin:
        @hookimpl
        def arts_register_verifiers(self, register: Callable[..., None]) -> None:
            raise OSError("the disk is gone")

        @hookimpl
        def arts_register_graders(self, register: Callable[..., None]) -> None:
            register("mine", lambda: None)

    plugins = Plugins(load=False)
    plugins.register(Plugin(), "culprit")
    plugins.register(builtin, "builtin")
    assert plugins.registrations("verifier").keys() == {"logprob"}
    assert "mine" in plugins.registrations("grader")
    assert len(warnings(caplog, "culprit")) == 1
    infos = {info.name: info for info in plugins.infos()}
    assert infos["culprit"].problem == "OSError: the disk is gone"
    assert infos["builtin"].problem is None


def test_every_builtin_can_be_made(plugins: Plugins) -> None:
    assert plugins.registrations("extractor").keys() == {
        "auto", "boxed", "hashes", "phrase", "number", "expression", "text"
    }  # fmt: skip
    assert plugins.registrations("grader").keys() == {"exact", "numeric", "choice", "math"}
    for kind in ("extractor", "grader"):
        for name in plugins.registrations(kind):
            assert callable(plugins.make(kind, name))
    assert plugins.make("extractor", "number")("a 3") == "3"
    assert plugins.make("grader", "numeric")("1/2", "0.5")
    assert plugins.make("verifier", "logprob", None).name == "logprob"
    assert plugins.registrations("backend") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_refused_with_the_list(kind: str, plugins: Plugins) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown {kind} 'no-such'") as error:
        plugins.make(kind, "no-such")
    assert all(name in str(error.value) for name in plugins.registrations(kind))


def test_an_unknown_name_comes_with_close_matches(plugins: Plugins) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'best_of_n'"):
        plugins.make("strategy", "best-of-n")


def test_plugins_come_and_go() -> None:
    class Plugin:
        @hookimpl
        def arts_register_graders(self, register: Callable[..., None]) -> None:
            register("mine", lambda: "made")

    plugins, plugin = Plugins(load=False), Plugin()
    assert plugins.registrations("grader") == {}
    plugins.register(plugin, "mine")
    assert plugins.make("grader", "mine") == "made"
    (info,) = plugins.infos()
    assert (info.name, info.provides, info.version) == ("mine", (("grader", "mine"),), "")
    plugins.unregister(plugin)
    assert plugins.registrations("grader") == {}
    assert plugins.infos() == []


# Observers.


class Observer:
    """Notes what it is told, and fails if it should."""

    def __init__(self, fails: bool = False) -> None:
        self.events: list[tuple[str, list[int]]] = []
        self.fails = fails

    def _note(self, event: str, nodes: Any) -> None:
        self.events.append((event, [node.id for node in nodes]))
        if self.fails:
            raise ValueError("observer out of order")

    @hookimpl
    def arts_expanded(self, tree: ReasoningTree, nodes: Any) -> None:
        self._note("expanded", nodes)

    @hookimpl
    def arts_scored(self, nodes: Any) -> None:  # hooks may ask for fewer arguments
        assert all(node.log_flow is not None for node in nodes)
        self._note("scored", nodes)

    @hookimpl
    def arts_finished(self, tree: ReasoningTree) -> None:
        assert tree.ended_by is not None
        self._note("finished", [] if tree.chosen is None else [tree.nodes[tree.chosen]])


def observed(*observers: Observer) -> ReasoningTree:
    plugins = Plugins(load=False)
    plugins.register(builtin, "builtin")
    for i, observer in enumerate(observers):
        plugins.register(observer, f"observer{i}")
    return search(ScriptedBackend(random_script(4)), plugins, slots=6, width=2, budget_trajectories=6)


def test_observers_see_every_proposal_in_order() -> None:
    observer = Observer()
    tree = observed(observer)
    expanded = [nodes for event, nodes in observer.events if event == "expanded"]
    assert [nodes for event, nodes in observer.events if event == "scored"] == expanded
    seen = [node for nodes in expanded for node in nodes]
    assert len(seen) == tree.n_proposals
    assert list(dict.fromkeys(seen)) == [node.id for node in tree.nodes[1:]]
    assert [event for event, _ in observer.events[:2]] == ["expanded", "scored"]
    assert observer.events[-1] == ("finished", [tree.chosen])


def test_an_observer_that_raises_is_named_once_and_the_search_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    sound, broken, also_sound = Observer(), Observer(fails=True), Observer()
    with caplog.at_level(logging.WARNING):
        tree = observed(sound, broken, also_sound)
    alone = observed()
    assert tree.to_json().split('"cost"')[0] == alone.to_json().split('"cost"')[0]
    assert len(broken.events) == 1
    assert sound.events == also_sound.events
    assert sound.events[-1][0] == "finished"
    (warning,) = warnings(caplog, "observer1")
    assert "observer out of order" in warning

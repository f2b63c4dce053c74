"""The plugin manager: built-ins and third parties through one door, each loaded and guarded on its own."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pluggy

from arts_plugin import hookspecs
from arts_plugin.errors import ArtsError, did_you_mean, unknown_name

GROUP = "arts"
KINDS = ("backend", "strategy", "verifier", "grader", "extractor")
_HOOKS = {
    "backend": "arts_register_backends",
    "strategy": "arts_register_strategies",
    "verifier": "arts_register_verifiers",
    "grader": "arts_register_graders",
    "extractor": "arts_register_extractors",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Registration:
    """A name, what makes it, and the plugin that registered it."""

    name: str
    factory: Callable[..., Any]
    plugin: str


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """A line of `arts plugins`. `provides` are (kind, name) pairs; `problem` says why a plugin is out of action."""

    name: str
    version: str
    hooks: tuple[str, ...]
    provides: tuple[tuple[str, str], ...]
    origin: str
    problem: str | None = None


@contextmanager
def contained(what: str) -> Iterator[None]:
    """What a plugin raises to end the process (`sys.exit()`, most likely) as an error like others: the host is not its own.

    Raises:
        ArtsError: anything but an `Exception` came out of the block. Ctrl-C goes through.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise ArtsError(f"{what} wanted to end the process: {type(error).__name__}: {error}") from error


class Plugins:
    """Plugins of one process (or, in a test, of one block)."""

    def __init__(self, load: bool = True) -> None:
        self.manager = pluggy.PluginManager("arts")
        self.manager.add_hookspecs(hookspecs)
        self._problems: dict[str, tuple[str, str, str]] = {}  # entry point -> (version, origin, problem)
        self._origins: dict[str, tuple[str, str]] = {}  # entry point -> (distribution, version)
        self._silenced: set[str] = set()
        self._registry: dict[str, dict[str, Registration]] | None = None
        if load:
            self._load_entry_points()

    def register(self, plugin: object, name: str | None = None) -> None:
        """Add a plugin by hand: a module, class instance or namespace with hook implementations."""
        self.manager.register(plugin, name)
        self._registry = None

    def unregister(self, plugin: object) -> None:
        """Take a plugin out again."""
        self.manager.unregister(plugin)
        self._registry = None

    # pluggy's own loop over the group stops at a broken entry point and takes any distribution's for a name.
    def _load_entry_points(self) -> None:
        for entry in _entry_points():
            origin = _distribution(entry)
            if self.manager.has_plugin(entry.name):
                taken = self._origins.get(entry.name, ("", ""))[0]
                log.warning("arts plugin %r (%s) was left out: %s has that name", entry.name, origin[0], taken)
                continue
            try:
                with contained("its import"):  # a script without a main guard may exit then
                    plugin = entry.load()
                if plugin is None:  # of which pluggy takes the name alone, as one that is blocked
                    raise TypeError(f"{entry.value} is None; an entry point names a module, or an object with hooks")
                self.manager.register(plugin, entry.name)
            except Exception as error:
                half = self.manager.get_plugin(entry.name)
                if half is not None:
                    self.manager.unregister(half)
                self._report(entry.name, origin, error)
            else:
                self._origins[entry.name] = origin
                self._check_hooks(entry.name, origin)

    def _check_hooks(self, plugin: str, origin: tuple[str, str]) -> None:
        """pluggy never calls a hook that was not specified, and says nothing: most likely its name is misspelt."""
        if not self.manager.get_hookcallers(self.manager.get_plugin(plugin)):
            problem = "it has no hook: what the entry point names is no plugin"
            self._problems[plugin] = (origin[1], origin[0], problem)
            log.warning("arts plugin %r (%s): %s", plugin, origin[0], problem)
        known = [name for name, hook in vars(self.manager.hook).items() if getattr(hook, "spec", None)]
        for name, hook in vars(self.manager.hook).items():
            for impl in hook.get_hookimpls() if name not in known else ():
                if impl.plugin_name == plugin and not impl.optionalhook:
                    problem = f"there is no hook {name!r}{did_you_mean(name, known)}"
                    self._problems.setdefault(plugin, (origin[1], origin[0], problem))
                    log.warning("arts plugin %r (%s): %s", plugin, origin[0], problem)

    def _report(self, name: str, origin: tuple[str, str], error: BaseException) -> None:
        problem = f"{type(error).__name__}: {error}"
        self._problems[name] = (origin[1], origin[0], problem)
        log.warning("arts plugin %r (%s) is broken and was left out: %s", name, origin[0] or "unknown origin", problem)

    def registrations(self, kind: str) -> dict[str, Registration]:
        """Name -> registration of one of `KINDS`. Built-ins come first; a name taken twice stays with the first."""
        if self._registry is None:
            self._registry = {k: self._collect(k) for k in KINDS}
        return self._registry[kind]

    def _collect(self, kind: str) -> dict[str, Registration]:
        found: dict[str, Registration] = {}
        # pluggy calls the last registered plugin first; names are taken in order of registration.
        for impl in getattr(self.manager.hook, _HOOKS[kind]).get_hookimpls():
            plugin = impl.plugin_name

            def register(name: str, factory: Callable[..., Any], plugin: str = plugin) -> None:
                if name in found:
                    log.warning(
                        "arts plugin %r: %s %r is already registered by %r and stays",
                        plugin,
                        kind,
                        name,
                        found[name].plugin,
                    )
                    return
                found[name] = Registration(name, factory, plugin)

            try:
                with contained(_HOOKS[kind]):
                    impl.function(register)
            except Exception as error:
                self._report(plugin, self._origins.get(plugin, ("", "")), error)
        return found

    def make(self, kind: str, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Construct what is registered as `name`.

        Raises:
            UnknownNameError: nobody registered it; the message has close matches and the list.
            ArtsError: the plugin wanted to end the process instead.
        """
        known = self.registrations(kind)
        if name not in known:
            raise unknown_name(kind, name, known)
        with contained(f"{kind} {name!r} of arts plugin {known[name].plugin!r}"):
            return known[name].factory(*args, **kwargs)

    def notify(self, event: str, **arguments: Any) -> None:
        """Call an observer hook. An observer that raises is named once and left out; the search goes on."""
        for impl in reversed(getattr(self.manager.hook, event).get_hookimpls()):
            if impl.plugin_name in self._silenced:
                continue
            try:
                with contained(event):
                    impl.function(*(arguments[name] for name in impl.argnames))
            except Exception as error:
                self._silenced.add(impl.plugin_name)
                log.warning("arts plugin %r failed in %s and is no longer called: %r", impl.plugin_name, event, error)

    def infos(self) -> list[PluginInfo]:
        """One entry a plugin, broken ones included."""
        provides: dict[str, list[tuple[str, str]]] = {}
        for kind in KINDS:
            for item in self.registrations(kind).values():
                provides.setdefault(item.plugin, []).append((kind, item.name))
        infos = []
        for name, plugin in self.manager.list_name_plugin():
            if plugin is None:
                continue
            origin, version = self._origins.get(name, ("registered in this process", ""))
            hooks = tuple(sorted(caller.name for caller in self.manager.get_hookcallers(plugin) or ()))
            infos.append(PluginInfo(name, version, hooks, tuple(provides.get(name, ())), origin, self._problem(name)))
        known = {info.name for info in infos}
        infos += [
            PluginInfo(name, version, (), (), origin, problem)
            for name, (version, origin, problem) in self._problems.items()
            if name not in known
        ]
        return infos

    def _problem(self, name: str) -> str | None:
        return self._problems[name][2] if name in self._problems else None


def _entry_points() -> Sequence[importlib.metadata.EntryPoint]:
    """Entry points of the group, ours first, so that a third party cannot take a built-in's name."""
    entries = importlib.metadata.entry_points(group=GROUP)
    return sorted(entries, key=lambda entry: _distribution(entry)[0] != "arts-plugin")


def _distribution(entry: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (entry.dist.metadata["Name"], entry.dist.version) if entry.dist else ("", "")


@cache
def plugins() -> Plugins:
    """The plugins of this process, loaded when first asked for."""
    return Plugins()

"""Registers this package's components with releases of lm-eval that look for no plugins themselves.

A finder on `sys.meta_path` sees the import of a few modules of lm-eval and registers what belongs to them once they have
run. The finder comes from the start-up module, or from `attach` where no start-up file was read. lm-eval's next release
reads entry points: whatever it discovers itself is left to it. Nothing in here raises: a problem becomes one line on
stderr (not a warning, which `-W error` would turn into an exception).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MARK = "arts_plugin_autoload"
"""What has this attribute is ours, whichever copy of a file it came from."""
OLDEST = "0.4.12"
"""The oldest supported release of lm-eval."""

# After the import of which module, which entry-point group goes into which registry. Not any earlier: lm-eval loads its
# built-ins into a registry only as long as that is empty.
# Every kind takes an EntryPoint, and `get` loads it when it is first asked for. Its target must not use the decorators
# `@register_...`: loading the entry point would run them, on a name that the placeholder has taken already.
_REGISTRIES = {
    "lm_eval.models": (("lm_eval.models", "model_registry"),),
    "lm_eval.filters": (("lm_eval.filters", "filter_registry"),),
    "lm_eval.api.metrics": (("lm_eval.metrics", "metric_registry"), ("lm_eval.aggregations", "aggregation_registry")),
}
_TASKS = "lm_eval.tasks"
_TASK_MANAGER = "lm_eval.tasks.manager"
_HOOKED = frozenset((*_REGISTRIES, _TASKS, _TASK_MANAGER))

_reported: set[str] = set()
_asking: set[tuple[str, int]] = set()


class Finder:
    """The start-up module's finder, for where that was not run."""

    arts_plugin_autoload = True

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return find_spec(name, path, target)


def attach() -> None:
    """Register everything, whether or not lm-eval has been imported, and whether or not a start-up file was read."""
    try:
        if not any(hasattr(finder, MARK) for finder in sys.meta_path):
            sys.meta_path.insert(0, Finder())
        for name in _HOOKED:
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                _imported(name, module)
    except Exception as problem:
        _report(problem)


def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """The spec that the other finders have for one of the hooked modules, with its loader wrapped."""
    if name not in _HOOKED:
        return None
    from _thread import get_ident

    # Asking all finders comes back to us: here, and from any other finder that does the same. What one of them
    # raises is let through, as it would be without us.
    question = (name, get_ident())
    if question in _asking:
        return None
    _asking.add(question)
    try:
        spec = _ask_finders(name, path, target)
    finally:
        _asking.discard(question)
    if spec is not None and hasattr(spec.loader, "exec_module"):
        spec.loader = _Loader(spec.loader, name)  # type: ignore[assignment]  # a loader by duck type
    return spec


class _Loader:
    """Puts the real loader back, runs the module through it, then does our part."""

    def __init__(self, real: Any, name: str) -> None:
        self._real = real
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute in ("_real", "_name"):  # a copy under construction
            raise AttributeError(attribute)
        return getattr(self._real, attribute)

    def exec_module(self, module: ModuleType) -> None:
        spec: Any = module.__spec__
        if getattr(spec, "loader", None) is self:
            spec.loader = self._real
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._real
        self._real.exec_module(module)
        _imported(self._name, module)


def _ask_finders(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    # lm-eval may be an editable install with a finder of its own, so the path finder alone won't do.
    for finder in list(sys.meta_path):
        ask = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = ask(name, path, target) if ask is not None else None
        if spec is not None:
            return spec
    return None


def _imported(name: str, module: ModuleType) -> None:
    try:
        if name in _REGISTRIES:
            _register_components(name)
        elif name == _TASK_MANAGER:
            _add_task_folder(module)
        elif vars(module).get("TaskManager") is not None and module.TaskManager.__module__ == _TASKS:
            raise _unsupported()  # before 0.4.12 there was no manager module, and its tasks were made otherwise
    except Exception as problem:
        _report(problem)


def _register_components(name: str) -> None:
    """Register what our distribution declares; the entry points are the one list of our components."""
    from importlib.metadata import PackageNotFoundError, distribution

    from lm_eval.api import registry

    if hasattr(registry, "load_plugins"):  # this lm-eval reads the entry points itself
        return
    try:
        declared = distribution("arts-plugin").entry_points
    except PackageNotFoundError:  # half uninstalled: nothing to announce
        return
    for group, registry_name in _REGISTRIES[name]:
        known: Any = getattr(registry, registry_name, None)
        if known is None:
            raise _unsupported()
        for component in declared.select(group=group):
            try:
                if component.name not in known:
                    # Not the string of the target: a loader that compares the two would trip over it.
                    known.register(component.name, target=component)
            except Exception as problem:
                _report(problem)


def _add_task_folder(manager: ModuleType) -> None:
    """Have a TaskManager that includes lm-eval's own tasks search our task folder as well.

    Ours come after lm-eval's and before the include paths that it is given, of which the last one wins. A TaskManager that
    was asked for nothing but its include paths gets nothing else.
    """
    import functools
    import inspect

    if hasattr(manager, "discover_plugin_task_paths"):  # this lm-eval reads the entry points itself
        return
    original: Any = manager.TaskManager.__init__
    if hasattr(original, MARK):
        return
    signature = inspect.signature(original)
    if not {"include_path", "include_defaults"} <= signature.parameters.keys():
        raise RuntimeError("TaskManager takes no include_path and include_defaults")

    @functools.wraps(original)
    def init(*args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            original(*args, **kwargs)  # the call is at fault, and the original says so best
            return
        given = bound.arguments.get("include_path")
        try:
            if bound.arguments.get("include_defaults", True):
                bound.arguments["include_path"] = _with_ours_first(given)
                args, kwargs = bound.args, bound.kwargs
        except Exception as problem:
            _report(problem)
        original(*args, **kwargs)
        if hasattr(args[0], "include_path"):  # what the caller gave, to be read and passed on
            args[0].include_path = given

    setattr(init, MARK, True)
    manager.TaskManager.__init__ = init


def _with_ours_first(include_path: Any) -> Any:
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("arts_tasks")  # finds a top-level package without importing it
    ours = next((Path(f) for f in (spec and spec.submodule_search_locations) or () if Path(f).is_dir()), None)
    if ours is None:
        return include_path
    given: list[Any] = []
    if isinstance(include_path, (list, tuple)):
        given = list(include_path)
    elif include_path:  # an empty string means none; as an item of a list it would be the working folder
        given = [include_path]
    if any(isinstance(p, (str, os.PathLike)) and Path(p).resolve() == ours.resolve() for p in given):
        return include_path
    return [str(ours), *given]


def _unsupported() -> RuntimeError:
    from importlib.metadata import version

    return RuntimeError(f"lm-eval {version('lm_eval')} is installed, and {OLDEST} or later is supported")


def _report(problem: Exception) -> None:
    try:
        line = " ".join(f"arts-plugin: not fully known to lm-eval: {type(problem).__name__}: {problem}".split())
        if sys.stderr is not None and line not in _reported:
            _reported.add(line)
            print(f"{line} (ARTS_NO_AUTOLOAD=1 switches this off)", file=sys.stderr)
    except Exception:
        return

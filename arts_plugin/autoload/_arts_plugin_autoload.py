"""Makes the components of arts-plugin known to releases of lm-eval that look for no plugins (up to 0.4.13).

This runs in every interpreter of the environment, so it costs next to nothing: it imports sys and os, which are there
already, and puts one finder on `sys.meta_path`. The rest happens once lm-eval itself is imported. Nothing in here
raises: a problem becomes one line on stderr (not a warning, which `-W error` would turn into an exception).
ARTS_NO_AUTOLOAD=1 switches it all off.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

# What has this attribute is ours, whichever copy of this file it came from.
_MARK = "arts_plugin_autoload"

# After the import of which module, which entry-point group goes into which registry. Not any earlier: lm-eval loads its
# built-ins into a registry only as long as that is empty.
# Every kind takes an EntryPoint, and `get` loads it when it is first asked for. Two things to know of the targets:
# - They must not use the `@register_...` decorators: loading the entry point would run them, on a name the placeholder
#   has taken already.
# - A metric's default aggregation and `higher_is_better` come from its decorator alone, and the latter is a plain bool,
#   so no placeholder can stand for them: tasks that use our metrics state `aggregation:` and `higher_is_better:`.
_REGISTRIES = {
    "lm_eval.models": (("lm_eval.models", "model_registry"),),
    "lm_eval.filters": (("lm_eval.filters", "filter_registry"),),
    "lm_eval.api.metrics": (("lm_eval.metrics", "metric_registry"), ("lm_eval.aggregations", "aggregation_registry")),
}
_TASK_MANAGER = "lm_eval.tasks.manager"
_HOOKED = frozenset((*_REGISTRIES, _TASK_MANAGER))

_reported: set[str] = set()


def install() -> None:
    """Put the finder on `sys.meta_path`, unless one is there or the environment forbids it."""
    try:
        # Checked here too: a .start file has no room for a condition. And site may run it twice in a venv.
        if os.environ.get("ARTS_NO_AUTOLOAD") or any(getattr(f, _MARK, None) is True for f in sys.meta_path):
            return
        sys.meta_path.insert(0, _Finder())
    except Exception as problem:
        _report(problem)


class _Finder:
    """Finds four modules of lm-eval, where the other finders find them, and hooks their loaders."""

    arts_plugin_autoload = True

    def __init__(self) -> None:
        self._asking: set[tuple[str, int]] = set()

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname not in _HOOKED:
            return None
        from _thread import get_ident

        # Asking all finders comes back to us: here, and from any other finder that does the same. What one of them
        # raises is let through, as it would be without us.
        question = (fullname, get_ident())
        if question in self._asking:
            return None
        self._asking.add(question)
        try:
            spec = _ask_finders(fullname, path, target)
        finally:
            self._asking.discard(question)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, fullname)  # type: ignore[assignment]  # a loader by duck type
        return spec


class _Loader:
    """Puts the real loader back, runs the module through it, then does our part."""

    def __init__(self, real: "Any", name: str) -> None:
        self._real = real
        self._name = name

    def __getattr__(self, attribute: str) -> "Any":
        if attribute in ("_real", "_name"):  # a copy under construction
            raise AttributeError(attribute)
        return getattr(self._real, attribute)

    def exec_module(self, module: "ModuleType") -> None:
        spec: Any = module.__spec__
        if getattr(spec, "loader", None) is self:
            spec.loader = self._real
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._real
        self._real.exec_module(module)
        try:
            if self._name == _TASK_MANAGER:
                _add_task_folder(module)
            else:
                _register_components(self._name)
        except Exception as problem:
            _report(problem)


def _ask_finders(fullname: str, path: "Sequence[str] | None", target: "ModuleType | None") -> "ModuleSpec | None":
    # lm-eval may be an editable install with a finder of its own, so the path finder alone won't do.
    for finder in list(sys.meta_path):
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = find_spec(fullname, path, target) if find_spec is not None else None
        if spec is not None:
            return spec
    return None


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
            raise RuntimeError("lm-eval 0.4.13 or later is needed")
        for component in declared.select(group=group):
            try:
                if component.name not in known:
                    # Not the string of the target: a loader that compares the two would trip over it.
                    known.register(component.name, target=component)
            except Exception as problem:
                _report(problem)


def _add_task_folder(manager: "ModuleType") -> None:
    """Have every TaskManager search our task folder before the include paths it is given."""
    import functools
    import inspect

    original: Any = manager.TaskManager.__init__
    if hasattr(original, _MARK):
        return
    signature = inspect.signature(original)
    if "include_path" not in signature.parameters:
        raise RuntimeError("TaskManager takes no include_path")

    @functools.wraps(original)
    def init(*args: "Any", **kwargs: "Any") -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            pass  # the call is at fault, and the original says so best
        else:
            try:
                bound.arguments["include_path"] = _with_ours_first(bound.arguments.get("include_path"))
                args, kwargs = bound.args, bound.kwargs
            except Exception as problem:
                _report(problem)
        original(*args, **kwargs)

    setattr(init, _MARK, True)
    manager.TaskManager.__init__ = init


def _with_ours_first(include_path: "Any") -> "Any":
    # Later folders win, so first is the place that leaves the user's own on top.
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


def _report(problem: Exception) -> None:
    try:
        line = " ".join(f"arts-plugin: not fully known to lm-eval: {type(problem).__name__}: {problem}".split())
        if sys.stderr is not None and line not in _reported:
            _reported.add(line)
            print(f"{line} (ARTS_NO_AUTOLOAD=1 switches this off)", file=sys.stderr)
    except Exception:
        return

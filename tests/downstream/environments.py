"""Environments where nothing but the start-up files and what they import says that arts-plugin exists.

Each environment is a small venv, so the start-up file is read the way it is for a user. The stand-in lm-eval is a few
lines, which a test can make misbehave: `STAND_IN` looks for no plugins, as up to 0.4.13, and `DISCOVERING` does what
the tests of lm-eval's main branch ask for.
"""

import json
import os
import shutil
import subprocess
import textwrap
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SHIM = ("arts_plugin_autoload.pth", "arts_plugin_autoload.start", "_arts_plugin_autoload.py")
PACKAGE = (
    "__init__.py",
    "errors.py",
    "terminal.py",
    "autoload/__init__.py",
    "autoload/hooks.py",
    "lm_eval/__init__.py",
)
"""What the hook imports of the package, and the way in that needs no start-up file."""

ENTRY_POINTS = """
    [lm_eval.models]
    arts = arts_probe:Model
    hf = arts_probe:Usurper
    [lm_eval.filters]
    arts_filter = arts_probe:Filter
    take_first = arts_probe:Usurper
    [lm_eval.metrics]
    arts_metric = arts_probe:metric
    exact_match = arts_probe:Usurper
    [lm_eval.aggregations]
    arts_aggregation = arts_probe:aggregation
    mean = arts_probe:Usurper
    [lm_eval.tasks]
    arts = arts_tasks
    [lm_eval.unheard_of]
    arts_other = arts_probe:Usurper
"""

STAND_IN = {
    "lm_eval/__init__.py": "",
    "lm_eval/api/__init__.py": "",
    "lm_eval/api/registry.py": """
        class Registry(dict):
            def register(self, name, target):
                assert name not in self
                self[name] = target

        model_registry, filter_registry, metric_registry, aggregation_registry = (Registry() for _ in range(4))
    """,
    "lm_eval/api/metrics.py": """
        from lm_eval.api.registry import aggregation_registry, metric_registry
        aggregation_registry.setdefault("mean", "built-in")
        metric_registry.setdefault("exact_match", "built-in")
    """,
    "lm_eval/models/__init__.py": """
        from lm_eval.api.registry import model_registry
        model_registry.setdefault("hf", "built-in")
    """,
    "lm_eval/filters/__init__.py": """
        from lm_eval.api.registry import filter_registry
        filter_registry.setdefault("take_first", "built-in")
    """,
    "lm_eval/tasks/__init__.py": "from lm_eval.tasks.manager import TaskManager",
    "lm_eval/tasks/manager.py": """
        class TaskManager:
            def __init__(self, verbosity=None, include_path=None, include_defaults=True):
                self.verbosity = verbosity
                self.include_path = include_path
                self.searched = ["built-in"] if include_defaults else []
                if include_path:
                    self.searched += include_path if isinstance(include_path, (list, tuple)) else [include_path]
    """,
}

DISCOVERING = {
    **STAND_IN,
    "lm_eval/api/registry.py": """
        import importlib.metadata as md

        class Registry:
            def __init__(self, name):
                self._name, self._objs = name, {}

            def __contains__(self, alias):
                return alias in self._objs

            def keys(self):
                return self._objs.keys()

            def setdefault(self, alias, target):
                return self._objs.setdefault(alias, target)

            def register(self, alias, target):
                current = self._objs.get(alias)
                if current is not None and current != target:
                    raise ValueError(f"{self._name!r} alias {alias!r} already registered")
                self._objs[alias] = target

            def get(self, alias):
                if isinstance(self._objs[alias], md.EntryPoint):
                    self._objs[alias] = self._objs[alias].load()
                return self._objs[alias]

        model_registry, filter_registry, metric_registry, aggregation_registry = (
            Registry(kind) for kind in ("model", "filter", "metric", "aggregation")
        )
        _loaded_plugin_groups = set()

        def load_plugins(group, registry):
            if group in _loaded_plugin_groups:
                return []
            _loaded_plugin_groups.add(group)
            found = [point for point in md.entry_points(group=group) if point.name not in registry]
            for point in found:
                registry.register(point.name, target=point)
            return [point.name for point in found]

        def get_model(name):
            load_plugins("lm_eval.models", model_registry)
            return model_registry.get(name)
    """,
    "lm_eval/tasks/manager.py": """
        import functools
        import importlib.metadata as md
        from importlib.util import find_spec
        from pathlib import Path

        TASKS_ENTRY_POINT_GROUP = "lm_eval.tasks"

        def _resolve_task_dir(value):
            return Path(next(iter(find_spec(value).submodule_search_locations))).resolve()

        @functools.cache
        def discover_plugin_task_paths():
            return [_resolve_task_dir(point.value) for point in md.entry_points(group=TASKS_ENTRY_POINT_GROUP)]

        class TaskManager:
            def __init__(self, verbosity=None, include_path=None, include_defaults=True):
                self.include_path = include_path
                self.searched = ["built-in"] if include_defaults else []
                self.searched += map(str, discover_plugin_task_paths())
                if include_path:
                    self.searched += include_path if isinstance(include_path, (list, tuple)) else [include_path]
    """,
}

IMPORT_ALL = "import json, sys, lm_eval.models, lm_eval.filters, lm_eval.api.metrics, lm_eval.tasks\n"

REGISTERED = """
from lm_eval.api import registry
KINDS = ("model", "filter", "metric", "aggregation")
names = {kind: sorted(getattr(registry, kind + "_registry").keys()) for kind in KINDS}
"""


@dataclass
class Environment:
    """A venv of its own, and its site-packages to write into."""

    python: Path
    site: Path
    extra: dict[str, str] = field(default_factory=dict)

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            (self.site / name).parent.mkdir(parents=True, exist_ok=True)
            (self.site / name).write_text(textwrap.dedent(text), encoding="utf-8")

    def run(self, *arguments: str, code: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run the environment's Python as a user would, with no Python or ARTS settings left over from ours."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ARTS_", "PYTHON", "COV_"))}
        command = [str(self.python), *arguments, *([] if code is None else ["-c", code])]
        return subprocess.run(
            command, env=inherited | self.extra | environ, cwd=self.site, capture_output=True, text=True, timeout=300
        )

    def tell(self, *flags: str, code: str, **environ: str) -> Any:
        """Run code that ends in printing JSON, and complains of nothing."""
        done = self.run(*flags, code=code, **environ)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)


def new_environment(folder: Path) -> Environment:
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(python), "-I", "-S", "-c", ask], capture_output=True, text=True, check=True).stdout
    environment = Environment(python, Path(site.strip()))
    # Some pythons, asked under -S, name the base installation: never write there.
    if not environment.site.is_relative_to(folder):
        (environment.site,) = folder.glob("lib/python*/site-packages")
    for name in SHIM:
        shutil.copy(ROOT / "arts_plugin" / "autoload" / name, environment.site / name)
    for name in PACKAGE:
        (environment.site / "arts_plugin" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "arts_plugin" / name, environment.site / "arts_plugin" / name)
    environment.write(
        {
            "arts_plugin-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: arts-plugin\nVersion: 0.1.0\n",
            "arts_plugin-0.1.0.dist-info/entry_points.txt": ENTRY_POINTS,
            "arts_tasks/__init__.py": "",
        }
    )
    return environment

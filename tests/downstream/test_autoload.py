"""The start-up shim, in environments where nothing but its three files says that arts-plugin exists.

Each environment is a small venv, so the shim starts the way it does for a user. Most tests use a stand-in lm-eval of a
few lines, which the test can make misbehave; those that need the real one are marked so.
"""

import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import textwrap
import tomllib
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SHIM = ("arts_plugin_autoload.pth", "arts_plugin_autoload.start", "_arts_plugin_autoload.py")

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")

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


def _new_environment(folder: Path) -> Environment:
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
    environment.write(
        {
            "arts_plugin-0.1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: arts-plugin\nVersion: 0.1.0\n",
            "arts_plugin-0.1.0.dist-info/entry_points.txt": ENTRY_POINTS,
            "arts_tasks/__init__.py": "",
        }
    )
    return environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment with the shim and a stand-in lm-eval."""
    made = _new_environment(tmp_path / "venv")
    made.write(STAND_IN)
    return made


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the shim and the lm-eval that runs these tests."""
    made = _new_environment(tmp_path_factory.mktemp("real") / "venv")
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.submodule_search_locations
    # Named folders are searched, their own .pth files are not read: an installed arts-plugin stays out of this.
    folders = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    folders.append(str(Path(found.submodule_search_locations[0]).parent))
    (made.site / "outside.pth").write_text("".join(f"{folder}\n" for folder in folders), encoding="utf-8")
    made.extra["HF_HUB_OFFLINE"] = "1"
    made.write(
        {
            "arts_probe.py": """
                from lm_eval.models.dummy import DummyLM

                class Model(DummyLM):
                    def generate_until(self, requests, disable_tqdm=False):
                        return ["4" for _ in requests]

                class Filter:
                    def apply(self, resps, docs):
                        return resps

                def metric(*args, **kwargs):
                    return 0.5

                def aggregation(items):
                    return 7.0
            """,
            "arts_tasks/docs.py": """
                import datasets

                def docs(**kwargs):
                    return {"test": datasets.Dataset.from_list([{"q": "2 + 2 =", "a": "4"}])}
            """,
            "arts_tasks/probe.yaml": """
                task: arts_probe_task
                custom_dataset: !function arts_tasks.docs.docs
                output_type: generate_until
                test_split: test
                doc_to_text: q
                doc_to_target: a
                generation_kwargs: {until: ["\\n"]}
                metric_list:
                  - metric: exact_match
                    aggregation: arts_aggregation
                    higher_is_better: true
            """,
        }
    )
    return made


def test_start_costs_one_small_module(environment: Environment) -> None:
    modules = "import sys; names = sorted(sys.modules); import json; print(json.dumps(names))"
    on = environment.tell(code=modules)
    off = environment.tell(code=modules, ARTS_NO_AUTOLOAD="1")
    added = set(on) - set(off)
    # From 3.15 on it is site that imports pkgutil, for the .start file, before our switch is read.
    assert added == {"_arts_plugin_autoload"} if sys.version_info < (3, 15) else added <= {"_arts_plugin_autoload"}
    assert not {"importlib.metadata", "inspect", "pathlib", "lm_eval", "arts_plugin", "arts_tasks"} & set(on)


@pytest.mark.parametrize("flags", [(), ("-I",), ("-E", "-W", "error")])
def test_components_are_registered_with_their_modules(environment: Environment, flags: tuple[str, ...]) -> None:
    code = f"{IMPORT_ALL}{REGISTERED}" + textwrap.dedent("""
        from importlib.metadata import EntryPoint
        from lm_eval.tasks import TaskManager
        placeholder = registry.model_registry["arts"]
        hooked = [sys.modules[m] for m in ("lm_eval.models", "lm_eval.filters", "lm_eval.api.metrics",
                                           "lm_eval.tasks.manager")]
        unhooked = type(sys.modules["lm_eval.tasks"].__loader__)
        print(json.dumps({
            "names": names,
            "placeholder": [isinstance(placeholder, EntryPoint), placeholder.value, placeholder.group],
            "kept": [registry.model_registry["hf"], registry.filter_registry["take_first"],
                     registry.metric_registry["exact_match"], registry.aggregation_registry["mean"]],
            "restored": all(m.__spec__.loader is m.__loader__ and type(m.__loader__) is unhooked for m in hooked),
            "loaded": sorted({"arts_probe", "arts_tasks", "arts_plugin"} & set(sys.modules)),
            "init": TaskManager.__init__.__name__,
            "include_path": TaskManager().include_path,
        }))
    """)
    on = environment.tell(*flags, code=code)
    assert on == {
        "names": {
            "model": ["arts", "hf"],
            "filter": ["arts_filter", "take_first"],
            "metric": ["arts_metric", "exact_match"],
            "aggregation": ["arts_aggregation", "mean"],
        },
        "placeholder": [True, "arts_probe:Model", "lm_eval.models"],
        "kept": ["built-in"] * 4,
        "restored": True,
        "loaded": [],
        "init": "__init__",
        "include_path": [str(environment.site / "arts_tasks")],
    }


@pytest.mark.parametrize("flags", [(), ("-I",)])
def test_the_switch_turns_everything_off(environment: Environment, flags: tuple[str, ...]) -> None:
    code = f"{IMPORT_ALL}{REGISTERED}" + textwrap.dedent("""
        finders = sum(getattr(f, "arts_plugin_autoload", False) is True for f in sys.meta_path)
        print(json.dumps([names, finders, lm_eval.tasks.TaskManager().include_path]))
    """)
    names, finders, include_path = environment.tell(*flags, code=code, ARTS_NO_AUTOLOAD="1")
    assert names == {"model": ["hf"], "filter": ["take_first"], "metric": ["exact_match"], "aggregation": ["mean"]}
    assert (finders, include_path) == (0, None)


def test_the_users_include_path_stays_on_top(environment: Environment) -> None:
    code = textwrap.dedent("""
        import json
        from pathlib import Path
        from lm_eval.tasks import TaskManager
        ours = TaskManager().include_path[0]
        given = [None, "", [], "mine", Path("mine"), ["mine", Path("other")], ("mine",), ours, ["mine", Path(ours)]]
        seen = [TaskManager(include_path=path).include_path for path in given]
        seen.append(TaskManager("INFO", "mine").include_path)  # by position

        class Mine(TaskManager):
            def __init__(self):
                super().__init__(include_path="mine", verbosity="INFO")

        seen.append(Mine().include_path)
        try:
            TaskManager(no_such_argument=1)
        except TypeError as problem:
            seen.append("no_such_argument" in str(problem))
        print(json.dumps([ours, seen], default=lambda path: {"path": str(path)}))
    """)
    ours, seen = environment.tell(code=code)
    mine = {"path": "mine"}
    assert ours == str(environment.site / "arts_tasks")
    assert seen[:3] == [[ours]] * 3
    assert seen[3:7] == [[ours, "mine"], [ours, mine], [ours, "mine", {"path": "other"}], [ours, "mine"]]
    # Named by the user, our folder stays where the user put it, once.
    assert seen[7:9] == [ours, ["mine", {"path": ours}]]
    assert seen[9:] == [[ours, "mine"], [ours, "mine"], True]


def test_two_copies_register_once(environment: Environment, tmp_path: Path) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for name in SHIM:
        shutil.copy(environment.site / name, second / name)
    code = textwrap.dedent(f"""
        import importlib, importlib.util, pkgutil, site, sys
        site.addsitedir({str(second)!r})
        # A copy under another name, as a development tree has it, and the .start file's own way in.
        spec = importlib.util.spec_from_file_location("another", {str(second / SHIM[2])!r})
        another = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(another)
        another.install()
        pkgutil.resolve_name("_arts_plugin_autoload:install")()
        finders = sum(getattr(f, "arts_plugin_autoload", False) is True for f in sys.meta_path)
        # And should a second finder get in all the same:
        sys.meta_path.insert(0, another._Finder())
        {IMPORT_ALL.strip()}
        importlib.reload(lm_eval.models)
        manager = importlib.reload(lm_eval.tasks.manager)
        once = manager.TaskManager().include_path
        another._add_task_folder(manager)
        wrapped = manager.TaskManager.__init__.__wrapped__
    """)
    code += REGISTERED + "print(json.dumps([finders, names['model'], once, hasattr(wrapped, '__wrapped__')]))"
    finders, models, once, twice = environment.tell(code=code)
    assert finders == 1
    assert models == ["arts", "hf"]
    assert len(once) == 1
    assert not twice


def test_finders_that_ask_all_finders_do_not_recurse(environment: Environment) -> None:
    code = textwrap.dedent("""
        import importlib.util, json, sys

        asked = 0

        class Nosy:
            def find_spec(self, name, path=None, target=None):
                global asked
                asked += name == "lm_eval.models"
                others = [f for f in sys.meta_path if not isinstance(f, Nosy)]
                found = (f.find_spec(name, path, target) for f in others if name.startswith("lm_eval."))
                return next((spec for spec in found if spec), None)

        class Broken:
            def find_spec(self, name, path=None, target=None):
                if name == "lm_eval.filters":
                    raise ImportError("not today")

        sys.meta_path.insert(0, Nosy())
        sys.meta_path.append(Nosy())
        import lm_eval.models
        sys.meta_path.insert(1, Broken())
        try:
            import lm_eval.filters
        except ImportError as problem:
            told = str(problem)
        print(json.dumps([sorted(lm_eval.models.model_registry), told, asked]))
    """)
    models, told, asked = environment.tell(code=code)
    assert (models, told) == (["arts", "hf"], "not today")
    assert asked <= 4


def test_a_hooked_spec_still_answers_for_its_loader(environment: Environment) -> None:
    code = textwrap.dedent("""
        import importlib.util, json
        spec = importlib.util.find_spec("lm_eval.models")
        lazy = importlib.util.module_from_spec(spec)
        source = spec.loader.get_source("lm_eval.models")
        other = importlib.util.find_spec("lm_eval.api.registry")
        print(json.dumps(["model_registry" in source, spec.loader.is_package("lm_eval.models"), lazy.__name__,
                          type(spec.loader._real) is type(other.loader)]))
    """)
    assert environment.tell(code=code) == [True, True, "lm_eval.models", True]


def test_an_lm_eval_that_discovers_plugins_is_left_alone(environment: Environment) -> None:
    with (environment.site / "lm_eval/api/registry.py").open("a", encoding="utf-8") as file:
        file.write("\n\ndef load_plugins(group, registry):\n    return []\n")
    code = f"{IMPORT_ALL}{REGISTERED}print(json.dumps([names, lm_eval.tasks.TaskManager().include_path]))"
    names, include_path = environment.tell(code=code)
    assert names == {"model": ["hf"], "filter": ["take_first"], "metric": ["exact_match"], "aggregation": ["mean"]}
    # It has no such thing for tasks.
    assert include_path == [str(environment.site / "arts_tasks")]


def _raise_in_register(environment: Environment) -> None:
    text = (environment.site / "lm_eval/api/registry.py").read_text(encoding="utf-8")
    broken = text.replace("assert name not in self", "raise ValueError('no\\nroom')")
    (environment.site / "lm_eval/api/registry.py").write_text(broken, encoding="utf-8")


def _empty_the_registry_module(environment: Environment) -> None:
    modules = ("lm_eval/api/registry.py", "lm_eval/api/metrics.py", "lm_eval/models/__init__.py")
    environment.write(dict.fromkeys((*modules, "lm_eval/filters/__init__.py"), ""))


def _drop_include_path(environment: Environment) -> None:
    environment.write({"lm_eval/tasks/manager.py": "class TaskManager:\n    pass\n"})


def _spoil_the_entry_points(environment: Environment) -> None:
    environment.write({"arts_plugin-0.1.0.dist-info/entry_points.txt": "[lm_eval.models]\nno value here\n"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_raise_in_register, "ValueError: no room"),
        (_empty_the_registry_module, "RuntimeError: lm-eval 0.4.13 or later is needed"),
        (_drop_include_path, "RuntimeError: TaskManager takes no include_path"),
        (_spoil_the_entry_points, ""),
    ],
)
def test_a_problem_is_one_line_on_stderr(
    environment: Environment, spoil: Callable[[Environment], None], told: str
) -> None:
    spoil(environment)
    done = environment.run("-W", "error", code=f"{IMPORT_ALL}print('unharmed')")
    assert (done.returncode, done.stdout) == (0, "unharmed\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"arts-plugin: not fully known to lm-eval: {told}")
    assert line.endswith("(ARTS_NO_AUTOLOAD=1 switches this off)")


def test_one_component_that_fails_leaves_the_others(environment: Environment) -> None:
    registry = STAND_IN["lm_eval/api/registry.py"].replace("name not in self", "name != 'arts_metric'")
    environment.write({"lm_eval/api/registry.py": registry})
    done = environment.run(code=f"{IMPORT_ALL}{REGISTERED}print(json.dumps(names))")
    assert done.stderr.count("\n") == 1
    names = json.loads(done.stdout)
    assert (names["metric"], names["aggregation"]) == (["exact_match"], ["arts_aggregation", "mean"])


def test_errors_of_lm_eval_itself_pass_through(environment: Environment) -> None:
    environment.write({"lm_eval/models/__init__.py": "raise OSError('its own')"})
    code = textwrap.dedent("""
        import sys
        for _ in range(2):
            try:
                import lm_eval.models
            except OSError as problem:
                print(problem, "lm_eval.models" in sys.modules)
    """)
    done = environment.run(code=code)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["its", "own", "False"] * 2)


def test_what_is_half_removed_stays_silent(environment: Environment) -> None:
    shutil.rmtree(environment.site / "arts_plugin-0.1.0.dist-info")
    shutil.rmtree(environment.site / "arts_tasks")
    code = f"{IMPORT_ALL}{REGISTERED}print(json.dumps([names['model'], lm_eval.tasks.TaskManager().include_path]))"
    assert environment.tell(code=code) == [["hf"], None]


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="there, site names a .start file's missing module")
@pytest.mark.parametrize("text", [None, "def install(:\n", "raise ZeroDivisionError\n"])
def test_a_broken_start_up_module_stays_silent(environment: Environment, text: str | None) -> None:
    (environment.site / SHIM[2]).unlink()
    if text is not None:
        (environment.site / SHIM[2]).write_text(text, encoding="utf-8")
    assert environment.tell(code=f"{IMPORT_ALL}{REGISTERED}print(json.dumps(names['model']))") == ["hf"]


def test_the_files_have_the_form_that_site_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "arts_plugin" / "autoload"
    (line,) = (folder / SHIM[0]).read_text(encoding="ascii").splitlines()
    assert line.startswith("import ")
    (entry,) = (x for x in (folder / SHIM[1]).read_text(encoding="ascii").splitlines() if not x.startswith("#"))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "_arts_plugin_autoload", raising=False)
    install = pkgutil.resolve_name(entry)
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if not hasattr(f, "arts_plugin_autoload")])
    before = len(sys.meta_path)
    monkeypatch.setenv("ARTS_NO_AUTOLOAD", "1")
    install()
    assert len(sys.meta_path) == before
    monkeypatch.delenv("ARTS_NO_AUTOLOAD")
    install()
    install()  # 3.15 goes through a venv's site-packages twice
    assert len(sys.meta_path) == before + 1


def test_every_group_we_declare_is_served() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {group for group in project["project"]["entry-points"] if group.startswith("lm_eval.")}
    served = {"lm_eval.models", "lm_eval.filters", "lm_eval.metrics", "lm_eval.aggregations"}
    assert "lm_eval.models" in declared <= served
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {f"arts_plugin/autoload/{name}": name for name in SHIM}


@needs_lm_eval
def test_the_real_registries_keep_all_their_own(real: Environment) -> None:
    listing = f"import lm_eval.evaluator\n{IMPORT_ALL}{REGISTERED}"
    listing += "discovers = hasattr(registry, 'load_plugins')\n"
    off = real.tell(code=f"{listing}print(json.dumps([names, discovers]))", ARTS_NO_AUTOLOAD="1")
    names, discovers = off
    if discovers:
        pytest.skip("this lm-eval discovers plugins itself")
    code = listing + textwrap.dedent("""
        from pathlib import Path
        from lm_eval.tasks import TaskManager
        loaded = sorted({"arts_probe", "arts_tasks"} & set(sys.modules))
        hooked = [sys.modules[m] for m in ("lm_eval.models", "lm_eval.filters", "lm_eval.api.metrics",
                                           "lm_eval.tasks.manager")]
        restored = [m.__spec__.loader is m.__loader__ and type(m.__loader__) is type(json.__loader__) for m in hooked]
        kept = [registry.get_model("dummy"), registry.get_filter("take_first"), registry.get_metric("exact_match"),
                registry.get_aggregation("mean")]
        got = [registry.get_model("arts"), registry.get_filter("arts_filter"), registry.get_metric("arts_metric"),
               registry.get_aggregation("arts_aggregation")]

        mine = Path("mine")
        mine.mkdir(exist_ok=True)
        (mine / "probe.yaml").write_text("task: arts_probe_task\\ninclude: ../arts_tasks/probe.yaml\\n")
        found = [TaskManager(include_path=p, include_defaults=False).task_index["arts_probe_task"].yaml_path.parent.name
                 for p in (None, "mine", mine, ["mine"])]
        print(json.dumps([names, loaded, restored, [x.__module__ for x in kept],
                          [f"{x.__module__}.{x.__name__}" for x in got], found]))
    """)
    done = real.run(code=code)  # lm-eval says on stderr that a task of ours is overridden
    assert done.returncode == 0, done.stderr
    assert "arts-plugin:" not in done.stderr
    on, loaded, restored, kept, got, found = json.loads(done.stdout)
    added = {kind: sorted(set(on[kind]) - set(names[kind])) for kind in on}
    assert all(set(names[kind]) <= set(on[kind]) and len(names[kind]) >= 3 for kind in names)
    assert added == {kind: ["arts" if kind == "model" else f"arts_{kind}"] for kind in on}
    assert (loaded, restored) == ([], [True] * 4)
    assert [module.split(".")[0] for module in kept] == ["lm_eval"] * 4
    assert got == [f"arts_probe.{name}" for name in ("Model", "Filter", "metric", "aggregation")]
    assert found == ["arts_tasks", "mine", "mine", "mine"]


@needs_lm_eval
@pytest.mark.slow
def test_the_bare_command_line_runs_our_model_on_our_task(real: Environment, tmp_path: Path) -> None:
    arguments = ("--model", "arts", "--tasks", "arts_probe_task", "--output_path", str(tmp_path / "out"))
    done = real.run("-m", "lm_eval", *arguments, HF_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results*.json")
    # 7.0 is what our aggregation says, whatever the built-in metric found.
    assert json.loads(results.read_text(encoding="utf-8"))["results"]["arts_probe_task"]["exact_match,none"] == 7.0
    off = real.run("-m", "lm_eval", *arguments, HF_HOME=str(tmp_path), ARTS_NO_AUTOLOAD="1")
    assert off.returncode != 0
    assert "arts_probe_task" in off.stderr

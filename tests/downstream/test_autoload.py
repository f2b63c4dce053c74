"""The start-up shim with a stand-in lm-eval: what it registers, and what it leaves alone."""

import ast
import pkgutil
import shutil
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from tests.downstream.environments import DISCOVERING, IMPORT_ALL, REGISTERED, ROOT, SHIM, Environment


def test_a_start_imports_nothing(environment: Environment) -> None:
    code = "import json, sys; print(json.dumps([sorted(sys.modules), [type(f).__name__ for f in sys.meta_path]]))"
    on, finders = environment.tell(code=code)
    off, without = environment.tell(code=code, ARTS_NO_AUTOLOAD="1")
    # From 3.15 on, a .start file names a module.
    assert set(on) - set(off) <= ({"_arts_plugin_autoload"} if sys.version_info >= (3, 15) else set())
    assert finders == ["Finder", *without]


BUILT_IN = {"model": ["hf"], "filter": ["take_first"], "metric": ["exact_match"], "aggregation": ["mean"]}


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
            "loaded": sorted(m for m in sys.modules if m.startswith("arts_")),
            "init": TaskManager.__init__.__name__,
            "searched": TaskManager().searched,
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
        "loaded": [
            "arts_plugin",
            "arts_plugin.autoload",
            "arts_plugin.autoload.hooks",
            "arts_plugin.errors",
            "arts_plugin.terminal",
        ],
        "init": "__init__",
        "searched": ["built-in", str(environment.site / "arts_tasks")],
    }


@pytest.mark.parametrize("flags", [(), ("-I",)])
def test_the_switch_turns_everything_off(environment: Environment, flags: tuple[str, ...]) -> None:
    code = f"{IMPORT_ALL}{REGISTERED}" + textwrap.dedent("""
        finders = sum(getattr(f, "arts_plugin_autoload", False) is True for f in sys.meta_path)
        print(json.dumps([names, finders, lm_eval.tasks.TaskManager().searched]))
    """)
    names, finders, searched = environment.tell(*flags, code=code, ARTS_NO_AUTOLOAD="1")
    assert names == BUILT_IN
    assert (finders, searched) == (0, ["built-in"])


def test_the_users_include_path_stays_on_top(environment: Environment) -> None:
    code = textwrap.dedent("""
        import json
        from pathlib import Path
        from lm_eval.tasks import TaskManager
        ours = TaskManager().searched[-1]
        given = [None, "", [], "mine", Path("mine"), ["mine", Path("other")], ("mine",), ours, ["mine", Path(ours)]]
        seen = [TaskManager(include_path=path) for path in given]
        told = [manager.include_path == path for manager, path in zip(seen, given)]
        seen.append(TaskManager("INFO", "mine"))  # by position

        class Mine(TaskManager):
            def __init__(self):
                super().__init__(include_path="mine", verbosity="INFO")

        seen.append(Mine())
        try:
            TaskManager(no_such_argument=1)
        except TypeError as problem:
            told.append("no_such_argument" in str(problem))
        print(json.dumps([ours, [m.searched for m in seen], told], default=lambda path: {"path": str(path)}))
    """)
    ours, seen, told = environment.tell(code=code)
    mine = {"path": "mine"}
    assert ours == str(environment.site / "arts_tasks")
    assert {searched.pop(0) for searched in seen} == {"built-in"}
    assert seen[:3] == [[ours]] * 3
    assert seen[3:7] == [[ours, "mine"], [ours, mine], [ours, "mine", {"path": "other"}], [ours, "mine"]]
    # Named by the user, our folder stays where the user put it, once.
    assert seen[7:9] == [[ours], ["mine", {"path": ours}]]
    assert seen[9:] == [[ours, "mine"], [ours, "mine"]]
    assert told == [True] * 10


@pytest.mark.parametrize("arguments", ["include_path='mine', include_defaults=False", "None, 'mine', False"])
def test_a_manager_without_defaults_searches_only_what_it_was_given(environment: Environment, arguments: str) -> None:
    code = f"import json; from lm_eval.tasks import TaskManager; print(json.dumps(TaskManager({arguments}).searched))"
    assert environment.tell(code=code) == ["mine"]


@pytest.mark.parametrize("before", [True, False])
def test_importing_the_package_is_a_way_in_without_start_up_files(environment: Environment, before: bool) -> None:
    """Folders of `pip install --target` and of PYTHONPATH: Python reads no .pth file there."""
    for name in SHIM:
        (environment.site / name).unlink()
    ours = "import arts_plugin.lm_eval\n"
    code = (ours if before else "") + IMPORT_ALL + ("" if before else ours) + REGISTERED
    code += "from lm_eval.tasks import TaskManager\nprint(json.dumps([names['model'], names['metric'], TaskManager().searched]))"
    assert environment.tell(code=code) == [
        ["arts", "hf"], ["arts_metric", "exact_match"], ["built-in", str(environment.site / "arts_tasks")]
    ]  # fmt: skip


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
        sys.meta_path.insert(0, another.Finder())
        {IMPORT_ALL.strip()}
        importlib.reload(lm_eval.models)
        manager = importlib.reload(lm_eval.tasks.manager)
        once = manager.TaskManager().searched
        from arts_plugin.autoload import hooks
        hooks._add_task_folder(manager)
        wrapped = manager.TaskManager.__init__.__wrapped__
    """)
    code += REGISTERED + "print(json.dumps([finders, names['model'], once, hasattr(wrapped, '__wrapped__')]))"
    finders, models, once, twice = environment.tell(code=code)
    assert finders == 1
    assert models == ["arts", "hf"]
    assert len(once) == 2
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
    environment.write(DISCOVERING)
    environment.write({"arts_probe.py": "class Model:\n    pass\n"})
    code = f"{IMPORT_ALL}{REGISTERED}" + textwrap.dedent("""
        from lm_eval.tasks import TaskManager
        found = registry.get_model("arts").__module__
        managers = [TaskManager(), TaskManager(include_path="mine"), TaskManager(include_defaults=False)]
        print(json.dumps([names, found, [manager.searched for manager in managers], [m.include_path for m in managers],
                          hasattr(TaskManager.__init__, "__wrapped__")]))
    """)
    names, found, searched, given, wrapped = environment.tell(code=code)
    ours = str((environment.site / "arts_tasks").resolve())
    assert names == BUILT_IN
    assert found == "arts_probe"
    # Ours are there once, through the entry point, and it is the host that says when.
    assert searched == [["built-in", ours], ["built-in", ours, "mine"], [ours]]
    assert (given, wrapped) == ([None, "mine", None], False)


def test_the_files_have_the_form_that_site_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "arts_plugin" / "autoload"
    (line,) = (folder / SHIM[0]).read_text(encoding="ascii").splitlines()
    imports, command = ast.parse(line).body
    assert isinstance(imports, ast.Import) and isinstance(command, ast.Expr) and isinstance(command.value, ast.Call)
    (text,) = command.value.args
    inline, _ = ast.parse(ast.literal_eval(text)).body
    finder = next(node for node in ast.parse((folder / SHIM[2]).read_text()).body if isinstance(node, ast.ClassDef))
    assert ast.dump(inline) == ast.dump(finder)
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
    served = {"lm_eval.models", "lm_eval.filters", "lm_eval.metrics", "lm_eval.aggregations", "lm_eval.tasks"}
    assert {"lm_eval.models", "lm_eval.tasks"} <= declared <= served
    # The value names a package, which is the folder to search; nothing is loaded from it.
    assert project["project"]["entry-points"]["lm_eval.tasks"] == {"arts": "arts_tasks"}
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {f"arts_plugin/autoload/{name}": name for name in SHIM}

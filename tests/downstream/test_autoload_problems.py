"""The start-up shim with a stand-in lm-eval that misbehaves: a problem is one line on stderr, or nothing."""

import json
import shutil
import textwrap
from collections.abc import Callable

import pytest

from tests.downstream.environments import IMPORT_ALL, REGISTERED, STAND_IN, Environment


def _raise_in_register(environment: Environment) -> None:
    text = (environment.site / "lm_eval/api/registry.py").read_text(encoding="utf-8")
    broken = text.replace("assert name not in self", "raise ValueError('no\\nroom')")
    (environment.site / "lm_eval/api/registry.py").write_text(broken, encoding="utf-8")


def _empty_the_registry_module(environment: Environment) -> None:
    modules = ("lm_eval/api/registry.py", "lm_eval/api/metrics.py", "lm_eval/models/__init__.py")
    environment.write(dict.fromkeys((*modules, "lm_eval/filters/__init__.py"), ""))


def _have_no_manager_module(environment: Environment) -> None:
    environment.write({"lm_eval/tasks/__init__.py": "class TaskManager:\n    pass\n"})


def _drop_include_path(environment: Environment) -> None:
    environment.write({"lm_eval/tasks/manager.py": "class TaskManager:\n    pass\n"})


def _spoil_the_entry_points(environment: Environment) -> None:
    environment.write({"arts_plugin-0.1.0.dist-info/entry_points.txt": "[lm_eval.models]\nno value here\n"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_raise_in_register, "ValueError: no room"),
        (_empty_the_registry_module, "RuntimeError: lm-eval 0.4.9 is installed, and 0.4.12 or later is supported"),
        (_have_no_manager_module, "RuntimeError: lm-eval 0.4.9 is installed, and 0.4.12 or later is supported"),
        (_drop_include_path, "RuntimeError: TaskManager takes no include_path"),
        (_spoil_the_entry_points, ""),
    ],
)
def test_a_problem_is_one_line_on_stderr(
    environment: Environment, spoil: Callable[[Environment], None], told: str
) -> None:
    environment.write({"lm_eval-0.4.9.dist-info/METADATA": "Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.9\n"})
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
    code = f"{IMPORT_ALL}{REGISTERED}print(json.dumps([names['model'], lm_eval.tasks.TaskManager().searched]))"
    assert environment.tell(code=code) == [["hf"], ["built-in"]]
    shutil.rmtree(environment.site / "arts_plugin")
    assert environment.tell(code=code) == [["hf"], ["built-in"]]


@pytest.mark.parametrize("text", [None, "def find_spec(:\n", "raise ZeroDivisionError\n"])
def test_a_broken_hook_stays_silent(environment: Environment, text: str | None) -> None:
    hooks = environment.site / "arts_plugin" / "autoload" / "hooks.py"
    hooks.unlink()
    if text is not None:
        hooks.write_text(text, encoding="utf-8")
    assert environment.tell(code=f"{IMPORT_ALL}{REGISTERED}print(json.dumps(names['model']))") == ["hf"]

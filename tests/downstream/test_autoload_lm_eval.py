"""The start-up hook with the lm-eval that is installed here."""

import importlib.util
import json
import sys
import textwrap
from pathlib import Path

import pytest

from tests.downstream.environments import IMPORT_ALL, REGISTERED, Environment, new_environment

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the shim and the lm-eval that runs these tests."""
    made = new_environment(tmp_path_factory.mktemp("real") / "venv")
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
        loaded = sorted({"arts_probe", "arts_tasks", "arts_plugin.lm_eval"} & set(sys.modules))
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
        managers = [TaskManager(), TaskManager(include_path=mine)]
        found = [manager.task_index["arts_probe_task"].yaml_path.parent.name for manager in managers]
        found.append(TaskManager(include_path="mine", include_defaults=False).all_tasks)
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
    # The last is what lm-eval's own tests ask of a manager without defaults: what it was given, and nothing else.
    assert found == ["arts_tasks", "mine", ["arts_probe_task"]]


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

"""Other releases of lm-eval than the installed one: ARTS_TEST_LM_EVAL names a folder that holds one unpacked wheel a folder.

for v in 0.4.11 0.4.12 0.4.13 0.5.0.dev1; do
    pip download --no-deps lm_eval==$v -d wheels && python -m zipfile -e wheels/lm_eval-$v-*.whl releases/$v
done
ARTS_TEST_LM_EVAL=releases pytest tests/downstream/test_releases.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models import smollm2

FOLDER = os.environ.get("ARTS_TEST_LM_EVAL", "")
RELEASES = sorted(path for path in Path(FOLDER).iterdir() if path.is_dir()) if FOLDER else []
OLD = ("0.4.9", "0.4.10", "0.4.11")
QUICK = "strategy=best_of_n,budget_trajectories=2,max_gen_toks=8,n_ctx=1024"

pytestmark = [pytest.mark.slow, pytest.mark.lm_eval_releases, pytest.mark.skipif(not RELEASES, reason="opt-in: ARTS_TEST_LM_EVAL=FOLDER")]  # fmt: skip


def run(release: Path, folder: Path, tasks: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "arts",
        "--model_args",
        f"model={smollm2()},{QUICK}",
        "--tasks",
        tasks,
    ]
    command += ["--include_path", str(folder), "--limit", "2", "--output_path", str(folder / "out")]
    environ = os.environ | {"PYTHONPATH": str(release.resolve()), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True, check=False, timeout=900)


def write(folder: Path, name: str, rows: list[dict[str, Any]], **config: Any) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test", **config,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in task.items()))


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_release_runs_every_kind_of_task_or_says_that_it_is_not_supported(release: Path, tmp_path: Path) -> None:
    if release.name.startswith(OLD):
        done = run(release, tmp_path, "arts_demo")
        assert done.returncode != 0
        assert f"lm-eval {release.name} is installed, and 0.4.12 or later is supported" in done.stderr
        return
    write(
        tmp_path, "choices", [{"q": "1 + 1 =", "c": ["2", "7", "13"], "g": 0}, {"q": "2 + 2 =", "c": ["4", "9", "1"], "g": 0}],
        output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="{{c}}", doc_to_target="{{g}}",
    )  # fmt: skip
    write(
        tmp_path, "rolling", [{"t": "The sun rises in the east."}, {"t": "Two plus two is four."}],
        output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{t}}", metric_list=[{"metric": "bits_per_byte"}],
    )  # fmt: skip
    write(
        tmp_path, "sampled", [{"q": "1 + 1 =", "a": "2"}, {"q": "2 + 2 =", "a": "4"}],
        output_type="generate_until", doc_to_text="{{q}}", doc_to_target="{{a}}", repeats=2,
        generation_kwargs={"until": ["\n"], "do_sample": True, "temperature": 1.0},
        filter_list=[{"name": "all", "filter": [{"function": "arts_extract", "extract": "number"}, {"function": "arts_repeats"}]}],
        metric_list=[
            {"metric": name, "k": [1, 2], "grader": "numeric", "aggregation": "mean", "higher_is_better": True}
            for name in ("arts_pass_at_k", "arts_maj_at_k")
        ],
    )  # fmt: skip
    done = run(release, tmp_path, "arts_demo,choices,rolling,sampled")
    assert done.returncode == 0, done.stderr
    assert "arts-plugin:" not in done.stderr
    (path,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    assert {"acc,none", "pass@1,none", "oracle@2,none"} <= results["arts_demo"].keys()
    assert results["choices"]["acc,none"] > 0 and results["rolling"]["bits_per_byte,none"] > 0
    assert {"pass@1,all", "pass@2,all", "maj@1,all", "maj@2,all"} <= results["sampled"].keys()
    assert results["sampled"]["pass@1,all"] <= results["sampled"]["pass@2,all"]

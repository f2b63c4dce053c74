"""`arts report` on what lm-eval itself wrote, of a model that is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from arts_plugin.cli import main

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("matplotlib")


def test_figures_are_those_of_lm_eval(tmp_path: Path) -> None:
    """Of a log of repeats: both take the same traces, one by one."""
    from lm_eval.api.model import LM
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    class Counting(LM):  # type: ignore[misc]
        def generate_until(self, requests: Any) -> list[str]:
            return [f"The answer is {i % 5}" for i, _ in enumerate(requests)]

        def loglikelihood(self, requests: Any) -> Any:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

    manager = TaskManager()
    task = manager.load(["arts_demo"])["tasks"]["arts_demo"]
    task.set_config(key="repeats", value=4)
    tracker = EvaluationTracker(output_path=str(tmp_path))
    results = lm_eval.simple_evaluate(
        Counting(),
        tasks=[task],
        limit=12,
        bootstrap_iters=0,
        log_samples=True,
        evaluation_tracker=tracker,
        task_manager=manager,
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    tracker.save_results_samples(task_name="arts_demo", samples=samples["arts_demo"])
    done = CliRunner().invoke(main, ["report", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0 and "12 questions, 4 trajectories each" in done.output
    made = json.loads((tmp_path / "report" / "report.json").read_text())
    table = {row["selector"]: row["at"] for row in made["table"]}
    theirs = results["results"]["arts_demo"]
    for selector, k, name in (
        ("random", "1", "pass@1"),
        ("majority", "2", "majority@2"),
        ("majority", "4", "majority@4"),
        ("oracle", "2", "oracle@2"),
    ):
        assert table[selector][k][0] == pytest.approx(theirs[f"{name},none"]), name
    assert made["chosen"][0] == pytest.approx(theirs["acc,none"])

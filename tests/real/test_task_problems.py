"""lm-eval's tasks as questions of `arts bench` and `arts sdf`: the prompts that they have under lm-eval itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from arts_plugin.lm_eval.model import ArtsLM
from arts_plugin.lm_eval.problems import load_tasks, task_problems
from arts_plugin.training.sdf import Problem
from tests.models import THREADS, data, smollm2

SETTINGS = {"n_ctx": 4096, "strategy": "best_of_n", "budget_trajectories": 2, "slots": 4, "budget_tokens": 4}


@pytest.fixture
def lm(tmp_path: Path) -> Iterator[ArtsLM]:
    trace = {"trace": str(tmp_path / "run")}
    model = ArtsLM.create_from_arg_obj({"model": smollm2(), "n_threads": THREADS, **SETTINGS, **trace})
    yield model
    model.arts.close()


def problems(lm: ArtsLM, shots: int) -> list[Problem]:
    metadata = {"arts_data": str(data("gsm8k_test.jsonl").parent)}
    return list(task_problems(lm.arts, load_tasks(["arts_gsm8k"], "test", None, metadata, shots), limit=3))


@pytest.mark.parametrize("shots", [0, 2])
def test_prompts_are_those_of_lm_eval(lm: ArtsLM, shots: int) -> None:
    """Examples are drawn alike by every method and every start; and what lm-eval made is not made again."""
    first, again = problems(lm, shots), problems(lm, shots)
    assert [p.prompt for p in first] == [p.prompt for p in again]
    assert len({p.prompt for p in first}) == 3
    assert all(p.prompt.text.count("<|im_start|>assistant") == shots + 1 for p in first)
    assert all(p.question.startswith("Question: ") and p.question.count("Question: ") == 1 for p in first)
    manager = TaskManager(metadata={"arts_data": str(data("gsm8k_test.jsonl").parent)})
    found = lm_eval.simple_evaluate(
        lm,
        tasks=["arts_gsm8k"],
        task_manager=manager,
        num_fewshot=shots,
        limit=3,
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
    )
    assert found is not None
    for problem in first:
        job = lm.arts.job(problem.prompt, problem.settings, problem.stops)
        assert lm.arts.run_folder.get(job.key()) is not None

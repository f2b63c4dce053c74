"""lm-eval's seed, and sampling asked for on its command line, in searches of the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from arts_plugin.errors import RunFolderError, SettingsError
from arts_plugin.lm_eval.model import ArtsLM
from arts_plugin.run import read_trees
from tests import gsm8k_rows
from tests.models import THREADS, smollm2

SETTINGS = {
    "n_ctx": 2048,
    "slots": 4,
    "budget_trajectories": 2,
    "max_gen_toks": 16,
    "strategy": "best_of_n",
    "temperature": 1.0,
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    return TaskManager(include_path=str(gsm8k_rows.write(tmp_path_factory.mktemp("tasks"))))


def evaluated(
    tasks: TaskManager, lm: Any = None, *, more: str = "", **keywords: Any
) -> tuple[dict[str, Any], list[str]]:
    """The results' config, and all texts. Each evaluation has a model of its own, and so the same history."""
    given = {"model": smollm2(), "verifier": "none", **SETTINGS, **({"n_threads": THREADS} if THREADS else {})}
    model_args = ",".join(f"{name}={value}" for name, value in given.items()) + more
    results = lm_eval.simple_evaluate(
        lm or "arts", model_args=model_args, tasks=["gsm8k_rows"], task_manager=tasks, limit=1, num_fewshot=0, apply_chat_template=True,
        bootstrap_iters=0, **keywords,
    )  # fmt: skip
    assert results is not None
    (answer,) = results["samples"]["gsm8k_rows"][0]["resps"][0]
    assert all(trajectory["text"] for trajectory in answer.trajectories)
    return results["config"], [trajectory["text"] for trajectory in answer.trajectories]


def test_the_seed_reaches_the_search(tasks: TaskManager) -> None:
    config, texts = evaluated(tasks)
    assert config["arts_settings"]["seed"] == 0
    seven, others = evaluated(tasks, random_seed=7)
    assert seven["arts_settings"]["seed"] == seven["random_seed"] == 7 and set(others).isdisjoint(texts)
    same, again = evaluated(tasks, more=",seed=7", random_seed=3)
    assert same["arts_settings"]["seed"] == 7 and again == others, "an argument of the model comes first"
    unseeded, first = evaluated(tasks, random_seed=None)
    assert unseeded["arts_settings"]["seed"] == 0 and first == texts


def test_a_model_that_was_made_before(tasks: TaskManager, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    lm = ArtsLM(model=smollm2(), verifier="none", n_threads=THREADS, trace=run, **SETTINGS)
    try:
        _, texts = evaluated(tasks, lm, random_seed=7)
        assert texts == evaluated(tasks, more=",seed=7")[1]
        assert [tree.meta["key"] for tree in read_trees(run)], "its tree is kept"
        with pytest.raises(RunFolderError, match="seed was 7 and is 8"):
            evaluated(tasks, lm, random_seed=8)
        assert evaluated(tasks, lm, random_seed=7)[1] == texts
    finally:
        lm.arts.close()


def test_the_users_sampling(tasks: TaskManager, caplog: pytest.LogCaptureFixture) -> None:
    plain, hot = evaluated(tasks)[1], evaluated(tasks, gen_kwargs="temperature=1.5,do_sample=true,top_k=0,top_p=1")[1]
    assert set(hot).isdisjoint(plain)
    one = evaluated(tasks, gen_kwargs={"temperature": 0})[1]
    assert one == evaluated(tasks, more=",strategy=greedy")[1] and len(one) == 1
    with pytest.raises(SettingsError, match="asks for sampling, and strategy is 'greedy'"):
        evaluated(tasks, more=",strategy=greedy", gen_kwargs="temperature=1.5,do_sample=true")

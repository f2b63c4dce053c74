"""pass@k, maj@k and votes over repeats, through lm-eval's own evaluation of a model that is not ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from arts_plugin.lm_eval import repeats

ROOT = Path(__file__).parents[2]
MEAN = {"aggregation": "mean", "higher_is_better": True}


class Scripted(LM):  # type: ignore[misc]
    """Answers each prompt with its next text."""

    def __init__(self, texts: dict[str, Sequence[str]]) -> None:
        super().__init__()
        self._texts: dict[str, Iterator[str]] = {prompt: iter(found) for prompt, found in texts.items()}

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return [next(self._texts[request.args[0]]) for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    return TaskManager(include_path=str(tmp_path_factory.mktemp("no_tasks")), include_defaults=False)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "_said", set())
    # What results.json says of the machine takes seconds to find out.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)


def evaluate(
    manager: TaskManager, texts: Sequence[Sequence[str]], golds: Sequence[Any], **config: Any
) -> dict[str, Any]:
    """The results of a task with one question for each of `texts`."""
    from datasets import Dataset

    rows = [{"q": f"question {i}", "a": gold} for i, gold in enumerate(golds)]
    task = {
        "task": "scripted", "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}, "test_split": "test",
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "repeats": len(texts[0]),
        "generation_kwargs": {"until": ["\n\n"], "do_sample": True, "temperature": 1.0},
        "filter_list": [{"name": "all", "filter": [{"function": "arts_repeats"}]}], **config,
    }  # fmt: skip
    model = Scripted({row["q"]: found for row, found in zip(rows, texts, strict=True)})
    done = simple_evaluate(model, tasks=[task], task_manager=manager, bootstrap_iters=0)
    assert done is not None
    found: dict[str, Any] = done["results"]["scripted"] | {"samples": done["samples"]["scripted"]}
    found["better"] = done["higher_is_better"]["scripted"]
    return found


def subsets_mean(responses: Sequence[str], k: int, worth: Any) -> float:
    values = [worth(subset) for subset in combinations(responses, k)]
    return sum(values) / len(values)


def majority_is(gold: str, subset: Sequence[str]) -> float:
    counts = {answer: subset.count(answer) for answer in subset if answer != "[invalid]"}
    winners = [answer for answer, count in counts.items() if count == max(counts.values())]
    return winners.count(gold) / len(winners) if winners else 0.0


SAMPLES = [["18", "7", "18", "3", "7", "18"], ["5", "4", "4", "6", "[invalid]", "5"], ["1", "2", "2", "3", "3", "9"]]
GOLDS = ["18", "5", "8"]


@pytest.mark.parametrize(
    "last", [{"function": "arts_repeats"}, {"function": "take_first_k", "k": 6}], ids=["arts_repeats", "take_first_k"]
)
def test_figures_are_those_of_every_subset(manager: TaskManager, last: dict[str, Any]) -> None:
    metrics = [{"metric": name, "k": [1, 2, 4, 6], **MEAN} for name in ("arts_pass_at_k", "arts_maj_at_k")]
    found = evaluate(manager, SAMPLES, GOLDS, metric_list=metrics, filter_list=[{"name": "all", "filter": [last]}])
    for k in (1, 2, 4, 6):
        one_is_right = [
            subsets_mean(s, k, lambda subset, g=g: float(g in subset)) for s, g in zip(SAMPLES, GOLDS, strict=True)
        ]
        most_is_right = [subsets_mean(s, k, lambda subset, g=g: majority_is(g, subset)) for s, g in zip(SAMPLES, GOLDS, strict=True)]  # fmt: skip
        assert found[f"pass@{k},all"] == pytest.approx(sum(one_is_right) / 3), k
        assert found[f"maj@{k},all"] == pytest.approx(sum(most_is_right) / 3), k
    assert found["pass@1,all"] == found["maj@1,all"] == pytest.approx((3 / 6 + 2 / 6 + 0) / 3)
    assert [sample["pass@6"] for sample in found["samples"]] == [1.0, 1.0, 0.0]
    assert found["better"]["pass@4"] is True


def test_lm_evals_own_metrics_see_the_first_response_beside_ours(manager: TaskManager) -> None:
    exact = {"metric": "exact_match", "regexes_to_ignore": [",", "\\$"], **MEAN}
    metrics = [exact, exact | {"metric": "arts_pass_at_k"}]
    found = evaluate(manager, [["7", "$1,000"], ["1000", "7"]], [1000, 1000], metric_list=metrics)
    # Right is what exact_match with its own keys says; and k is 1 and all where it is not given.
    assert (found["exact_match,all"], found["pass@1,all"], found["pass@2,all"]) == (0.5, 0.5, 1.0)


def test_aggregation_and_direction_need_not_be_said(manager: TaskManager) -> None:
    found = evaluate(manager, [["a", "b"]], ["a"], metric_list=[{"metric": "arts_pass_at_k", "k": 2}])
    assert found["pass@2,all"] == 1.0 and found["better"]["pass@2"] is True


def test_equal_answers_vote_together_and_a_grader_of_ours_says_what_is_right(manager: TaskManager) -> None:
    texts = [["So \\boxed{1,000}.", "The answer is 7.", "\\boxed{1000}", "\\boxed{7}", "It is 1,000.00"]]
    steps = [{"function": "arts_extract", "extract": "auto"}]
    pipelines = [
        {"name": "all", "filter": [*steps, {"function": "arts_repeats"}]},
        {"name": "vote", "filter": [*steps, {"function": "arts_majority"}, {"function": "take_first"}]},
        {
            "name": "first",
            "filter": [
                {"function": "take_first_k", "k": 4},
                *steps,
                {"function": "arts_majority", "k": 2},
                {"function": "take_first"},
            ],
        },
    ]
    metrics = [{"metric": "arts_maj_at_k", "k": 5, "grader": "numeric", **MEAN}]
    samples = evaluate(manager, texts, ["Ten times 100.\n#### 1000"], metric_list=metrics, filter_list=pipelines)[
        "samples"
    ]
    votes = {sample["filter"]: sample for sample in samples}
    assert votes["all"]["maj@5"] == 1.0
    assert votes["vote"]["filtered_resps"] == ["1,000"] and votes["first"]["filtered_resps"] == ["1,000"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "k is 0; it must be a whole number of at least 1"),
        ({"k": [1, "four"]}, "k is [1, 'four']"),
        (
            {"score": "exact_mach"},
            "score is 'exact_mach', and lm-eval has no metric of that name; did you mean 'exact_match'",
        ),
        ({"no_such_key": 1}, "the metric exact_match cannot judge one response with {'no_such_key': 1}"),
        ({"grader": "maths"}, "unknown grader 'maths'; did you mean 'math'"),
        ({"grader": "numeric", "ignore_case": True}, "the grader numeric takes no ignore_case"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_the_rest_reported(
    manager: TaskManager, options: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = [{"metric": "exact_match", **MEAN}, {"metric": "arts_pass_at_k", **MEAN, **options}]
    found = evaluate(manager, [["a", "b"], ["b", "a"]], ["a", "a"], metric_list=metrics)
    (record,) = (r for r in caplog.records if r.name == "lm_eval.arts")
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"arts_pass_at_k is left out: {told}")
    assert found["exact_match,all"] == 0.5 and not any(key.startswith("pass@") for key in found)


def test_too_few_responses_are_told(manager: TaskManager, caplog: pytest.LogCaptureFixture) -> None:
    metrics = [{"metric": "arts_pass_at_k", "k": [1, 2, 8], **MEAN}]
    found = evaluate(
        manager, [["a", "b"], ["b", "a"]], ["a", "a"], metric_list=metrics, filter_list=[{"name": "all", "filter": [{"function": "take_first"}]}]
    )  # fmt: skip
    assert found["pass@1,all"] == 0.5 and "pass@2,all" not in found
    (line,) = (r.getMessage() for r in caplog.records if r.name == "lm_eval.arts")
    assert line == (
        "arts_pass_at_k: k = 2, 8 is left out, for a question has 1 response; set `repeats` in the task, and let the filter "
        "pipeline end in arts_repeats"
    )


def test_repeats_that_are_all_equal_are_told(manager: TaskManager, caplog: pytest.LogCaptureFixture) -> None:
    evaluate(manager, [["a", "a"], ["b", "b"]], ["a", "a"], metric_list=[{"metric": "arts_pass_at_k", **MEAN}])
    assert "the repeats of each of 2 questions are equal" in caplog.text
    caplog.clear()
    evaluate(manager, [["a", "a"], ["b", "c"]], ["a", "a"], metric_list=[{"metric": "arts_pass_at_k", **MEAN}])
    assert "are equal" not in caplog.text


def test_several_right_answers_are_refused_with_the_way_out(manager: TaskManager) -> None:
    with pytest.raises(repeats.ArtsError, match="TreeSearchTask with base: TASK"):
        evaluate(
            manager, [["a", "b"]], [["a", "A"]], doc_to_target="a", metric_list=[{"metric": "arts_pass_at_k", **MEAN}]
        )


def test_the_example_runs_as_it_stands(manager: TaskManager) -> None:
    (example,) = yaml.safe_load((ROOT / "examples" / "repeats" / "gsm8k_repeats.yaml").read_text())["task"]
    assert example.pop("task") == "gsm8k"
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("### pass@k and maj@k of any task", 1)[1]
    shown = yaml.safe_load(section.split("```yaml\n", 1)[1].split("```", 1)[0])
    texts = [["That is 20 - 2 = 18.\n#### 18", "17", "$18.", *["It is 7."] * 13]]
    for config in (example, shown):
        found = evaluate(manager, texts, ["20 - 2 = 18\n#### 18"], **config)
        assert found["exact_match,flexible-extract"] == 1.0
        assert found["pass@1,flexible-extract"] == pytest.approx(2 / 16)
        assert found["pass@16,flexible-extract"] == 1.0 and found["maj@16,flexible-extract"] == 0.0

"""The task adapter, with answers that are given to it: stock filters and metrics on every trajectory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.errors import ArtsError

pytest.importorskip("lm_eval")

from arts_plugin.evaluation.search_metrics import ratio, ratio_stderr
from arts_plugin.lm_eval import releases
from arts_plugin.lm_eval.answer import Answer
from arts_plugin.lm_eval.requests import attached
from arts_plugin.lm_eval.task import TreeSearchTask
from arts_plugin.training.grades import Graded, GradesFile, read_grades

ROWS = [
    {"id": "a", "question": "1 + 1?", "answer": "2", "solution": "1 + 1 = 2", "subject": "sum", "level": "1"},
    {"id": "b", "question": "2 + 2\u2028?", "answer": "4", "solution": "2 + 2 = 4", "subject": "sum", "level": None},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("gsm8k_test", "gsm8k_train"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS))
    return tmp_path


def task(folder: Path, **more: Any) -> TreeSearchTask:
    from arts_tasks.rows import gsm8k

    config = {
        "task": "t", "base": "gsm8k/gsm8k.yaml", "ks": [1, 2, 4], "rows": gsm8k, "num_fewshot": 0,
        "data": {"test": "gsm8k_test.jsonl", "train": "gsm8k_train.jsonl"}, "metadata": {"arts_data": str(folder)},
    }  # fmt: skip
    return TreeSearchTask({**config, **more})


def answer(*texts: str, flows: tuple[float, ...] = (), chosen: int = 0, **search: Any) -> Answer:
    trajectories = [
        {"leaf": 10 + i, "text": text, "answer": text, "logprob": -2.0 * i, "tokens": 2, "count": 1, "stop": "eos", "chosen": i == chosen,
         "log_flow": flows[i] if flows else -1.0 * i}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return Answer(
        texts[chosen] if texts else "",
        {
            "trajectories": trajectories,
            "cost": {"decoded_tokens": 10, "refilled_tokens": 1, "verifier_tokens": 0, "seconds": 2.0},
            "search": {"strategy": "best_of_n", "select": "flow", "scorer": "rfm" if flows else "logprob", **search},
        },
    )


def run(made: TreeSearchTask, *responses: Any) -> list[dict[str, dict[str, Any]]]:
    """For each document the metrics by filter, as lm-eval calls for them."""
    made.build_all_requests(rank=0, world_size=1)
    for instance, response in zip(made.instances, responses, strict=True):
        instance.resps = response if isinstance(response, list) else [response]
    made.apply_filters()
    return [
        {name: made.process_results(i.doc, [releases.unwrapped(made_of)]) for name, made_of in i.filtered_resps.items()}
        for i in made.instances
    ]


def test_prompts_are_the_stock_ones(data: Path) -> None:
    made = task(data)
    assert made.doc_to_text(made.eval_docs[0]) == "Question: 1 + 1?\nAnswer:"
    assert made.doc_to_target(made.eval_docs[0]) == "1 + 1 = 2\n#### 2"
    assert [pipeline.name for pipeline in releases.pipelines(made)] == ["strict-match", "flexible-extract"]
    assert made.dump_config()["base"] == "gsm8k/gsm8k.yaml" and made.config.task == "t"


def test_every_trajectory_is_filtered_and_scored(data: Path) -> None:
    """By each of the task's filters: one trace says it the strict way, one does not, two are wrong."""
    good, loose, bad = "so\n#### 2", "it is 2", "it is 3\n#### 3"
    first, second = run(
        task(data),
        answer(good, loose, bad, bad, flows=(0.0, 3.0, 1.0, 2.0)),
        answer("it is 4", "#### 4", "5", "no", flows=(1.0, 2.0, 3.0, 4.0), chosen=2),
    )
    strict, flexible = first["strict-match"], first["flexible-extract"]
    assert (strict["exact_match"], flexible["exact_match"]) == (1.0, 1.0)
    assert (strict["pass@1"], flexible["pass@1"]) == (0.25, 0.5)
    assert (strict["best_of@4_flow"], flexible["best_of@4_flow"]) == (0.0, 1.0)
    assert (strict["majority@4"], flexible["majority@4"]) == (0.0, 0.5)  # two for 3 against one; and against two
    assert strict["answer_coverage"] == (3.0, 4.0) and flexible["answer_coverage"] == (4.0, 4.0)
    assert strict["oracle@4"] == 1.0
    assert strict["proposer_tokens"] == 11 and strict["seconds"] == 2.0 and "seconds" not in flexible
    assert second["strict-match"]["exact_match"] == 0.0 and second["strict-match"]["pass@1"] == 0.25


def test_what_lm_eval_is_told_of_each_figure(data: Path) -> None:
    """An aggregation for each, and of ratios a standard error of our own."""
    made = task(data)
    found = run(made, answer("#### 2", "3", flows=(0.0, 1.0)), answer("#### 4", "4", flows=(1.0, 0.0)))
    aggregations, better = made.aggregation(), made.higher_is_better()
    for name in found[0]["strict-match"]:
        assert name in aggregations, name
    assert aggregations["gap_closed_flow"] is ratio and aggregations["gap_closed_flow_stderr"] is ratio_stderr
    assert aggregations["pass@1"].__name__ == "mean" and "pass@1_stderr" not in found[0]["strict-match"]
    assert better["pass@1"] and not better["seconds"] and better["exact_match"]


def test_the_sample_log_holds_every_trajectory(data: Path) -> None:
    """lm-eval logs `str` of every item: JSON, with what was right."""
    made = task(data)
    run(made, answer("#### 2", "3"), answer("#### 4"))
    logged = [json.loads(str(e)) for e in made.instances[0].filtered_resps["strict-match"]]
    assert [e["correct"] for e in logged] == [True, False] and logged[1]["vote"] is None
    assert {"response", "vote", "log_flow", "mean_logprob", "tokens", "count", "chosen"} <= set(logged[0])


def test_any_model_can_run_it(data: Path) -> None:
    """Plain strings: one is one trace; several are as many."""
    made = task(data)
    (first, second) = run(made, "#### 2", "#### 5")
    assert first["strict-match"]["pass@1"] == 1.0 and second["strict-match"]["pass@1"] == 0.0
    assert "majority@2" not in first["strict-match"] and "seconds" not in first["strict-match"]
    (first, second) = run(task(data), ["#### 2", "#### 3", "#### 2"], ["4", "4", "#### 4"])
    assert (
        first["strict-match"]["majority@2"] == pytest.approx(2 / 3, abs=0.05)
        and first["strict-match"]["pass@1"] == 2 / 3
    )
    assert second["flexible-extract"]["pass@1"] == 1.0


def test_trees_are_no_samples(data: Path) -> None:
    """Merged proposals count as often as they were drawn; k-subsets of a tree are not reported."""
    grown = answer("#### 3", "#### 2", flows=(1.0, 0.0), strategy="arts", select="majority")
    grown.trajectories[1]["count"] = 3
    made = task(data)
    (first, _) = run(made, grown, answer("#### 4", strategy="arts", select="majority"))
    values = first["strict-match"]
    assert values["choose_majority"] == 1.0 and values["choose_flow"] == 0.0 and values["oracle"] == 1.0
    assert (values["anytime@1"], values["anytime@4"]) == (0.0, 1.0)
    assert not {"pass@1", "majority@2", "gap_closed_flow"} & set(values) and values["traces"] == 4.0


def test_fewer_traces_than_others_have(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first, second = run(task(data), answer("#### 2"), answer("#### 4", "4", "4", "4"))
    assert "1 of 2 questions have fewer finished traces than 4" in caplog.text
    assert first["strict-match"].keys() == second["strict-match"].keys()
    assert first["strict-match"]["majority@4"] == 1.0


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "grades.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "right", "votes"),
    [
        (None, {10: False, 11: False, 12: True}, {10: None, 11: None, 12: "2"}),
        ("strict-match", {10: False, 11: False, 12: True}, {10: None, 11: None, 12: "2"}),
        ("flexible-extract", {10: True, 11: False, 12: True}, {10: "2", 11: "3", 12: "2"}),
    ],
)
def test_labels_go_beside_the_trees(
    data: Path, tmp_path: Path, name: str | None, right: dict[int, bool], votes: dict[int, str | None]
) -> None:
    """By one filter, the figures of which lm-eval prints too; a second evaluation of the same run adds nothing."""
    where = {"run": str(tmp_path / "run"), "key": "k1"}
    for _ in range(2):
        made = task(data, filter=name)
        (first, _) = run(made, answer("it is 2", "3", "#### 2", **where), answer("#### 4"))
        made.aggregation()
    (graded,) = read_grades(tmp_path / "run").values()
    assert graded == Graded(
        "k1", "t/a", "1 + 1 = 2\n#### 2", f"t: exact_match, {name or 'strict-match'}", right, "sum", "1", "t", votes
    )
    assert sum(graded.correct.values()) / 3 == first[name or "strict-match"]["pass@1"]
    assert len(lines(tmp_path / "run")) == 1 and made.dump_config()["filter"] == (name or "strict-match")


def test_labels_are_there_before_anything_is_added_up(data: Path, tmp_path: Path) -> None:
    """lm-eval adds up in the first of several processes only, and each has a run folder of its own."""
    made = task(data)
    run(made, answer("#### 2", run=str(tmp_path / "rank-1"), key="k1"), answer("#### 4"))
    assert [line["correct"] for line in lines(tmp_path / "rank-1")] == [{"10": True}]


def test_new_labels_replace_those_of_the_same_question(data: Path, tmp_path: Path) -> None:
    where = {"run": str(tmp_path), "key": "k1"}
    made = task(data)
    run(made, answer("3", **where), answer("#### 4"))
    made.process_results(made.eval_docs[0], [made.instances[0].filtered_resps["strict-match"]])
    assert len(lines(tmp_path)) == 1
    run(task(data, filter="flexible-extract"), answer("2", **where), answer("#### 4"))
    assert [line["correct"] for line in lines(tmp_path)] == [{"10": False}, {"10": True}]


def test_two_questions_with_one_tree(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is right for one may be wrong for the other: the first one's labels stay, in every evaluation."""
    where = {"run": str(tmp_path), "key": "k1"}
    for name in ("t", "t", "other"):
        run(task(data, task=name), answer("#### 2", "#### 4", **where), answer("#### 2", "#### 4", **where))
    assert [(line["id"], line["correct"]) for line in lines(tmp_path)] == [("t/a", {"10": True, "11": False})]
    said = [record.getMessage() for record in caplog.records if "keeps the labels" in record.getMessage()]
    assert [message.split(", and")[0] for message in said] == ["t/b asks what t/a asks"] * 2 + [
        "other/a asks what t/a asks"
    ]


def test_labels_from_before_tasks_were_noted_are_replaced(data: Path, tmp_path: Path) -> None:
    file = GradesFile(tmp_path)
    file.put(Graded("k1", "t-0", "2", "lm-eval", {10: False}))
    file.close()
    run(task(data), answer("#### 2", run=str(tmp_path), key="k1"), answer("#### 4"))
    assert [line["id"] for line in lines(tmp_path)] == ["t-0", "t/a"]


@pytest.mark.parametrize(
    ("name", "text", "judged"),
    [
        (None, "it is 2", (False, None)),
        ("flexible-extract", "it is 2", (True, "2")),
        ("flexible-extract", "it is 3", (False, "3")),
    ],
)
def test_a_trajectory_on_its_own(data: Path, name: str | None, text: str, judged: tuple[bool, str | None]) -> None:
    made = task(data, filter=name)
    made.build_all_requests(rank=0, world_size=1)
    assert made.judged(made.instances[0], text) == judged
    assert made.instances[0].resps == []


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("numbers", "flows", "best"),
    [
        ("5522", (NAN, 0.0, 1.0, 1.0), 1.0),  # the worst, wherever it stands
        ("2255", (0.0, -INF, -1.0, -1.0), 1.0),
        ("2255", (0.0, 0.0, INF, 0.0), 0.0),
        ("2255", (NAN, NAN, NAN, NAN), 0.5),  # all alike
    ],
)
@pytest.mark.filterwarnings("error")
def test_scores_that_are_no_numbers(
    data: Path, numbers: str, flows: tuple[float, ...], best: float, caplog: pytest.LogCaptureFixture
) -> None:
    """They are named, take their rank, and get into no sum."""
    texts = [f"#### {number}" for number in numbers]
    made = task(data, ks=[4])
    (first, _) = run(made, answer(*texts, flows=flows), answer("#### 4", "1", "1", "1", flows=(3.0, 2.0, 1.0, 0.0)))
    values = first["strict-match"]
    assert values["best_of@4_flow"] == best
    every = [v for value in values.values() for v in (value if isinstance(value, tuple) else (value,))]
    assert all(value == value and abs(value) < INF for value in every)
    assert "t: scores that are no finite numbers, in 1 of 2 questions (t/a)" in caplog.text
    logged = json.loads(str(made.instances[0].filtered_resps["strict-match"][0]), parse_constant=pytest.fail)
    assert logged["log_flow"] == (flows[0] if flows[0] == 0.0 else "nan")


@pytest.mark.filterwarnings("error")
def test_a_trace_without_a_score_has_no_vote(data: Path) -> None:
    """Two right traces, one of them with NaN: the other's weight is what decides."""
    made = task(data, ks=[1, 2])
    (first, _) = run(made, answer("#### 2", "#### 2", flows=(NAN, 1.0)), answer("#### 4", "#### 4"))
    assert first["strict-match"]["weighted_vote@2"] == 1.0
    assert first["strict-match"]["gap_closed_weighted_vote"] == (0.0, 0.0)
    (first, _) = run(task(data, ks=[1, 2]), answer("#### 5", "#### 2", flows=(NAN, -300.0)), answer("#### 4", "#### 4"))
    assert first["strict-match"]["weighted_vote@2"] == 1.0


def test_settings_of_a_task(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come with each request and are not among its gen_kwargs, which any model reads; pickled requests have them too."""
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "cache"))
    for own in ({"chat": "template", "width": "3"}, {"chat": "plain"}):
        made = task(data, arts=own)
        for cached in (True, False):
            made.build_all_requests(rank=0, world_size=1, cache_requests=cached)
            assert [attached(instance) for instance in made.instances] == [made.arts] * 2
            assert not [name for name in made.instances[0].args[1] if name.startswith("arts")]
    assert made.dump_config()["arts"] == made.arts == {"chat": "plain"}
    instance = made.construct_requests(made.eval_docs[0], "?", metadata=("t", 0, 1))
    assert attached(instance) == {"chat": "plain"}


def test_a_cache_of_other_settings(data: Path) -> None:
    """lm-eval's cache does not know them, and would hand out what another setting made."""
    with pytest.raises(ArtsError, match=r"were made with arts \{'width': 4\}, and the task says \{\}\. Use another"):
        run(task(data), answer("#### 2", own={"width": 4}), answer("#### 4", own={"width": 4}))
    run(task(data, arts={"width": 4}), answer("#### 2", own={"width": 4}), answer("#### 4", own={"width": 4}))


def test_predict_only(data: Path) -> None:
    made = task(data)
    made.override_metric("bypass")
    (first, _) = run(made, answer("#### 2", "3"), "x")
    assert set(first["strict-match"]) == {"bypass"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"base": "gsm8k/none.yaml"}, "base is 'gsm8k/none.yaml', and there is no "),
        ({"base": "hellaswag/hellaswag.yaml"}, "which is multiple_choice; only tasks that generate"),
        ({"ks": [0, 2]}, "numbers of traces are at least 1"),
        ({"ks": "all"}, "it must be a list of numbers"),
        ({"metadata": {"arts_data": "/nowhere"}}, "there is no such file or folder"),
        ({"data": None}, "does not say which files it reads"),
        ({"data": {"test": "other.jsonl"}}, "other.jsonl is missing; it is needed for the questions"),
        ({"arts": "template"}, "arts is 'template'; it must be settings and their values"),
        ({"arts": {"slots": 4}}, "slots in arts: it belongs to the whole run; set it in --model_args"),
        ({"arts": {"widht": 4}}, "unknown setting 'widht'.*did you mean 'width'"),
        ({"arts": {"width": 0}}, "width is 0; it must be at least 1"),
        ({"filter": "strict"}, "filter of t is 'strict'; it has strict-match, flexible-extract"),
        ({"metric": "bleu"}, None),
    ],
)  # fmt: skip
def test_bad_input(data: Path, more: dict[str, Any], message: str | None) -> None:
    if message is None:
        with pytest.raises(ArtsError, match="t has no metric 'bleu', which says what is right; it has exact_match"):
            run(task(data, **more), answer("#### 2"), answer("#### 4"))
        return
    with pytest.raises(ArtsError, match=message):
        task(data, **more)


def test_examples_without_a_file_of_them(data: Path) -> None:
    """Refused when they are asked for, and never drawn from the questions themselves."""
    made = task(data, data={"test": "gsm8k_test.jsonl", "train": "no.jsonl"}, num_fewshot=5)
    with pytest.raises(ArtsError, match=r"no\.jsonl is missing; it is needed for the examples in the prompt"):
        made.build_all_requests(limit=1, rank=0, world_size=1)
    made.set_config(key="num_fewshot", value=0)
    made.build_all_requests(limit=1, rank=0, world_size=1)
    assert len(made.instances) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "c", "question": "x"', "line 3 is no row of this task: JSONDecodeError"),
        ('{"id": "c", "question": "x"}', "line 3 is no row of this task: KeyError: 'solution'"),
    ],
)
def test_damaged_rows(data: Path, line: str, message: str) -> None:
    with (data / "gsm8k_test.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ArtsError, match=message):
        task(data)


def test_a_question_that_is_asked_twice(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (data / "gsm8k_test.jsonl").open("a") as file:
        file.write(json.dumps({**ROWS[0], "id": "again"}))
    with caplog.at_level(logging.WARNING):
        assert len(task(data).eval_docs) == 2
    assert "line 3 asks what line 1 asks: left out" in caplog.text


def test_without_a_hub_the_way_out_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(ArtsError, match=r"openai/gsm8k cannot be loaded.*gsm8k_test.jsonl.*--metadata"):
        task(data, metadata={})

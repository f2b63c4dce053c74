"""Reports on what lm-eval logged, of a model that is not ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from arts_plugin.cli import main
from arts_plugin.errors import ArtsError
from arts_plugin.report.analysis import analyse
from arts_plugin.report.samples import read_any
from tests.report_runs import chain_tree, write_run

DATE = "2026-01-02T03-04-05.678901"
pytest.importorskip("matplotlib")


def record(doc: int, answers: list[str], right: str = "1", name: str = "none", **more: Any) -> dict[str, Any]:
    """A line of the log, as lm-eval writes it."""
    entries = [
        {"response": f"it is {a}", "vote": a, "correct": a == right, "log_flow": None, "mean_logprob": None, "tokens": None,
         "count": 1, "leaf": None, "chosen": i == 0}
        for i, a in enumerate(answers)
    ]  # fmt: skip
    return {
        "doc_id": doc, "doc": {"id": f"d{doc}", "subject": "sums", "level": str(8 + doc)}, "target": right,
        "arguments": {"gen_args_0": {"arg_0": f"question {doc}"}}, "resps": [[e["response"] for e in entries]],
        "filtered_resps": [[json.dumps(entry) for entry in entries]], "filter": name, **more,
    }  # fmt: skip


def write_log(
    folder: Path, records: list[dict[str, Any]], task: str = "arts_x", date: str = DATE, **config: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"samples_{task}_{date}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    results = {"model_name": "some/model", "config": {"model": "hf"}, "configs": {task: config}}
    (folder / f"results_{date}.json").write_text(json.dumps(results))
    return folder


def logged(**keys: Any) -> list[dict[str, Any]]:
    return [record(i, answers, **keys) for i, answers in enumerate((["1", "1", "2"], ["2", "1", "3"], ["2", "2", "2"]))]


def test_entries_of_the_adapter(tmp_path: Path) -> None:
    """Its entries as lm-eval logs them, which is as `str` makes them."""
    pytest.importorskip("lm_eval")
    from arts_plugin.lm_eval.task import Entry

    line = record(0, ["1", "2"])
    entries = [
        Entry(response=a, vote=a, correct=a == "1", log_flow=flow, mean_logprob=-1.0, tokens=5, count=2, leaf=3, chosen=a == "1")
        for a, flow in (("1", 0.5), ("2", -0.5))
    ]  # fmt: skip
    line["filtered_resps"], line["best_of@2_flow"] = [[str(entry) for entry in entries]], 1.0
    (question,) = read_any(write_log(tmp_path / "log", [line])).questions
    assert question.answers == ("1", "1", "2", "2") and question.chosen_right == 1.0
    assert question.scores["flow"].tolist() == [0.5, 0.5, -0.5, -0.5] and question.decoded == 20


def test_figures_without_scores_or_costs(tmp_path: Path) -> None:
    run = read_any(write_log(tmp_path / "out" / "model", logged()))
    assert read_any(tmp_path / "out").path == run.path  # the folder above it is what --output_path named
    made = analyse(run)
    assert [row["selector"] for row in made["table"]] == ["random", "majority", "oracle"] and not made["calibration"]
    assert made["chosen"][0] == pytest.approx(1 / 3) and made["run"]["model"] == "some/model"
    assert [row["group"] for row in made["groups"]["level"]] == ["8", "9", "10"]
    done = CliRunner().invoke(main, ["report", str(run.path)], catch_exceptions=False)
    assert done.exit_code == 0
    page = (run.path / "report" / "report.html").read_text()
    assert "Accuracy against k" in page and "cost" not in [p.stem for p in (run.path / "report").glob("*.png")]
    assert "tokens generated" not in page


def test_beside_a_search(tmp_path: Path) -> None:
    """Paired by its prompts; without a cost it is in the table and on no axis of cost."""
    trees = [chain_tree(f"q{i}", ["1"], [0.0], strategy="arts") for i in range(3)]
    for i, tree in enumerate(trees):
        tree.prompt = f"question {i}"
    run = write_run(tmp_path / "run", trees, {tree.meta["id"]: "1" for tree in trees})
    out = write_log(tmp_path / "log", logged())
    done = CliRunner().invoke(main, ["report", str(run), str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    points = json.loads((run / "report" / "report.json").read_text())["points"]
    assert [(p["label"], p["questions"], p["tokens"]) for p in points] == [
        ("log: samples", 3, None), ("log: pass@1", 3, None), ("log: majority", 3, None),
    ]  # fmt: skip


def test_scores_costs_and_filters(tmp_path: Path) -> None:
    """Of a search by this package: the filter that labels, and what was spent, which the first filter's lines say."""
    records = [
        *logged(name="strict", proposer_tokens=30.0, verifier_tokens=4.0, seconds=2.0),
        *(record(i, ["1", "1", "1"], name="flexible", **{"best_of@2_flow": 1.0}) for i in range(3)),
    ]
    for number, line in enumerate(records):
        entries = [json.loads(entry) for entry in line["filtered_resps"][0]]
        for place, entry in enumerate(entries):
            entry.update(log_flow=float(place), mean_logprob=-1.0, tokens=10, leaf=place)
        if number == 5:
            entries[1]["log_flow"] = "nan"
        line["filtered_resps"] = [[json.dumps(entry) for entry in entries]]
    run = read_any(write_log(tmp_path / "log", records, filter="flexible"))
    assert [question.pass_at_1 for question in run.questions] == [1.0, 1.0] and run.scorer == "flow" and run.costed
    assert (run.questions[0].decoded, run.questions[0].judged, run.seconds) == (30, 4, 2.0)
    assert run.left_out == [f"samples_arts_x_{DATE}.jsonl, line 6: question arts_x/d2: flow of trajectory 1 is NaN"]
    first = read_any(write_log(tmp_path / "other", records))
    assert [question.pass_at_1 for question in first.questions] == pytest.approx([2 / 3, 1 / 3, 0.0])


def test_a_log_of_lm_eval_0_5_says_the_same(tmp_path: Path) -> None:
    nested = [{**line, "filtered_resps": [line["filtered_resps"]]} for line in logged()]
    runs = [read_any(write_log(tmp_path / name, lines)) for name, lines in (("log", logged()), ("nested", nested))]
    assert [[question.answers for question in run.questions] for run in runs] == [
        [q.answers for q in runs[0].questions]
    ] * 2
    assert len(runs[1].questions) == 3 and not runs[1].left_out


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    records = [*logged(), {**record(3, ["1"]), "filtered_resps": [["plain text"]]}, record(0, ["1"])]
    folder = write_log(tmp_path / "log", records)
    with (folder / f"samples_arts_x_{DATE}.jsonl").open("a") as file:
        file.write('{"doc_id": 7, "fil')
    run = read_any(folder)
    assert len(run.questions) == 3
    said = "\n".join(run.left_out)
    assert "line 4: not an answer of an arts_* task" in said and "line 6: not a line of a log" in said
    assert "line 5: question arts_x/d0 was there before" in said
    write_log(folder, logged()[:2], date="2027-01-02T03-04-05.678901")
    assert len(read_any(folder).questions) == 2  # the last log of a task
    write_log(folder, logged(), task="arts_y")
    with pytest.raises(ArtsError, match=r"of several tasks \(arts_x, arts_y\)"):
        analyse(read_any(folder))
    assert read_any(folder, "arts_y").tasks == ["arts_y"]
    with pytest.raises(ArtsError, match="no question of task 'z'; it has those of arts_x, arts_y"):
        read_any(folder, "z")
    write_log(tmp_path / "more", logged())
    with pytest.raises(ArtsError, match=r"logs of several models \(log, more\); name one"):
        read_any(tmp_path)
    grown = write_log(tmp_path / "grown", [{**record(0, ["1"]), "anytime@1": 1.0}])
    with pytest.raises(ArtsError, match="report on the run folder that trace= names"):
        read_any(grown)
    with pytest.raises(ArtsError, match="is not graded"):
        bare = record(0, ["1"])
        bare["filtered_resps"] = [[bare["filtered_resps"][0][0].replace("true", "null", 1)]]
        read_any(write_log(tmp_path / "bare", [bare]))
    with pytest.raises(ArtsError, match=r"run\.json cannot be read"):
        read_any(tmp_path / "nowhere")

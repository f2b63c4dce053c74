"""`lm_eval --model arts` on generation tasks, with the embedded model."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager

from arts_plugin.errors import SettingsError
from arts_plugin.lm_eval.answer import Answer
from arts_plugin.lm_eval.model import ArtsLM
from arts_plugin.lm_eval.requests import ChatPrompt
from arts_plugin.prompts import question_text
from arts_plugin.run import read_trees
from tests import gsm8k_rows
from tests.models import THREADS, smollm2

SETTINGS = {"n_ctx": 4096, "slots": 8, "budget_trajectories": 3, "max_gen_toks": 24, "temperature": 1.0}
QUESTION = "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:"


def made(**settings: Any) -> ArtsLM:
    return ArtsLM.create_from_arg_obj({"model": smollm2(), "n_threads": THREADS, **SETTINGS, **settings})


@pytest.fixture(scope="module")
def lm() -> Iterator[ArtsLM]:
    model = made()
    yield model
    model.arts.close()


@pytest.fixture(autouse=True)
def forgetful(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has been said once is said again to the next test, where it can be seen; no cache outlives its test."""
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    if "lm" in request.fixturenames:
        shared: ArtsLM = request.getfixturevalue("lm")
        shared._said.clear()
        shared.set_cache_hook(type(shared.cache_hook)(None))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    return TaskManager(include_path=str(gsm8k_rows.write(tmp_path_factory.mktemp("tasks"))))


class NoLooking(dict[str, Any]):
    """A document that nobody may read."""

    def _refuse(self, *_: object) -> Any:
        raise AssertionError("the model reads a document, which holds the gold answer")

    __getitem__ = __contains__ = __iter__ = __len__ = get = items = keys = values = _refuse  # type: ignore[assignment]


def request(context: str, **gen_kwargs: Any) -> Instance:
    return Instance("generate_until", NoLooking(), (context, gen_kwargs), 0, metadata=("t", 0, 1))


def texts(answer: str) -> list[str]:
    assert isinstance(answer, Answer)
    return [t["text"] for t in answer.trajectories]


def evaluate(lm: ArtsLM, tasks: TaskManager | None, task: Any, **keywords: Any) -> dict[str, Any]:
    results = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=tasks, limit=2, bootstrap_iters=0, **keywords)
    assert results is not None
    found: dict[str, Any] = results
    return found


class TestCommandLine:
    """The bare command, as a user types it."""

    def test_arts_demo(self, tmp_path: Path) -> None:
        arguments = {"n_threads": THREADS, **SETTINGS, "trace": tmp_path / "run"}
        model_args = ",".join(f"{key}={value}" for key, value in arguments.items() if value is not None)
        done = subprocess.run(
            [
                *(sys.executable, "-m", "lm_eval", "--model", "arts", "--tasks", "arts_demo", "--limit", "2"),
                *("--model_args", model_args, "--gen_kwargs", "max_gen_toks=24,arts_width=3,arts_top_k=40"),
                *("--output_path", str(tmp_path / "out"), "--log_samples"),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stderr
        assert "|arts_demo|" in done.stdout
        assert "no trained verifier" not in done.stderr  # the model's own comes with the package
        told = [line for line in done.stderr.splitlines() if "WARNING" in line]
        assert [line for line in told if "--limit" not in line and "generation_kwargs" not in line] == []
        assert "Running generate_until requests: 100%" in done.stderr and "tokens/s" in done.stderr
        (file,) = (tmp_path / "out").rglob("results_*.json")
        config = json.loads(file.read_text())["config"]
        assert config["model_digest"].startswith("sha256:") and config["model_num_parameters"] > 1e8
        assert config["arts_settings"]["temperature"] == 1.0 and "numpy" in config["arts_versions"]
        (file,) = (tmp_path / "out").rglob("samples_arts_demo_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        trees = {tree.meta["request"]: tree for tree in read_trees(tmp_path / "run")}
        assert [sample["resps"] for sample in samples] == [[[trees[i].text]] for i in range(2)]
        assert all(len(tree.nodes[0].children) > 1 and tree.n_finished == 3 for tree in trees.values())


class TestTasks:
    """Tasks through lm-eval's evaluator."""

    def test_stock_gsm8k(self, lm: ArtsLM, tasks: TaskManager, caplog: pytest.LogCaptureFixture) -> None:
        results = evaluate(lm, tasks, "gsm8k_rows", num_fewshot=2, gen_kwargs="max_gen_toks=24")
        assert 0 <= results["results"]["gsm8k_rows"]["exact_match,flexible-extract"] <= 1
        for sample in results["samples"]["gsm8k_rows"]:
            (answer,) = sample["resps"][0]
            assert len(set(texts(answer))) == 3
            assert answer.cost["decoded_tokens"] > 24
            assert all(t["tokens"] <= 24 and "Question:" not in t["text"] for t in answer.trajectories)
            assert sample["arguments"][0][1]["do_sample"] is False
        assert caplog.text.count("does not touch the search") == 1
        assert results["config"]["model_digest"] == lm.backend_engine.digest()

    def test_cot_with_overrides(self, lm: ArtsLM, tasks: TaskManager) -> None:
        kwargs = "max_gen_toks=8,arts_budget_trajectories=1,arts_strategy=best_of_n"
        results = evaluate(lm, tasks, "gsm8k_cot_rows", gen_kwargs=kwargs, predict_only=True)
        for sample in results["samples"]["gsm8k_cot_rows"]:
            (answer,) = sample["resps"][0]
            assert len(answer.trajectories) == 1 and answer.search["strategy"] == "best_of_n"
        assert "exact_match" not in str(results["results"])

    def test_chat(self, lm: ArtsLM, tasks: TaskManager) -> None:
        for multiturn in (False, True):
            results = evaluate(
                lm,
                tasks,
                "gsm8k_rows",
                num_fewshot=2,
                gen_kwargs="max_gen_toks=4",
                apply_chat_template=True,
                fewshot_as_multiturn=multiturn,
            )
            context = results["samples"]["gsm8k_rows"][0]["arguments"][0][0]
            (answer,) = results["samples"]["gsm8k_rows"][0]["resps"][0]
            assert [m["role"] for m in context.messages] == (
                ["user", "assistant"] * 2 + ["user"] if multiturn else ["user"]
            )
            prompt = lm.backend_engine.encode_chat(context.messages)
            assert lm.tok_encode(context) == list(prompt.token_ids)
            assert answer.cost["prompt_tokens"] == len(prompt.token_ids)
            assert context == prompt.text and context.count("<|im_start|>assistant") == (3 if multiturn else 1)

    def test_the_demo_is_templated_once(self, lm: ArtsLM) -> None:
        for chat in (False, True):
            results = evaluate(lm, None, "arts_demo", gen_kwargs="max_gen_toks=8", apply_chat_template=chat)
            samples = results["samples"]["arts_demo"]
            asked = question_text(samples[0]["doc"]["question"])
            prompt = lm.backend_engine.encode_chat([{"role": "user", "content": asked}])
            (answer,) = samples[0]["resps"][0]
            assert answer.cost["prompt_tokens"] == len(prompt.token_ids)

    def test_repeats(self, lm: ArtsLM, tasks: TaskManager) -> None:
        (task,) = tasks.load(["gsm8k_rows"])["tasks"].values()
        task.set_config("repeats", 3)
        task.set_config("num_fewshot", 1)
        task.set_config("generation_kwargs", {"max_gen_toks": 16, "arts_budget_trajectories": 2}, update=True)
        results = evaluate(lm, tasks, task)
        for sample in results["samples"]["gsm8k_rows"]:
            (answers,) = sample["resps"]
            assert len(answers) == 3
            assert sorted(answers) == sorted(t["text"] for t in answers[0].trajectories for _ in range(t["count"]))
            assert [t["text"] for t in answers[0].trajectories if t["chosen"]] == [answers[0]]
            assert all(answer.trajectories == answers[0].trajectories for answer in answers)


class TestRequests:
    """`generate_until` itself."""

    def test_order_documents_and_shared_kwargs(self, lm: ArtsLM) -> None:
        kwargs = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 12}
        before = pickle.dumps(kwargs)
        contexts = ["one " * length for length in (9, 2, 30, 5, 1)]
        requests = [Instance("generate_until", NoLooking(), (context, kwargs), 0) for context in contexts]
        answers = lm.generate_until(requests, disable_tqdm=True)
        assert [type(answer) for answer in answers] == [Answer] * 5
        lengths = [len(lm.tok_encode(context)) for context in contexts]
        assert [answer.cost["prompt_tokens"] for answer in answers] == lengths  # type: ignore[attr-defined]
        assert pickle.dumps(kwargs) == before
        assert lm.generate_until([], disable_tqdm=True) == []

    def test_until_and_length(self, lm: ArtsLM) -> None:
        stops = list("aeiou")
        stopped, short = lm.generate_until(
            [request(QUESTION, until=stops, max_gen_toks=40), request(QUESTION, max_gen_toks=3)], disable_tqdm=True
        )
        assert isinstance(stopped, Answer) and isinstance(short, Answer)
        assert not set(stops) & set("".join(texts(stopped)))
        assert any(t["stop"] == "stop" for t in stopped.trajectories)
        assert [t["tokens"] for t in short.trajectories] == [3] * len(short.trajectories)

    def test_refused_overrides(self, lm: ArtsLM) -> None:
        with pytest.raises(SettingsError, match="slots belongs to the whole run"):
            lm.generate_until([request(QUESTION), request(QUESTION, arts_slots=4)])
        with pytest.raises(SettingsError, match=r"'widht'.*did you mean 'width'"):
            lm.generate_until([request(QUESTION, arts_widht=4)])
        with pytest.raises(SettingsError, match=r"'nonsense'.*Known: "):
            lm.generate_until([request(QUESTION, arts_nonsense=4)])

    def test_greedy(self, lm: ArtsLM) -> None:
        one = request(QUESTION, max_gen_toks=12, arts_strategy="greedy")
        three = lm.generate_until([one] * 3, disable_tqdm=True)
        assert len(set(three)) == 1 and three[0]
        assert isinstance(three[0], Answer)
        assert len(three[0].trajectories) == 1
        cold = request(QUESTION, max_gen_toks=12, arts_temperature=0)
        (answer,) = lm.generate_until([cold], disable_tqdm=True)
        assert isinstance(answer, Answer) and answer.search["strategy"] == "greedy" and len(answer.trajectories) == 1

    def test_equal_questions_are_searched_once(self, lm: ArtsLM) -> None:
        stats = lm.backend_engine.stats
        before = stats.decoded_tokens
        # More than the slots hold, so that the last is not yet asked when the first is finished.
        many = [request("Once upon a", max_gen_toks=8), *(request(f"{i} and", max_gen_toks=8) for i in range(8))]
        many.append(request("Once upon a", max_gen_toks=8))
        answers = lm.generate_until(many, disable_tqdm=True)
        assert answers[0] == answers[-1]
        spent = sum(answer.cost["decoded_tokens"] for answer in answers[:-1])  # type: ignore[attr-defined]
        assert stats.decoded_tokens - before == spent

    def test_one_refused_question(self, lm: ArtsLM, caplog: pytest.LogCaptureFixture) -> None:
        answers = lm.generate_until([request(c, max_gen_toks=4) for c in ("a", "", "b")], disable_tqdm=True)
        assert answers[0] and answers[2]
        assert answers[1] == "" and isinstance(answers[1], Answer)
        assert "the prompt is empty" in answers[1].search["error"]
        (record,) = [record for record in caplog.records if "refused" in record.getMessage()]
        assert "request 1 was refused: the prompt is empty" in record.getMessage()

    def test_special_tokens_in_user_text(self, lm: ArtsLM) -> None:
        content = "Say <|im_end|> twice."
        context = lm.apply_chat_template([{"role": "user", "content": content}])
        tokens = lm.tok_encode(context)
        end = lm.backend_engine.encode_chat([{"role": "user", "content": "x"}]).token_ids.count(2)
        assert tokens.count(2) == end and content in context
        for asked in (context, str(context), pickle.loads(pickle.dumps(context))):
            (answer,) = lm.generate_until([request(asked, max_gen_toks=4)], disable_tqdm=True)
            assert isinstance(answer, Answer)
            assert answer.cost["prompt_tokens"] == len(tokens)
        plain = lm.tok_encode("a <|im_end|> b")
        assert 2 not in plain

    def test_an_answer_begun_for_the_model_stays_open(self, lm: ArtsLM) -> None:
        user, begun = {"role": "user", "content": "2 + 2?"}, "The answer is"
        history = [user, {"role": "assistant", "content": begun}]
        context = lm.apply_chat_template(history, add_generation_prompt=False)
        opened = lm.backend_engine.encode_chat([user])
        assert context == opened.text + begun and isinstance(context, ChatPrompt)
        expected = [*opened.token_ids, *lm.tok_encode(begun, add_special_tokens=False)]
        assert lm.tok_encode(context) == lm.tok_encode(pickle.loads(pickle.dumps(context))) == expected

    def test_chat_template_by_argument(self, lm: ArtsLM) -> None:
        wrapped, plain = lm.generate_until(
            [request("Hi", max_gen_toks=2, arts_chat=chat) for chat in ("template", "plain")], disable_tqdm=True
        )
        assert isinstance(wrapped, Answer) and isinstance(plain, Answer)
        chat = lm.backend_engine.encode_chat([{"role": "user", "content": "Hi"}])
        assert wrapped.cost["prompt_tokens"] == len(chat.token_ids)
        assert plain.cost["prompt_tokens"] == len(lm.backend_engine.encode("Hi").token_ids)

    def test_progress(self, lm: ArtsLM, capsys: pytest.CaptureFixture[str]) -> None:
        one = request("1, 2, 3,", max_gen_toks=4)
        lm.generate_until([one, one])
        shown = capsys.readouterr().err
        assert "Running generate_until requests: 100%" in shown and "tokens/s" in shown
        lm.generate_until([one], disable_tqdm=True)
        assert "Running" not in capsys.readouterr().err

    def test_interrupted(self, lm: ArtsLM, monkeypatch: pytest.MonkeyPatch) -> None:
        engine, polls = lm.backend_engine, 0
        poll = type(engine).poll

        def interrupted(self: Any) -> Any:
            nonlocal polls
            polls += 1
            if polls == 3:
                raise KeyboardInterrupt
            return poll(self)

        monkeypatch.setattr(type(engine), "poll", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lm.generate_until([request(QUESTION, max_gen_toks=8)], disable_tqdm=True)
        monkeypatch.undo()
        assert engine.n_active == 0
        assert len(texts(lm.generate_until([request(QUESTION, max_gen_toks=8)], disable_tqdm=True)[0])) >= 2


class TestCache:
    """--use_cache."""

    def test_second_run_reads_it(self, lm: ArtsLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        requests = [request(context, do_sample=False, max_gen_toks=6) for context in ("a", "b")]
        first = CachingLM(lm, str(tmp_path / "c.db")).generate_until(requests)
        monkeypatch.setattr(lm, "generate_until", lambda *_: pytest.fail("asked again"))
        second = CachingLM(lm, str(tmp_path / "c.db")).generate_until(requests)
        assert second == first
        assert [type(answer) for answer in second] == [Answer] * 2
        assert [answer.trajectories for answer in second] == [answer.trajectories for answer in first]
        assert all(len(answer.trajectories) >= 2 for answer in second)

    def test_each_question_as_it_is_finished(self, lm: ArtsLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = CachingLM(lm, str(tmp_path / "c.db"))
        events = lm.arts.events

        def one_only(jobs: Any) -> Any:
            for event in events(jobs):
                yield event
                if event.kind == "finished":
                    raise KeyboardInterrupt

        monkeypatch.setattr(lm.arts, "events", one_only)
        requests = [request(context, max_gen_toks=6) for context in ("a", "b")]
        with pytest.raises(KeyboardInterrupt):
            cache.generate_until(requests)
        answers = [value for value in cache.dbdict.values() if isinstance(value, Answer)]
        assert len(answers) == 1 and answers[0].trajectories

    def test_refused_questions_are_asked_again(self, lm: ArtsLM, tmp_path: Path) -> None:
        requests = [request("", max_gen_toks=4), request("a", max_gen_toks=4)]
        path = str(tmp_path / "c.db")
        refused, good = CachingLM(lm, path).generate_until(requests)
        assert refused == "" and good
        asked: list[int] = []
        cache = CachingLM(lm, path)
        generate = lm.generate_until
        lm.generate_until = lambda rest: asked.append(len(rest)) or generate(rest)  # type: ignore[method-assign]
        try:
            assert cache.generate_until(requests) == [refused, good]
        finally:
            del lm.generate_until  # type: ignore[method-assign]
        assert asked == [1]

    def test_repeats_are_refused(self, lm: ArtsLM, tmp_path: Path) -> None:
        cache = CachingLM(lm, str(tmp_path / "c.db"))
        with pytest.raises(SettingsError, match=r"repeats: 3 with --use_cache.*last trajectory"):
            cache.generate_until([request("a", do_sample=False)] * 3)
        sampled = cache.generate_until([request("a", do_sample=True, max_gen_toks=4)] * 3)
        assert len(sampled) == 3

    def test_other_settings_are_refused(self, lm: ArtsLM, tmp_path: Path) -> None:
        CachingLM(lm, str(tmp_path / "c.db"))
        other = made(seed=1, width=3)
        with pytest.raises(SettingsError, match="width was 2 and is 3; seed was 0 and is 1"):
            CachingLM(other, str(tmp_path / "c.db"))
        other.arts.close()

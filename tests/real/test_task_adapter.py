"""The tasks that come with the package, through lm-eval's evaluator, on the embedded model and the rows we have."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.tasks import TaskManager

from arts_plugin.answers.extract import regex_extractor
from arts_plugin.api import REGEX_PREFIX
from arts_plugin.lm_eval.model import ArtsLM
from tests.models import THREADS, data, smollm2

TRACES = 3
SETTINGS = {"n_ctx": 8192, "slots": 16, "strategy": "best_of_n", "budget_trajectories": TRACES, "max_gen_toks": 16}
SUBJECTS = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law", "math",
    "other", "philosophy", "physics", "psychology",
)  # fmt: skip


@pytest.fixture(scope="module")
def lm() -> Iterator[ArtsLM]:
    model = ArtsLM.create_from_arg_obj({"model": smollm2(), "n_threads": THREADS, **SETTINGS})
    yield model
    model.arts.close()


@pytest.fixture(autouse=True)
def no_cache_outlives_its_test(lm: ArtsLM) -> None:
    lm.set_cache_hook(type(lm.cache_hook)(None))


def evaluate(lm: Any, task: str, folder: Path, **keywords: Any) -> dict[str, Any]:
    manager = TaskManager(metadata={"arts_data": str(folder)})
    keywords = {"limit": 2, "bootstrap_iters": 0, "gen_kwargs": "max_gen_toks=16", **keywords}
    results = lm_eval.simple_evaluate(lm, tasks=[task], task_manager=manager, **keywords)
    assert results is not None
    found: dict[str, Any] = results
    return found


@pytest.fixture(scope="module")
def rows() -> Path:
    """The folder of ../shared/data as it is."""
    return data("svamp.jsonl").parent


@pytest.fixture
def mmlu_pro(tmp_path: Path) -> Path:
    def row(subject: str, number: int) -> str:
        letter = "ABCDEFGHIJ"[number + 1]
        cot = f"A: Let's think step by step. {number} + 1 = {number + 1}. The answer is ({letter})."
        question = f"What is {number} + 1, in {subject}?"
        options = [str(i) for i in range(10)]
        return json.dumps(
            {"question": question, "options": options, "answer": letter, "category": subject, "cot_content": cot}
        )

    test = [row(subject, number % 8) for number, subject in enumerate(SUBJECTS * 2)]
    (tmp_path / "mmlu_pro.jsonl").write_text("\n".join(test))
    shots = [row(subject, number) for subject in SUBJECTS for number in range(2)]
    (tmp_path / "mmlu_pro_validation.jsonl").write_text("\n".join(shots))
    return tmp_path


def test_the_bench_group(lm: ArtsLM, rows: Path) -> None:
    """Every task of the group runs from local rows, and its figures are those of its logged trajectories."""
    results = evaluate(lm, "arts_bench", rows)
    tasks = set(results["samples"])
    assert tasks == {
        f"arts_{name}" for name in ("gsm8k", "gsm8k_cot", "svamp", "multiarith", "math500", "game24", "countdown")
    }
    for task in tasks:
        figures = results["results"][task]
        for filtered in {sample["filter"] for sample in results["samples"][task]}:
            samples = [sample for sample in results["samples"][task] if sample["filter"] == filtered]
            entries = [[json.loads(str(entry)) for entry in sample["filtered_resps"][0]] for sample in samples]
            assert [len(found) for found in entries] == [TRACES] * 2
            right = np.array([[entry["correct"] for entry in found] for found in entries])
            assert figures[f"pass@1,{filtered}"] == pytest.approx(right.mean())
            assert figures[f"oracle@2,{filtered}"] == pytest.approx(np.mean([_oracle(r.sum(), 2) for r in right]))
            assert figures[f"answer_coverage,{filtered}"] == pytest.approx(
                np.mean([[entry["vote"] is not None for entry in found] for found in entries])
            )
        costs = [value for name, value in figures.items() if name.startswith("proposer_tokens,")]
        assert max(costs) >= TRACES
    for task in ("arts_game24", "arts_countdown"):
        assert results["configs"][task]["arts"] == {"extract": "expression"}
        same_votes(results["samples"][task])


def same_votes(samples: list[dict[str, Any]]) -> None:
    """The search saw the answers that the task's figures are made of."""
    for sample in samples:
        votes = [entry["vote"] for entry in sample["filtered_resps"][0]]
        assert [trajectory["answer"] for trajectory in sample["resps"][0][0].trajectories] == votes


def _oracle(right: int, k: int) -> float:
    return 1 - math.comb(TRACES - right, k) / math.comb(TRACES, k)


def test_a_group_of_another_kind(lm: ArtsLM, mmlu_pro: Path) -> None:
    """Subjects as tasks, with the stock prompts, and the group's own figure over all of them."""
    results = evaluate(lm, "arts_mmlu_pro", mmlu_pro, num_fewshot=1, limit=None)
    assert len(results["samples"]) == len(SUBJECTS)
    (context, _) = results["samples"]["arts_mmlu_pro_law"][0]["arguments"][0]
    assert context.startswith("The following are multiple choice questions (with answers) about law.")
    assert "in law?" in context and "in math?" not in context
    for samples in results["samples"].values():
        same_votes(samples)
    each = [results["results"][task]["exact_match,custom-extract"] for task in results["samples"]]
    assert results["groups"]["arts_mmlu_pro"]["exact_match,custom-extract"] == pytest.approx(np.mean(each))


def test_few_shot_and_chat_template(lm: ArtsLM, rows: Path) -> None:
    results = evaluate(
        lm, "arts_gsm8k", rows, num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True, limit=1
    )
    (context, _) = results["samples"]["arts_gsm8k"][0]["arguments"][0]
    assert context.count("<|im_start|>user") == 3 and "####" in context


def test_predict_only(lm: ArtsLM, rows: Path) -> None:
    results = evaluate(lm, "arts_svamp", rows, predict_only=True)
    assert set(results["results"]["arts_svamp"]) >= {"bypass,none"}
    assert not [name for name in results["results"]["arts_svamp"] if name.startswith("pass@1")]
    answers = [sample["resps"][0][0] for sample in results["samples"]["arts_svamp"]]
    assert [len(answer.trajectories) for answer in answers] == [TRACES] * 2


def test_a_cache_keeps_the_trajectories(lm: ArtsLM, rows: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    first = evaluate(lm, "arts_multiarith", rows, use_cache=cache)
    decoded = lm.arts.backend.stats.decoded_tokens
    second = evaluate(lm, "arts_multiarith", rows, use_cache=cache)
    assert lm.arts.backend.stats.decoded_tokens == decoded
    known = {k: v for k, v in first["results"]["arts_multiarith"].items() if v == v}
    assert {k: v for k, v in second["results"]["arts_multiarith"].items() if v == v} == known
    assert known["traces,none"] == TRACES


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C). So the answer is (D).", "C"),
        ("the answer\nis B", None),
        ("2 of 7.\nanswer is J", "J"),
        ("3", None),
    ],
)
def test_a_search_votes_for_letters(mmlu_pro: Path, text: str, letter: str | None) -> None:
    """Those that the stock filter finds."""
    manager = TaskManager(metadata={"arts_data": str(mmlu_pro)})
    made = manager.load(["arts_mmlu_pro_law"])["tasks"]["arts_mmlu_pro_law"]
    made.set_config(key="num_fewshot", value=0)
    made.build_all_requests(rank=0, world_size=1)
    assert made.judged(made.instances[0], text)[1] == letter
    assert regex_extractor(made.arts["extract"].removeprefix(REGEX_PREFIX))(text) == letter


def test_the_demos_chat_template_is_its_own_setting(lm: ArtsLM, tmp_path: Path) -> None:
    """No gen_kwarg, and in force under lm-eval's cache as well."""
    results = lm_eval.simple_evaluate(
        lm, tasks=["arts_demo"], limit=2, bootstrap_iters=0, use_cache=str(tmp_path / "cache"),
        gen_kwargs="max_gen_toks=8",
    )  # fmt: skip
    assert results is not None
    for sample in results["samples"]["arts_demo"]:
        (context, gen_kwargs) = sample["arguments"][0]
        assert not [name for name in gen_kwargs if name.startswith("arts")]
        chat = lm.backend_engine.encode_chat([{"role": "user", "content": context}])
        assert sample["resps"][0][0].cost["prompt_tokens"] == len(chat.token_ids)


def test_any_model_runs_the_demo() -> None:
    """lm-eval's own transformers model hands gen_kwargs on to `generate`, which refuses what it does not know."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=512, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = HFLM(pretrained=transformers.LlamaForCausalLM(config), tokenizer=tokenizer, batch_size=2, device="cpu")
    results = lm_eval.simple_evaluate(
        model, tasks=["arts_demo"], limit=2, bootstrap_iters=0, gen_kwargs="max_gen_toks=4"
    )
    assert results is not None and "pass@1,none" in results["results"]["arts_demo"]


def test_any_model_runs_it(rows: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that gives plain strings: each is one trajectory, and there is no cost to report."""
    with caplog.at_level(logging.ERROR):
        results = evaluate("dummy", "arts_svamp", rows)
    figures = results["results"]["arts_svamp"]
    assert "pass@1,none" in figures and "proposer_tokens,none" not in figures
    assert not [name for name in figures if name.startswith("majority@")]

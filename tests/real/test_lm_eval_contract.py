"""What lm-eval reads of a model and writes into results.json, beside its own model `hf` on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.loggers import EvaluationTracker

from arts_plugin.errors import ModelError
from arts_plugin.lm_eval.model import ArtsLM
from tests.models import THREADS, smollm2

torch = pytest.importorskip("torch")

from arts_hf.loading import converted  # noqa: E402

N_CTX = 512
SETTINGS = {"n_ctx": N_CTX, "slots": 4, "budget_trajectories": 2, "max_gen_toks": 8, "strategy": "best_of_n"}


@pytest.fixture(scope="module")
def folder() -> Path:
    return converted(Path(smollm2()), torch.float32)


@pytest.fixture(scope="module")
def llama() -> Iterator[ArtsLM]:
    made = ArtsLM(n_threads=THREADS, verifier="none", **SETTINGS)
    yield made
    made.arts.close()


@pytest.fixture(scope="module")
def hf(folder: Path) -> Iterator[ArtsLM]:
    made = ArtsLM(
        backend="hf", model=str(folder), dtype="float32", device="cpu", n_threads=THREADS, verifier="none", **SETTINGS
    )
    yield made
    made.arts.close()


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    """lm-eval's own."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4, max_length=N_CTX)


def strict(text: str) -> dict[str, Any]:
    """As a parser reads it that takes no NaN."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"results.json holds a bare {word}")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def written(model: Any, place: Path, **keywords: Any) -> tuple[Path, dict[str, Any]]:
    """results.json of an evaluation as the command line makes it, and where it lies."""
    tracker = EvaluationTracker(output_path=str(place))
    results = lm_eval.simple_evaluate(
        model, tasks=["arts_demo"], limit=1, bootstrap_iters=10, evaluation_tracker=tracker,
        gen_kwargs={"max_gen_toks": 8}, **keywords,
    )  # fmt: skip
    assert results is not None
    tracker.save_results_aggregated(results=results, samples=results.pop("samples"))
    (file,) = place.rglob("results_*.json")
    return file, strict(file.read_text(encoding="utf-8"))


def test_everything_that_lm_evals_own_model_tells(llama: ArtsLM, hf: ArtsLM, own: Any, tmp_path: Path) -> None:
    theirs = written(own, tmp_path / "own")[1]
    for name, model in (("llama", llama), ("hf", hf)):
        ours = written(model, tmp_path / name)[1]
        assert not theirs.keys() - ours.keys()
        assert not theirs["config"].keys() - ours["config"].keys()
        # SmolLM2's file says nothing of padding to llama.cpp that transformers does not read as well.
        for key in ("eot_token_id", "max_length", "tokenizer_eos_token", "tokenizer_bos_token", "tokenizer_pad_token"):
            assert ours[key] == theirs[key], (name, key)
        assert ours["config"]["model_num_parameters"] == pytest.approx(
            theirs["config"]["model_num_parameters"], rel=1e-3
        )
    assert hf.get_model_info()["model_dtype"] == "float32" and llama.get_model_info()["model_dtype"].startswith("Q4_1")


def test_attributes(llama: ArtsLM, hf: ArtsLM, own: Any) -> None:
    text = "Tom has 3 pens and 2 caf\u00e9s \u4e16\u754c."
    for model in (llama, hf):
        for name in ("max_length", "batch_size", "vocab_size", "eot_token_id", "prefix_token_id"):
            assert getattr(model, name) == getattr(own, name), name
        assert model.max_gen_toks == SETTINGS["max_gen_toks"]
        assert model.tok_encode(text) == own.tok_encode(text)
        assert model.tok_decode(own.tok_encode(text)) == own.tok_decode(own.tok_encode(text)) == text
        assert model.tok_decode([*own.tok_encode(text), model.eot_token_id]) == text
        assert model.tok_decode(own.tok_encode("a")[0]) == "a"
        with pytest.raises(ModelError, match="special tokens"):
            model.tok_decode([model.eot_token_id], skip_special_tokens=False)
        assert "/" not in model.tokenizer_name


@pytest.mark.parametrize("spelled", [{"strategy": "greedy"}, "strategy=greedy"])
def test_the_embedded_models_results_lie_in_one_folder(spelled: Any, tmp_path: Path) -> None:
    more = {"n_ctx": N_CTX, "budget_trajectories": 1}
    given = {**spelled, **more} if isinstance(spelled, dict) else f"{spelled},n_ctx={N_CTX}"
    before = dict(given) if isinstance(given, dict) else given
    file, results = written("arts", tmp_path, model_args=given)
    assert file.parent == tmp_path / "SmolLM2-135M-Instruct"
    assert results["model_name"] == results["model_name_sanitized"] == "SmolLM2-135M-Instruct"
    assert given == before, "whoever calls keeps his arguments as they were"


def test_a_named_models_results_are_named_by_the_user(tmp_path: Path) -> None:
    """And the name that results have is one that `model=` takes."""
    file, results = written("arts", tmp_path, model_args=f"model=SmolLM2-135M-Instruct,strategy=greedy,n_ctx={N_CTX}")
    assert file.parent.name == results["model_name"] == "SmolLM2-135M-Instruct"
    assert results["config"]["model_name"] == Path(smollm2()).stem


def test_figures_that_there_are_not(llama: ArtsLM, tmp_path: Path) -> None:
    """One question of which all traces are wrong closes no gap, and one has no standard error."""
    results = written(llama, tmp_path)[1]["results"]["arts_demo"]
    assert results["gap_closed_majority,none"] == "N/A" and results["answer_coverage_stderr,none"] == "N/A"

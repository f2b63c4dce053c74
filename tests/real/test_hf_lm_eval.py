"""backend=hf under lm-eval: beside lm-eval's own transformers model, and beside llama.cpp on the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arts_plugin.errors import ModelError, SettingsError
from arts_plugin.settings import Settings
from arts_plugin.testing import GREEDY, QUESTION, cosine, run
from tests.models import THREADS, smollm2
from tests.real.test_lm_eval_loglikelihood import PAIRS, PASSAGE, request

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import lm_eval  # noqa: E402

from arts_hf.backend import HfBackend  # noqa: E402
from arts_hf.loading import converted  # noqa: E402
from arts_llama_cpp.backend import LlamaCppBackend  # noqa: E402
from arts_plugin.lm_eval.model import ArtsLM  # noqa: E402
from arts_plugin.training.grades import read_grades  # noqa: E402

N_CTX = 256


@pytest.fixture(scope="module")
def folder() -> Path:
    """SmolLM2 as a folder of safetensors, in float32."""
    return converted(Path(smollm2()), torch.float32)


@pytest.fixture(scope="module")
def lm(folder: Path) -> Iterator[ArtsLM]:
    made = ArtsLM(
        backend="hf", model=str(folder), dtype="float32", n_ctx=N_CTX, slots=4, n_threads=THREADS, device="cpu",
        budget_trajectories=2, max_gen_toks=24, strategy="best_of_n", verifier="none",
    )  # fmt: skip
    yield made
    made.arts.close()


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    """lm-eval's model `hf` on the same folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, max_length=N_CTX)


def test_loglikelihood_is_that_of_lm_evals_own_model(lm: ArtsLM, own: Any) -> None:
    pairs = [pair for pair in PAIRS if pair[0]]
    ours, theirs = (
        m.loglikelihood([request("loglikelihood", *p) for p in pairs], disable_tqdm=True) for m in (lm, own)
    )
    for pair, (score, greedy), (expected, expected_greedy) in zip(pairs, ours, theirs, strict=True):
        assert score == pytest.approx(expected, abs=1e-3), pair
        assert greedy == expected_greedy, pair


@pytest.mark.parametrize("words", [5, 60, 300])
def test_rolling_is_that_of_lm_evals_own_model(lm: ArtsLM, own: Any, words: int) -> None:
    text = " ".join(PASSAGE.split()[:words])
    (ours,), (theirs,) = (
        m.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True) for m in (lm, own)
    )
    assert ours == pytest.approx(theirs, abs=1e-3, rel=2e-5)


def test_a_task(lm: ArtsLM) -> None:
    """A search through the harness, as with llama.cpp."""
    results = lm_eval.simple_evaluate(lm, tasks=["arts_demo"], limit=2, bootstrap_iters=0)
    assert results["results"]["arts_demo"]["sample_len"] == 2
    for sample in results["samples"]["arts_demo"]:
        (answer,) = sample["resps"][0]
        assert isinstance(answer, str)
        assert len(answer.trajectories) == 2


def test_both_backends_on_one_file() -> None:
    """The same fingerprint, prompts and pieces; greedy tokens equal but for near-ties; hidden states nearly so."""
    settings = Settings.of(model=smollm2(), n_ctx=1024, slots=4, n_threads=THREADS, device="cpu", dtype="float32")
    left, right = LlamaCppBackend(settings, features=True), HfBackend(settings, features=True)
    try:
        assert left.digest() == right.digest()
        assert left.model.eog == right.model.eog
        assert left.info.details["general.name"] == right.info.details["general.name"]
        for text in ("Hello", "<|im_end|> is text", "naïve café €5 🙂 \ud800", "  two  spaces\n\n\ttab"):
            assert left.encode(text).token_ids == right.encode(text).token_ids
            chat = [{"role": "user", "content": text}]
            assert left.encode_chat(chat) == right.encode_chat(chat)
        assert all(left.model.piece(t) == right.model.piece(t) for t in range(0, left.info.n_vocab, 7))
        equal = 0
        for question in (QUESTION, "Name three colours.", "What is 12 times 3?", "Why is the sky blue?"):
            prompt = left.encode_chat([{"role": "user", "content": question}])
            ((a,), (b,)) = (run(backend, prompt, GREEDY) for backend in (left, right))
            shared = next((i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y), None)
            if shared is not None:
                context = [*prompt.token_ids, *a.tokens[:shared]]
                pair = right.loglikelihood([(context, [t.tokens[shared]]) for t in (a, b)])
                assert abs(pair[0][0] - pair[1][0]) < 0.5, f"tokens part at {shared} by more than rounding: {pair}"
            equal += shared if shared is not None else len(a.tokens)
            first, second = a.steps[0], b.steps[0]
            if first.token_ids == second.token_ids:
                assert cosine(np.asarray(first.feature), np.asarray(second.feature)) > 0.995
        assert equal >= 20, "too little was compared"
    finally:
        left.close()
        right.close()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"dtype": "bf16"}, SettingsError, "dtype is 'bf16'; it must be auto, bfloat16"),
        ({"device": "cuda"}, SettingsError, "finds no CUDA device"),
        ({"device": "gpu"}, SettingsError, "device is 'gpu'"),
        ({"model": "./nowhere"}, ModelError, "no model at nowhere"),
        ({"model": "tests"}, ModelError, "has no config.json"),
        ({"model": "pyproject.toml"}, ModelError, "is not a GGUF file"),
        ({"model": "no/such-model"}, ModelError, "could not fetch no/such-model"),
    ],
)
def test_bad_input(settings: dict[str, Any], error: type[Exception], message: str, monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(error, match=message):
        HfBackend(Settings.of({"model": smollm2(), **settings}))


def test_models_that_lack_something(folder: Path, tmp_path: Path) -> None:
    """No weights in safetensors; no chat template; no language-model head."""
    import shutil

    import transformers

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(ModelError, match="transformers cannot load"):
        HfBackend(Settings.of(model=str(tmp_path)))
    torch.manual_seed(0)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    small = transformers.AutoModelForCausalLM.from_config(config)
    small.save_pretrained(tmp_path)
    plain = HfBackend(Settings.of(model=str(tmp_path), n_ctx=64, device="cpu", dtype="float32"))
    if plain.info.chat_template is None:
        with pytest.raises(ModelError, match="has no chat template"):
            plain.encode_chat([{"role": "user", "content": "hello"}])
    else:
        pytest.fail("the template came from somewhere")
    tokenizer = plain.model.tokenizer
    with pytest.raises(ModelError, match="has no language-model head"):
        HfBackend.of(transformers.AutoModel.from_config(config), tokenizer, Settings.of(n_ctx=64))


def test_two_processes_share_the_questions(folder: Path, tmp_path: Path) -> None:
    """lm-eval's data parallelism: the samples and the results of a single process, for an odd number of questions."""
    arguments = f"backend=hf,model={folder},dtype=float32,device=cpu,n_threads=1,n_ctx=1024,slots=4,strategy=greedy"
    arguments += f",verifier=none,trace={tmp_path / 'trees'}"
    options = ["--model", "arts", "--model_args", arguments, "--tasks", "arts_demo", "--limit", "3", "--log_samples"]
    found = {}
    for name, launcher in (
        ("one", ["-m"]),
        ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]),
    ):
        out = tmp_path / name
        command = [sys.executable, *launcher, "lm_eval", *options, "--output_path", str(out)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        (samples,) = out.rglob("samples_*.jsonl")
        (results,) = out.rglob("results_*.json")
        rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        # lm-eval evens out the shares with a question asked again, whose answer it appends.
        found[name] = [(row["doc_id"], row["resps"][0][0]) for row in rows], json.loads(results.read_text())["results"]
    assert [doc for doc, _ in found["two"][0]] == [0, 1, 2]
    assert found["one"][0] == found["two"][0]
    scores = [{k: v for k, v in side[1]["arts_demo"].items() if "acc" in k} for side in found.values()]
    assert scores[0] == scores[1] != {}
    trees = [len(file.read_text().splitlines()) for file in sorted((tmp_path / "trees").glob("rank-*/trees.jsonl"))]
    assert trees == [2, 1]
    # Only the first process adds up, and each labels its trees.
    labels = [read_grades(tmp_path / "trees" / f"rank-{rank}") for rank in range(2)]
    assert [len(of_rank) for of_rank in labels] == [2, 1]
    assert {**labels[0], **labels[1]} == read_grades(tmp_path / "trees")

"""The paper's verifier from end to end on a real model: trained with LoRA on recorded trees, saved, loaded, exported to
GGUF, and used in a search under llama.cpp. And two processes against one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from arts_plugin import Arts, checkpoint
from arts_plugin.cli import main
from arts_plugin.errors import ArtsError, ModelError
from arts_plugin.plugins import plugins
from arts_plugin.run import read_trees
from arts_plugin.settings import Settings
from arts_plugin.training.dataset import read_runs
from arts_plugin.training.train import train
from arts_plugin.training.trainer import TrainingSettings, split
from tests.models import THREADS, smollm2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from scipy.stats import spearmanr  # noqa: E402

from arts_hf.export import export  # noqa: E402
from arts_hf.lora import LoraSettings  # noqa: E402
from arts_plugin.backbone_verifier import BackboneVerifier  # noqa: E402

POOLS = Path(__file__).parents[2] / "examples" / "verifier"
TREES, LONGEST = 5, 9000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real trees of Qwen2.5-Coder on GSM8K and SVAMP, short ones, so that a CPU learns from them in a minute."""
    folder = tmp_path_factory.mktemp("pool")
    subprocess.run([sys.executable, POOLS / "pools.py", POOLS / "pools" / "qwen-train", folder / "all"], check=True)
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_bytes((folder / "all" / "run.json").read_bytes())
    grades = {json.loads(line)["key"]: line for line in (folder / "all" / "grades.jsonl").open()}
    kept = []
    for line in (folder / "all" / "trees.jsonl").open():
        graded = set(json.loads(grades[json.loads(line)["meta"]["key"]])["correct"].values())
        if len(graded) == 2 and len(line) < 40 * 1024:
            kept.append(line)
    kept = sorted(kept, key=len)[:TREES]
    (folder / "run" / "trees.jsonl").write_text("".join(kept))
    (folder / "run" / "grades.jsonl").write_text("".join(grades[json.loads(line)["meta"]["key"]] for line in kept))
    return folder / "run"


@pytest.fixture(scope="module")
def lora(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the command, in float32."""
    out = tmp_path_factory.mktemp("lora") / "verifier"
    arguments = ["train", str(run), "--out", str(out), "--backbone", smollm2(), "--loss", "rfm", "--validation", "0.4",
                 "--lora_epochs", "1", "--lora_batch_problems", "1", "--lora_learning_rate", "1e-3",
                 "--lora_dtype", "float32", "--lora_device", "cpu"]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "times)" in done.output and "(kept)" in done.output and "use it with verifier=" in done.output
    return out


@pytest.fixture(scope="module")
def loaded(lora: Path) -> Any:
    return checkpoint.load(lora, Settings.of(dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def exported(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "verifier"
    done = CliRunner().invoke(main, ["export", str(lora), "--gguf", str(out), "--base", smollm2()])
    assert done.exit_code == 0, done.output
    return out


def scores(verifier: Any, run: Path) -> np.ndarray:
    return np.concatenate([verifier.score_recorded(tree) for tree in read_trees(run)])


def test_what_was_trained_is_what_is_loaded(lora: Path, loaded: Any, run: Path) -> None:
    """The card says what it is; the adapters have learned something; reading by steps equals one packed pass."""
    card = loaded.card
    assert card.backbone is not None and card.training["r"] == 16 and card.training["loss"]["name"] == "rfm"
    assert (lora / checkpoint.HF_ADAPTER).exists() and not list(lora.rglob("*.bin")) and not list(lora.rglob("*.pt"))
    from safetensors.numpy import load_file

    moved = [np.abs(v).max() for k, v in load_file(lora / checkpoint.HF_ADAPTER).items() if "lora_B" in k]
    assert len(moved) == 7 * 30 and min(moved) > 0
    tree = next(iter(read_trees(run)))
    assert np.allclose(
        loaded.verifier.score_recorded(tree), BackboneVerifier.score_recorded(loaded.verifier, tree), atol=2e-3
    )
    assert loaded.identity().keys() == {"name", "digest", "backbone"}


def test_in_sixteen_bits_the_adapter_stays_apart(lora: Path, loaded: Any, run: Path) -> None:
    """Merged into bfloat16 weights, small changes would be rounded away; in float32 they are merged, for speed."""
    rounded = checkpoint.load(lora, Settings.of(dtype="bfloat16", device="cpu"))
    names = [[n for n, _ in v.verifier.body.runtime.network.named_modules() if "lora_" in n] for v in (rounded, loaded)]
    assert names[0] and not names[1]
    assert spearmanr(scores(rounded.verifier, run), scores(loaded.verifier, run)).statistic >= 0.98


def test_trained_again_only_if_something_changed(lora: Path, run: Path) -> None:
    before = (lora / checkpoint.HF_ADAPTER).stat().st_mtime_ns
    arguments = ["train", str(run), "--out", str(lora), "--backbone", smollm2(), "--loss", "rfm", "--validation", "0.4",
                 "--lora_epochs", "1", "--lora_batch_problems", "1", "--lora_learning_rate", "1e-3",
                 "--lora_dtype", "float32", "--lora_device", "cpu"]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "is kept" in done.output
    assert (lora / checkpoint.HF_ADAPTER).stat().st_mtime_ns == before


def test_llama_cpp_ranks_the_states_alike(loaded: Any, exported: Path, run: Path) -> None:
    """The exported adapter over the quantised base, and not the base alone."""
    there = checkpoint.load(exported, Settings.of(n_ctx=8192, n_threads=THREADS))
    ours, theirs = scores(loaded.verifier, run), scores(there.verifier, run)
    assert len(ours) > 100
    assert spearmanr(ours, theirs).statistic >= 0.98
    assert np.abs(ours - theirs).max() < 0.5 * np.ptp(ours)


def test_a_search_that_it_guides(exported: Path) -> None:
    """Under llama.cpp, with the model of the verifier beside the proposer; what differs from its training is said."""
    with Arts(model=smollm2(), verifier=str(exported), max_gen_toks=48, budget_trajectories=3, n_ctx=2048, n_threads=THREADS) as arts:  # fmt: skip
        tree = arts.solve("Tom has 3 pens and buys 2 more. How many pens does he have now?")
        context: Any = arts.verifier.body.context  # type: ignore[union-attr]
        assert context.handle and context.model.handle
    assert not context.handle and not context.model.handle, "the verifier's model outlived the search"
    assert tree.scorer == "rfm" and tree.select in {"flow", "weighted_vote"}
    assert len({node.log_flow for node in tree.nodes}) > 2
    assert tree.cost.verifier_tokens > 0


def test_a_search_that_it_guides_without_export(lora: Path) -> None:
    """Under backend `hf` too, as it was trained: flows at all states, read in new tokens alone."""
    settings = {"max_gen_toks": 48, "budget_trajectories": 3, "n_ctx": 2048, "slots": 4, "dtype": "float32"}
    with Arts(backend="hf", model=smollm2(), verifier=str(lora), n_threads=THREADS, **settings) as arts:
        tree = arts.solve("Tom has 3 pens and buys 2 more. How many pens does he have now?")
        again = arts.verifier.score_recorded(tree)  # type: ignore[union-attr]
    assert tree.scorer == "rfm" and tree.select in {"flow", "weighted_vote"}
    flows = np.array([node.log_flow for node in tree.nodes])
    assert np.allclose(flows, again, atol=1e-3) and len(set(flows)) > 2
    assert 0 < tree.cost.verifier_tokens <= 1.2 * (tree.cost.decoded_tokens + tree.cost.prompt_tokens)


def test_on_the_proposer(lora: Path, exported: Path) -> None:
    """`lora=`: under either backend the adapter moves what the model thinks of a text, by about the same."""
    context, continuation = "Question: What is 2 plus 3?\nAnswer:", " 2 plus 3 is 5."
    moved = {}
    for backend, adapter in (
        ("llama_cpp", exported / checkpoint.GGUF_ADAPTER),
        ("hf", (lora / checkpoint.HF_ADAPTER).parent),
    ):
        found = []
        for more in ({}, {"lora": str(adapter)}):
            settings = Settings.of(
                backend=backend, model=smollm2(), n_ctx=512, slots=4, n_threads=THREADS, dtype="float32", **more
            )
            made = plugins().make("backend", backend, settings, features=False)
            pair = made.encode(context).token_ids, made.encode(continuation).token_ids
            found.append((made.loglikelihood([pair])[0][0], made.digest()))
            made.close()
        assert found[0][1] != found[1][1]
        moved[backend] = found[1][0] - found[0][0]
    assert abs(moved["hf"]) > 0.05, moved
    assert moved["llama_cpp"] == pytest.approx(moved["hf"], abs=0.3 * abs(moved["hf"]) + 0.2)
    with pytest.raises(ModelError, match=r"cannot load .*adapter|does not apply"):
        plugins().make("backend", "llama_cpp", Settings.of(model=smollm2(), lora=smollm2(), n_ctx=512), features=False)


def test_what_cannot_be_exported(lora: Path, tmp_path: Path) -> None:
    """Adapters that a GGUF has no place for, and a head that needs none."""
    import shutil

    odd = tmp_path / "odd"
    shutil.copytree(lora, odd)
    config = json.loads((odd / "adapter" / "adapter_config.json").read_text())
    for key, value in (("use_dora", True), ("alpha_pattern", {"q_proj": 8}), ("rank_pattern", {"q_proj": 8})):
        (odd / "adapter" / "adapter_config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ModelError, match=rf"uses {key}, which a GGUF adapter has no place for"):
            export(odd, tmp_path / "out", Path(smollm2()))
    (odd / checkpoint.HF_ADAPTER).unlink()
    with pytest.raises(ArtsError, match="holds no adapter/adapter_model"):
        checkpoint.load(odd)


TRAIN = """
import sys
from pathlib import Path
import torch, transformers
torch.set_num_threads(1)
from arts_hf import loading
from arts_plugin.training.train import train
from arts_plugin.training.trainer import TrainingSettings
from arts_hf.lora import LoraSettings
lora = LoraSettings(sys.argv[3], epochs=1, batch_problems=2, dropout=0.0, dtype="float32", device="cpu", hidden=8)
train([sys.argv[1]], sys.argv[2], loss="rfm", lora=lora, settings=TrainingSettings(validation=0.4, dropout=0.0))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone that learns in seconds."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    from arts_hf.loading import load

    folder = tmp_path_factory.mktemp("tiny")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load(Settings.of(model=smollm2(), device="cpu")).tokenizer.save_pretrained(folder)
    return folder


def test_a_training_that_diverges_is_no_verifier(run: Path, tiny: Path, tmp_path: Path) -> None:
    """The folder may hold what an earlier epoch or training left, but no card speaks for it."""
    out = tmp_path / "verifier"
    lora = LoraSettings(str(tiny), epochs=1, batch_problems=1, dropout=0.0, dtype="float32", device="cpu", hidden=8)
    settings = TrainingSettings(validation=0.4)
    train([run], out, loss="rfm", lora=lora, settings=settings, say=str)
    assert checkpoint.load(out, Settings.of(dtype="float32", device="cpu")).card.training["head_rate"] == 1e-3
    wild = replace(lora, head_rate=1e30, learning_rate=1e30)
    with pytest.raises(ArtsError, match="training diverged: no epoch has a held-out loss that is a number"):
        train([run], out, loss="rfm", lora=wild, settings=settings, say=str)
    assert not (out / checkpoint.CARD_FILE).exists()


def test_two_processes_equal_one(run: Path, tiny: Path, tmp_path: Path) -> None:
    """The same trees in each optimiser step, so the same weights; the first process alone writes."""
    trees, _ = read_runs([run.parent / "all"], with_features=False)
    sides = split(trees, 0.4, 0)
    # A number of trees that both processes share equally: accelerate fills up an odd one with repetitions.
    ids = {tree.id for tree in (*[t for t in sides[0] if t.mixed][:4], *[t for t in sides[1] if t.mixed][:1])}
    even = tmp_path / "even"
    even.mkdir()
    for file in ("run.json", "grades.jsonl"):
        (even / file).write_bytes((run.parent / "all" / file).read_bytes())
    kept = [line for line in (run.parent / "all" / "trees.jsonl").open() if json.loads(line)["meta"]["id"] in ids]
    (even / "trees.jsonl").write_text("".join(kept))
    script = tmp_path / "train.py"
    script.write_text(TRAIN)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name, starter in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]),
    ):
        command = [sys.executable, *starter, str(script), str(even), str(tmp_path / name), str(tiny)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("epoch 1:") == 1
    from safetensors.numpy import load_file

    for file in (checkpoint.HF_ADAPTER, checkpoint.HEAD_FILE):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for key in one:
            # Adam divides by the size of a gradient, so where that is nothing but rounding, its sign decides.
            assert np.mean(np.isclose(one[key], two[key], atol=1e-5)) > 0.995, key

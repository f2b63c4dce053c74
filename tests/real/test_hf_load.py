"""What backend=hf does while it loads: quantised weights, as many slots as there is memory for, logits that are checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.api import Arts
from arts_plugin.engine.runtime import fitting_slots
from arts_plugin.errors import ModelError
from arts_plugin.settings import AUTO_SLOTS, Settings
from arts_plugin.testing import QUESTION
from tests.models import THREADS, smollm2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from arts_hf import loading, memory  # noqa: E402
from arts_hf.backend import HfBackend  # noqa: E402
from arts_hf.runtime import HfRuntime  # noqa: E402
from tests.real.test_hf_engine import COMMON, Vocabulary  # noqa: E402

SMALL: dict[str, Any] = {"max_gen_toks": 3, "budget_trajectories": 2, "strategy": "best_of_n", "verifier": "none"}


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's first three layers: on a CPU bitsandbytes takes a second for a layer's product."""
    whole = loading.converted(Path(smollm2()), torch.bfloat16)
    folder = tmp_path_factory.mktemp("shallow")
    for file in whole.iterdir():
        (folder / file.name).symlink_to(file)
    config = transformers.AutoConfig.from_pretrained(whole)
    config.num_hidden_layers = 3
    (folder / "config.json").unlink()
    config.save_pretrained(folder)
    return folder


def test_weights_that_are_missing_are_not_made_up(tmp_path: Path) -> None:
    """transformers fills them with random numbers and only warns."""
    config = transformers.LlamaConfig(**COMMON, tie_word_embeddings=False)
    model = transformers.AutoModelForCausalLM.from_config(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(loading.converted(Path(smollm2()), torch.float32))
    for name in ("headless", "foreign"):
        tokenizer.save_pretrained(tmp_path / name)
    model.model.save_pretrained(tmp_path / "headless")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "headless")
    with pytest.raises(
        ModelError, match=r"lacks 1 of the model's weights, lm_head.weight first: it has no language-model"
    ):
        HfBackend(Settings.of(model=str(tmp_path / "headless"), device="cpu"))
    from safetensors.torch import save_file

    foreign = {f"other.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(foreign, tmp_path / "foreign" / "model.safetensors", {"format": "pt"})
    config.save_pretrained(tmp_path / "foreign")
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights, .*is it a checkpoint of this model"):
        HfBackend(Settings.of(model=str(tmp_path / "foreign"), device="cpu"))


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_quantised_while_loading(kind: str, shallow: Path) -> None:
    """The model takes less memory, says so, has a digest of its own, and is searched like any other."""
    pytest.importorskip("bitsandbytes")
    common: dict[str, Any] = {"model": str(shallow), "n_ctx": 256, "device": "cpu", "dtype": "bfloat16"}
    with Arts(backend="hf", quantize=kind, slots=4, n_threads=THREADS, **common, **SMALL) as arts:
        tree = arts.solve(QUESTION)
        network = arts.backend.network  # type: ignore[attr-defined]
        assert f" {kind}, bfloat16 on cpu" in arts.backend.info.details["description"]
        digest, footprint = arts.backend.digest(), network.get_memory_footprint()
    assert tree.error is None and len(tree.trajectories()) == 2
    plain = HfBackend(Settings.of(common))
    assert digest != plain.digest()
    linear = sum(p.numel() for n, p in plain.network.named_parameters() if "_proj" in n)
    saved = plain.network.get_memory_footprint() - footprint
    assert saved > 2 * linear * (0.45 if kind == "8bit" else 0.7)
    plain.close()


def test_quantising_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, find = smollm2(), loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util, "find_spec", lambda name, *more: None if name == "bitsandbytes" else find(name, *more)
    )
    with pytest.raises(ModelError, match="quantize=4bit needs bitsandbytes; pip install bitsandbytes"):
        HfBackend(Settings.of(model=model, quantize="4bit"))


@pytest.mark.parametrize(("free", "slots"), [(1 << 40, 256), (300_000_000, 64)])
def test_as_many_slots_as_memory_allows(monkeypatch: pytest.MonkeyPatch, free: int, slots: int) -> None:
    """SmolLM2 has 23,040 bytes a cell in bfloat16, a trace of 64 tokens needs 64 of them, and 151 MB are put aside for
    logits: (300 MB - 151 MB) x 3/4 are 75 traces."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    with Arts(
        backend="hf", model=smollm2(), dtype="bfloat16", device="cpu", slots="auto", n_ctx=256, n_threads=THREADS,
        **{**SMALL, "max_gen_toks": 64},
    ) as arts:  # fmt: skip
        assert arts.settings.slots == AUTO_SLOTS
        kv = arts.backend.kv  # type: ignore[attr-defined]
        assert arts.settings.slots == arts.backend.slots == slots
        assert 256 <= kv.n_cells <= max(256, 2 * slots * 64)
        assert len(arts.solve(QUESTION, max_gen_toks=3).trajectories()) == 2


def test_free_memory(tmp_path: Path) -> None:
    said = tmp_path / "meminfo"
    said.write_text("MemTotal:  9 kB\nMemAvailable:   1024 kB\nodd line\n")
    assert memory._available(said) == 1 << 20
    assert memory._available(tmp_path / "none") == 2 << 30
    assert memory.free_bytes(torch.device("cpu")) > 0
    assert memory.cells_that_fit([torch.device("meta")], 100, 1000) == 0


def test_logits_that_are_made_otherwise_are_refused() -> None:
    """An architecture that scales its logits where its config does not say so."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**COMMON)).eval()
    settings = Settings.of(n_ctx=64)
    HfRuntime(model, Vocabulary(), settings, features=True)  # type: ignore[arg-type]
    torch.nn.init.normal_(model.lm_head.weight)
    model.register_forward_hook(lambda module, given, out: _scaled(out))
    with pytest.raises(ModelError, match=r"something to its logits that is not known here.* up to \d"):
        HfRuntime(model, Vocabulary(), settings, features=True)  # type: ignore[arg-type]


def _scaled(out: Any) -> Any:
    out.logits = out.logits * 0.25
    return out


def test_fitting_slots() -> None:
    """The largest power of two that fits, at least one."""
    for cells in (0, 5, 64, 100, 8192, 10**7):
        for tokens in (1, 64, 512):
            made = fitting_slots(cells, tokens, 125)
            assert math.log2(made).is_integer() and 1 <= made <= 64
            assert made == 1 or made * tokens <= cells
            assert made == 64 or 2 * made > min(125, cells // tokens)

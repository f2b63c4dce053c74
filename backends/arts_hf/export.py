"""A LoRA verifier for llama.cpp: its adapter as GGUF, beside the head, over a GGUF of the same base model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arts_hf.backbone import ADAPTER
from arts_plugin import gguf_file
from arts_plugin.checkpoint import GGUF_ADAPTER, HEAD_FILE, Backbone, Card
from arts_plugin.errors import ModelError
from arts_plugin.lines import read_object
from arts_plugin.value_head import read_tensors
from arts_plugin.writing import writing

_PREFIX = "base_model.model."
_PAIRED = frozenset({"llama", "granite", "smollm3", "arcee"})
"""Architectures whose q and k rows GGUF files hold in another order (pairs of rotary dimensions side by side)."""
_AS_IS = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "olmo2"})
"""Architectures whose GGUF files hold all rows in the order of transformers."""

_NO_PLACE = (
    "use_dora",
    "use_rslora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "lora_bias",
)

Array = npt.NDArray[Any]


def export(folder: Path, out: Path, base: Path) -> Card:
    """Write a verifier that llama.cpp can run.

    Args:
        folder: the verifier, with its PEFT adapter.
        out: where `adapter.gguf`, the head and the card go.
        base: a GGUF of the verifier's base model, in any quantisation.

    Raises:
        ModelError: the verifier has no adapter, `base` is another model, or a weight has no place in GGUF.
    """
    gguf = _gguf()
    card = Card.load(folder)
    if card.backbone is None:
        raise ModelError(f"{folder} is a head on the proposer's own states: it runs under llama.cpp as it is")
    gguf_file.check(base)
    reader = gguf.GGUFReader(base)
    arch = _text(reader, "general.architecture")
    if arch not in _PAIRED | _AS_IS:
        raise ModelError(
            f"{base} is of architecture {arch!r}, and the order of its rows is not known here; known are "
            f"{', '.join(sorted(_PAIRED | _AS_IS))}"
        )
    n_embd = _number(reader, f"{arch}.embedding_length")
    if n_embd != card.backbone.n_embd:
        raise ModelError(
            f"{base} has hidden states of size {n_embd}, and the verifier's base {card.backbone.name} of "
            f"{card.backbone.n_embd}: it is another model"
        )
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    known = {tensor.name: tuple(int(n) for n in tensor.shape) for tensor in reader.tensors}
    writer = gguf.GGUFWriter(out / GGUF_ADAPTER, arch)
    writer.add_type("adapter")
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    tensors, alpha = _adapter(folder / ADAPTER)
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    heads = _number(reader, f"{arch}.attention.head_count")
    kv_heads = _number(reader, f"{arch}.attention.head_count_kv", heads)
    names = gguf.get_tensor_name_map(_architecture(gguf, arch), _number(reader, f"{arch}.block_count"))
    for module, down, up in _pairs(tensors):
        name = names.get_name(module)
        if name is None or f"{name}.weight" not in known:
            raise ModelError(f"the adapter's {module} has no counterpart in {base}")
        width, height = known[f"{name}.weight"]
        if down.shape[1] != width or up.shape[0] != height:
            raise ModelError(
                f"the adapter's {module} is {up.shape[0]} x {down.shape[1]}, and {name} in {base} is {height} x {width}"
            )
        if arch in _PAIRED and name.endswith(("attn_q", "attn_k")):
            up = _paired(up, heads if name.endswith("attn_q") else kv_heads)
        writer.add_tensor(f"{name}.weight.lora_a", down)
        writer.add_tensor(f"{name}.weight.lora_b", up)
    with writing(out / GGUF_ADAPTER):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        shutil.copyfile(folder / HEAD_FILE, out / HEAD_FILE)
    body = Backbone(base.stem, gguf_file.tensor_digest(base), str(base), n_embd)
    made = replace(card, backbone=body, training={**card.training, "exported_from": card.backbone.name})
    made.save(out)
    return made


def _paired(up: Array, heads: int) -> Array:
    """The rows of each head from halves (Hugging Face) to pairs (GGUF's llama)."""
    rows, rank = up.shape
    return np.ascontiguousarray(up.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank))


def _adapter(folder: Path) -> tuple[dict[str, Array], float]:
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError(f"{folder} holds no adapter_model.safetensors")
    try:
        config = read_object(folder / "adapter_config.json")
        alpha = float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'adapter_config.json'} cannot be read: {error!r:.300}") from error
    odd = [name for name in _NO_PLACE if config.get(name)]
    tensors = {key: np.asarray(value, dtype=np.float32) for key, value in read_tensors(file).items()}
    odd += [key for key in tensors if not key.endswith((".lora_A.weight", ".lora_B.weight"))][:1]
    if odd:
        raise ModelError(f"the adapter in {folder} uses {', '.join(odd)}, which a GGUF adapter has no place for")
    return tensors, alpha


def _pairs(tensors: dict[str, Array]) -> Iterator[tuple[str, Array, Array]]:
    """(module, A [r, in], B [out, r]) of each adapted projection."""
    for key in sorted(tensors):
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            other = key.replace(".lora_A.", ".lora_B.")
            if other not in tensors:
                raise ModelError(f"the adapter has {key} and no {other}")
            yield module, tensors[key], tensors[other]


def _architecture(gguf: Any, name: str) -> Any:
    found = next((arch for arch, known in gguf.MODEL_ARCH_NAMES.items() if known == name), None)
    if found is None:
        raise ModelError(f"the package gguf does not know the architecture {name!r}; a newer one may")
    return found


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _text(reader: Any, key: str) -> str:
    return str(_field(reader, key))


def _number(reader: Any, key: str, default: int = 0) -> int:
    value = _field(reader, key)
    return default if value is None else int(value)


def _gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelError(f"writing GGUF needs the package gguf ({error}): pip install 'arts-plugin[hf]'") from error
    return gguf

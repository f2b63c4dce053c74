"""Loading a causal LM with transformers: from a folder, a hub, or a GGUF file through a one-time safetensors copy."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from arts_plugin import gguf_file
from arts_plugin.errors import ModelError, SettingsError
from arts_plugin.locate import is_embedded, locate
from arts_plugin.settings import Settings

_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model", "*.txt"]
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and its tokeniser. `source` is what the weights came from: a GGUF file, or a folder."""

    model: Any
    tokenizer: Any
    source: Path


def load(settings: Settings, *, with_head: bool = True) -> Loaded:
    """The model of these settings, ready to run.

    Args:
        with_head: whether its language-model head is wanted.

    Raises:
        ModelError: it cannot be found, loaded or quantised, or has no language-model head.
        SettingsError: a dtype or device that is not there.
    """
    source = _find(settings)
    device = _device(settings.device)
    dtype = _dtype(settings.dtype, device)
    folder = converted(source, dtype) if source.is_file() else source
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": settings.trust_remote_code, "use_safetensors": True}
    if settings.quantize:
        options["quantization_config"] = _quantization(settings.quantize, dtype)
    # What bitsandbytes has rounded cannot be moved afterwards.
    if device == "auto" or settings.quantize:
        options["device_map"] = "auto" if device == "auto" else {"": device}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        kind = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
        model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
        _complete(told["missing_keys"], source)
        if "device_map" not in options:
            model = model.to(device)
    except ModelError:
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(f"{source} does not fit into the memory of {device} as {dtype}: {error}") from error
    except Exception as error:
        raise ModelError(f"transformers cannot load {source}: {type(error).__name__}: {error}") from error
    if settings.lora is not None and with_head:
        from arts_hf import backbone

        model = backbone.adapted(model, Path(settings.lora).expanduser())
    return Loaded(model.eval(), tokenizer, source)


def _complete(missing: Any, source: Path) -> None:
    """transformers gives weights that a checkpoint lacks random numbers, and only warns.

    Raises:
        ModelError: there are such weights.
    """
    names = sorted(missing)
    if not names:
        return
    head = [name for name in names if "lm_head" in name or "embed_out" in name]
    what = (
        "it has no language-model head to propose tokens with" if head == names else "is it a checkpoint of this model?"
    )
    raise ModelError(f"{source} lacks {len(names)} of the model's weights, {names[0]} first: {what}")


def digest(source: Path) -> str:
    """What identifies the weights: the GGUF's tensors (as the llama_cpp backend says it), or those of all shards.

    Raises:
        ModelError: the folder has no safetensors.
    """
    if source.is_file():
        return gguf_file.tensor_digest(source)
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{source} has no *.safetensors, the only format that is read")
    made = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
            opened.seek(8 + header)
            while chunk := opened.read(1 << 22):
                made.update(chunk)
    return f"sha256:{made.hexdigest()}"


def rounded(digest: str, quantize: str) -> str:
    """The digest of weights that were rounded while they were loaded."""
    return f"sha256:{hashlib.sha256(f'{digest} {quantize}'.encode()).hexdigest()}"


def digest_of(model: Any) -> str:
    """What identifies the weights of a model that came from nowhere."""
    made = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        made.update(name.encode())
        made.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{made.hexdigest()}"


def tensors(source: Path, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Those of the named tensors that a model folder's safetensors hold.

    Raises:
        ModelError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in sorted(source.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as opened:
                found.update({name: opened.get_tensor(name) for name in set(names) & set(opened.keys())})
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read: {error}; fetch it again") from error
    return found


def _find(settings: Settings) -> Path:
    """A GGUF file or a model folder."""
    if not settings.model or is_embedded(settings.model):
        return locate(None)
    path = Path(settings.model).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{path} has no config.json: it is no model folder; give model= a folder or a GGUF file")
        return path
    if path.is_file() or ":" in settings.model:
        file = locate(settings.model)
        gguf_file.check(file)
        return file
    if settings.model.count("/") != 1 or settings.model.startswith((".", "~", "/")):
        raise ModelError(
            f"no model at {path}; give model= a folder with config.json, a GGUF file, or owner/name on a hub"
        )
    try:
        from huggingface_hub import snapshot_download

        patterns = [*_HUB_FILES, *(["*.py"] if settings.trust_remote_code else [])]
        return Path(snapshot_download(settings.model, revision=settings.revision, allow_patterns=patterns))
    except Exception as error:
        raise ModelError(f"could not fetch {settings.model}: {type(error).__name__}: {error}") from error


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    """
    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantize={kind} needs bitsandbytes; pip install bitsandbytes")
    if kind == "8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def _device(wanted: str | None) -> str:
    cuda = torch.cuda.is_available()
    if wanted is None:
        return "cuda" if cuda else "cpu"
    if wanted.startswith("cuda") and not cuda:
        raise SettingsError(f"device is {wanted!r}, but torch {torch.__version__} finds no CUDA device; use device=cpu")
    if wanted != "auto":
        try:
            torch.device(wanted)
        except RuntimeError as error:
            raise SettingsError(f"device is {wanted!r}: {error}") from error
    return wanted


def _dtype(wanted: str, device: str) -> torch.dtype:
    if wanted == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if wanted not in _DTYPES:
        raise SettingsError(f"dtype is {wanted!r}; it must be auto, {', '.join(_DTYPES)}")
    return _DTYPES[wanted]


def _computes_bfloat16(device: str) -> bool:
    """Whether bfloat16 is faster than float32: elsewhere it is emulated."""
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if hasattr(torch.ops, "mkldnn") else False


def cache_folder() -> Path:
    """Where converted models are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "arts-plugin" / "converted"


def converted(file: Path, dtype: torch.dtype) -> Path:
    """The GGUF as a folder of safetensors, dequantised once for each dtype."""
    whole = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(1 << 22):
            whole.update(chunk)
    folder = cache_folder() / f"{file.stem}-{whole.hexdigest()[:16]}-{str(dtype).removeprefix('torch.')}"
    if (folder / "config.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        _convert(file, dtype, scratch)
        # Another process may have been faster; its copy is as good.
        if not folder.exists():
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _convert(file: Path, dtype: torch.dtype, folder: Path) -> None:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype)
    except ImportError as error:
        raise ModelError(f"reading {file.name} with backend=hf needs more: {error}; pip install gguf") from error
    except Exception as error:
        raise ModelError(f"transformers cannot read {file}: {type(error).__name__}: {error}") from error
    # What was dequantised must not be saved as if it still were quantised.
    for name in ("hf_quantizer", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)

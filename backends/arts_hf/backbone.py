"""A causal LM as the body of a verifier: LoRA adapters put on and checked, and hidden states of packed trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from arts_hf import attention
from arts_hf.packed import NAME, segments_of
from arts_plugin.errors import ModelError
from arts_plugin.training.packing import PackedTree

ADAPTER = "adapter"


def add_lora(model: Any, r: int, alpha: int, dropout: float) -> Any:
    """The model with fresh LoRA adapters on every linear projection but the output embeddings (q, k, v, o, gate, up,
    down in most), as the paper has them (arXiv 2602.12846: r 16, alpha 32, dropout 0.1); everything else is frozen.

    The adapters belong to the CausalLM, not to its decoder, so that their keys are those that other tools expect.
    """
    peft = _peft()
    config = peft.LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM", bias="none"
    )
    return peft.get_peft_model(model, config)


def put_on(model: Any, folder: Path) -> Any:
    """The model with a saved adapter.

    Raises:
        ModelError: there is none, or its keys are not those of this model: PEFT itself only warns, and then the
            adapter does nothing.
    """
    peft = _peft()
    file = folder / "adapter_model.safetensors"
    if not file.exists():
        raise ModelError(f"{folder} holds no adapter_model.safetensors")
    from safetensors.torch import load_file

    try:
        made = peft.get_peft_model(model, peft.PeftConfig.from_pretrained(folder))
        weights = load_file(file)
        if odd := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
            raise ValueError(f"{odd[0]} has numbers that are not finite")
        result = peft.set_peft_model_state_dict(made, weights)
    except Exception as error:
        raise ModelError(f"the adapter in {folder} does not fit the model: {type(error).__name__}: {error}") from error
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        odd = (missing or result.unexpected_keys)[0]
        raise ModelError(
            f"the adapter in {folder} does not fit the model: {len(missing)} of its weights are missing and "
            f"{len(result.unexpected_keys)} belong nowhere, like {odd}; was it trained on another model, or on a bare "
            "AutoModel instead of the CausalLM?"
        )
    return made


def adapted(model: Any, folder: Path) -> Any:
    """The model under a saved adapter, as it decodes fastest: merged into its weights, if that rounds nothing away.

    Raises:
        ModelError: see `put_on`.
    """
    exact = model.dtype == torch.float32  # in 16 bits, most of what an adapter adds would be
    made = put_on(model, folder)
    return made.merge_and_unload() if exact else made.get_base_model()


def hidden_states(model: Any, packed: PackedTree) -> torch.Tensor:
    """Post-norm hidden states of every token of a packed tree, in one forward pass: [n_tokens, n_embd].

    Each token sees its own path alone; positions count along the path. `model` is a CausalLM, with or without adapters,
    whose attention is `arts_packed` (segment by segment, see `arts_hf.packed`) or sdpa (one 4-D mask).
    """
    decoder = decoder_of(model)
    device = next(decoder.parameters()).device
    tokens = torch.from_numpy(packed.tokens)[None].to(device)
    positions = torch.from_numpy(packed.positions)[None].to(device)
    segments = segments_of(packed, device) if decoder.config._attn_implementation == NAME else None
    how: dict[str, Any] = (
        {"attention_mask": tree_mask(decoder.config, packed, device)}
        if segments is None
        else {"arts_segments": segments}
    )
    out = decoder(input_ids=tokens, position_ids=positions, use_cache=False, **how)
    return out.last_hidden_state[0]  # type: ignore[no-any-return]


def tree_mask(config: Any, packed: PackedTree, device: torch.device) -> Any:
    """The 4-D mask(s) of a packed tree: bool [1, 1, n, n], or a dict by kind of layer where a model has several.

    Only sdpa takes a boolean mask for what it is: eager attention would add it to the scores.

    Raises:
        ModelError: the model's attention is not sdpa.
    """
    kind = config._attn_implementation
    if kind not in {"sdpa", NAME, attention.NAME}:
        raise ModelError(f"a packed tree needs attn_implementation='sdpa', and the model has {kind!r}")
    seen = torch.from_numpy(packed.mask()).to(device)
    full = seen[None, None]
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not window or kinds == {"full_attention"}:
        return full
    at = torch.from_numpy(packed.positions).to(device)
    near = (seen & (at[:, None] - at[None] < window))[None, None]
    return {"full_attention": full, "sliding_attention": near} if kinds else near


def decoder_of(model: Any) -> Any:
    """The body of a CausalLM without its output embeddings, adapters included."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.get_decoder()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError(f"a LoRA verifier needs the package peft ({error}): pip install 'arts-plugin[hf]'") from error
    return peft

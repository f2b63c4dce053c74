"""Arguments as other programs call them, so that an error can say what they are called here."""

from __future__ import annotations

_WHERE_IT_STARTS = "it belongs to the engine; with backend=server set it where the server is started"
_TOKENIZER = "the tokeniser is the model's own"
_QUANTISED = (
    "quantised checkpoints are recognised; quantize=4bit or 8bit with backend=hf rounds others while they are loaded"
)
_NAMES = {
    # lm-eval's hf
    "max_length": "n_ctx",
    "peft": "lora",
    "delta": "merge the weights and give the result as model=; adapters are lora=",
    "load_in_4bit": "quantize=4bit, with backend=hf",
    "load_in_8bit": "quantize=8bit, with backend=hf",
    "bnb_4bit_quant_type": "quantize=4bit, with backend=hf",
    "bnb_4bit_compute_dtype": "dtype, with backend=hf",
    "autogptq": _QUANTISED,
    "gptqmodel": _QUANTISED,
    "quantization": _QUANTISED,
    "parallelize": "device=auto, with backend=hf",
    "device_map": "device=auto, with backend=hf",
    "max_memory_per_gpu": "device=auto, with backend=hf, fills what is free",
    "max_cpu_memory": "device=auto, with backend=hf, fills what is free",
    "offload_folder": "device=auto, with backend=hf, fills what is free",
    "tp_plan": "device=auto, with backend=hf, spreads a model over all devices",
    "torch_dtype": "dtype, with backend=hf",
    "gguf_file": "model=FILE.gguf",
    "subfolder": "model=FOLDER takes a local folder",
    "tokenizer": _TOKENIZER,
    "tokenizer_mode": _TOKENIZER,
    "use_fast_tokenizer": _TOKENIZER,
    "tokenizer_backend": _TOKENIZER,
    "tokenized_requests": _TOKENIZER,
    "tokenizer_revision": _TOKENIZER,
    "add_bos_token": "BOS is added where the model's file asks for it",
    "prefix_token_id": "the model's BOS, or else its end-of-text token, stands before a text without context",
    "chat_template_args": "enable_thinking; other variables of chat templates are not passed on",
    "chat_template_kwargs": "enable_thinking; other variables of chat templates are not passed on",
    "mixed_precision_dtype": "dtype, with backend=hf",
    # vLLM and SGLang
    "gpu_memory_utilization": _WHERE_IT_STARTS,
    "mem_fraction_static": _WHERE_IT_STARTS,
    "swap_space": _WHERE_IT_STARTS,
    "enable_prefix_caching": "shared prefixes are always computed once",
    "tensor_parallel_size": f"device=auto, with backend=hf, spreads a model over all devices; for vLLM {_WHERE_IT_STARTS}",
    "tp_size": f"device=auto, with backend=hf, spreads a model over all devices; for SGLang {_WHERE_IT_STARTS}",
    "data_parallel_size": "several addresses in base_url, or `accelerate launch` with backend=hf",
    "dp_size": "several addresses in base_url, or `accelerate launch` with backend=hf",
    "max_model_len": "n_ctx",
    "context_length": "n_ctx",
    "max_num_seqs": "slots",
    "lora_local_path": "lora",
    "lora_path": "lora",
    # OpenAI-compatible servers
    "num_concurrent": "slots",
    "max_concurrent": "slots",
    "api_key": "the environment variable ARTS_API_KEY",
    "api_base": "base_url, with backend=server",
    "url": "base_url, with backend=server",
    "engine": "model",
    # transformers' generate and OpenAI's API
    "max_new_tokens": "max_gen_toks",
    "max_tokens": "max_gen_toks",
    "max_completion_tokens": "max_gen_toks",
    "num_return_sequences": "budget_trajectories",
    "n": "budget_trajectories",
    "best_of": "strategy=best_of_n,budget_trajectories=N",
    "num_beams": "strategy=beam,budget_trajectories=N",
    "do_sample": "temperature; strategy=greedy does not sample",
    "until": "a task's generation_kwargs, or --gen_kwargs",
    "stop": "until, in a task's generation_kwargs or in --gen_kwargs",
    # llama.cpp
    "n_batch": "n_ubatch",
    "ctx_size": "n_ctx",
    "threads": "n_threads",
    "ngl": "n_gpu_layers",
    "gpu_layers": "n_gpu_layers",
    "type_k": "cache_type_k",
    "type_v": "cache_type_v",
    "lora_base": "lora",
    "model_path": "model",
    "repeat_penalty": "repetition_penalty",
}
"""Arguments of other models of lm-eval, of engines and of APIs -> what to write here."""


def ours(name: str) -> str:
    """What another program's argument is called here, as the tail of an error message; empty if it is none that is known."""
    return f"; here: {_NAMES[name]}" if name in _NAMES else ""

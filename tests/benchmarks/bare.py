"""A bare llama_decode loop: what an engine can at best reach. No stopping, no text, no search.

    python tests/benchmarks/bare.py MODEL.gguf [--rounds 3] [--tokens 64]

Prints a table of tokens/s for batch shapes, threads, hidden states, unified and separate KV, flash attention.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from arts_llama_cpp.bindings import llama


@dataclass(frozen=True, slots=True)
class Shape:
    """How a bare loop decodes."""

    branches: int = 16
    tokens: int = 64
    threads: int = 2
    hidden: bool = True
    unified: bool = True
    flash: int = -1
    ubatch: int = 512


class Bare:
    """One prompt prefilled once, copied to every branch, and decoded together; sampled in C."""

    def __init__(self, path: str, prompt: tuple[int, ...], shape: Shape) -> None:
        lib = self.lib = llama()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(path.encode(), params)
        context = lib.llama_context_default_params()
        per_branch = shape.tokens + len(prompt) + 8
        context.n_ctx = shape.branches * per_branch
        context.n_batch, context.n_ubatch = 512, shape.ubatch
        context.n_seq_max = shape.branches
        context.n_threads = context.n_threads_batch = shape.threads
        context.kv_unified, context.embeddings, context.pooling_type = shape.unified, shape.hidden, 0
        context.flash_attn_type = shape.flash
        self.context = lib.llama_init_from_model(self.model, context)
        if not self.model or not self.context:
            raise SystemExit(f"cannot load {path} as {shape}")
        self.batch = lib.llama_batch_init(512, 0, 1)
        self.prompt, self.shape = prompt, shape

    def _decode(self, items: list[tuple[int, int, int, bool]]) -> None:
        for i, (token, position, sequence, output) in enumerate(items):
            self.batch.token[i], self.batch.pos[i], self.batch.n_seq_id[i] = token, position, 1
            self.batch.seq_id[i][0], self.batch.logits[i] = sequence, output
        self.batch.n_tokens = len(items)
        status = self.lib.llama_decode(self.context, self.batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}")

    def _sampler(self, seed: int) -> Any:
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_k(50))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_top_p(0.95, 1))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(0.6))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        return chain

    def round(self) -> float:
        """Tokens per second of one round, decode time only."""
        lib, shape = self.lib, self.shape
        memory = lib.llama_get_memory(self.context)
        lib.llama_memory_clear(memory, True)
        lib.llama_set_embeddings(self.context, False)
        last = len(self.prompt) - 1
        self._decode([(token, i, 0, i == last) for i, token in enumerate(self.prompt)])
        for sequence in range(1, shape.branches):
            lib.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
        samplers = [self._sampler(100 + i) for i in range(shape.branches)]
        current = [lib.llama_sampler_sample(sampler, self.context, -1) for sampler in samplers]
        lib.llama_set_embeddings(self.context, shape.hidden)
        began = time.perf_counter()
        for step in range(shape.tokens):
            self._decode([(current[s], last + 1 + step, s, True) for s in range(shape.branches)])
            current = [lib.llama_sampler_sample(sampler, self.context, i) for i, sampler in enumerate(samplers)]
        rate = shape.branches * shape.tokens / (time.perf_counter() - began)
        for sampler in samplers:
            lib.llama_sampler_free(sampler)
        return rate

    def close(self) -> None:
        """Free context and model."""
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    prompt = tuple(int(token) for token in np.random.default_rng(0).integers(1000, 20000, size=80))
    shapes = {
        "16 branches, 2 threads": Shape(),
        "1 thread": Shape(threads=1),
        "no hidden states": Shape(hidden=False),
        "separate KV streams": Shape(unified=False),
        "flash attention on": Shape(flash=1),
        "flash attention off": Shape(flash=0),
        "n_ubatch 64": Shape(ubatch=64),
        "1 branch": Shape(branches=1),
        "4 branches": Shape(branches=4),
        "8 branches": Shape(branches=8),
        "32 branches": Shape(branches=32),
        "16 branches, 256 tokens": Shape(tokens=256),
        "16 branches, 256 tokens, separate KV": Shape(tokens=256, unified=False),
    }
    rates: dict[str, list[float]] = {name: [] for name in shapes}
    for number in range(args.rounds):
        for name, shape in shapes.items():
            tokens = args.tokens if shape.tokens == 64 else shape.tokens
            bare = Bare(args.model, prompt, Shape(**{**_fields(shape), "tokens": tokens}))
            bare._decode([(prompt[0], 0, 0, True)])  # the first batch of a context is slower
            rates[name].append(bare.round())
            bare.close()
        print(f"round {number + 1} of {args.rounds}", flush=True)
    base = statistics.median(rates["16 branches, 2 threads"])
    for name, values in rates.items():
        median = statistics.median(values)
        print(f"{name:>38} {median:7.1f} tokens/s  {median / base:5.2f}  ({min(values):.0f} to {max(values):.0f})")


def _fields(shape: Shape) -> dict[str, Any]:
    return {name: getattr(shape, name) for name in shape.__slots__}


if __name__ == "__main__":
    main()

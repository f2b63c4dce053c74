"""The hf backend against `model.generate(num_return_sequences=N)`: the same model, prompt, sampling and number of tokens.

    python tests/benchmarks/generate.py MODEL [--branches 16 64] [--prefix 400] [--tokens 64] [--rounds 3] [--dtype auto]

MODEL is a folder, a hub id or a GGUF file. Contestants take turns in one run; the first round warms up and is not
counted; ratios are medians over rounds. Neither ends early: ends of generation are switched off in both. `generate`
computes the prompt once for every sequence; "decode only" leaves prompts out on both sides (generate's by the time that
the same call takes for one new token). Also printed: the bytes of the KV pool over those of its distinct tokens, and the
share of a step that is neither matrix products nor attention, by torch's own profiler on one round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from arts_hf.backend import HfBackend
from arts_hf.loading import load
from arts_plugin import Arts
from arts_plugin.backend import Prompt
from arts_plugin.settings import Settings

TEXT = (
    "Question: Tom has {0} boxes with {1} pens each. He gives {2} of them to his sister. How many pens are left?\n"
    "Answer: Tom has {0} x {1} = {3} pens. He gives {2} away, so {4} are left. The answer is {4}.\n\n"
)
SAMPLING: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 50}
MATRIX = ("mm", "linear", "attention", "bmm")
KERNELS = ("gemm", "gemv", "nvjet", "xmma", "cutlass", "fmha", "flash", "attention")


def prefix(tokenizer: Any, length: int) -> list[int]:
    """A few-shot prompt of that many tokens."""
    text = "".join(
        TEXT.format(a, b, c, a * b, a * b - c) for a in range(2, 30) for b in range(3, 6) for c in range(1, 3)
    )
    return list(tokenizer(text, add_special_tokens=False).input_ids[:length])


class Ours:
    """`best_of_n` on the engine: N branches of one prompt, as the search runs them."""

    def __init__(
        self, loaded: Any, ids: list[int], branches: int, tokens: int, n_threads: int | None, cuda_graphs: bool = True
    ) -> None:
        settings = Settings.of(
            backend="hf", strategy="best_of_n", budget_trajectories=branches, slots=branches, max_gen_toks=tokens,
            max_step_tokens=tokens + 1, delimiter="regex:(?!)", verifier="none", n_threads=n_threads, **SAMPLING,
            cuda_graphs=cuda_graphs, n_ctx=len(ids) + branches * (tokens + 2) + 64,
        )  # fmt: skip
        self.backend = HfBackend.of(loaded.model, loaded.tokenizer, settings)
        self.backend.model.eog = frozenset()
        self.arts = Arts(settings, engine=self.backend)
        self.prompt = Prompt(loaded.tokenizer.decode(ids), tuple(ids))
        self.seed = 0

    def round(self) -> tuple[int, float, float]:
        """Tokens, seconds, seconds of decoding."""
        self.seed += 1
        stats = self.backend.stats
        stats.reset()
        began = time.perf_counter()
        for _ in self.arts.events([self.arts.job(self.prompt, self.arts.settings.with_(seed=self.seed))]):
            pass
        return stats.decoded_tokens, time.perf_counter() - began, stats.decode_seconds

    def memory(self) -> float:
        """Bytes of the pool over those of the distinct tokens at the fullest moment."""
        config = self.backend.network.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token = 2 * config.num_key_value_heads * head * config.num_hidden_layers * self.backend.network.dtype.itemsize
        return self.backend.runtime.pool.bytes / (self.backend.stats.peak_cells * token)  # type: ignore[attr-defined]


class Generate:
    """transformers' own sampling."""

    def __init__(self, loaded: Any, ids: list[int], branches: int, tokens: int) -> None:
        self.model, self.ids, self.branches, self.tokens = loaded.model, torch.tensor([ids]), branches, tokens

    def call(self, tokens: int) -> float:
        """Seconds of one call."""
        ids = self.ids.to(self.model.device)
        began = time.perf_counter()
        found = self.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, num_return_sequences=self.branches,
            max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, **SAMPLING,
        )  # fmt: skip
        if found.is_cuda:
            torch.cuda.synchronize()
        assert found.shape == (self.branches, ids.shape[1] + tokens)
        return time.perf_counter() - began

    def round(self) -> tuple[int, float, float]:
        """Tokens, seconds, seconds of decoding."""
        whole, first = self.call(self.tokens), self.call(1)
        return self.branches * self.tokens, whole, (whole - first) * self.tokens / (self.tokens - 1)


def other_share(ours: Ours) -> float:
    """Share of a round that is neither matrix products nor attention."""
    activity = torch.profiler.ProfilerActivity
    on_gpu = torch.cuda.is_available()
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as profiler:
        _, seconds, _ = ours.round()
    if on_gpu:  # by kernels alone, which graphs leave nothing else of
        kernels = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        spent = [(e.name.lower(), e.time_range.elapsed_us()) for e in kernels]
        total = sum(time for _, time in spent)
        return 1 - sum(time for name, time in spent if any(part in name for part in KERNELS)) / total
    work = sum(e.self_cpu_time_total for e in profiler.key_averages() if any(part in e.key for part in MATRIX))
    return 1 - work / 1e6 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--branches", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--prefix", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loaded = load(Settings.of(model=args.model, dtype=args.dtype))
    ids = prefix(loaded.tokenizer, args.prefix)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {args.threads} threads"
    print(f"{args.model}, {loaded.model.dtype}, {where}; prefix {len(ids)}, {args.tokens} new tokens")
    for branches in args.branches:
        # On a GPU also with every kernel launched anew; `arts` comes last, and is what memory and shares are of.
        names = ["generate", *(["arts, no graphs"] if torch.cuda.is_available() else []), "arts"]
        found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in names}
        for number in range(args.rounds + 1):
            for name in found:
                # Each has the model with its own attention.
                loaded.model.set_attn_implementation("sdpa")
                made: Any = (
                    Generate(loaded, ids, branches, args.tokens)
                    if name == "generate"
                    else Ours(loaded, ids, branches, args.tokens, args.threads, name == "arts")
                )
                if number:
                    found[name].append(made.round())
                else:
                    made.round()
        rates = {
            name: [(tokens / whole, tokens / decode) for tokens, whole, decode in rounds]
            for name, rounds in found.items()
        }
        for i, what in enumerate(("end to end", "decode only")):
            medians = {name: statistics.median(rate[i] for rate in rounds) for name, rounds in rates.items()}
            for name in names[1:]:
                ratios = [ours[i] / theirs[i] for ours, theirs in zip(rates[name], rates["generate"], strict=True)]
                print(
                    f"N={branches:4d} {what:>11}: generate {medians['generate']:8.1f} tokens/s, {name} {medians[name]:8.1f} "
                    f"tokens/s, {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f})",
                    flush=True,
                )
        print(
            f"N={branches:4d}  KV pool / distinct tokens: {made.memory():.3f}; neither matrices nor attention: {other_share(made):.0%}"
        )


if __name__ == "__main__":
    main()

"""Backend `server` against a plain load generator on a real vLLM; and what `arts serve` adds to the engine in process.

    python -m tests.benchmarks.server vllm FOLDER      (FOLDER: made by tests/real/vllm_venv.py)
    python -m tests.benchmarks.server serve

Client and server share the machine. Ways alternate in one run; ratios are of medians over rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from arts_plugin.api import Arts
from arts_plugin.locate import embedded
from tests.real.servers import Server, vllm
from tests.real.vllm_venv import python_of

EXAMPLES = "\n\n".join(
    f"Question: A shop sells {n} boxes of {n + 3} pens and takes back {n // 2}. How many pens are out?\n"
    f"Step by step: {n} boxes of {n + 3} pens are {n * (n + 3)} pens.\nOf these {n // 2} come back.\n"
    f"The answer is {n * (n + 3) - n // 2}."
    for n in range(3, 9)
)
TRACES, LENGTH, STOPS = 8, 96, ["Question:"]
WAVES = 4  # of traces, so that the last ones, which fill no server, are few
QUESTIONS = [
    f"{EXAMPLES}\n\nQuestion: Ann has {n} bags of {n + 2} nuts and eats {n % 5}. How many are left?" for n in range(64)
]


class Counter:
    """What a backend's requests sent, and how much of it the server had: only prompts longer than `least` tokens."""

    def __init__(self, arts: Arts, least: int) -> None:
        self.sent = self.cached = self.requests = 0
        transport = arts.backend.transport  # type: ignore[attr-defined]
        ask = transport.ask

        async def counting(replica: Any, path: str, payload: dict[str, Any]) -> dict[str, Any]:
            reply: dict[str, Any] = await ask(replica, path, payload)
            usage = reply.get("usage") or {}
            if path == "/v1/completions" and usage.get("prompt_tokens", 0) > least:
                self.requests += 1
                self.sent += usage["prompt_tokens"]
                self.cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            return reply

        transport.ask = counting


async def load(
    server: Server, prompts: list[list[int]], at_once: int, delimiter: str | None = None, **more: Any
) -> tuple[float, int]:
    """Tokens/s and tokens of whole traces, `TRACES` of each prompt, `at_once` of them at any time.

    With a delimiter they are asked for line by line, by a generator that knows nothing of trees: what the server gives to
    requests of this shape, whoever sends them.
    """
    made = 0
    waiting = iter([prompt for prompt in prompts for _ in range(TRACES)])
    body: dict[str, Any] = {"model": "smollm2", "temperature": 0.6, "top_p": 0.95, "top_k": 50, "stop": STOPS, **more}
    if delimiter is not None:
        body |= {"stop": [delimiter, *STOPS], "include_stop_str_in_output": True, "return_token_ids": True}
    began = time.perf_counter()
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=at_once)) as client:

        async def worker() -> None:
            nonlocal made
            for prompt in waiting:
                trace: list[int] = []
                while len(trace) < LENGTH:
                    asked = body | {"prompt": prompt + trace, "max_tokens": LENGTH - len(trace)}
                    reply = (await client.post(f"{server.url}/completions", json=asked)).json()
                    made += reply["usage"]["completion_tokens"]
                    choice = reply["choices"][0]
                    if delimiter is None or choice["stop_reason"] != delimiter:
                        break
                    trace += choice["token_ids"]

        await asyncio.gather(*(worker() for _ in range(at_once)))
    return made / (time.perf_counter() - began), made


def search(server: Server, questions: list[str], slots: int, **settings: Any) -> tuple[float, int, Counter]:
    """Tokens/s and tokens of a search of the same questions."""
    options = {"verifier": "logprob", "max_gen_toks": LENGTH, "budget_trajectories": TRACES, **settings}
    with Arts(backend="server", base_url=server.url, slots=slots, **options) as arts:
        counter = Counter(arts, 128)
        began = time.perf_counter()
        jobs = [arts.job(arts.backend.encode(question), stops=STOPS) for question in questions]
        tokens = sum(event.tree.cost.decoded_tokens for event in arts.events(jobs) if event.kind == "finished")
        return tokens / (time.perf_counter() - began), tokens, counter


def against_vllm(python: Path, rounds: int, levels: list[int]) -> None:
    import torch

    from arts_hf.loading import converted

    model = embedded()
    assert model is not None
    folder = converted(model, torch.bfloat16)
    with tempfile.TemporaryDirectory() as scratch, vllm(python, folder, Path(scratch, "log")) as server:
        with Arts(backend="server", base_url=server.url, verifier="none") as arts:
            prompts = [list(arts.backend.encode(question).token_ids) for question in QUESTIONS]
        print(f"prompts of {len(prompts[0])} tokens")
        for at_once in levels:
            n = WAVES * at_once // TRACES
            few = max(4, n // WAVES)  # `arts` begins with `at_once` branches a question
            rates: dict[str, list[tuple[float, int]]] = {}
            for _ in range(rounds):
                plain = asyncio.run(load(server, prompts[:n], at_once))
                rates.setdefault("plain", []).append(plain)
                told = asyncio.run(load(server, prompts[:n], at_once, logprobs=0, return_token_ids=True))
                rates.setdefault("plain, logprobs", []).append(told)
                lines = asyncio.run(load(server, prompts[:n], at_once, "\n", logprobs=0))
                rates.setdefault("plain, line by line", []).append(lines)
                ways = {
                    "best_of_n": {"strategy": "best_of_n"},  # chains, which are asked for whole
                    "step by step": {"strategy": "best_of_n", "budget_nodes": 1 << 20},
                    "arts": {"strategy": "arts"},
                }
                for way, settings in ways.items():
                    asked = QUESTIONS[: few if way == "arts" else n]
                    rate, made, counter = search(server, asked, at_once, **settings)
                    rates.setdefault(way, []).append((rate, made))
            base = statistics.median(rate for rate, _ in rates["plain"])
            steps = statistics.median(rate for rate, _ in rates["plain, line by line"])
            for way, pairs in rates.items():
                rate = statistics.median(rate for rate, _ in pairs)
                tokens = statistics.median(tokens for _, tokens in pairs)
                print(
                    f"{at_once:3} at once, {way:19} {rate:7.1f} tokens/s of {tokens:.0f}, {rate / base:.2f} of plain, "
                    f"{rate / steps:.2f} of line by line",
                    flush=True,
                )
            share = counter.cached / max(1, counter.sent)
            print(f"{at_once:3} at once, arts: {share:.3f} of the prompt tokens from the cache", flush=True)
        print("questions  slots  seconds  s a question  tokens/s  cached")
        for n in (1, 4, 16, 64):
            slots = min(64, 4 * n)
            options: dict[str, Any] = {"verifier": "logprob", "max_gen_toks": LENGTH, "budget_trajectories": 4}
            options |= {"slots": slots, "strategy": "best_of_n"}  # `arts` begins with `slots` branches a question
            with Arts(backend="server", base_url=server.url, **options) as arts:
                began = time.perf_counter()
                jobs = [arts.job(arts.backend.encode(question), stops=STOPS) for question in QUESTIONS[:n]]
                trees = [event.tree for event in arts.events(jobs) if event.kind == "finished"]
                took = time.perf_counter() - began
            tokens = sum(tree.cost.decoded_tokens for tree in trees)
            cached, computed = (sum(getattr(t.cost, f"{k}_tokens") for t in trees) for k in ("cached", "prefilled"))
            print(
                f"{n:9}  {slots:5}  {took:7.1f}  {took / n:12.2f}  {tokens / took:8.1f}  {cached / (cached + computed):.3f}"
            )


def through_serve(rounds: int, questions: int, threads: int) -> None:
    import openai

    settings: dict[str, Any] = {
        "strategy": "best_of_n",
        "select": "logprob",
        "budget_trajectories": 4,
        "slots": 16,
        "verifier": "none",
    }
    settings |= {"max_gen_toks": 96, "n_threads": threads, "chat": "template"}
    asked = [f"Ann has {n} bags of {n + 2} nuts and eats {n % 5}. How many are left?" for n in range(questions)]
    options = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "arts_plugin.cli", "serve", "--port", "0", *options]
    serving = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert serving.stderr is not None
    line = next(line for line in serving.stderr if line.startswith("serving"))
    url = line.split(" at ")[1].strip()

    async def clients() -> int:
        client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
        messages: list[Any] = [[{"role": "user", "content": text}] for text in asked]
        replies = await asyncio.gather(
            *(client.chat.completions.create(model="", messages=m, timeout=600) for m in messages)
        )
        await client.close()
        return sum(reply.usage.completion_tokens for reply in replies if reply.usage)

    with Arts(**settings) as arts:
        backend = arts.backend

        def in_process() -> int:
            jobs = [arts.job(backend.encode_chat([{"role": "user", "content": text}])) for text in asked]
            return sum(event.tree.cost.decoded_tokens for event in arts.events(jobs) if event.kind == "finished")

        ways: dict[str, Callable[[], int]] = {"in process": in_process, "arts serve": lambda: asyncio.run(clients())}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        try:
            for number in range(rounds + 1):
                for way, work in ways.items():
                    began = time.perf_counter()
                    tokens = work()
                    if number:  # the first round warms up
                        rates[way].append(tokens / (time.perf_counter() - began))
        finally:
            serving.terminate()
            serving.wait()
    print(json.dumps({way: [round(rate, 1) for rate in found] for way, found in rates.items()}))
    ratios = [b / a for a, b in zip(rates["in process"], rates["arts serve"], strict=True)]
    print(f"arts serve / in process, tokens/s: {statistics.median(ratios):.3f} of {questions} questions at once")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["vllm", "serve"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at_once", type=int, nargs="*", default=[16, 64])
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.what == "vllm":
        against_vllm(python_of(given.folder), given.rounds, given.at_once)
    else:
        through_serve(given.rounds, given.questions, given.threads)


if __name__ == "__main__":
    main()

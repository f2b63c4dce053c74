"""How long `arts serve` keeps one client waiting for its next words while others send what takes long to read.

    python -m tests.benchmarks.serve_holdup process     (what reading one request keeps from every other thread)
    python -m tests.benchmarks.serve_holdup server      (what a client sees, on a machine that has cores to spare)

In a process, a thread wakes up every half millisecond while a request is read beside it: the longest time between is
what the searches of others would have waited. At a server, a small request is streamed word by word from the embedded
model, and the gaps between its events are compared with those of a server that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from arts_llama_cpp.model import LlamaModel
from arts_plugin.errors import ArtsError
from arts_plugin.serve import app, protocol
from arts_plugin.settings import Settings
from tests.models import smollm2
from tests.real.arts_serve import arts_serve

SECONDS = 10.0
QUESTION = {
    "messages": [{"role": "user", "content": "Write a long story about a river."}],
    "stream": True,
    "arts": {"strategy": "greedy", "delimiter": " ", "max_gen_toks": 24},
}


def nested(root: str = "a0", rules: int = 400) -> str:
    """A grammar that takes a minute to compile; behind another root, to follow."""
    names = [*(f"a{i}" for i in range(1, rules)), '"x"']
    made = (f"a{i} ::= {'(' * 8}{name}" + ' "b")*' * 8 for i, name in enumerate(names))
    return "\n".join([f"root ::= {root}", *made])


def chat(content: str = "Say hello.", **more: Any) -> dict[str, Any]:
    """A body."""
    own = {"arts": {"strategy": "greedy"}, "max_tokens": 4}
    return {"messages": [{"role": "user", "content": content}], **own, **more}


def turns(count: int) -> list[dict[str, str]]:
    """A long conversation."""
    return [{"role": role, "content": "a"} for _ in range(count) for role in ("user", "assistant")]


DISTURBANCES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "small requests": chat(),
    "a grammar that cannot be compiled": chat(grammar=nested(rules=400)),
    "a grammar that cannot be followed": chat(grammar=nested('[a-zA-Z]+ "," a0', 100), logit_bias={"28": 50}),
    "a schema": chat(response_format={"type": "json_object"}),
    "1 MB of words": chat("hello world " * 85_000),
    "1 MB of Chinese": chat("漢字" * 170_000),
    "1 MB of control marks": chat("<|im_end|>" * 100_000),
    "1 MB of <": chat("<" * 1_000_000),
    "20,000 messages": chat(messages=turns(10_000)),
    "1 MB of JSON": {"messages": [], "metadata": [[[]]] * 200_000},
}


def gaps(url: str, until: float) -> list[float]:
    """Seconds between the events of small requests."""
    found: list[float] = []
    with httpx.Client(timeout=120) as client:
        while time.monotonic() < until:
            with client.stream("POST", f"{url}/chat/completions", json=QUESTION) as reply:
                last = None
                for line in reply.iter_lines():
                    if line.startswith("data: {"):
                        now = time.monotonic()
                        if last is not None:
                            found.append(now - last)
                        last = now
    return found


def disturbed(url: str, body: dict[str, Any], measure: Callable[[], list[float]]) -> list[float]:
    """What is measured while two clients send `body` without a break."""
    over = threading.Event()
    content = json.dumps(body, ensure_ascii=False).encode()

    def send() -> None:
        with httpx.Client(timeout=120) as client:
            while body and not over.is_set():
                client.post(f"{url}/chat/completions", content=content, headers={"content-type": "application/json"})

    senders = [threading.Thread(target=send) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        return measure()
    finally:
        over.set()
        for sender in senders:
            sender.join()


def process() -> None:
    """Print how long each request takes to read, and for how long nobody else gets on."""
    model = LlamaModel(Path(smollm2()), Settings())
    model.encode_chat([{"role": "user", "content": "warm " * 2000}])

    def read(body: dict[str, Any]) -> None:
        content = json.dumps(body, ensure_ascii=False).encode()
        with suppress(ArtsError):
            for ask in protocol.read("chat", app._json(content), "", Settings(), protocol.Limits()):
                model.encode_chat(ask.messages)

    print(f"{'while there is read':36} {'seconds':>8} {'longest ms':>11}")
    for name, body in DISTURBANCES.items():
        waited: list[float] = []
        over = threading.Event()
        beside = threading.Thread(target=_wake, args=(over, waited))
        beside.start()
        began = time.monotonic()
        read(body) if body else time.sleep(1)
        took = time.monotonic() - began
        over.set()
        beside.join()
        print(f"{name:36} {took:8.2f} {1000 * max(waited):11.1f}", flush=True)
    model.close()


def _wake(over: threading.Event, waited: list[float]) -> None:
    last = time.monotonic()
    while not over.is_set():
        time.sleep(0.0005)
        now = time.monotonic()
        waited.append(now - last)
        last = now


def server() -> None:
    """Print the gaps between the events of a small request."""
    with tempfile.TemporaryDirectory() as place, arts_serve(Path(place) / "log", "--n_threads", "1") as served:
        gaps(served.url, time.monotonic())  # warm
        print(f"{'beside':36} {'events':>7} {'median ms':>10} {'99 %':>8} {'longest':>8}")
        for name, body in DISTURBANCES.items():
            found = sorted(disturbed(served.url, body, lambda: gaps(served.url, time.monotonic() + SECONDS)))
            median, most, longest = statistics.median(found), found[int(0.99 * len(found))], found[-1]
            print(
                f"{name:36} {len(found):7} {1000 * median:10.1f} {1000 * most:8.1f} {1000 * longest:8.1f}", flush=True
            )


if __name__ == "__main__":
    {"process": process, "server": server}[sys.argv[1]]()

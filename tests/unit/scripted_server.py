"""An OpenAI-compatible server without a model, which fails as it is told to.

Its tokens are bytes. A trace has `STEPS` lines and an answer, all decided by the request's seed and the text so far, so that a
run with failures must give the trees of a run without.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from scripted_completions import EOS, Completions

N_EMBD = 8


def state_of(ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The hidden state after some tokens: a digest of them."""
    data = hashlib.blake2b(repr(list(ids)).encode(), digest_size=4 * N_EMBD).digest()
    return np.frombuffer(data, dtype="<u4").astype(np.float32) / 2.0**31


def rewards_of(text: str, outputs: int) -> list[float]:
    """The judgement of a text: a digest of it."""
    data = hashlib.blake2b(text.encode(), digest_size=4 * outputs).digest()
    return [float(number) for number in np.frombuffer(data, dtype="<u4") / 2.0**30 - 2]


class ScriptedServer:
    """Serves on a free port of the loopback interface until `close`.

    Args:
        dialect: "vllm", which takes and gives token ids; "llama-server", which does so only in streams, and tells no token
            that ends inside a character; or "text", which ignores `n` and cannot say why it stopped.
        ornament: at the end of each line.
        rewards: the endpoint that judges texts, "/classify" or "/pooling", if one does.
        outputs: numbers of a judgement.
        scores: by what it scores a prompt, "prompt_logprobs" or "echo", if it does; what it does not know it ignores.
        strict: whether it refuses that instead.
        template: whether it takes messages to be judged.

    Attributes:
        faults: what to do instead of answering, one completion (or judgement) request each; see `Handler.fail`.
        other_faults: the same, of all other requests with a body and of the probe's.
        spell: how it writes a token alone, beside what it stands for.
        alter: changes a choice before it is sent.
        controls: control tokens, by their texts: its tokeniser knows them, and where it says them is for `alter`.
        judged: the requests for judgements.
        asked: the paths of all requests with a body.
    """

    def __init__(
        self,
        dialect: str = "vllm",
        model: str = "scripted",
        port: int = 0,
        normalise: bool = False,
        rewards: str | None = None,
        outputs: int = 1,
        template: bool = True,
        ornament: str = "",
        scores: str | None = "prompt_logprobs",
        strict: bool = False,
    ) -> None:
        self.scores, self.strict = scores, strict
        self.ornament = ornament
        self.dialect, self.model, self.normalise = dialect, model, normalise
        self.rewards, self.outputs, self.template = rewards, outputs, template
        self.controls: dict[str, int] = {}
        self.judged: list[dict[str, Any]] = []
        self.most_judging = self.judging = 0
        self.faults: deque[str | None] = deque()
        self.other_faults: deque[str | None] = deque()
        self.spell: Callable[[str], str] = str
        self.shift = 0  # of its tokens, as it tells them
        self.alter: Callable[[dict[str, Any]], Any] = lambda choice: None
        self.asked: list[str] = []
        self.refuse: Callable[[str], bool] = lambda prompt: False
        self.seen: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.delay = 0.0
        self.running = self.most = self.branches = self.abandoned = 0
        self.lock = threading.Lock()
        self._open: set[Any] = set()
        handler = type("Bound", (Handler,), {"owner": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """Go down as a process does that is killed: the port closes, and so does every connection."""
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    close = kill

    @property
    def completions(self) -> list[dict[str, Any]]:
        """The completion requests that were answered, the probe's left out."""
        return [body for body in self.seen if body.get("max_tokens") != 2]


class Handler(Completions, BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Nothing: tests read what they want to know from the server."""

    def setup(self) -> None:
        super().setup()
        with self.owner.lock:
            self.owner._open.add(self.connection)

    def finish(self) -> None:
        with self.owner.lock:
            self.owner._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        self.owner.keys.add(self.headers.get("authorization"))
        self.answer({"data": [{"id": self.owner.model, "owned_by": self.owner.dialect, **self.limits()}]})

    def limits(self) -> dict[str, Any]:
        told = {"vllm": {"max_model_len": 4096}, "llama-server": {"meta": {"n_ctx": 2048, "n_ctx_train": 4096}}}
        return told.get(self.owner.dialect, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.owner.keys.add(self.headers.get("authorization"))
        vllm = self.owner.dialect == "vllm"
        with self.owner.lock:
            self.owner.asked.append(self.path)
            others = self.owner.other_faults
            mine = self.path != "/v1/completions" or body.get("max_tokens") == 2
            fault = others.popleft() if others and mine else None
        if fault is not None and self.fail(fault, body):
            return
        if self.path == "/tokenize" and vllm:
            text = body["prompt"] if "prompt" in body else self.chat(body["messages"])
            bytes_of = [byte + self.owner.shift for byte in text.encode()]
            tokens = [self.owner.controls[text]] if text in self.owner.controls else bytes_of
            self.answer({"tokens": tokens, "count": 0, "max_model_len": 4096})
        elif self.path == "/detokenize" and vllm:
            named = [text for text, token in self.owner.controls.items() if [token] == body["tokens"]]
            if not named and max(body["tokens"]) > EOS:
                self.answer({"error": {"message": "token id out of range", "code": 400}}, 400)
                return
            self.answer({"prompt": named[0] if named else bytes(body["tokens"]).decode()})
        elif self.owner.dialect == "llama-server" and self.path in LLAMA_SERVER:
            self.answer(LLAMA_SERVER[self.path](self, body))
        elif self.path == "/v1/embeddings":
            self.answer({"data": list(self.embeddings(body["input"]))})
        elif self.path == "/v1/completions":
            self.complete(body)
        elif self.path in {"/classify", "/pooling"}:
            self.judge(body)
        else:
            self.answer({"detail": "Not Found"}, 404)

    def chat(self, messages: list[dict[str, str]]) -> str:
        return "".join(f"[{m['role']}] {m['content']}\n" for m in messages) + "[assistant] "

    def embeddings(self, inputs: list[list[int]]) -> Iterator[dict[str, Any]]:
        for index, ids in enumerate(inputs):
            row = state_of(ids)
            row = row / np.linalg.norm(row) if self.owner.normalise else row
            yield {"index": index, "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()}

    def judge(self, body: dict[str, Any]) -> None:
        owner = self.owner
        if self.path != owner.rewards:
            self.answer({"error": {"message": f"The model does not support {self.path}", "code": 501}}, 501)
            return
        if "messages" in body and not owner.template:
            self.answer({"error": {"message": "there is no chat template", "code": 400}}, 400)
            return
        text = self.chat(body["messages"]) if "messages" in body else body["input"]
        with owner.lock:
            fault = owner.faults.popleft() if owner.faults else None
            owner.judging += 1
            owner.most_judging = max(owner.most_judging, owner.judging)
        time.sleep(owner.delay)
        with owner.lock:  # before the reply, which may bring the next request at once
            owner.judging -= 1
        if fault is not None and self.fail(fault, body):
            return
        if owner.refuse(text):
            self.answer({"error": {"message": "this text is refused", "code": 400}}, 400)
            return
        with owner.lock:
            owner.judged.append(body)
        numbers = rewards_of(text, owner.outputs)
        if fault == "nan":
            numbers[0] = float("nan")
        if fault == "few":
            numbers = []
        entry = {"probs": numbers} if self.path == "/classify" else {"data": [[9.0] * owner.outputs, numbers]}
        self.answer({"data": [{"index": 0, **entry}], "usage": {"prompt_tokens": len(text)}})


LLAMA_SERVER: dict[str, Callable[[Handler, dict[str, Any]], dict[str, Any]]] = {
    "/tokenize": lambda handler, body: {"tokens": list(body["content"].encode())},
    "/detokenize": lambda handler, body: {
        "content": bytes(t for t in body["tokens"] if t != EOS).decode(errors="replace")
    },
    "/apply-template": lambda handler, body: {"prompt": handler.chat(body["messages"])},
}

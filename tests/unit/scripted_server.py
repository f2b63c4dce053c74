"""An OpenAI-compatible server without a model, which fails as it is told to.

Its tokens are bytes. A trace has `STEPS` lines and an answer, all decided by the request's seed and the text so far, so that a
run with failures must give the trees of a run without.
"""

from __future__ import annotations

import base64
import codecs
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

EOS = 256
STEPS = 2
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


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    owner: ScriptedServer
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
            self.answer(
                {"tokens": [byte + self.owner.shift for byte in text.encode()], "count": 0, "max_model_len": 4096}
            )
        elif self.path == "/detokenize" and vllm:
            self.answer({"prompt": bytes(body["tokens"]).decode()})
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

    def answer(self, reply: Any, status: int = 200, **headers: str) -> None:
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    # Completions.
    def complete(self, body: dict[str, Any]) -> None:
        owner = self.owner
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
        if body["model"] != owner.model:
            self.answer({"error": {"message": f"no model {body['model']}", "code": 404}}, 404)
            return
        probing = body.get("max_tokens") == 2
        with owner.lock:
            fault = None if probing or not owner.faults else owner.faults.popleft()
        if owner.refuse(text):
            self.answer({"error": {"message": "this prompt is refused", "code": 400}}, 400)
            return
        unknown = {"prompt_logprobs", "echo"} & body.keys() - {owner.scores}
        if owner.strict and unknown:
            self.answer({"error": {"message": f"unknown field {unknown.pop()}", "code": 400}}, 400)
            return
        n = body.get("n", 1) if owner.dialect == "vllm" else 1
        with owner.lock:
            owner.running += n
            owner.most = max(owner.most, owner.running)
        time.sleep(0 if probing else owner.delay)
        with owner.lock:  # before the reply, which may bring the next request at once
            owner.running -= n
        try:
            if fault is not None and self.fail(fault, body):
                return
            with owner.lock:
                owner.seen.append(body)
            self.reply(body, n, fault)
        except (BrokenPipeError, ConnectionResetError):
            with owner.lock:
                owner.abandoned += 1

    def reply(self, body: dict[str, Any], n: int, fault: str | None) -> None:
        if body.get("stream"):
            self.stream(body, fault)
            return
        choices = [self.choice(body, index) for index in range(n)]
        if fault == "duplicate":
            choices = [choices[0], *choices]
        if fault == "no ids":
            for choice in choices:
                choice["token_ids"] = choice["token_ids"][:-1]
        if fault == "nan":
            choices[0]["logprobs"]["token_logprobs"][0] = None
        usage = {"prompt_tokens": len(body["prompt"]), "prompt_tokens_details": {"cached_tokens": 3}}
        self.answer({"choices": choices, "usage": usage})

    def tokens(self, body: dict[str, Any], index: int) -> Iterator[int]:
        """What the model says: lines that the seed decides, then an answer and the end."""
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else bytes(prompt).decode()
        said = text.rsplit("[assistant] ", 1)[-1] if "[assistant] " in text else text.split("\n", 1)[-1]
        lines = said.count("\n")
        while lines < STEPS:
            yield from f"line {lines} {(body.get('seed', 0) + index) % 97}{self.owner.ornament}\n".encode()[
                len(said.split("\n")[-1].encode()) :
            ]
            said, lines = said + "\n", lines + 1
        yield from f"The answer is {(body.get('seed', 0) + index) % 3}".encode()
        yield EOS

    def choice(self, body: dict[str, Any], index: int) -> dict[str, Any]:
        ids: list[int] = []
        finish, reason = "length", None
        for token in self.tokens(body, index):
            ids.append(token)
            if token == EOS:
                finish = "stop"
                break
            found = [stop for stop in body.get("stop", ()) if bytes(t for t in ids if t != EOS).endswith(stop.encode())]
            if found:
                finish, reason = "stop", found[0]
                break
            if len(ids) == body["max_tokens"]:
                break
        kept = bytes(token for token in ids if token != EOS).decode()
        made: dict[str, Any] = {"index": index, "text": kept, "finish_reason": finish}
        if self.owner.dialect == "vllm":
            decoder = codecs.getincrementaldecoder("utf-8")()  # a character comes with its last token
            texts = ["<end>" if token == EOS else decoder.decode(bytes([token])) for token in ids]
            texts = [self.owner.spell(text) for text in texts]
            made["logprobs"] = {"tokens": texts, "token_logprobs": [-0.5] * len(ids)}
            made |= {"token_ids": ids, "stop_reason": reason}
        if self.owner.dialect == "llama-server":
            made["logprobs"] = {"content": [{"id": t, "token": chr(t), "logprob": -0.5} for t in ids if t != EOS]}
        if self.owner.scores == "echo" and body.get("echo"):
            # Of what it says, the likeliest is what stands there, but for a capital letter.
            likeliest = [{chr(t).lower(): -0.25 if chr(t).islower() else -0.1} for t in [*body["prompt"], *ids]]
            values = [None, *[-0.25] * (len(likeliest) - 1)]
            made["logprobs"] = {"token_logprobs": values, "top_logprobs": [None, *likeliest[1:]]}
        if self.owner.scores == "prompt_logprobs" and "prompt_logprobs" in body:
            made["prompt_logprobs"] = [None, *({str(t): {"logprob": -0.25, "rank": 1}} for t in body["prompt"][1:])]
        self.owner.alter(made)
        return made

    def stream_of_llama_server(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Events as that server sends them: a token when its text is whole, the end of generation as one without text."""
        pending = b""
        for count, token in enumerate(self.tokens(body, 0), 1):
            pending += b"" if token == EOS else bytes([token])
            timings = {"prompt_n": 2, "cache_n": len(body["prompt"]) - 2}
            with contextlib.suppress(UnicodeDecodeError):
                entry = {"id": token, "token": pending.decode(), "bytes": list(pending), "logprob": -0.5}
                yield {
                    "choices": [{"index": 0, "text": pending.decode(), "logprobs": {"content": [entry]}}],
                    "timings": timings,
                }
                pending = b""
            if token == EOS or count == body["max_tokens"]:
                finish = "stop" if token == EOS else "length"
                yield {"choices": [{"index": 0, "text": "", "logprobs": None, "finish_reason": finish}]}
                return

    def stream(self, body: dict[str, Any], fault: str | None) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if self.owner.dialect == "llama-server":
            for event in self.stream_of_llama_server(body):
                self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")
            return
        for count, token in enumerate(self.tokens(body, 0)):
            if fault == "half stream" and count == 3:
                self.wfile.write(b'data: {"choices": [{"te')
                return
            if fault == "cut stream" and count == 3:
                return
            last = token == EOS or count + 1 == body["max_tokens"]
            choice: dict[str, Any] = {"index": 0, "text": "" if token == EOS else chr(token), "finish_reason": None}
            if self.owner.dialect == "vllm":
                choice["token_ids"] = [token]
                choice["logprobs"] = {"tokens": ["<end>" if token == EOS else chr(token)], "token_logprobs": [-0.5]}
            if last:
                choice |= {"finish_reason": "stop" if token == EOS else "length", "stop_reason": None}
            self.wfile.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            self.wfile.flush()
            if last:
                break
            time.sleep(self.owner.delay)
        self.wfile.write(b"data: [DONE]\n\n")

    def fail(self, fault: str, body: dict[str, Any]) -> bool:
        """Do what `fault` says; whether that was all."""
        if fault.isdecimal():
            self.answer({"error": {"message": f"fault {fault}"}}, int(fault), **{"retry-after": "0"})
        elif fault == "garbage":
            self.answer(b"<html>it works</html>")
        elif fault == "half":
            self.answer(b'{"choices": [{"text": "li')
        elif fault == "list":
            self.answer([1, 2])
        elif fault == "error body":
            self.answer({"error": {"message": "out of memory", "code": 500}})
        elif fault == "no choices":
            self.answer({"choices": []})
        elif fault == "redirect":
            self.answer({}, 307, location="http://127.0.0.1:9/v1/completions")
        elif fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "short":  # the connection closes before the reply is whole
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices"')
            self.close_connection = True
        elif fault == "loris":
            self.send_response(200)
            self.send_header("content-length", "100000")
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(b" ")
                self.wfile.flush()
                time.sleep(0.05)
        else:
            return False
        return True


LLAMA_SERVER: dict[str, Callable[[Handler, dict[str, Any]], dict[str, Any]]] = {
    "/tokenize": lambda handler, body: {"tokens": list(body["content"].encode())},
    "/detokenize": lambda handler, body: {
        "content": bytes(t for t in body["tokens"] if t != EOS).decode(errors="replace")
    },
    "/apply-template": lambda handler, body: {"prompt": handler.chat(body["messages"])},
}

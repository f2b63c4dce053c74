"""What the scripted server completes: whole, in streams, and with the fields of its dialect."""

from __future__ import annotations

import codecs
import contextlib
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from scripted_faults import Faults

if TYPE_CHECKING:
    from scripted_server import ScriptedServer

EOS = 256
STEPS = 2


class Completions(Faults):
    """Answers requests for completions as its owner says."""

    owner: ScriptedServer

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

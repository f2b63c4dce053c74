"""`arts serve` over real HTTP, with a scripted proposer behind it, for the tests of its parts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
import openai
from scripted import ScriptedBackend, Step, random_script

from arts_llama_cpp import plugin as llama_cpp
from arts_plugin.api import Arts
from arts_plugin.plugins import Plugins
from arts_plugin.serve import listening
from arts_plugin.serve.app import App
from arts_plugin.serve.protocol import Limits
from arts_plugin.serve.service import Service
from arts_server import plugin as server_backend

HTTP = httpx.Client(
    timeout=30, verify=False
)  # with one for each request, most of the time goes by in reading certificates
SCRIPT = {
    **random_script(3),
    "one way": [Step("first\n", 1.0, "one way 2", 3)],
    "one way 2": [Step("second\n", 1.0, "one way 3", 3)],
    "one way 3": [Step("the answer is 3", 1.0, None, 4)],
    "thinks": [Step("<think>Is it 4? </", 1.0, "thinks 2", 3)],
    "thinks 2": [Step("think>\n\nIt is 5", 1.0, None, 4)],
    "for ever": [Step("on and on\n", 1.0, "for ever", 2)],
}


class Served:
    """A server, its backend, and clients of it."""

    def __init__(self, backend: ScriptedBackend, service: Service, url: str) -> None:
        self.backend, self.service, self.url = backend, service, url

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        headers = body.pop("headers", {})
        return HTTP.post(self.url + path, json=body, headers=headers)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return HTTP.get(self.url + path, headers=headers)

    def send(self, body: Any) -> httpx.Response:
        """A chat request of any content: bytes, or what becomes JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return HTTP.post(f"{self.url}/v1/chat/completions", content=data, headers={"content-type": "application/json"})

    def chat(self, question: str, **body: Any) -> httpx.Response:
        return self.post(messages=[{"role": "user", "content": question}], **body)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


Serve = Callable[..., Served]


def serving(plugins: Plugins) -> Iterator[Serve]:
    """Starts servers, and stops them with nothing left behind: a fixture's body."""
    ends: list[Callable[[], None]] = []
    # The first is the default, and is never made.
    extra = {"llama_cpp": llama_cpp, "server": server_backend}
    extra = {name: plugin for name, plugin in extra.items() if name not in plugins.registrations("backend")}
    for name, plugin in extra.items():
        plugins.register(plugin, name)

    def make(
        limits: Limits | None = None,
        key: str | None = None,
        slow: float = 0.0,
        origins: Sequence[str] = (),
        own_seed: bool = True,
        **settings: Any,
    ) -> Served:
        """A scripted engine, unless the settings name another."""
        backend = ScriptedBackend(SCRIPT, slots=8, n_ctx=200, on_poll=lambda: time.sleep(slow))
        engine = None if "backend" in settings else backend
        defaults = {"verifier": "none", "slots": 8, "budget_trajectories": 4}
        service = Service(Arts(registry=plugins, engine=engine, **{**defaults, **settings}))
        service.start()
        limits = limits or Limits()
        names = ("127.0.0.1", "localhost", "[::1]")
        app = App(service, "scripted", limits, key, names, origins, own_seed).asgi()
        server = listening.server(app, limits.head, limits.upload)
        sock = listening.bound("127.0.0.1", 0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
            assert not service._thread.is_alive()
            assert not backend.live, "states were never dropped"

        ends.append(end)
        served = Served(backend, service, f"http://127.0.0.1:{sock.getsockname()[1]}")
        until(lambda: _healthy(served))
        return served

    try:
        yield make
        for end in ends:
            end()
    finally:
        for plugin in extra.values():
            plugins.unregister(plugin)


def _healthy(served: Served) -> bool:
    try:
        return served.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def until(met: Callable[[], bool]) -> None:
    for _ in range(400):
        if met():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about in eight seconds")


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events; the last says that it is done."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def ask(**body: Any) -> dict[str, Any]:
    """A request's body, with a question of its own."""
    return {"messages": [{"role": "user", "content": "q"}], **body}


def request_head(length: int) -> bytes:
    """The head of a chat request by raw socket."""
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: localhost", "content-type: application/json")
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()

"""Clients of `arts serve` that send or read next to nothing shut nobody out."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
from served import Serve, Served, request_head, serving, until

from arts_plugin.plugins import Plugins
from arts_plugin.serve import listening
from arts_plugin.serve.protocol import Limits

HALF_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-half: "
LATE = (b"", b"G", HALF_HEAD, request_head(100), request_head(100) + b"{")


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


def connect(served: Served, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])), timeout=20)
    client.sendall(sent)
    return client


def rest(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    data = b""
    try:
        while part := client.recv(1 << 16):
            data += part
    except ConnectionResetError:
        pass
    return data


def test_requests_that_do_not_come_are_closed(serve: Serve) -> None:
    served = serve(limits=Limits(head=0.3, upload=0.5))
    with ExitStack() as open_ones:
        clients = [open_ones.enter_context(connect(served, sent)) for sent in LATE]
        replies = [rest(client) for client in clients]
    assert [reply[:12] for reply in replies] == [b"", b"", b"", b"HTTP/1.1 408", b"HTTP/1.1 408"]


def test_a_byte_now_and_then_is_no_request(serve: Serve) -> None:
    served = serve(limits=Limits(head=0.5, upload=0.5))
    with connect(served, HALF_HEAD) as client, pytest.raises(OSError):
        for _ in range(400):
            client.sendall(b"a")
            time.sleep(0.02)
    answered = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with connect(served, answered) as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):
            for _ in range(400):  # after an answer as well
                client.sendall(b"a")
                time.sleep(0.02)


def test_what_follows_a_refusal_is_not_read_for_ever(serve: Serve) -> None:
    served = serve(limits=Limits(body=10, upload=0.5))
    with connect(served, request_head(1 << 30) + b"x" * 100) as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 413")
        with pytest.raises(OSError):
            for _ in range(400):
                client.sendall(b"x" * 100)
                time.sleep(0.02)


def test_a_connection_goes_on_after_a_refused_body(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it comes, and with it the end of the wait for it."""
    monkeypatch.setattr(listening, "_FAREWELL", 0.2)
    served = serve(limits=Limits(body=1000), slow=0.01, max_gen_toks=150)
    with connect(served, request_head(2_000_000) + b"x" * 1_900_000) as client:
        client.sendall(b"x" * 100_000)
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 413")
        question = b'{"messages": [{"role": "user", "content": "for ever"}]}'
        client.sendall(request_head(len(question)) + question)
        assert b"HTTP/1.1 200" in client.recv(1 << 16)


@pytest.mark.parametrize("sent", [HALF_HEAD, request_head(100) + b"{"], ids=["heads", "bodies"])
def test_the_oldest_of_those_that_wait_gives_way(sent: bytes, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "most_connections", lambda: 20)
    served = serve(limits=Limits(waiting=4), slow=0.01)
    with httpx.Client() as busy, httpx.Client() as kept, ExitStack() as open_ones:
        kept.get(f"{served.url}/health")
        stream = {"messages": [{"role": "user", "content": "for ever"}], "stream": True}
        with busy.stream("POST", f"{served.url}/v1/chat/completions", json=stream) as answer:
            lines = answer.iter_lines()
            next(lines)
            clients = [open_ones.enter_context(connect(served, sent)) for _ in range(60)]
            with httpx.Client() as other:
                assert other.get(f"{served.url}/health").json()["waiting"] == 1
                question = {"messages": [{"role": "user", "content": "one way"}]}
                reply = other.post(f"{served.url}/v1/chat/completions", json=question)
                assert reply.status_code == 200
            assert rest(clients[0]) == b""
            assert kept.get(f"{served.url}/health").status_code == 200
            assert list(lines)[-2] == "data: [DONE]"  # whoever is answered is left alone


def test_who_does_not_read_an_answer_keeps_no_place() -> None:
    """A connection whose client takes nothing is given up, whatever is still to be sent."""

    async def much(scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10_000):
            await send({"type": "http.response.body", "body": b"x" * (1 << 16), "more_body": True})

    async def main() -> None:
        server = listening.server(much, head=5, body=0.3)
        place = listening.bound("127.0.0.1", 0)
        running = asyncio.create_task(server.serve(sockets=[place]))
        while not server.started:
            await asyncio.sleep(0.01)
        _, writer = await asyncio.open_connection(*place.getsockname(), limit=1)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        while not server.server_state.connections:
            await asyncio.sleep(0.01)
        while server.server_state.connections:
            await asyncio.sleep(0.05)
        writer.close()
        server.should_exit = True
        await running

    asyncio.run(asyncio.wait_for(main(), 60))


def test_small_answers_are_sent_at_once() -> None:
    """A socket that names no protocol is one for which asyncio does not set TCP_NODELAY."""
    with listening.bound("127.0.0.1", 0) as place:
        assert place.proto == socket.IPPROTO_TCP


def test_connections_leave_files_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for soft, most in ((256, 64), (1024, 512), (1 << 20, 1024), (resource.RLIM_INFINITY, 1024), (20, 16)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert listening.most_connections() == most


def test_a_client_that_comes_back_uses_its_connection(serve: Serve) -> None:
    served = serve()
    with httpx.Client() as client:
        ports = set()
        for _ in range(5):
            with client.stream("GET", f"{served.url}/health") as reply:
                ports.add(reply.extensions["network_stream"].get_extra_info("client_addr"))
                reply.read()
    assert len(ports) == 1
    until(lambda: served.get("/health").json()["waiting"] == 0)

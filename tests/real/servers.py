"""Real servers on the loopback interface, each a process of its own: vLLM, llama-cpp-python's and llama.cpp's."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.models import THREADS

POOLER = '{"pooling_type": "LAST", "use_activation": false}'
_PATIENCE = 300.0


@dataclass(slots=True)
class Server:
    """One that answers."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """SIGKILL to it and its children."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def vllm(python: Path, model: Path, log: Path, *more: str) -> Iterator[Server]:
    """vLLM serving a model folder as `smollm2`; `more` are options of its own."""
    options = [
        *("--served-model-name", "smollm2", "--dtype", "bfloat16", "--max-model-len", "2048"),
        *("--block-size", "32", "--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details"),
    ]
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options, *more]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    yield from _started(command, environment, log)


@contextmanager
def llama_cpp(model: Path, log: Path) -> Iterator[Server]:
    """llama-cpp-python's server, which answers one request at a time and must not give one up for the next."""
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", "smollm2"]
    command += ["--n_ctx", "2048", "--interrupt_requests", "false", "--logits_all", "true"]
    yield from _started(command, {}, log)


@contextmanager
def llama_server(program: Path, model: Path, log: Path, *more: str) -> Iterator[Server]:
    """llama.cpp's own server with four slots that share their KV cells; `more` are options of its own."""
    command = [str(program), "--model", str(model), "--alias", "smollm2", "--parallel", "4", "--kv-unified"]
    # A virtual machine may announce AMX and mask it; weights that were not packed for it run everywhere.
    command += ["--ctx-size", "4096", "--threads", str(THREADS or 2), "--no-repack", *more]
    yield from _started(command, {}, log)


def _started(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        server = Server(process, port)
        try:
            _await(server, log)
            yield server
        finally:
            if process.poll() is None:
                server.kill()


def _await(server: Server, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended with {server.process.returncode}: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{server.url}/models", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"the server did not answer within {_PATIENCE:g} s: {log.read_text()[-2000:]}")

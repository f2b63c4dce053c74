"""A chat front end that speaks OpenAI's protocol, against `arts serve`: the command `llm`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.arts_serve import Command, arts_serve

pytest.importorskip("llm")


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, Path]]:
    """The server, and a home of llm's that knows it."""
    home = tmp_path_factory.mktemp("llm")
    with arts_serve(
        home / "log", "--name", "smol", "--max_gen_toks", "16", "--budget_trajectories", "2", ARTS_SERVE_KEY="sk-front"
    ) as command:
        (home / "extra-openai-models.yaml").write_text(
            f"- model_id: arts\n  model_name: smol\n  api_base: {command.url}\n  api_key_name: arts\n", encoding="utf-8"
        )
        yield command, home


def llm(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, with no plugins but its own."""
    environment = {**os.environ, "LLM_USER_PATH": str(home), "LLM_LOAD_PLUGINS": ""}
    return subprocess.run(
        [sys.executable, "-m", "llm", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        stdin=subprocess.DEVNULL,
    )


def test_it_answers_streamed_and_whole(front: tuple[Command, Path]) -> None:
    _, home = front
    asked = ["-m", "arts", "--key", "sk-front", "-o", "temperature", "0"]
    streamed = llm(home, *asked, "-s", "You are brief.", "What is the capital of France?")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout.strip()
    whole = llm(home, *asked, "--no-stream", "-s", "You are brief.", "What is the capital of France?")
    assert whole.stdout == streamed.stdout
    further = llm(home, "-c", "--key", "sk-front", "And of Spain?")  # goes on with the conversation
    assert further.returncode == 0, further.stderr
    assert further.stdout.strip()


def test_a_refusal_is_shown(front: tuple[Command, Path]) -> None:
    _, home = front
    wrong = llm(home, "-m", "arts", "--key", "sk-wrong", "--no-log", "Hello")
    assert wrong.returncode == 1
    assert "the API key is missing or wrong" in wrong.stderr

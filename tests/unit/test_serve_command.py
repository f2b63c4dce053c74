"""What `arts serve` settles before it loads a model."""

from __future__ import annotations

import socket

import pytest
from click.testing import CliRunner

from arts_plugin import SettingsError
from arts_plugin.cli import main
from arts_plugin.serve.commands import KEY, address, api_key


def test_a_key_has_no_blanks_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    assert api_key() is None
    monkeypatch.setenv(KEY, " sk-1\n")
    assert api_key() == "sk-1"


@pytest.mark.parametrize(("key", "said"), [("", "is empty"), (" \n", "is empty"), ("sk\u00e9", "no HTTP header")])
def test_a_key_that_is_none(key: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(SettingsError, match=said):
        api_key()
    ended = CliRunner().invoke(main, ["serve", "--model", "nowhere.gguf"])
    assert ended.exit_code == 1
    assert f"Error: {KEY}" in ended.output
    assert said in ended.output


def test_addresses() -> None:
    assert address("127.0.0.1", 80) == "http://127.0.0.1:80/v1"
    assert address("::1", 8765) == "http://[::1]:8765/v1"
    assert address("here.example", 1) == "http://here.example:1/v1"


def test_settings_that_every_request_would_be_refused_for() -> None:
    ended = CliRunner().invoke(main, ["serve", "--budget_trajectories", "300"])
    assert ended.exit_code == 1
    assert "budget_trajectories is 300; this server allows 256 at most" in ended.output


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ended = CliRunner().invoke(main, ["serve", "--model", "nowhere.gguf", "--port", port])
    assert ended.exit_code == 1
    assert f"cannot listen at host=127.0.0.1 port={port}" in ended.output
    assert "loading" not in ended.output

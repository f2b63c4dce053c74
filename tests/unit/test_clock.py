"""A run's wall-clock time, kept over kills."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from arts_plugin.clock import FILE, Clock, seconds


def test_time_goes_on_over_kills(tmp_path: Path) -> None:
    """What a killed process half wrote is cut off, and the next line is one of its own."""
    assert seconds(tmp_path) is None
    Clock(tmp_path).tick("a")
    file = tmp_path / FILE
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"question": "b", "sec')
    assert seconds(tmp_path) == json.loads(whole)["seconds"]
    Clock(tmp_path).tick("b")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["question"] for line in lines] == ["a", "b"]
    assert seconds(tmp_path) == pytest.approx(sum(line["seconds"] for line in lines))


def test_a_damaged_line_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(
        b'{"question": "a", "seconds": 2}\n{"question": "b", "se{"question": "c", "seconds": 1}\n'
    )
    with caplog.at_level(logging.WARNING):
        assert seconds(tmp_path) == 2
    assert "line 2 is passed over" in caplog.text

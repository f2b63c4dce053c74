"""Fixtures that several modules share."""

from pathlib import Path

import pytest

from tests.downstream.environments import STAND_IN, Environment, new_environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment with the shim and a stand-in lm-eval."""
    made = new_environment(tmp_path / "venv")
    made.write(STAND_IN)
    return made

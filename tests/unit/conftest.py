"""Fixtures of the unit tests. pytest's importlib mode leaves test folders off the path, and `scripted` is shared."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from server_searches import arts, impatient, registry, serve  # noqa: F401 - fixtures

from arts_plugin import builtin
from arts_plugin.plugins import Plugins


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    """The built-in plugins alone, whatever is installed here."""
    made = Plugins(load=False)
    made.register(builtin, "builtin")
    return made

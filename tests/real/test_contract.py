"""The backend contract on real models of three architectures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.settings import Settings
from arts_plugin.testing import BackendContract
from tests.models import THREADS, model


@pytest.fixture(scope="class", params=["smollm2", "qwen2.5", "gemma3"])
def backend(request: pytest.FixtureRequest) -> Iterator[LlamaCppBackend]:
    settings = Settings.of(model=model(request.param), n_ctx=1024, slots=8, n_threads=THREADS)
    made = LlamaCppBackend(settings, features=True)
    yield made
    made.close()


class TestLlamaCpp(BackendContract):
    """llama.cpp keeps the contract."""

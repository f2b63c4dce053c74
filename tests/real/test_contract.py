"""The backend contract on real models of three architectures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.settings import Settings
from arts_plugin.testing import BackendContract
from tests.models import THREADS, model


def opened(name: str) -> Iterator[LlamaCppBackend]:
    settings = Settings.of(model=model(name), n_ctx=1024, slots=8, n_threads=THREADS)
    made = LlamaCppBackend(settings, features=True)
    yield made
    made.close()


class TestSmolLM2(BackendContract):
    """Llama architecture."""

    @pytest.fixture(scope="class")
    def backend(self) -> Iterator[LlamaCppBackend]:
        yield from opened("smollm2")


class TestQwen25(BackendContract):
    """Qwen2 architecture."""

    @pytest.fixture(scope="class")
    def backend(self) -> Iterator[LlamaCppBackend]:
        yield from opened("qwen2.5")


class TestGemma3(BackendContract):
    """Sliding-window attention. A bare llama.cpp loop on this model differs from itself between batch shapes by up to
    0.47 nats on an unlikely token and 0.997 in the cosine of hidden states: no engine on top of it can agree better."""

    tolerance, similarity = 0.5, 0.98

    @pytest.fixture(scope="class")
    def backend(self) -> Iterator[LlamaCppBackend]:
        yield from opened("gemma3")

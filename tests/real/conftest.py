"""Fixtures that several modules share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from arts_llama_cpp.backend import LlamaCppBackend

pytest.register_assert_rewrite("tests.real.llama_engines")

from tests.real.llama_engines import make  # noqa: E402


@pytest.fixture(scope="module")
def ample() -> Iterator[LlamaCppBackend]:
    made = make()
    yield made
    made.close()

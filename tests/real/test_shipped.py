"""The verifiers that come with the package: whole, small, and taken for their models without a word."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from arts_plugin import Arts, checkpoint
from arts_plugin.prompts import question_text
from arts_plugin.value_head import ValueHeadVerifier
from tests.models import THREADS, model

OWN = {"qwen2.5": "qwen2.5-coder-0.5b-instruct", "smollm2": "smollm2-135m-instruct"}
QUESTION = "Tom has 3 pens and buys 2 more. How many pens does he have now?"


def test_they_are_whole() -> None:
    """Each loads, weighs less than 3 MB, and has a card for people with figures of its test."""
    assert set(checkpoint.shipped()) == set(OWN.values())
    for name, card in checkpoint.shipped().items():
        folder = checkpoint.shipped_folder() / name
        assert sum(file.stat().st_size for file in folder.iterdir()) < 3e6
        assert {file.name for file in folder.iterdir()} == {"arts_verifier.json", "value_head.safetensors", "README.md"}
        assert isinstance(checkpoint.load(folder).verifier, ValueHeadVerifier)
        text = (folder / "README.md").read_text()
        assert "## Validation" in text and "## Test" in text and "arts sdf" in text and "arts train" in text
        assert card.training["problems"] > 100 and card.validation["problems"] > 20


@pytest.mark.parametrize("name", OWN)
def test_the_matching_one_is_used_without_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the bare defaults: the same weights, the same prompt around the question, the same delimiter."""
    caplog.set_level(logging.WARNING)
    with Arts(model=model(name), max_gen_toks=32, budget_trajectories=2, n_ctx=2048, n_threads=THREADS) as arts:
        tree = arts.solve(QUESTION)
        assert arts.trained is not None
        card = arts.trained.card
    assert not [record.message for record in caplog.records if "verifier" in record.message]
    assert tree.scorer == card.name and tree.select == card.select
    assert card.same_prompt(tree.prompt)
    assert tree.prompt[len(card.prompt[0]) : -len(card.prompt[1])] == QUESTION
    assert question_text(QUESTION) in tree.prompt
    flows = [node.log_flow for node in tree.nodes]
    assert np.isfinite(flows).all() and len(set(flows)) > 1


def test_another_model_has_none() -> None:
    with Arts(model=model("gemma3"), n_ctx=512, n_threads=THREADS) as arts:
        assert arts.trained is None and arts.verifier is None

"""What a model may do wrong: broken characters and invalid logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_llama_cpp.context import Logits
from arts_plugin.backend import Generation, Sampling
from arts_plugin.engine.runtime import Row
from arts_plugin.sampling import log_normaliser
from arts_plugin.testing import run
from tests.real.llama_engines import SAMPLED, STEP, check_empty


def test_invalid_utf8_makes_valid_text(ample: LlamaCppBackend) -> None:
    """At a temperature where anything is drawn, characters break off anywhere, also at the ends of steps."""
    generation = Generation(
        Sampling(5.0, top_p=1.0, top_k=0, seed=2), delimiter="\0", max_gen_toks=60, max_step_tokens=2
    )
    broken = 0
    for trace in run(ample, ample.encode("Ω"), generation, range(8)):
        data = b"".join(ample.model.piece(token) for token in trace.tokens)
        assert trace.text == data.decode("utf-8", "replace")
        trace.text.encode("utf-8")
        broken += trace.text.count("\ufffd")
    assert broken > 0


def test_a_character_across_steps(ample: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens that make one character belong to the step in which it is complete."""
    pieces = (b"\xe2", b"\x82", b"\xac")
    given: list[bytes] = []

    def piece(token: int) -> bytes:
        given.append(pieces[len(given) % 3])
        return given[-1]

    monkeypatch.setattr(ample.model, "piece", piece)
    generation = Generation(Sampling(temperature=0.0), delimiter="\0", max_gen_toks=7, max_step_tokens=2)
    (trace,) = run(ample, ample.encode("Once upon a time"), generation)
    assert [step.text for step in trace.steps] == ["", "€", "€", "\ufffd"]


def test_invalid_logits_end_one_branch(ample: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN in one row: that branch ends with an error, the others are not touched."""
    prompt = ample.encode("Once upon a time")
    rows, calls = ample.context.rows, []

    def poisoned(wanted: Sequence[Row], features: bool) -> Logits:
        made = rows(wanted, features)
        calls.append(len(wanted))
        if len(calls) == 5:
            logits = made.logits.copy()
            logits[2, 17] = np.nan
            return Logits(logits, log_normaliser(logits), made.hidden)
        return made

    monkeypatch.setattr(ample.context, "rows", poisoned)
    found = run(ample, prompt, SAMPLED, range(4), max_steps=1)
    assert calls[4] == 4
    bad = found[2].steps[-1]
    assert (bad.stop, bad.terminal) == ("error", True)
    assert bad.error is not None
    assert "invalid logits at token 4" in bad.error
    assert len(bad.token_ids) == 4
    for i in (0, 1, 3):
        assert len(found[i].tokens) == STEP or found[i].steps[-1].stop == "eos"
        assert found[i].steps[-1].error is None
    check_empty(ample)


def test_invalid_logits_at_a_state(ample: LlamaCppBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each branch from a state with invalid logits ends with an error, and none raises."""
    rows = ample.context.rows

    def poisoned(wanted: Sequence[Row], features: bool) -> Logits:
        logits = np.full_like(rows(wanted, features).logits, np.inf)
        return Logits(logits, log_normaliser(logits))

    monkeypatch.setattr(ample.context, "rows", poisoned)
    for trace in run(ample, ample.encode("Once"), SAMPLED, range(3)):
        assert [(step.stop, step.token_ids, step.text) for step in trace.steps] == [("error", (), "")]
    check_empty(ample)

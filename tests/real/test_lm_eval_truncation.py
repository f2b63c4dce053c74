"""Prompts that are too long, under lm-eval and elsewhere: what lm-eval's own `hf` model makes of them, and an error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from arts_plugin.api import Arts
from arts_plugin.errors import PromptTooLongError, SettingsError
from arts_plugin.lm_eval.model import ArtsLM
from tests.models import THREADS, smollm2

N_CTX, NEW = 128, 16
LONG = (
    "".join(f"Question {i}: what is {i} plus {i}?\nAnswer: {i + i}\n" for i in range(40))
    + "Question: what is 1 plus 1?\n"
)


@pytest.fixture(scope="module")
def lm() -> Iterator[ArtsLM]:
    made = ArtsLM(model=smollm2(), n_threads=THREADS, n_ctx=N_CTX, slots=2, strategy="greedy", verifier="none")
    yield made
    made.arts.close()


def request(context: str, **gen_kwargs: Any) -> Instance:
    return Instance("generate_until", {}, (context, gen_kwargs), 0)


def test_they_lose_tokens_on_the_left_and_that_is_said_once(lm: ArtsLM, caplog: pytest.LogCaptureFixture) -> None:
    tokens = lm.backend_engine.encode(LONG).token_ids
    short = lm.backend_engine.encode("One, two,").token_ids
    assert len(tokens) > 3 * N_CTX
    opened = []
    engine_open = lm.backend_engine.open
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "lm_eval.arts"):
        patch.setattr(
            lm.backend_engine, "open", lambda prompt, *more: opened.append(prompt) or engine_open(prompt, *more)
        )
        found = lm.generate_until(
            [request(text, max_gen_toks=NEW) for text in (LONG, "One, two,", "More. " + LONG)], disable_tqdm=True
        )
    kept = tokens[-(N_CTX - NEW) :]  # as hf has it: max_length - max_gen_toks
    assert {prompt.token_ids for prompt in opened} == {kept, short}
    assert all(found) and found[0] == found[2]
    (said,) = [record.getMessage() for record in caplog.records if "on the left" in record.getMessage()]
    lost = 2 * len(tokens) + len(lm.backend_engine.encode("More. " + LONG).token_ids) - len(tokens) - 2 * len(kept)
    assert f"2 of 3 prompts were too long and lost tokens on the left ({lost} tokens in all" in said
    assert f"the context has {N_CTX} tokens" in said


def test_a_chat_keeps_its_end(lm: ArtsLM) -> None:
    chat = lm.apply_chat_template([{"role": "user", "content": LONG}])
    whole = lm._chats.prompt(chat, "auto")
    cut = lm._truncation.fit(whole, lm.arts.settings.with_(max_gen_toks=NEW))
    assert cut.token_ids == whole.token_ids[-(N_CTX - NEW) :]
    assert cut.user == LONG


@pytest.mark.parametrize("new", [N_CTX, N_CTX + 1, 4000])
def test_no_room_for_any_prompt_is_an_error_before_anything_runs(lm: ArtsLM, new: int) -> None:
    with pytest.raises(SettingsError, match=f"max_gen_toks is {new} and the context has {N_CTX} tokens.*raise n_ctx"):
        lm.generate_until([request("One,", max_gen_toks=2), request("One,", max_gen_toks=new)], disable_tqdm=True)
    assert lm.backend_engine.n_active == 0


def test_elsewhere_it_is_an_error(lm: ArtsLM) -> None:
    arts: Arts = lm.arts
    tree = arts.solve(LONG)
    assert tree.error is not None and tree.meta["error_code"] == "context_length_exceeded"
    n = len(arts.prompt(LONG).token_ids)
    assert f"{n} tokens and the context {N_CTX} (n_ctx={N_CTX}, trained for 8192)" in tree.error
    assert "raise n_ctx" in tree.error
    assert PromptTooLongError("").code == "context_length_exceeded"


def test_a_setting_that_the_engine_refuses_ends_the_run(lm: ArtsLM) -> None:
    """An empty answer would be scored."""
    with pytest.raises(SettingsError, match="logit_bias names token 999999"):
        lm.generate_until([request("One,", max_gen_toks=2, arts_logit_bias="999999:1")], disable_tqdm=True)
    assert lm.backend_engine.n_active == 0
    assert lm.generate_until([request("One, two,", max_gen_toks=2)], disable_tqdm=True)[0]

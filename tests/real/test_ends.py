"""Control tokens and ids as stops and as the end of thinking, and stops after the thinking, on real models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from arts_plugin.api import Arts
from arts_plugin.errors import SettingsError
from arts_plugin.prompts import answer_of
from arts_plugin.tree import Trajectory
from tests.models import THREADS, model

CONTROL = "<|im_start|>"


@pytest.fixture(scope="module", params=["llama_cpp smollm2", "llama_cpp qwen2.5", "hf smollm2"])
def arts(request: pytest.FixtureRequest) -> Iterator[Arts]:
    backend, name = request.param.split()
    if backend == "hf":
        pytest.importorskip("transformers")
    settings: dict[str, Any] = {"backend": backend, "model": model(name), "n_ctx": 512, "n_threads": THREADS}
    with Arts(verifier="none", strategy="greedy", max_gen_toks=12, **settings) as made:
        yield made


@pytest.fixture
def token(arts: Arts) -> int:
    backend: Any = arts.backend
    (found,) = backend.vocabulary.controls(CONTROL)
    assert backend.vocabulary.piece(found) == b"" and backend.spelling(found) == CONTROL
    return int(found)


def said(arts: Arts, token: int, *stops: str, **settings: Any) -> Trajectory:
    """A trace that begins with "The" and the control token, and goes on as the model likes, saying no token twice."""
    (the,) = arts.backend.encode("The").token_ids
    backend: Any = arts.backend
    bias = ";".join([f"{the}:95", f"{token}:70", *(f"{end}:-100" for end in sorted(backend.vocabulary.eog))])
    settings = {"logit_bias": bias, "presence_penalty": 100, **settings}
    job = arts.job(arts.prompt("Tell me of rivers."), arts.settings.with_(settings), stops)
    (tree,) = [event.tree for event in arts.events([job]) if event.kind == "finished"]
    assert tree.chosen is not None
    found = tree.trajectory(tree.chosen)
    assert tree.nodes[1].token_ids[:1] in ([the], [])
    assert found.answer is None or found.answer in answer_of(found.text, tree.meta.get("think_end"), stops)
    return found


def test_a_control_token_stops(arts: Arts, token: int) -> None:
    free = said(arts, token)
    assert token in free.token_ids[:2] and free.text.startswith("The") and CONTROL not in free.text
    stopped = said(arts, token, "nothing like it", CONTROL)
    assert (stopped.text, stopped.stop, len(stopped.token_ids)) == ("The", "stop", 1)


def test_text_and_control_token_stop_together(arts: Arts, token: int) -> None:
    stopped = said(arts, token, f"e{CONTROL}")
    assert (stopped.text, stopped.stop, stopped.token_ids) == ("Th", "stop", ())
    free = said(arts, token)
    after = free.text.removeprefix("The")[:1]
    assert said(arts, token, f"he{CONTROL}{after}").text == "T"
    assert said(arts, token, f"he{CONTROL}\0").text == free.text


@pytest.mark.parametrize("by_id", [False, True])
def test_a_control_token_ends_thinking(by_id: bool, arts: Arts, token: int) -> None:
    end = str(token) if by_id else CONTROL
    free = said(arts, token, "The", think_end_token=end)
    thought, shown, answer = free.text.partition(CONTROL)
    assert (thought, shown) == ("The", CONTROL) and len(answer.strip()) > 2
    word = answer.strip()[1:3]
    stopped = said(arts, token, "The", word, think_end_token=end)
    assert stopped.stop == "stop" and answer_of(stopped.text, CONTROL) == answer.lstrip().partition(word)[0]


def test_a_control_token_stops_what_does_not_think(arts: Arts, token: int) -> None:
    """The trace runs on, for its thinking might yet end; the answer ends at the stop."""
    late = said(arts, token, CONTROL, think_end_token="</think>")
    assert late.text.startswith(f"The{CONTROL}") and late.stop != "stop"
    assert answer_of(late.text, "</think>", (CONTROL,)) == "The"


def test_text_ends_thinking(arts: Arts, token: int) -> None:
    free = said(arts, token)
    for think_end in ("he", free.text[1:5]):
        stopped = said(arts, token, "The", free.text[2:4], free.text[-2:], think_end_token=think_end)
        answer = free.text.partition(think_end)[2].lstrip()
        assert answer_of(stopped.text, think_end) == min(
            (answer.partition(stop)[0] for stop in (free.text[2:4], free.text[-2:])), key=len
        )


def test_ordinary_tokens_are_no_end(arts: Arts, token: int) -> None:
    (the,) = arts.backend.encode("The").token_ids
    for wrong in (the, 10**7, "9" * 30):
        with pytest.raises(SettingsError, match=f"think_end_token is {wrong}, which is no control token of"):
            arts.solve("q", think_end_token=wrong)

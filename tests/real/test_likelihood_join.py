"""Continuations that begin inside a token of the whole text: none is scored as nothing, and each as lm-eval's `hf` does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arts_llama_cpp.backend import LlamaCppBackend
from arts_plugin.errors import ArtsError, PromptTooLongError
from arts_plugin.lm_eval.model import ArtsLM
from tests.models import THREADS, model, smollm2
from tests.real.test_llama_hidden import check_likelihood
from tests.real.test_lm_eval_loglikelihood import request

PAIRS = [
    *[
        ("The sun rises every morn", "ing"),
        ("The sun rises every morn", "ing again"),
        ("She is a beauti", "ful person"),
    ],
    *[("hello wor", "ld"), ("Ans", "wer"), ("un", "believable"), ("New Yor", "k City"), ("in", "to the wild")],
    *[("12", "34"), ("3.1", "4159"), ("Answer: 1", "7"), ("The year 19", "84"), ("A:", "B"), ("Answer:", "(A)")],
    *[
        ("日", "本"),
        ("日本", "語です"),
        ("中", "国"),
        ("Привет, ми", "ром"),
        ("naï", "ve"),
        ("caf", "é"),
        ("e", "\u0301"),
    ],
    *[
        ("😀", "😃"),
        ("👩", "\u200d👩\u200d👧"),
        ("I like 🍎", "🍏"),
        ("(", ")"),
        ("!", "!!"),
        ("...", ".."),
        ("x =", "= 1"),
    ],
    *[("def f(x):", "\n    return x"), ("the end.", "\n\n"), ("http:", "//example.com"), ("don", "'t"), ("x", "yz")],
    *[("  ", "  indented"), (" \n", "text"), ("", "ing"), ("Line\n", "\nnext"), ("one ", ""), ("The answer is ", "B")],
]


@pytest.fixture(scope="module", params=["smollm2", "qwen2.5", "gemma3"])
def lm(request: pytest.FixtureRequest) -> Iterator[ArtsLM]:
    made = ArtsLM(model=model(request.param), n_threads=THREADS, n_ctx=256, slots=4, verifier="none", flash_attn=False)
    yield made
    made.arts.close()


def ids(lm: ArtsLM, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The rule, spelled out for vocabularies that put no space before a text."""
    kept = context.rstrip()
    moved = context[len(kept) :] + continuation
    tokenize, info = lm.backend_engine.model.tokenize, lm.backend_engine.info  # type: ignore[attr-defined]
    bos = list(lm.backend_engine.encode("").token_ids)
    if not kept:
        return bos or [info.bos if info.bos >= 0 else info.eos], tokenize(moved)
    head = tokenize(kept)
    return bos + head, tokenize(kept + moved)[len(head) :] or tokenize(moved)


def alone(lm: ArtsLM, context: str, continuation: str) -> float:
    """One request in a cache that holds nothing: what it shares a batch with moves quantised models."""
    engine = lm.backend_engine
    assert isinstance(engine, LlamaCppBackend)
    while engine.recent:
        engine.kv.drop(engine.recent.popleft())
    ((total, _),) = lm.loglikelihood([request("loglikelihood", context, continuation)], disable_tqdm=True)
    return total


def test_each_continuation_has_tokens_of_its_own(lm: ArtsLM) -> None:
    swallowed = 0
    for pair in PAIRS:
        head, rest = ids(lm, *pair)
        total = alone(lm, *pair)
        assert rest, pair
        assert math.isfinite(total) and total < 0, pair
        check_likelihood(lm.backend_engine, head, rest, total, 0.2, flash_attn=0)  # type: ignore[arg-type]
        kept = pair[0].rstrip()
        swallowed += bool(kept) and len(lm.tok_encode("".join(pair))) <= len(lm.tok_encode(kept))
    assert swallowed >= 8


def test_what_cannot_be_scored_is_refused_before_anything_is_computed(
    lm: ArtsLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.backend_engine, "loglikelihood", lambda *_: pytest.fail("computed"))
    with pytest.raises(ArtsError, match=r"2 of 3 continuations are empty.*request 1 after 'a'.*doc_to_choice"):
        lm.loglikelihood([request("loglikelihood", *pair) for pair in (("a", " b"), ("a", ""), ("", ""))])
    with pytest.raises(PromptTooLongError, match=r"request 1 has \d+ tokens; at most 256 fit.*n_ctx"):
        lm.loglikelihood([request("loglikelihood", "a", text) for text in (" b", " one two" * 300)])


@pytest.mark.parametrize(
    ("said", "continuation", "parts"),
    [
        ("The best answer is ", "B", ("The best answer is", " B")),  # as if the white space were the continuation's
        ("The sun rises every morn", "ing", ("The sun rises every morn", "ing")),
        (" ", "B", ("", " B")),
    ],
)
def test_a_begun_answer(said: str, continuation: str, parts: tuple[str, str]) -> None:
    """gen_prefix, in a chat: what follows it is joined to it."""
    lm = ArtsLM(model=smollm2(), n_threads=THREADS, n_ctx=256, slots=4, verifier="none", flash_attn=False)
    question = [{"role": "user", "content": "Say something."}]
    context = lm.apply_chat_template([*question, {"role": "assistant", "content": said}], add_generation_prompt=False)
    ((total, _),) = lm.loglikelihood([request("loglikelihood", context, continuation)], disable_tqdm=True)
    begun = lm.backend_engine.encode_chat(question).token_ids
    tokenize = lm.backend_engine.model.tokenize  # type: ignore[attr-defined]
    head, rest = [*begun, *tokenize(parts[0])], tokenize(parts[1])
    check_likelihood(lm.backend_engine, head, rest, total, 0.2, flash_attn=0)  # type: ignore[arg-type]
    lm.arts.close()


@pytest.fixture(scope="module")
def folder() -> Path:
    """SmolLM2 as a folder of safetensors, in float32."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from arts_hf.loading import converted

    return converted(Path(smollm2()), torch.float32)


@pytest.fixture(scope="module")
def own(folder: Path) -> Any:
    """lm-eval's model `hf` on that folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, max_length=256)


def hf(folder: Path, **settings: Any) -> ArtsLM:
    return ArtsLM(
        backend="hf", model=str(folder), dtype="float32", n_ctx=256, n_threads=THREADS, device="cpu", verifier="none",
        **settings,
    )  # fmt: skip


def test_hf_scores_as_lm_evals_own_model(folder: Path, own: Any) -> None:
    """The same tokens and the same numbers; where lm-eval's fails for want of tokens, those of the rule."""
    ours = hf(folder)
    found = ours.loglikelihood([request("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True)
    for pair, (total, greedy) in zip(PAIRS, found, strict=True):
        head, rest = own._encode_pair(*pair) if pair[0] else ([], [])
        if head and rest:
            ((expected, likeliest),) = own.loglikelihood([request("loglikelihood", *pair)], disable_tqdm=True)
        else:
            ((expected, likeliest),) = own._loglikelihood_tokens([(None, *ids(ours, *pair))], disable_tqdm=True)
        assert total == pytest.approx(expected, abs=1e-3), pair
        assert greedy == likeliest, pair
    ours.arts.close()


def test_special_tokens_in_a_plain_prompt(folder: Path, own: Any) -> None:
    """Text, unless `parse_special` is set: then what lm-eval's `hf` makes of them, in a prompt and in a continuation."""
    turn = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    asked = [request("loglikelihood", turn, "The capital of France is Paris.<|im_end|>")]
    ((expected, _),) = own.loglikelihood(asked, disable_tqdm=True)
    totals = []
    for parse_special in (False, True):
        lm = hf(folder, parse_special=parse_special)
        totals += [total for total, _ in lm.loglikelihood(asked, disable_tqdm=True)]
        assert (lm.tok_encode(turn) == own.tok_encode(turn)) is parse_special
        llama = ArtsLM(
            model=smollm2(),
            n_ctx=256,
            n_threads=THREADS,
            verifier="none",
            parse_special=parse_special,
            strategy="greedy",
        )
        assert llama.tok_encode(turn) == lm.tok_encode(turn)
        chat = [{"role": "user", "content": "<|im_end|> is text"}]
        assert llama.backend_engine.encode_chat(chat) == lm.backend_engine.encode_chat(chat)
        assert llama.backend_engine.encode_chat(chat).token_ids.count(own.tok_encode("<|im_end|>")[0]) == 2
        lm.arts.close()
        llama.arts.close()
    assert totals[1] == pytest.approx(expected, abs=1e-3)
    assert totals[0] < expected - 5

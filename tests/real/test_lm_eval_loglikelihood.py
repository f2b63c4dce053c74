"""Log-likelihoods through lm-eval against llama.cpp's low-level interface, which computes each text anew."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.tasks import TaskManager

from arts_llama_cpp.bindings import llama
from arts_plugin.lm_eval.model import ArtsLM
from tests.models import THREADS, smollm2

N_CTX = 256
# Batches of other sizes run other kernels, and quantised activations make that visible: unlikely tokens move most.
PER_TOKEN, RELATIVE = 0.05, 0.03
PASSAGE = "The sea was calm that morning, and the old man rowed his boat out past the harbour wall to where " * 24


class Bare:
    """llama.cpp by itself: one text, one batch, no sharing of anything."""

    def __init__(self) -> None:
        self.lib = lib = llama()
        self.model = lib.llama_model_load_from_file(smollm2().encode(), lib.llama_model_default_params())
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.bos = lib.llama_vocab_bos(self.vocab)

    def tokens(self, text: str, special: bool = False) -> list[int]:
        data = text.encode()
        buffer = (self.lib.llama_token * (len(data) + 8))()
        count = self.lib.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), False, special)
        return list(buffer[:count])

    def score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        lib, tokens = self.lib, [*context, *continuation]
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = max(len(tokens), 32)
        params.n_threads = params.n_threads_batch = THREADS or 2
        made = lib.llama_init_from_model(self.model, params)
        batch = lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        try:
            assert lib.llama_decode(made, batch) == 0
            total, greedy = 0.0, True
            for i in range(len(context), len(tokens)):
                row = np.ctypeslib.as_array(lib.llama_get_logits_ith(made, i - 1), (self.n_vocab,)).astype(np.float64)
                total += row[tokens[i]] - row.max() - math.log(np.exp(row - row.max()).sum())
                greedy = greedy and int(row.argmax()) == tokens[i]
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(made)
        return total, greedy

    def close(self) -> None:
        self.lib.llama_model_free(self.model)


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    made = Bare()
    yield made
    made.close()


@pytest.fixture(scope="module")
def lm() -> Iterator[ArtsLM]:
    made = ArtsLM(model=smollm2(), n_threads=THREADS, n_ctx=N_CTX, slots=4)
    assert made.backend_engine.info.n_ctx == N_CTX
    yield made
    made.arts.close()


@pytest.fixture(autouse=True)
def no_cache(lm: ArtsLM) -> None:
    lm.set_cache_hook(type(lm.cache_hook)(None))


def request(kind: str, *args: str) -> Instance:
    return Instance(kind, {}, args, 0)


def close(found: float, expected: float, tokens: int) -> bool:
    return abs(found - expected) <= PER_TOKEN * tokens + RELATIVE * abs(expected)


PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " Berlin and not Paris"),
    ("1, 2, 3, 4,", " 5, 6, 7"),
    ("A space at the end ", "moves"),
    ("", "Once upon a time"),
    ("Once upon a", " time"),
]


def test_loglikelihood(lm: ArtsLM, bare: Bare) -> None:
    found = lm.loglikelihood([request("loglikelihood", *pair) for pair in PAIRS], disable_tqdm=True)
    for (context, continuation), (score, greedy) in zip(PAIRS, found, strict=True):
        kept = context.rstrip()
        whole = bare.tokens(context + continuation)
        first = bare.tokens(kept) or [bare.bos]  # as lm-eval's own models do it, whether or not a tokeniser adds it
        rest = whole[len(bare.tokens(kept)) :]
        expected, expected_greedy = bare.score(first, rest)
        assert close(score, expected, len(rest)), (context, continuation)
        assert greedy is expected_greedy, (context, continuation)
        assert score < 0
    assert {greedy for _, greedy in found} == {True, False}


def test_context_that_is_too_long_loses_its_beginning(lm: ArtsLM, bare: Bare, caplog: pytest.LogCaptureFixture) -> None:
    context, continuation = bare.tokens(PASSAGE.strip()), bare.tokens(" sea")
    assert len(context) > N_CTX
    asked = [request("loglikelihood", *pair) for pair in ((PASSAGE.strip(), " sea"), ("Once upon a", " time"))]
    (score, _), _ = lm.loglikelihood(asked, disable_tqdm=True)
    expected, _ = bare.score(context[-N_CTX:], continuation)
    assert close(score, expected, 1), (score, expected)
    (said,) = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
    lost = len(context) - N_CTX
    assert f"1 of 2 contexts were too long and lost tokens on the left ({lost} tokens in all" in said


@pytest.mark.parametrize("words", [1, 12, 400])
def test_rolling(lm: ArtsLM, bare: Bare, words: int) -> None:
    text = " ".join(PASSAGE.split()[:words])
    tokens = bare.tokens(text)
    assert words < 400 or len(tokens) > N_CTX
    # Every token once: the first window after BOS, the last with as much context as there is room for.
    windows = [([bare.bos], tokens[:N_CTX])]
    for start in range(N_CTX, len(tokens), N_CTX):
        end = min(start + N_CTX, len(tokens))
        windows.append((tokens[end - N_CTX - 1 : start], tokens[start:end]))
    expected = sum(bare.score(*window)[0] for window in windows)
    (found,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
    assert close(found, expected, len(tokens)), (found, expected, len(tokens))


@pytest.mark.parametrize("more", [(), ({},), ({"until": ["x"]},)])
def test_rolling_of_many(lm: ArtsLM, more: tuple[Any, ...]) -> None:
    """In their order, each what it is alone; later releases of lm-eval pass a second argument."""
    texts = [PASSAGE[:n] for n in (40, 9, 90, 0)]
    instances = [Instance("loglikelihood_rolling", {}, (text, *more), 0) for text in texts]
    found = lm.loglikelihood_rolling(instances, disable_tqdm=True)
    for text, total in zip(texts, found, strict=True):
        (alone,) = lm.loglikelihood_rolling([request("loglikelihood_rolling", text)], disable_tqdm=True)
        assert close(total, alone, 30)
        assert (total == 0) is (text == "")


def test_rolling_of_nothing(lm: ArtsLM) -> None:
    assert lm.loglikelihood_rolling([request("loglikelihood_rolling", "")], disable_tqdm=True) == [0]


def test_chat(lm: ArtsLM, bare: Bare) -> None:
    context = lm.apply_chat_template([{"role": "user", "content": "Is fire hot? <|im_end|>"}])
    prompt = lm.backend_engine.encode_chat(context.messages)  # type: ignore[attr-defined]
    assert bare.tokens(context, special=True) != list(prompt.token_ids)
    expected, _ = bare.score(prompt.token_ids, bare.tokens("Yes"))
    for asked in (context, str(context), pickle.loads(pickle.dumps(context))):
        ((score, _),) = lm.loglikelihood([request("loglikelihood", asked, "Yes")], disable_tqdm=True)
        assert close(score, expected, 1)


def test_cache(lm: ArtsLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "c.db")
    pairs = [request("loglikelihood", *pair) for pair in PAIRS[:2]]
    rolling = [request("loglikelihood_rolling", "Once upon a time")]
    first = CachingLM(lm, path)
    found = first.loglikelihood(pairs), first.loglikelihood_rolling(rolling)
    monkeypatch.setattr(lm.backend_engine, "loglikelihood", lambda *_: pytest.fail("asked again"))
    second = CachingLM(lm, path)
    assert (second.loglikelihood(pairs), second.loglikelihood_rolling(rolling)) == found


def test_an_interrupted_run_keeps_what_was_finished(
    lm: ArtsLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, path = lm.backend_engine, str(tmp_path / "c.db")
    score, told, asked = engine.loglikelihood, [], []
    requests = [request("loglikelihood", *pair) for pair in PAIRS]

    def interrupted(pairs: Any, report: Any) -> Any:
        def some(place: int, found: tuple[float, bool]) -> None:
            report(place, found)
            told.append(place)
            if len(told) == 4:
                raise KeyboardInterrupt

        return score(pairs, some)

    monkeypatch.setattr(engine, "loglikelihood", interrupted)
    first = CachingLM(lm, path)
    with pytest.raises(KeyboardInterrupt):
        first.loglikelihood(requests)
    first.dbdict.close()
    monkeypatch.setattr(engine, "loglikelihood", lambda pairs, report: (asked.extend(pairs), score(pairs, report))[1])
    found = CachingLM(lm, path).loglikelihood(requests)
    assert len(asked) == len(PAIRS) - 4
    assert all(total < 0 for total, _ in found)


@pytest.mark.parametrize("chat", [False, True])
def test_multiple_choice(lm: ArtsLM, bare: Bare, tmp_path: Path, chat: bool) -> None:
    rows = [
        {"question": "The capital of France is", "choices": ["Paris", "seven", "green"], "gold": 0},
        {"question": "The opposite of hot is", "choices": ["table", "cold", "Monday"], "gold": 1},
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    config = {
        "task": "arts_choices",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "arts_choices.yaml").write_text(json.dumps(config))
    results: Any = lm_eval.simple_evaluate(
        lm,
        tasks=["arts_choices"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        apply_chat_template=chat,
        bootstrap_iters=0,
    )
    if not chat:
        assert results["results"]["arts_choices"]["acc,none"] == 1.0
    for sample in results["samples"]["arts_choices"]:
        for choice, arguments, ((score, _),) in zip(
            sample["doc"]["choices"], sample["arguments"], sample["resps"], strict=True
        ):
            assert arguments[1] == (choice if chat else f" {choice}")
            context = lm.tok_encode(arguments[0])
            expected, _ = bare.score(context, bare.tokens(arguments[1]))
            assert close(score, expected, len(bare.tokens(arguments[1])))

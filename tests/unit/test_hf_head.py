"""The hf backend's sampling: sliced projection and kept candidates against the full row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from arts_plugin.backend import Sampling
from arts_plugin.sampling import Adjustment, log_normaliser, pick, pick_adjusted

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from arts_hf.head import TopTokens, VocabularyHead  # noqa: E402

VOCABULARY, WIDTH = 20_000, 16


def head(scale: float = 1.0, dtype: Any = torch.float32, finish: Any = None) -> VocabularyHead:
    torch.manual_seed(0)
    module = torch.nn.Linear(WIDTH, VOCABULARY, bias=False).to(dtype)
    module.weight.data.mul_(scale)
    return VocabularyHead(module, finish)


def states(n: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("finish", [None, lambda logits: torch.tanh(logits / 3) * 3])
def test_slices_give_what_the_whole_gives(finish: Any) -> None:
    """The largest logits and the normaliser, although no row is ever whole."""
    made, hidden = head(5.0, finish=finish), states(7)
    with torch.inference_mode():
        values, ids, log_z = made.top(hidden, 50)
        logits = made.logits(hidden)
    want = logits.topk(50)
    assert torch.allclose(values.sort(descending=True).values, want.values, atol=1e-5)
    assert [set(row) for row in ids.tolist()] == [set(row) for row in want.indices.tolist()]
    assert torch.allclose(log_z, logits.logsumexp(1), atol=1e-5)


SETTINGS = [
    Sampling(),
    Sampling(temperature=0.0),
    Sampling(temperature=5e-324),
    Sampling(temperature=1.3, top_k=5, top_p=0.7),
    Sampling(top_k=0, top_p=0.9),
    Sampling(top_k=0, top_p=1.0, min_p=0.05),
    Sampling(top_k=50, top_p=0.95, min_p=0.2),
    Sampling(top_k=0, top_p=1.0),
    Sampling(top_k=500, top_p=0.99),
    Sampling(top_k=1),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("scale", [0.2, 8.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("ties", [False, True])
def test_drawn_as_from_all_logits(sampling: Sampling, scale: float, ties: bool) -> None:
    """What is kept of a row gives the token that the full sort would give, or knows that it cannot."""
    made, hidden = head(scale), states(40)
    if ties:  # logits on a coarse grid: hundreds of tokens share a value, also at the border of what is kept
        made.finish = lambda logits: (logits * 4).round() / 4
    with torch.inference_mode():
        top = TopTokens.of(made, hidden, 64, features=True, n_vocab=VOCABULARY)
        logits = made.logits(hidden).numpy()
    log_z = log_normaliser(logits)
    uniforms = np.random.default_rng(3).random(40).tolist()
    drawn = top.draw(range(40), sampling, uniforms)
    for row, (token, logprob) in enumerate(drawn):
        want = pick(logits[row], sampling, float(log_z[row]), uniforms[row])
        assert token == want or abs(logits[row, token] - logits[row, want]) < 1e-5
        assert logprob == pytest.approx(float(logits[row, token] - log_z[row]), abs=1e-4)
    assert (
        sum(token == pick(logits[r], sampling, float(log_z[r]), uniforms[r]) for r, (token, _) in enumerate(drawn))
        >= 38
    )
    assert np.allclose(top.hidden, hidden.numpy())
    kept = top.keep(11)
    assert kept.draw([0], sampling, [uniforms[11]]) == [drawn[11]]


def test_invalid_logits_are_told() -> None:
    """A row of NaN gives no log-probability, and its neighbours are not touched."""
    hidden = states(3)
    hidden[1] = float("nan")
    with torch.inference_mode():
        top = TopTokens.of(head(), hidden, 64, features=False, n_vocab=VOCABULARY)
    drawn = top.draw(range(3), Sampling(), [0.5] * 3)
    assert [np.isfinite(logprob) for _, logprob in drawn] == [True, False, True]


def test_scores_are_log_probabilities() -> None:
    made, hidden = head(3.0), states(40)
    with torch.inference_mode():
        found = made.score(hidden, [[i, i + 1] for i in range(40)])
        logits = made.logits(hidden)
        want = logits.log_softmax(1)
    for i, pair in enumerate(found):
        assert [value for value, _ in pair] == pytest.approx([float(want[i, i]), float(want[i, i + 1])], abs=1e-4)
        assert [best for _, best in pair] == [int(logits[i].argmax()) == i + j for j in (0, 1)]
    likeliest = int(logits[0].argmax())
    assert made.score(hidden[:1], [[likeliest]])[0][0][1]


def test_changed_logits_are_drawn_from_as_whole_rows() -> None:
    made, hidden = head(4.0), states(40)
    rng = np.random.default_rng(5)
    sampling = Sampling(logit_bias=((3, 20.0), (4, -5.0)), repetition_penalty=1.4, presence_penalty=0.5)
    changes = []
    for i in range(40):
        before = rng.integers(0, VOCABULARY, 50).astype(np.int32)
        changes.append(Adjustment(before, before[20:], rng.random(VOCABULARY) < 0.1 if i % 2 else None))
    uniforms = rng.random(40).tolist()
    with torch.inference_mode():
        top = TopTokens.of(made, hidden, 64, features=False, n_vocab=VOCABULARY)
        logits = made.logits(hidden).numpy()
    drawn = top.draw(range(40), sampling, uniforms, changes)
    log_z = log_normaliser(logits)
    for i, (token, logprob) in enumerate(drawn):
        want = pick_adjusted(logits[i], sampling, float(log_z[i]), uniforms[i], changes[i])
        assert token == want[0]
        assert logprob == pytest.approx(want[1], abs=1e-4)
    assert len({token for token, _ in drawn}) > 1
    assert top.keep(7).draw([0], sampling, [uniforms[7]], [changes[7]])[0][0] == drawn[7][0]

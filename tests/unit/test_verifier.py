"""What scores states: the value head against its definition, its file, and the verifiers made of it."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from arts_plugin.backend import FloatArray
from arts_plugin.errors import ArtsError
from arts_plugin.value_head import ValueHead, ValueHeadVerifier
from arts_plugin.verifier import (
    NEEDS,
    LogprobScorer,
    StatelessVerifier,
    StateView,
    Verifier,
)

N_EMBD, HIDDEN = 48, 20


def head(seed: int = 0) -> ValueHead:
    rng = np.random.default_rng(seed)
    w1 = rng.normal(0, 0.5, (HIDDEN, N_EMBD)).astype(np.float32)
    b1, w2 = (rng.normal(0, 1, HIDDEN).astype(np.float32) for _ in range(2))
    return ValueHead(w1, b1, w2, 0.75)


def features(n: int, scale: float = 1.0) -> FloatArray:
    return np.random.default_rng(n).normal(0, scale, (n, N_EMBD)).astype(np.float32)


def view(feature: FloatArray | None = None, logprob: float = 0.0, tokens: tuple[int, ...] = ()) -> StateView:
    return StateView("p", "t", tokens, "t", tokens, logprob, feature, False)


def twin(made: ValueHead, rows: FloatArray) -> np.ndarray:
    """log F = w2 . GELU(W1 h + b1) + b2 in float64, with scipy's erf."""
    x = rows.astype(np.float64) @ made.w1.astype(np.float64).T + made.b1
    gelu = x * 0.5 * (1 + special.erf(x / math.sqrt(2)))
    return np.asarray(gelu @ made.w2.astype(np.float64) + made.b2)


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 30.0])
def test_value_head_is_its_equation(scale: float) -> None:
    rows = features(200, scale)
    found, expected = head()(rows), twin(head(), rows)
    assert found.shape == (200,)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5 * max(1, scale))


def test_gelu_is_exact_to_the_promised_error() -> None:
    """One hidden unit with w1 = w2 = 1: the head is GELU itself."""
    one = np.ones((1, 1), dtype=np.float32)
    x = np.linspace(-9, 9, 20_001, dtype=np.float32)[:, None]
    gelu = ValueHead(one, np.zeros(1, np.float32), np.ones(1, np.float32), 0.0)(x)
    exact = x[:, 0] * 0.5 * special.erfc(-x[:, 0].astype(np.float64) / math.sqrt(2))
    assert np.abs(gelu - exact).max() < 3e-6
    # The tanh approximation, which some frameworks call GELU too, is off by a hundred times that.
    tanh = 0.5 * x[:, 0] * (1 + np.tanh(math.sqrt(2 / math.pi) * (x[:, 0] + 0.044715 * x[:, 0] ** 3)))
    assert np.abs(tanh - exact).max() > 3e-4


def test_rows_do_not_depend_on_the_batch() -> None:
    rows = features(50)
    singles = np.concatenate([head()(row[None]) for row in rows])
    np.testing.assert_allclose(head()(rows), singles, rtol=1e-5, atol=1e-5)
    assert head()(rows[:0]).shape == (0,)


def test_a_saved_head_is_the_same_head(tmp_path: Path) -> None:
    made = head()
    # A transposed view is laid out differently in memory; the file must not care.
    made.w1 = np.ascontiguousarray(made.w1.T).T
    made.save(tmp_path / "value_head.safetensors")
    loaded = ValueHead.load(tmp_path / "value_head.safetensors")
    assert loaded.n_embd == N_EMBD
    for name in ("w1", "b1", "w2", "b2"):
        assert np.array_equal(getattr(loaded, name), getattr(made, name)), name
    # Not bit for bit: the order of summation follows the layout.
    np.testing.assert_allclose(loaded(features(9)), made(features(9)), rtol=1e-5, atol=1e-5)


def tensors(**changed: np.ndarray | None) -> dict[str, np.ndarray]:
    made = head()
    all_of_them = {"w1": made.w1, "b1": made.b1, "w2": made.w2, "b2": np.array(made.b2, dtype=np.float32), **changed}
    return {name: tensor for name, tensor in all_of_them.items() if tensor is not None}


def written(path: Path, **changed: np.ndarray | None) -> Path:
    from safetensors.numpy import save_file

    save_file(tensors(**changed), path / "value_head.safetensors")
    return path / "value_head.safetensors"


def test_shapes_that_trainers_write_are_understood(tmp_path: Path) -> None:
    """torch.nn.Linear(hidden, 1) has a weight of [1, hidden] and a bias of [1]."""
    made = head()
    path = written(tmp_path, w2=made.w2[None], b2=np.array([made.b2], dtype=np.float32))
    assert np.array_equal(ValueHead.load(path)(features(5)), made(features(5)))


@pytest.mark.parametrize("name", ["w1", "b1", "w2", "b2"])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, **{name: None})
    with pytest.raises(ArtsError, match=f"no tensor {name}; found") as error:
        ValueHead.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("w1", (HIDDEN,)),
        ("w1", (HIDDEN + 1, N_EMBD)),
        ("w1", (HIDDEN, N_EMBD, 1)),
        ("b1", (HIDDEN - 1,)),
        ("b1", (HIDDEN, 1)),
        ("w2", (2, HIDDEN)),
        ("b2", (2,)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(tmp_path, **{name: np.zeros(shape, dtype=np.float32)})
    with pytest.raises(ArtsError, match="shape"):
        ValueHead.load(path)


@pytest.mark.parametrize("shape", [(3, N_EMBD + 1), (N_EMBD,), (1, 3, N_EMBD)])
def test_features_of_another_model_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtsError, match=rf"reads \[n, {N_EMBD}\]"):
        head()(np.zeros(shape, dtype=np.float32))


def test_value_head_verifier_scores_features() -> None:
    verifier, rows = ValueHeadVerifier(head(), name="mine"), features(4)
    assert (verifier.name, verifier.needs, verifier.is_flow) == ("mine", {"features"}, True)
    np.testing.assert_array_equal(verifier.score([view(row) for row in rows]), head()(rows))
    assert verifier.score([]).shape == (0,)


def test_value_head_verifier_says_how_many_states_lack_features() -> None:
    states = [view(features(1)[0]), view(), view()]
    with pytest.raises(ArtsError, match="'mine' needs features, and 2 states have none"):
        ValueHeadVerifier(head(), name="mine").score(states)


def test_logprob_is_the_mean_of_the_tokens() -> None:
    scores = LogprobScorer().score([view(None, -6.0, (1, 2, 3)), view(None, -5.0, (1,)), view()])
    assert scores.tolist() == [-2.0, -5.0, 0.0]
    assert scores.dtype == np.float64


def test_verifiers_keep_the_protocol() -> None:
    for verifier in (LogprobScorer(), ValueHeadVerifier(head())):
        assert isinstance(verifier, Verifier)
        assert verifier.needs <= NEEDS
        handle = verifier.open("prompt")
        verifier.drop(verifier.fork(handle))
        verifier.drop(handle)
    assert not LogprobScorer().is_flow
    with pytest.raises(TypeError, match="StatelessVerifier"):
        StatelessVerifier().score([])

"""What scores states: the verifier protocol, the log-probability that stands in for one, and a value head in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import FloatArray
from arts_plugin.errors import ArtsError

Need = str  # "features", "tokens" or "text"
NEEDS = frozenset({"features", "tokens", "text"})


@dataclass(frozen=True, slots=True)
class StateView:
    """What a verifier sees of a state.

    Attributes:
        prompt: the prompt's text.
        text, token_ids: the whole trace after the prompt.
        step_text, step_token_ids: its last step.
        logprob: summed untempered log-probability (nats) of `token_ids`.
        feature: the proposer's post-norm hidden state at the last kept token, float32 [n_embd]; None unless needed.
        terminal: whether the trace ended here.
        handle: what the verifier's own `open` or `fork` returned for this state.
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    step_text: str
    step_token_ids: tuple[int, ...]
    logprob: float
    feature: FloatArray | None
    terminal: bool
    handle: object = None


@runtime_checkable
class Verifier(Protocol):
    """Scores states. `open`, `fork` and `drop` follow the search, so that a verifier can keep a prefix of its own."""

    name: str
    needs: frozenset[Need]
    is_flow: bool
    """Whether scores are log-flows (nats). Votes weigh log-flows by logsumexp and other scores by their exp."""

    def open(self, prompt: str) -> object:
        """Begin a question; the handle of its state 0."""
        ...

    def fork(self, handle: object) -> object:
        """A handle for a state one step further."""
        ...

    def drop(self, handle: object) -> None:
        """The state will not be forked again."""
        ...

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """log F (or a score) of each state, float64 [n]. One call for all new states of a round."""
        ...


class StatelessVerifier:
    """Base of verifiers that keep nothing between states."""

    name = "stateless"
    needs: frozenset[Need] = frozenset()
    is_flow = False

    def open(self, prompt: str) -> object:
        """Nothing to keep."""
        return None

    def fork(self, handle: object) -> object:
        """Nothing to keep."""
        return None

    def drop(self, handle: object) -> None:
        """Nothing to give back."""

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """To be given by the subclass."""
        raise TypeError(f"{type(self).__name__} does not define score()")


class LogprobScorer(StatelessVerifier):
    """The mean untempered token log-probability of the trace: what stands in while no verifier is loaded."""

    name = "logprob"

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """Mean nats a token, [n]; 0 for a trace without tokens."""
        return np.array([s.logprob / len(s.token_ids) if s.token_ids else 0.0 for s in states], dtype=np.float64)


class ValueHead:
    """log F = w2 . GELU(W1 h + b1) + b2, the paper's two-layer head (arXiv 2602.12846), in numpy.

    Weights: `w1` [hidden, n_embd], `b1` [hidden], `w2` [hidden], `b2` []. Dropout acts in training only.
    """

    def __init__(self, w1: FloatArray, b1: FloatArray, w2: FloatArray, b2: float) -> None:
        if w1.ndim != 2 or b1.shape != (w1.shape[0],) or w2.shape != (w1.shape[0],):
            raise ArtsError(f"value head shapes do not fit: w1 {w1.shape}, b1 {b1.shape}, w2 {w2.shape}")
        self.w1, self.b1, self.w2, self.b2 = w1, b1, w2, float(b2)

    @property
    def n_embd(self) -> int:
        """Size of the features that it reads."""
        return int(self.w1.shape[1])

    @classmethod
    def load(cls, path: str | Path) -> ValueHead:
        """Read `value_head.safetensors`.

        Raises:
            ArtsError: a tensor is missing or of the wrong shape.
        """
        from safetensors.numpy import load_file

        tensors = load_file(path)
        missing = {"w1", "b1", "w2", "b2"} - tensors.keys()
        if missing:
            raise ArtsError(f"{path}: no tensor {', '.join(sorted(missing))}; found {', '.join(sorted(tensors))}")
        parts = {name: np.asarray(tensors[name], dtype=np.float32) for name in ("w1", "b1", "w2", "b2")}
        if parts["b2"].size != 1:
            raise ArtsError(f"{path}: b2 has shape {parts['b2'].shape}; the value head has one output")
        return cls(parts["w1"], parts["b1"], parts["w2"].reshape(-1), float(parts["b2"].reshape(())))

    def save(self, path: str | Path) -> None:
        """Write `value_head.safetensors`."""
        from safetensors.numpy import save_file

        tensors = {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": np.array(self.b2)}
        # safetensors writes an array's memory as it lies, which for a transposed view is another matrix.
        save_file({name: np.array(tensor, dtype=np.float32, order="C") for name, tensor in tensors.items()}, path)

    def __call__(self, features: FloatArray) -> npt.NDArray[np.float64]:
        """log F of each row of `features` [n, n_embd] -> [n]: one matrix product for all of them.

        Raises:
            ArtsError: the features are of another size than the head was made for.
        """
        if features.ndim != 2 or features.shape[1] != self.n_embd:
            raise ArtsError(
                f"features have shape {features.shape}, the value head reads [n, {self.n_embd}]: it was made for another model"
            )
        hidden = _gelu(features @ self.w1.T + self.b1)
        return (hidden @ self.w2 + self.b2).astype(np.float64)


def _gelu(x: FloatArray) -> FloatArray:
    """x Phi(x), with erf by Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7; numpy has no erf)."""
    z = np.abs(x) * np.float32(0.7071067811865476)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1.0 - series * np.exp(-z * z))
    return np.asarray(0.5 * x * (1.0 + erf), dtype=np.float32)


class ValueHeadVerifier(StatelessVerifier):
    """A value head on the proposer's own hidden states: it costs no forward pass of its own."""

    needs = frozenset({"features"})
    is_flow = True

    def __init__(self, head: ValueHead, name: str = "value_head") -> None:
        self.head, self.name = head, name

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """log F of each state, [n].

        Raises:
            ArtsError: the backend gave no features.
        """
        rows = [state.feature for state in states if state.feature is not None]
        if len(rows) != len(states):
            raise ArtsError(f"verifier {self.name!r} needs features, and {len(states) - len(rows)} states have none")
        return self.head(np.stack(rows)) if rows else np.empty(0)

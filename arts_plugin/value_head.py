"""The value head in numpy, what it reads of a state, and the verifier made of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import FloatArray
from arts_plugin.errors import ArtsError
from arts_plugin.verifier import StatelessVerifier, StateView
from arts_plugin.writing import write_whole

StateFeature = Literal["last", "mean", "shift", "mean_last"]
"""What the head reads of a state s_t, of the hidden states h_0 (the prompt's last token) .. h_t (step t's last token):
`last` h_t; `mean` the mean of h_1 .. h_t; `shift` that mean minus h_0; `mean_last` the mean and h_t, side by side.
State 0 has no step, so h_0 stands for the mean."""

Aggregate = Literal["terminal", "min"]
"""A trace's score: the output at its last state (flows), or the least over its steps (process rewards)."""

Link = Literal["identity", "log_sigmoid"]
"""What is done to a trace's score at last: nothing, or log sigmoid, so that its exp is the probability that was learned."""


def width(kind: StateFeature, n_embd: int) -> int:
    """Size of the state feature."""
    return 2 * n_embd if kind == "mean_last" else n_embd


def combine(kind: StateFeature, first: FloatArray, mean: FloatArray, last: FloatArray) -> FloatArray:
    """The state features of many states from h_0, the mean of h_1 .. h_t and h_t, each [n, n_embd]."""
    if kind == "last":
        return last
    if kind == "mean":
        return mean
    if kind == "shift":
        return mean - first
    return np.concatenate([mean, last], axis=1)


def state_features(kind: StateFeature, rows: FloatArray, parents: Sequence[int | None]) -> FloatArray:
    """The state features of a whole tree from its hidden states [n, n_embd]; parents stand before their children."""
    total, steps = rows.astype(np.float64), np.ones(len(rows))
    for node, parent in enumerate(parents):
        if parent is not None and parents[parent] is not None:
            total[node] += total[parent]
            steps[node] += steps[parent]
    mean = (total / steps[:, None]).astype(np.float32)
    return combine(kind, np.broadcast_to(rows[:1], rows.shape), mean, rows)


def path_least(outputs: npt.NDArray[np.float64], parents: Sequence[int | None]) -> npt.NDArray[np.float64]:
    """The least output over the steps from the prompt (excluded) to each state of a tree, [n]."""
    least = outputs.copy()
    for node, parent in enumerate(parents):
        if parent is not None and parents[parent] is not None:
            least[node] = min(least[node], least[parent])
    return least


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
            ArtsError: it cannot be read, or a tensor is missing, of the wrong shape, or not finite.
        """
        tensors = read_tensors(path)
        missing = {"w1", "b1", "w2", "b2"} - tensors.keys()
        if missing:
            raise ArtsError(f"{path}: no tensor {', '.join(sorted(missing))}; found {', '.join(sorted(tensors))}")
        with np.errstate(over="ignore"):  # what is too large for a float32 is named below
            parts = {name: np.asarray(tensors[name], dtype=np.float32) for name in ("w1", "b1", "w2", "b2")}
        if parts["b2"].size != 1:
            raise ArtsError(f"{path}: b2 has shape {parts['b2'].shape}; the value head has one output")
        for name, values in parts.items():
            if odd := np.count_nonzero(~np.isfinite(values)):
                raise ArtsError(f"{path}: {odd} of the {values.size} numbers of {name} are not finite; train it again")
        try:
            return cls(parts["w1"], parts["b1"], parts["w2"].reshape(-1), float(parts["b2"].reshape(())))
        except ArtsError as error:
            raise ArtsError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write `value_head.safetensors`.

        Raises:
            NotWrittenError: the system does not let us.
        """
        from safetensors.numpy import save

        tensors = {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": np.array(self.b2)}
        # safetensors writes an array's memory as it lies, which for a transposed view is another matrix.
        made = {name: np.array(tensor, dtype=np.float32, order="C") for name, tensor in tensors.items()}
        write_whole(Path(path), save(made))

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


def read_tensors(path: str | Path) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file.

    Raises:
        ArtsError: it is missing or damaged, or holds numbers of a type that numpy lacks (bfloat16, for instance).
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        found: dict[str, npt.NDArray[Any]] = load_file(path)
        return found
    except (SafetensorError, OSError) as error:
        raise ArtsError(f"{path} cannot be read: {error}; fetch or train it again") from error
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ArtsError(f"{path} has tensors of a type that numpy lacks ({error}); save them as float32") from error


def _gelu(x: FloatArray) -> FloatArray:
    """x Phi(x), with erf by Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7; numpy has no erf)."""
    z = np.abs(x) * np.float32(0.7071067811865476)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1.0 - series * np.exp(-z * z))
    return np.asarray(0.5 * x * (1.0 + erf), dtype=np.float32)


@dataclass(slots=True)
class Prefix:
    """What a state's feature needs of the states before it: sums, so that a step costs one addition."""

    parent: Prefix | None
    first: FloatArray | None = None
    total: FloatArray | None = None
    steps: int = 0
    least: float = np.inf

    def read(self, feature: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Take in this state's hidden state; (h_0, mean of h_1 .. h_t), each [n_embd].

        Scoring a state twice takes it in once.
        """
        if self.first is None:
            above = self.parent
            if above is None:
                self.first, self.total, self.steps = feature, feature, 0
            else:
                if above.first is None or above.total is None:
                    raise ArtsError("a state was scored before the state it came from")
                self.first, self.steps, self.least = above.first, above.steps + 1, above.least
                self.total = feature if self.steps == 1 else above.total + feature
                self.parent = None
        assert self.total is not None
        return self.first, self.total / np.float32(max(1, self.steps))


class ValueHeadVerifier(StatelessVerifier):
    """A value head on the proposer's own hidden states: it costs no forward pass of its own.

    Args:
        feature: what the head reads of a state.
        aggregate: how a trace's score comes from its states' outputs.
        link: applied to the score.
        is_flow: whether the score is log F (nats).
    """

    needs = frozenset({"features"})

    def __init__(
        self,
        head: ValueHead,
        name: str = "value_head",
        *,
        feature: StateFeature = "last",
        aggregate: Aggregate = "terminal",
        link: Link = "identity",
        is_flow: bool = True,
    ) -> None:
        self.head, self.name, self.is_flow = head, name, is_flow
        self.feature, self.aggregate, self.link = feature, aggregate, link

    def open(self, prompt: str) -> Prefix:
        """State 0."""
        return Prefix(None)

    def fork(self, handle: object) -> Prefix:
        """A state one step further."""
        if not isinstance(handle, Prefix):
            raise ArtsError(f"verifier {self.name!r} was given a handle that is not its own: {handle!r}")
        return Prefix(handle)

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """log F (or the reward) of each state, [n], in one matrix product.

        Raises:
            ArtsError: the backend gave no features, or of another size than the head reads.
        """
        if not states:
            return np.empty(0)
        rows = [state.feature for state in states if state.feature is not None]
        if len(rows) != len(states):
            raise ArtsError(f"verifier {self.name!r} needs features, and {len(states) - len(rows)} states have none")
        prefixes = [state.handle if isinstance(state.handle, Prefix) else Prefix(None) for state in states]
        read = [prefix.read(row) for prefix, row in zip(prefixes, rows, strict=True)]
        first, mean = (np.stack([pair[i] for pair in read]) for i in (0, 1))
        outputs = self._linked(self.head(combine(self.feature, first, mean, np.stack(rows))))
        if self.aggregate == "terminal":
            return outputs
        for prefix, output in zip(prefixes, outputs, strict=True):
            prefix.least = min(prefix.least, float(output)) if prefix.steps else np.inf
        return np.array([p.least if p.steps else o for p, o in zip(prefixes, outputs, strict=True)])

    def _linked(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return outputs if self.link == "identity" else -np.logaddexp(0.0, -outputs)

    def score_tree(self, rows: FloatArray, parents: Sequence[int | None]) -> npt.NDArray[np.float64]:
        """The scores of all states of a recorded tree from their hidden states [n, n_embd]."""
        outputs = self._linked(self.head(state_features(self.feature, rows, parents)))
        return outputs if self.aggregate == "terminal" else path_least(outputs, parents)

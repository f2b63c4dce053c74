"""What scores states: the verifier protocol, and the log-probability that stands in for a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import FloatArray

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
        question: what the user asked, without a chat template's marks.
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
    question: str = ""


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


def close(verifier: object) -> None:
    """Free what a verifier holds. Only those that have a model of their own need a `close`."""
    if (own := getattr(verifier, "close", None)) is not None:
        own()


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

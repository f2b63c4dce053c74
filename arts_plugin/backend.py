"""What a proposer must offer: the engine interface between search and a language model.

An engine holds many *states* (a prompt and the steps generated so far) and advances many branches at once. It is
continuous: states join and leave while others run, and there is no barrier between branches or between questions.
A backend never decides what is worth expanding; it generates steps and reports what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from arts_plugin.tree import StopReason

FloatArray = npt.NDArray[np.float32]
Message = dict[str, str]
Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a context and of its continuation."""
Scored = tuple[float, bool]
"""A continuation's log-probability in nats, and whether greedy decoding would give it."""
Report = Callable[[int, Scored], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn: top-k, then top-p, then min-p, then temperature (llama.cpp's order).

    `temperature` 0 is greedy. `seed` feeds the counter-based uniforms of `arts_plugin.randomness`. Before the filters,
    `logit_bias` ((token, added to its logit), ...) and then the penalties act: `repetition_penalty` divides the positive
    logits of tokens in the prompt and the trace, and multiplies negative ones (Keskar et al. 2019, CTRL);
    `frequency_penalty` is taken off for each time that a token is in the trace, `presence_penalty` once. Log-probabilities
    are the model's own all the same.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 50
    min_p: float = 0.0
    seed: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @property
    def shifts(self) -> bool:
        """Whether logits are changed before the filters."""
        return bool(self.logit_bias or self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a trace is made of, from its first token to its end: a GBNF grammar, or JSON by a JSON schema."""

    kind: Literal["grammar", "json_schema"]
    text: str


@dataclass(frozen=True, slots=True)
class Generation:
    """How one question's traces are generated and where they end.

    Attributes:
        sampling: see `Sampling`.
        delimiter: what ends a step (a string, or `regex:PATTERN`).
        stops: strings that end a trace; searched in the whole trace, across steps.
        max_step_tokens, max_gen_toks: tokens of a step and of a trace, at most.
        think_end: the text that ends the model's thinking, inside which no stop string ends a trace.
        grammar: what traces must follow.
        chains: whether the first branch from every state goes on to the end of its trace, whatever comes of the others, so
            that an engine may generate it in one go and hand out its steps as they are asked for.
    """

    sampling: Sampling = field(default_factory=Sampling)
    delimiter: str = "\n"
    stops: tuple[str, ...] = ()
    max_step_tokens: int = 256
    max_gen_toks: int = 512
    grammar: Grammar | None = None
    chains: bool = False
    think_end: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt. `text` is what a person would read; `token_ids` is what the model gets; `user` is what the
    user said last in it, without the template's marks (empty: the whole text)."""

    text: str
    token_ids: tuple[int, ...]
    user: str = ""


class State(Protocol):
    """A handle to a prompt and the steps generated so far, opaque but for two attributes."""

    priority: float
    """log F of the state. When memory runs short, idle states with the least are given up (and refilled) first."""

    @property
    def feature(self) -> FloatArray | None:
        """Hidden state at its last token, once computed; for a prompt, after its first fork has run."""
        ...


@dataclass(frozen=True, slots=True)
class StepResult:
    """One finished step.

    Attributes:
        state: the state that was submitted, now at the end of this step.
        text, token_ids, logprob: the step alone; see `arts_plugin.tree.Node`.
        stop: why it ended.
        terminal: whether its trace ended with it.
        feature: post-norm hidden state at the last kept token, float32 of shape [n_embd]; None if not asked for.
        decoded, refilled: proposer tokens generated, and computed again, for this step.
        cut_chars, cut_tokens: see `arts_plugin.tree.Node`.
        error: what was wrong, when `stop` is "error".
        end_token: the token that ended the generation, when `stop` is "eos"; None where it is not told.
    """

    state: State
    text: str
    token_ids: tuple[int, ...]
    logprob: float
    stop: StopReason
    terminal: bool
    feature: FloatArray | None = None
    decoded: int = 0
    refilled: int = 0
    cut_chars: int = 0
    cut_tokens: int = 0
    error: str | None = None
    end_token: int | None = None


@dataclass(frozen=True, slots=True)
class OpenCost:
    """What opening a prompt cost: tokens computed, and tokens found in the cache of another prompt."""

    prefilled: int
    shared: int


@dataclass(slots=True)
class EngineStats:
    """An engine's books since it was made. Seconds are wall-clock; `reset` begins anew.

    `occupied` counts running branches summed over decode calls, so `occupied / (decodes * slots)` is the occupancy.
    `cells` counts KV cells in use, each distinct token of the trees once; `peak_cells` is its maximum.
    """

    slots: int = 0
    decodes: int = 0
    occupied: int = 0
    decoded_tokens: int = 0
    decode_seconds: float = 0.0
    prefilled_tokens: int = 0
    shared_tokens: int = 0
    prefill_seconds: float = 0.0
    refilled_tokens: int = 0
    refills: int = 0
    evictions: int = 0
    pauses: int = 0
    cells: int = 0
    peak_cells: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the slots that were busy, averaged over decode calls; 0 before the first."""
        return self.occupied / (self.decodes * self.slots) if self.decodes else 0.0

    def reset(self) -> None:
        """Set every count to zero, but for what is held now."""
        slots, cells = self.slots, self.cells
        self.__init__(slots=slots, cells=cells, peak_cells=cells)  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a backend knows of its model. `n_ctx` is the longest prompt plus trajectory, in tokens; `bos` and
    `eos` are token ids, -1 where there is none; `counted` says whether a prompt's `token_ids` are the model's tokens, and not
    stand-ins whose number means nothing. `n_pair` is the longest context plus continuation that `loglikelihood` takes; 0
    means `n_ctx`."""

    name: str
    n_ctx: int
    n_vocab: int
    n_embd: int
    bos: int = -1
    eos: int = -1
    n_params: int = 0
    chat_template: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    counted: bool = True
    n_pair: int = 0

    @property
    def longest_pair(self) -> int:
        """Tokens of a context and its continuation together, at most, where their log-likelihood is asked for."""
        return self.n_pair or self.n_ctx


@runtime_checkable
class Backend(Protocol):
    """A proposer's engine. One thread owns it; nothing here may be called from two at once.

    A backend whose `encode` and `encode_chat` may be called from any thread, while the engine works, says so by an attribute
    `any_thread = True`: `arts serve` then reads a prompt while others are searched.
    """

    slots: int
    stats: EngineStats

    @property
    def info(self) -> ModelInfo:
        """The model that is loaded."""
        ...

    def digest(self) -> str:
        """What identifies the weights, as `algorithm:hex`. It may read the whole file."""
        ...

    # Text.
    def encode(self, text: str) -> Prompt:
        """A plain prompt, with BOS if the model wants one. Special tokens in `text` are ordinary text unless
        `parse_special` is set."""
        ...

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """A chat in the model's own template; special tokens inside the messages' contents are ordinary text.

        Raises:
            ModelError: the model has no chat template.
        """
        ...

    def spelling(self, token: int) -> str | None:
        """The text of a control token, or of another that a tokeniser never splits; None for any other id.

        Raises:
            ModelError: the backend cannot tell.
        """
        ...

    # Engine.
    def open(self, prompt: Prompt, generation: Generation, problem: int) -> State:
        """State 0 of a question. `problem` is the 64-bit key that, with the path, seeds its sampling.

        Raises:
            PromptTooLongError: the prompt leaves no room for a single token.
        """
        ...

    def open_cost(self, state: State) -> OpenCost:
        """What the prompt of an opened state has cost so far."""
        ...

    def fork(self, state: State, index: int) -> State:
        """A new branch at the end of `state`; `index` extends the path that seeds it."""
        ...

    def drop(self, state: State) -> None:
        """Forget an idle state. Its forks live on."""
        ...

    def submit(self, state: State, max_tokens: int, allowance: int | None = None) -> None:
        """Queue `state` to be advanced by one step, in place.

        Args:
            max_tokens: tokens of this step, at most (with the trace's own limits, whichever is less).
            allowance: decoded plus refilled tokens that this step may cost, at most; it ends as "length" there.
        """
        ...

    def refill_cost(self, state: State) -> int:
        """Tokens that would have to be computed again before `state` or a fork of it could run now."""
        ...

    def poll(self) -> list[StepResult]:
        """Advance every running branch by one token; the steps that ended, in a reproducible order."""
        ...

    def cancel(self, state: State) -> tuple[int, int]:
        """Take a submitted state out and forget it. Returns the (decoded, refilled) tokens that it had cost."""
        ...

    @property
    def n_active(self) -> int:
        """Branches submitted and not finished, running or queued."""
        ...

    # Scoring.
    def loglikelihood(self, pairs: Sequence[Pair], report: Report | None = None) -> list[Scored]:
        """(sum of log-probabilities in nats, would greedy decoding give it) of each continuation after its context.

        Args:
            report: called, in the calling thread, with the place and the score of each pair as soon as it is known.

        Raises:
            PromptTooLongError: a context is empty, or has more than `info.longest_pair` tokens with its continuation.
            ArtsError: a continuation is empty.
        """
        ...

    def tree_features(
        self, tokens: Sequence[Sequence[int]], parents: Sequence[int | None], cut: Sequence[int]
    ) -> FloatArray:
        """Hidden states of a tree that was generated before, as the search would have seen them.

        Args:
            tokens: token ids of each node, the prompt's first; parents stand before their children.
            parents: parent of each node, None for the prompt.
            cut: for each node, how many tokens before it a stop string took back.

        Returns:
            post-norm hidden states at the last kept token of each node, float32 [n_nodes, n_embd].

        Raises:
            ArtsError: branches are running, or the backend was made without features.
        """
        ...

    def close(self) -> None:
        """Free the model. Idempotent."""
        ...

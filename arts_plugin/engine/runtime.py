"""What the engine asks of a model in memory: sequences that share a prefix, and the next token of many at once.

A backend in process implements `Runtime` (and gives its `KvCache` a `Memory`); the engine does the rest.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from arts_plugin.backend import FloatArray, Sampling
from arts_plugin.engine.kv import KvCache, KvSequence
from arts_plugin.sampling import Adjustment

Draw = tuple[int, float]
"""A token and its untempered log-probability, which is not finite if the model's logits were invalid."""


@dataclass(frozen=True, slots=True)
class Row:
    """One token at the end of a sequence, whose successor (and hidden state) is wanted."""

    sequence: KvSequence
    token: int


def default_threads() -> int:
    """Half the logical CPUs (two share a core on most machines), but both of a machine that has two."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, max(2, available // 2))


def fitting_slots(cells: int, max_gen_toks: int, most: int) -> int:
    """`slots=auto`: branches whose longest traces fit into `cells`, at most `most`. A power of two, so that a little
    more or less free memory leaves it as it was, and with it the trees."""
    return 1 << (max(1, min(most, cells // max_gen_toks)).bit_length() - 1)


class NextTokens(Protocol):
    """The distributions of the tokens that follow a batch of rows, and the rows' hidden states.

    It may be a view of the runtime's buffers, and then holds until the runtime computes again; what `keep` returns
    stays.
    """

    @property
    def hidden(self) -> FloatArray | None:
        """Post-norm hidden states, float32 [n_rows, n_embd]; None if they were not asked for."""
        ...

    def draw(
        self,
        rows: Sequence[int],
        sampling: Sampling,
        uniforms: Sequence[float],
        adjustments: Sequence[Adjustment] = (),
    ) -> list[Draw]:
        """A token for each of `rows`, at the given uniform of the inverse CDF of what `sampling` leaves.

        `adjustments`, if there are any, is one a row; see `arts_plugin.sampling.pick_adjusted`.
        """
        ...

    def keep(self, row: int) -> NextTokens:
        """The distribution of one row, for branches that start there later."""
        ...


class Vocabulary(Protocol):
    """What the engine must know of a model."""

    n_vocab: int
    n_embd: int
    n_ctx_train: int

    @property
    def eog(self) -> Container[int]:
        """Tokens that end a generation."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; a control token stands for none."""
        ...

    def controls(self, text: str) -> Mapping[int, str]:
        """The control tokens that `text` spells (`<|im_start|>`): id -> spelling."""
        ...

    def spelling(self, token: int) -> str | None:
        """The text of a control token, or of another that a tokeniser never splits; None for any other id."""
        ...


class Runtime(Protocol):
    """A model with its KV cache.

    Attributes:
        features: whether `rows` of a search return hidden states.
        n_batch: rows of one call, at most.
        feature_rows, score_rows: how many rows of one call are sensible when hidden states, or the whole vocabulary,
            are wanted of each.
        steady_rows: rows of one call of `prefill` in the prompt of a question that is computed alone, so that it repeats
            exactly; None if where its cells lie, and what is computed before it, make no difference, or if nothing helps.
    """

    kv: KvCache
    features: bool
    n_batch: int
    feature_rows: int
    score_rows: int
    steady_rows: int | None

    @property
    def model(self) -> Vocabulary:
        """The model's vocabulary and sizes."""
        ...

    def prefill(self, sequence: KvSequence, tokens: Sequence[int]) -> None:
        """Compute `tokens` at the end of `sequence`, and book their cells; outputs are not wanted.

        Raises:
            CacheFullError: not enough cells; what fitted stays in the sequence.
        """
        ...

    def rows(self, rows: Sequence[Row], features: bool) -> NextTokens:
        """Compute one token for each row, together, and book its cell. Rows of one sequence stand in order.

        Raises:
            CacheFullError: not enough cells; nothing was computed.
        """
        ...

    def score(self, rows: Sequence[Row], wanted: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """Like `rows`, but gives for each row the (log-probability in nats, is it the likeliest) of wanted tokens.

        Rows of which no token is wanted count as computed only, not for `score_rows`.
        """
        ...

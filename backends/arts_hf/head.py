"""From hidden states to the next token, without ever holding all logits of a batch.

On a CPU the vocabulary is projected in slices that stay in the cache: each gives its part of the logsumexp and its
largest logits. What is kept of a row are its `k` largest logits, its normaliser and its hidden state; a setting that
needs more (no top_k and a flat distribution) has that row's logits computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arts_plugin.backend import FloatArray, Sampling
from arts_plugin.engine.runtime import Draw
from arts_plugin.sampling import Adjustment, log_normaliser, pick, pick_adjusted

_SLICE = 8192
_ROWS = 16
Array = npt.NDArray[Any]


class VocabularyHead:
    """The model's output embeddings with what the architecture does to their product.

    Args:
        module: the output embeddings; anything but a plain linear layer is called as it is.
        finish: what turns the product into logits (soft cap, scale), or None.
    """

    def __init__(self, module: Any, finish: Callable[[torch.Tensor], torch.Tensor] | None) -> None:
        self.module, self.finish = module, finish
        plain = type(module) is torch.nn.Linear and module.bias is None
        self.weight: torch.Tensor | None = module.weight if plain else None
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, n_embd] -> float32 logits [n, vocabulary]."""
        made = self.module(hidden).float()
        return self.finish(made) if self.finish else made

    def top(self, hidden: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `k` largest logits [n, k] in any order, their tokens [n, k], and the logsumexp of all [n]."""
        if self.weight is None or hidden.device.type != "cpu":
            logits = self.logits(hidden)
            values, ids = logits.topk(min(k, logits.shape[1]), dim=1, sorted=False)
            return values, ids, logits.logsumexp(1)
        return self._sliced(hidden, self.weight, k)

    def _sliced(
        self, hidden: torch.Tensor, weight: torch.Tensor, k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        n = len(hidden)
        product, wide = self._scratch(n, hidden.dtype)
        largest = torch.full((n,), -math.inf)
        total = torch.zeros(n)
        values, ids = [], []
        for start in range(0, len(weight), _SLICE):
            part = weight[start : start + _SLICE]
            raw = torch.mm(hidden, part.T, out=product[: n * len(part)].view(n, len(part)))
            logits = wide[: n * len(part)].view(n, len(part)).copy_(raw)
            if self.finish:
                logits = self.finish(logits)
            found = logits.topk(min(k, len(part)), dim=1, sorted=False)
            values.append(found.values)
            ids.append(found.indices + start)
            before, largest = largest, torch.maximum(largest, logits.amax(1))
            total = total * torch.exp(before - largest) + logits.sub_(largest[:, None]).exp_().sum(1)
        candidates, tokens = torch.cat(values, 1), torch.cat(ids, 1)
        best = candidates.topk(min(k, candidates.shape[1]), dim=1, sorted=False)
        return best.values, tokens.gather(1, best.indices), largest + total.log()

    def _scratch(self, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        if self._buffers is None or len(self._buffers[0]) < rows * _SLICE or self._buffers[0].dtype != dtype:
            self._buffers = torch.empty(rows * _SLICE, dtype=dtype), torch.empty(rows * _SLICE)
        return self._buffers

    def score(self, hidden: torch.Tensor, wanted: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """For each row the (log-probability, is it the likeliest) of wanted tokens."""
        found: list[list[tuple[float, bool]]] = []
        for start in range(0, len(hidden), _ROWS):
            logits = self.logits(hidden[start : start + _ROWS])
            log_z, best = logits.logsumexp(1).tolist(), logits.argmax(1).tolist()
            for i, tokens in enumerate(wanted[start : start + _ROWS]):
                values = logits[i, list(tokens)].tolist()
                found.append([(v - log_z[i], token == best[i]) for v, token in zip(values, tokens, strict=True)])
        return found


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The likeliest tokens of a batch's rows, on the host; see `arts_plugin.engine.runtime.NextTokens`.

    Attributes:
        values, ids: the k largest logits and their tokens [n, k], largest first, equal ones by token.
        log_z: logsumexp over the vocabulary [n].
        states: hidden states [n, n_embd], as the head takes them.
        hidden: the same as float32, if they were asked for.
        full: the logits [n, vocabulary] of rows of `states`, for what `values` cannot decide.
        n_vocab: size of the vocabulary.
    """

    values: Array
    ids: Array
    log_z: Array
    states: torch.Tensor
    hidden: FloatArray | None
    full: Callable[[torch.Tensor], FloatArray]
    n_vocab: int

    @classmethod
    def of(cls, head: VocabularyHead, states: torch.Tensor, k: int, features: bool, n_vocab: int) -> TopTokens:
        """The likeliest `k` tokens after each of `states` [n, n_embd]."""
        found, tokens, log_z, hidden = _on_host(*head.top(states, k), states if features else None)
        order = np.lexsort((tokens, -found), axis=-1)
        found, tokens = np.take_along_axis(found, order, 1), np.take_along_axis(tokens, order, 1)

        def full(states: torch.Tensor) -> FloatArray:
            with torch.inference_mode():
                return np.asarray(head.logits(states).cpu().numpy(), dtype=np.float32)

        return cls(found, tokens, log_z, states, hidden, full, n_vocab)

    def keep(self, row: int) -> TopTokens:
        """One row."""
        part = slice(row, row + 1)
        return TopTokens(
            self.values[part].copy(),
            self.ids[part].copy(),
            self.log_z[part].copy(),
            self.states[part].clone(),
            None,
            self.full,
            self.n_vocab,
        )

    def draw(
        self,
        rows: Sequence[int],
        sampling: Sampling,
        uniforms: Sequence[float],
        adjustments: Sequence[Adjustment] = (),
    ) -> list[Draw]:
        """A token for each row: what `arts_plugin.sampling.pick` would draw from all logits."""
        if adjustments:
            return self._adjusted(rows, sampling, uniforms, adjustments)
        index = np.asarray(rows)
        values, ids, log_z = self.values[index], self.ids[index], self.log_z[index]
        with np.errstate(invalid="ignore"):
            kept, decided = _kept(values, log_z, sampling, self.n_vocab)
            place = _place(values, kept, sampling, np.asarray(uniforms))
        at = np.arange(len(index))
        tokens, logprobs = ids[at, place], values[at, place] - log_z
        drawn = list(zip(tokens.tolist(), logprobs.tolist(), strict=True))
        for i in np.flatnonzero(~decided & np.isfinite(log_z)).tolist():
            drawn[i] = self._from_all(rows[i], sampling, uniforms[i])
        return [
            (token, logprob if math.isfinite(z) else math.nan) for (token, logprob), z in zip(drawn, log_z, strict=True)
        ]

    def _adjusted(
        self,
        rows: Sequence[int],
        sampling: Sampling,
        uniforms: Sequence[float],
        adjustments: Sequence[Adjustment],
    ) -> list[Draw]:
        """What is kept of a row cannot say which tokens are likeliest after a change: its logits are computed again."""
        drawn: list[Draw] = []
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            logits = self.full(self.states[list(rows[part])])
            log_z = log_normaliser(logits)
            drawn += [
                pick_adjusted(row, sampling, float(z), u, adjustment)
                for row, z, u, adjustment in zip(logits, log_z, uniforms[part], adjustments[part], strict=True)
            ]
        return drawn

    def _from_all(self, row: int, sampling: Sampling, uniform: float) -> Draw:
        logits = self.full(self.states[row : row + 1])[0]
        log_z = float(log_normaliser(logits[None])[0])
        token = pick(logits, sampling, log_z, uniform)
        return token, float(logits[token]) - log_z


def _on_host(
    values: torch.Tensor, ids: torch.Tensor, log_z: torch.Tensor, states: torch.Tensor | None
) -> tuple[Array, Array, Array, FloatArray | None]:
    """All that the host needs of a step, in one copy: each copy from a GPU waits for it."""
    k = values.shape[1]
    parts = [values.float(), ids.to(torch.int32).view(torch.float32), log_z.float()[:, None]]
    if states is not None:
        parts.append(states.to(values.device).float())
    host = torch.cat(parts, 1).cpu().numpy()
    tokens = np.ascontiguousarray(host[:, k : 2 * k]).view(np.int32).astype(np.int64)
    hidden = None if states is None else np.ascontiguousarray(host[:, 2 * k + 1 :])
    return host[:, :k].astype(np.float64), tokens, host[:, 2 * k].astype(np.float64), hidden


def _kept(values: Array, log_z: Array, sampling: Sampling, n_vocab: int) -> tuple[Array, Array]:
    """How many of the likeliest tokens may be drawn [n], and whether `values` is enough to say so [n]."""
    n, k = values.shape
    whole = k == n_vocab
    if sampling.temperature == 0:
        return np.ones(n, dtype=np.int64), (values[:, 0] > values[:, -1]) | whole
    decided = np.ones(n, dtype=bool)
    kept = np.full(n, k, dtype=np.int64)
    if sampling.top_k:
        wide = min(sampling.top_k, n_vocab)
        if wide > k:
            return kept, ~decided
        # A tie that runs out of `values` hides tokens with lower numbers, which would come first.
        decided = np.asarray(values[:, wide - 1] > values[:, -1]) | whole
        shares = np.exp(values[:, :wide] - values[:, :1])
        kept = _fewest(shares / shares.sum(1, keepdims=True), sampling.top_p)
    elif sampling.top_p < 1:
        shares = np.exp(values - log_z[:, None])
        kept = _fewest(shares, sampling.top_p)
        enough = shares.sum(1) >= sampling.top_p
        decided = enough & (values[np.arange(n), kept - 1] > values[:, -1]) | whole
    elif not whole:
        # Only min_p can keep it inside `values`.
        decided = np.full(n, sampling.min_p > 0) & (values[:, -1] < values[:, 0] + _log(sampling.min_p))
    if sampling.min_p > 0:
        likely = (values >= values[:, :1] + _log(sampling.min_p)).sum(1)
        kept = np.minimum(kept, likely)
    return kept, decided


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _fewest(shares: Array, mass: float) -> Array:
    """The fewest leading `shares` [n, k] that hold `mass`: [n]."""
    if mass >= 1:
        return np.full(len(shares), shares.shape[1], dtype=np.int64)
    return np.asarray(np.minimum(shares.shape[1], (np.cumsum(shares, 1) < mass).sum(1) + 1))


def _place(values: Array, kept: Array, sampling: Sampling, uniforms: Array) -> Array:
    """Where the uniforms of the inverse CDF fall among the first `kept` of each row: [n]."""
    if sampling.temperature == 0:
        return np.zeros(len(values), dtype=np.int64)
    with np.errstate(over="ignore"):
        weights = np.exp((values - values[:, :1]) / sampling.temperature)
    weights[np.arange(values.shape[1])[None] >= kept[:, None]] = 0
    cumulative = np.cumsum(weights / weights.sum(1, keepdims=True), 1)
    last = cumulative[np.arange(len(values)), kept - 1]
    return np.asarray(np.minimum((cumulative <= (uniforms * last)[:, None]).sum(1), kept - 1))

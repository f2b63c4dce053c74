"""Drawing a token from logits: top-k, top-p, min-p, temperature, then the inverse CDF at a given uniform.

The filters come in llama.cpp's order and act on untempered probabilities. No step sorts the whole vocabulary unless
the settings leave no other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import FloatArray, Sampling

_BLOCK = 64
_PREFILTER = 1024
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What changes one row's logits before a token is drawn.

    Attributes:
        before: tokens of the prompt and the trace.
        trace: those of the trace.
        allowed: whether each token may be drawn, bool [vocabulary]; None: all may.
    """

    before: npt.NDArray[np.int32]
    trace: npt.NDArray[np.int32]
    allowed: npt.NDArray[np.bool_] | None = None


def adjusted(row: FloatArray, sampling: Sampling, adjustment: Adjustment) -> FloatArray:
    """A copy of logits [vocabulary] with biases, penalties and constraint applied, in this order (vLLM's)."""
    made = row.copy()
    for token, bias in sampling.logit_bias:
        made[token] += bias
    if sampling.repetition_penalty != 1:
        seen = np.unique(adjustment.before)
        values = made[seen]
        made[seen] = np.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        seen, counts = np.unique(adjustment.trace, return_counts=True)
        made[seen] -= sampling.frequency_penalty * counts.astype(np.float32) + np.float32(sampling.presence_penalty)
    if adjustment.allowed is not None:
        made[~adjustment.allowed[: len(made)]] = -np.inf
    return made


def pick_adjusted(
    row: FloatArray, sampling: Sampling, log_z: float, uniform: float, adjustment: Adjustment
) -> tuple[int, float]:
    """A token drawn from adjusted logits, and its log-probability under the model's own.

    Args:
        log_z: logsumexp of `row`.
    """
    changed = adjusted(row, sampling, adjustment)
    if not np.isfinite(log_z) or not np.isfinite(changed.max()):
        return 0, float("nan")  # the model's logits are invalid, or nothing may be drawn
    token = pick(changed, sampling, float(log_normaliser(changed[None])[0]), uniform)
    return token, float(row[token]) - log_z


def log_normaliser(rows: FloatArray) -> npt.NDArray[np.float64]:
    """logsumexp of each row of `rows` [n, vocabulary] -> [n]; NaN or infinite where the logits are invalid."""
    # Row by row in one buffer that stays in the cache: whole-batch temporaries cost 30 times as long in page faults.
    buffer = np.empty(rows.shape[1], dtype=np.float32)
    sums = np.empty(len(rows), dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        for i, row in enumerate(rows):
            top = row.max()
            np.subtract(row, top, out=buffer)
            np.exp(buffer, out=buffer)
            sums[i] = float(top) + float(np.log(buffer.sum()))
    return sums


def top_indexes(row: FloatArray, k: int) -> IntArray:
    """The `k` largest of `row`, largest first, equal ones by index: what a full stable sort would give.

    The k largest lie in the k blocks with the largest maxima, so only those blocks are looked into.
    """
    n = len(row)
    n_blocks = n // _BLOCK
    whole = n_blocks * _BLOCK
    if k >= n or n_blocks <= 2 * k:
        return np.argsort(-row, kind="stable")[:k]
    # Block b holds the tokens b, b + n_blocks, b + 2 n_blocks...: maxima over the first axis use whole vectors.
    maxima = row[:whole].reshape(_BLOCK, n_blocks).max(axis=0)
    # Equal maxima at the border would make the choice of blocks ambiguous: take every block that reaches it.
    border = np.partition(maxima, n_blocks - k)[n_blocks - k]
    inside = (np.arange(_BLOCK)[:, None] * n_blocks + np.flatnonzero(maxima >= border)).ravel()
    members = np.concatenate([inside, np.arange(whole, n)])
    values = row[members]
    keep = members[values >= np.partition(values, len(values) - k)[len(values) - k]]
    return np.asarray(keep[np.argsort(-row[keep], kind="stable")][:k])


def candidates(row: FloatArray, sampling: Sampling, log_z: float) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """The tokens that may be drawn and their probabilities, [n] each, likeliest first where a filter acts.

    Args:
        row: logits, [vocabulary].
        log_z: their logsumexp.
    """
    if sampling.temperature == 0:
        return np.array([int(row.argmax())]), np.ones(1)
    if sampling.top_k == 0 and sampling.top_p >= 1:
        ids = np.arange(len(row))
        if sampling.min_p > 0:
            ids = np.flatnonzero(row >= row.max() + np.log(sampling.min_p))
            ids = ids[np.argsort(-row[ids], kind="stable")]
    else:
        ids = _nucleus(row, sampling, log_z)
        if sampling.min_p > 0:
            ids = ids[row[ids] >= row[ids[0]] + np.log(sampling.min_p)]
    values = row[ids].astype(np.float64)
    with np.errstate(over="ignore"):  # at a temperature next to nothing all but the largest are infinitely unlikely
        weights = np.exp((values - values.max()) / sampling.temperature)
    return ids, weights / weights.sum()


def _nucleus(row: FloatArray, sampling: Sampling, log_z: float) -> IntArray:
    """Top-k, then the fewest of those that hold at least top_p of their mass (always one)."""
    if sampling.top_k:
        ids = top_indexes(row, min(sampling.top_k, len(row)))
        shares = np.exp(row[ids].astype(np.float64) - float(row[ids[0]]))
        return ids[: _fewest(shares / shares.sum(), sampling.top_p)]
    for k in (_PREFILTER, len(row)):
        ids = top_indexes(row, min(k, len(row)))
        shares = np.exp(row[ids].astype(np.float64) - log_z)
        if shares.sum() >= sampling.top_p:
            break
    return ids[: _fewest(shares, sampling.top_p)]


def _fewest(shares: npt.NDArray[np.float64], mass: float) -> int:
    if mass >= 1:
        return len(shares)
    return min(len(shares), int(np.searchsorted(np.cumsum(shares), mass)) + 1)


def pick(row: FloatArray, sampling: Sampling, log_z: float, uniform: float) -> int:
    """The token at `uniform` of the inverse CDF over `candidates`."""
    ids, probabilities = candidates(row, sampling, log_z)
    if len(ids) == 1:
        return int(ids[0])
    cumulative = np.cumsum(probabilities)
    place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(ids[min(place, len(ids) - 1)])

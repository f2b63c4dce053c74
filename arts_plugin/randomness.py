"""Counter-based randomness: every draw is a function of (seed, problem, path, position).

There is no generator whose state would have to be forked, saved or kept in step with a batch: a branch draws the
same numbers whatever else runs beside it, and draws them again after it was evicted or the process was restarted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

_MASK = (1 << 64) - 1


def digest(*parts: Any) -> int:
    """A 64-bit key of JSON-serialisable parts, the same on every machine and in every process."""
    data = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str).encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def mix(key: int, value: int) -> int:
    """Combine a 64-bit key with an integer (the SplitMix64 finaliser; Steele, Lea and Flood 2014)."""
    z = (key + 0x9E3779B97F4A7C15 * (value + 1)) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniform(key: int, position: int) -> float:
    """A uniform of [0, 1) with 53 random bits."""
    return (mix(key, position) >> 11) * 2.0**-53


def branch_key(seed: int, problem: int, path: Iterable[int] = ()) -> int:
    """The key of the branch reached by the child indexes `path`; extend it with `mix(key, index)`."""
    key = mix(problem & _MASK, seed & _MASK)
    for index in path:
        key = mix(key, index)
    return key


def generator(*parts: Any) -> np.random.Generator:
    """A numpy generator seeded by `parts`, for draws that need more than one uniform."""
    return np.random.Generator(np.random.PCG64(digest(*parts)))

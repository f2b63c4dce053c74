"""The seeds' figures side by side, problem by problem, with intervals.

An interval is a 95 % bootstrap over problems, resampled within each seed; a seed has its own model and its own split, so
that the same problem under two seeds counts as two. Differences are paired: both sides from the same problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from routes import pass_at

from arts_plugin.evaluation.pool import Bootstrap
from arts_plugin.evaluation.statistics import Estimate, oracle_at_k

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
GONE, THERE = 0.1, 0.5
"""The extinction zone, exactly: pass@16 of the tuned model below GONE, and of the base at least THERE."""


class Results:
    """What `results.json` holds, as arrays over all problems of all seeds.

    Attributes:
        exact: model -> the probability that a trace is right.
        base_right, tuned_right: right ones of the traces that were sampled.
        values: selector or method -> how often it is right.
        zones: name -> problems.
    """

    def __init__(self, seeds: Sequence[dict[str, Any]]) -> None:
        self.seeds = list(seeds)
        self.sizes = [len(seed["problems"]) for seed in seeds]
        self.bootstrap = Bootstrap(sum(self.sizes), resamples=1)
        draws = [Bootstrap(size, seed=number).counts for number, size in enumerate(self.sizes)]
        self.bootstrap.counts = np.hstack(draws)
        self.exact = {name: self._joined("exact", name, "right") for name in seeds[0]["exact"]}
        self.base_right, self.tuned_right = self._joined("selectors", "right"), self._joined("tuned", "right")
        self.traces = int(seeds[0]["selectors"]["traces"])
        self.values = {name: self._joined("selectors", "values", name) for name in seeds[0]["selectors"]["values"]}
        self.values |= {name: self._joined("search", name, "chosen") for name in seeds[0]["search"]}
        self.values |= {f"{name}: oracle": self._joined("search", name, "oracle") for name in seeds[0]["search"]}
        self.values["tuned"] = self.tuned_right / self.traces
        self.values["tuned: majority"] = self._joined("tuned", "majority")
        self.values["tuned: oracle"] = (self.tuned_right > 0).astype(float)
        self.kinds = np.array([kind for seed in seeds for kind in seed["kinds"]])
        self.zones = self._zones()

    def _joined(self, *path: str) -> Array:
        parts = []
        for seed in self.seeds:
            found: Any = seed
            for key in path:
                found = found[key]
            parts.append(np.asarray(found, dtype=np.float64))
        return np.concatenate(parts)

    def _zones(self) -> dict[str, Mask]:
        few = max(1, self.traces // 8)
        base, tuned = (pass_at(self.exact[name], 16) for name in ("base", "grpo"))
        return {
            "all": np.ones(sum(self.sizes), dtype=bool),
            "rare": (self.base_right > 0) & (self.base_right <= few),
            "extinct": (tuned < GONE) & (base >= THERE),
            "extinct, sampled": (self.tuned_right == 0) & (self.base_right > 0),
        }

    def of_seed(self, number: int) -> Mask:
        """The problems of one seed."""
        owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.asarray(owner == number)

    def mean(self, values: Array, where: Mask | None = None) -> Estimate:
        """A mean over problems with its interval."""
        return self.bootstrap.mean(values, where)

    def pass_exact(self, name: str, k: int) -> Array:
        """Exact pass@k of a model, problem by problem."""
        return pass_at(self.exact[name], k)

    def pass_sampled(self, right: Array, k: int) -> Array:
        """The unbiased estimate of pass@k from the sampled traces, problem by problem."""
        return np.array([oracle_at_k(self.traces, int(count), k) for count in right])

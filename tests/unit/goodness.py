"""The test of fit by which draws are compared with a distribution that is known."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

ALPHA = 0.001
"""Level of every test of fit: seeds are fixed, so a test that passes once always does."""


def fit(counts: Sequence[int], expected: Sequence[float]) -> float:
    """p-value of the chi-square test that `counts` come from the distribution `expected`."""
    assert min(expected) * sum(counts) > 5, "too few draws for a chi-square test"
    return float(stats.chisquare(counts, np.array(expected) * sum(counts)).pvalue)

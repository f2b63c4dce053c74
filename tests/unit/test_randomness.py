"""Counter-based draws: the same everywhere, and as good as independent."""

import subprocess
import sys

import numpy as np
from scipy import stats

from arts_plugin.randomness import branch_key, digest, generator, mix, uniform

MASK = (1 << 64) - 1


def test_mix_is_splitmix64() -> None:
    """The outputs published with SplitMix64 for the seed 1234567 (Rosetta Code, from Vigna's C)."""
    published = [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip
    assert [mix(1234567, i) for i in range(5)] == published


def test_uniforms_are_uniform_along_every_axis() -> None:
    keys = [branch_key(seed, problem, path) for seed in range(5) for problem in range(5) for path in ((), (0,), (1, 0))]
    assert len(set(keys)) == len(keys)
    along_positions = [uniform(keys[0], i) for i in range(4000)]
    along_branches = [uniform(branch_key(0, 7, (i,)), 3) for i in range(4000)]
    along_seeds = [uniform(branch_key(i, 7), 3) for i in range(4000)]
    for sample in (along_positions, along_branches, along_seeds):
        assert min(sample) >= 0 and max(sample) < 1
        assert stats.kstest(sample, "uniform").pvalue > 0.001
    # A branch and its first child must not repeat each other, nor two neighbouring positions.
    assert abs(np.corrcoef(along_positions[:-1], along_positions[1:])[0, 1]) < 0.06
    parents = [uniform(branch_key(0, i), 0) for i in range(4000)]
    children = [uniform(branch_key(0, i, (0,)), 0) for i in range(4000)]
    assert abs(np.corrcoef(parents, children)[0, 1]) < 0.06


def test_a_path_is_extended_by_mix() -> None:
    assert branch_key(3, 9, (4, 2)) == mix(mix(branch_key(3, 9), 4), 2)
    assert branch_key(-1, 9) == branch_key(MASK, 9)


def test_digest_depends_on_every_part_and_not_on_the_process() -> None:
    parts = ([1, 2], {"b": 1, "a": [None, "é"]}, 3.5)
    assert digest(*parts) == digest([1, 2], {"a": [None, "é"], "b": 1}, 3.5)
    assert len({digest(*parts), digest(*parts[:2]), digest([1, 2, 3]), digest("1"), digest(1), digest([1], 2)}) == 6
    code = "from arts_plugin.randomness import digest, generator; print(digest('a', 1), generator('a', 1).random())"
    path = f"import sys; sys.path[:] = {sys.path!r}; {code}"
    other = subprocess.run([sys.executable, "-c", path], capture_output=True, text=True, check=True)
    assert other.stdout.split() == [str(digest("a", 1)), str(generator("a", 1).random())]

"""Recorded decoding steps of the hf backend. CUDA graphs need a GPU; what they do to a step is done here on a CPU.

`Traced` records as a CUDA graph does: the operations of one run, in its shapes and on the very tensors that it used, without
the Python around them. So what a graph would get wrong (a pool that has moved, a shape that does not fit, a number read by the
host) is wrong here as well.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402

from arts_hf import attention, graphs  # noqa: E402
from arts_hf.backend import HfBackend  # noqa: E402
from arts_hf.graphs import Recorder, Step, rounded_down, rounded_up  # noqa: E402
from arts_hf.pool import KvPool  # noqa: E402
from arts_hf.runtime import HfRuntime  # noqa: E402
from arts_plugin.api import Arts  # noqa: E402
from arts_plugin.backend import Sampling  # noqa: E402
from arts_plugin.engine.kv import KvSequence  # noqa: E402
from arts_plugin.engine.runtime import Row  # noqa: E402
from arts_plugin.settings import Settings  # noqa: E402
from tests.models import THREADS, smollm2  # noqa: E402
from tests.real.test_hf_engine import KINDS, HostReads, recompute, runtime  # noqa: E402


class Traced:
    """See `arts_hf.graphs.Recorder`."""

    released = False

    def __call__(self, step: Step) -> tuple[Callable[[], Any], Any]:
        program = make_fx(lambda: step())()
        result = program()
        return lambda: result.copy_(program()), result

    def release(self) -> None:
        self.released = True


@pytest.fixture(autouse=True)
def unwritten_cells_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds anything; here it holds what nothing may be multiplied with, not even zero."""
    grow = KvPool._grow

    def grown(self: KvPool, layer: int, old: Any, key: Any, value: Any) -> Any:
        pool = grow(self, layer, old, key, value)
        pool[0 if old is None else len(old) :] = torch.nan
        return pool

    monkeypatch.setattr(KvPool, "_grow", grown)


def recording(kind: str, record: Recorder | None = None, **settings: Any) -> HfRuntime:
    made = runtime(kind, **settings)
    made.record_steps(record or Traced())
    return made


class Branches:
    """Sequences with the hidden state of each token that was computed one by one."""

    def __init__(self, made: HfRuntime) -> None:
        self.made, self.numbers = made, random.Random(7)
        self.all: list[tuple[KvSequence, list[Any]]] = []

    def prompt(self, length: int) -> None:
        sequence = self.made.kv.new()
        self.made.prefill(sequence, [self.numbers.randrange(97) for _ in range(length)])
        self.all.append((sequence, []))

    def fork(self, at: int, times: int) -> None:
        sequence, states = self.all[at]
        self.all += [(self.made.kv.new(sequence), list(states)) for _ in range(times)]

    def drop(self, at: int) -> None:
        self.made.kv.drop(self.all.pop(at)[0])

    def step(self) -> None:
        rows = [Row(sequence, self.numbers.randrange(97)) for sequence, _ in self.all]
        for (_, states), hidden in zip(self.all, self.made.rows(rows, True).hidden, strict=True):
            states.append(hidden)

    def check(self) -> None:
        for sequence, states in self.all:
            want = recompute(self.made, list(sequence.tokens))[-len(states) :]
            assert torch.allclose(torch.tensor(list(map(list, states))), want, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_equal_full_recompute(kind: str) -> None:
    """Branches of several questions, forks, dropped rows, beyond the window, while the pool grows and moves."""
    made = recording(kind)
    branches = Branches(made)
    for length in (23, 4, 40):
        branches.prompt(length)
    branches.fork(0, 2)
    for i in range(36):
        if i == 12:
            branches.fork(3, 3)
        if i in {20, 24}:
            branches.drop(1)
        branches.step()
    branches.check()
    found = made.graphs
    assert found is not None and found.given_up is None
    assert found.replays > 12
    # The pool has moved since the first recording, which was made again.
    assert found.recordings > len([r for r in found._recorded.values() if r])


@pytest.mark.parametrize("kind", ["llama", "gemma3, window 5"])
def test_a_shared_prefix_is_read_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded cascade attention, whose prefix is cut to a round number: every hidden state."""
    calls = []
    cascade = attention._cascade
    monkeypatch.setattr(attention, "_cascade", lambda *a: calls.append(a[3].prefix.shape[0]) or cascade(*a))
    made = recording(kind)
    branches = Branches(made)
    branches.prompt(300)
    branches.fork(0, 5)
    for _ in range(20):
        branches.step()
    branches.check()
    assert made.graphs is not None and made.graphs.replays > 10
    assert {shape.prefix for shape in made.graphs._recorded} == {256}
    assert 256 in calls


def test_a_pool_that_moved_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: without the look at the pool's state, recordings read and write where it was."""
    monkeypatch.setattr("arts_hf.pool.KvPool.state", (0, 0))
    made = recording("llama")
    branches = Branches(made)
    branches.prompt(100)
    branches.fork(0, 3)
    with pytest.raises((AssertionError, IndexError)):
        for _ in range(30):
            branches.step()
        branches.check()


def test_padding_changes_no_other_row() -> None:
    """Rows that are only padding write to a cell of their own: the pool's cells that are in use stay as they are."""
    made = recording("llama")
    branches = Branches(made)
    branches.prompt(100)
    branches.fork(0, 4)  # five rows, padded to six
    branches.step()
    used = sorted({cell for sequence, _ in branches.all for cell in sequence.cells})
    before = made.pool._layers[0][used].clone()
    for _ in range(9):
        branches.step()
    assert made.graphs is not None and made.graphs.replays > 3
    assert made.pool.spare not in {cell for sequence, _ in branches.all for cell in sequence.cells}
    assert torch.equal(made.pool._layers[0][used], before)
    branches.check()


def test_old_recordings_go_first() -> None:
    made = recording("llama")
    assert made.graphs is not None
    made.graphs._most = 3
    branches = Branches(made)
    branches.prompt(10)
    for _ in range(12):
        branches.fork(0, 1)
        branches.step()
        branches.step()
    branches.check()
    assert len(made.graphs._recorded) == 3
    assert next(reversed(made.graphs._recorded)).rows == 16


class Bad(Traced):
    """Goes wrong in one way."""

    def __init__(self, what: str) -> None:
        self.what, self.tried = what, 0

    def __call__(self, step: Step) -> tuple[Callable[[], Any], Any]:
        self.tried += 1
        if self.what == "it cannot be recorded":
            raise RuntimeError("operation not permitted when stream is capturing\nand a long tail")
        if self.what == "it keeps its first inputs":
            first = step().clone()
            result = first.clone()
            return lambda: result.copy_(first), result
        result = step().clone()
        if self.what == "it does nothing":  # as a graph that was captured on another device
            return lambda: None, result
        assert self.what == "one row differs"
        program = make_fx(lambda: step())()

        def replay() -> None:
            result.copy_(program())
            result[2] *= 1.1

        return replay, result


@pytest.mark.parametrize(
    "what", ["it cannot be recorded", "it does nothing", "one row differs", "it keeps its first inputs"]
)
def test_what_cannot_be_recorded_runs_as_before(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, no wrong number, and nothing is tried again."""
    record = Bad(what)
    made = recording("llama", record)
    branches = Branches(made)
    branches.prompt(30)
    branches.fork(0, 3)
    with caplog.at_level(logging.WARNING, "arts_hf.graphs"):
        for _ in range(12):
            branches.step()
    branches.check()
    assert made.graphs is not None and made.graphs.replays == 0 and record.released
    assert record.tried <= 2  # what is seen at the second use alone may have been recorded in two shapes by then
    (said,) = caplog.records
    assert "decoding goes on without CUDA graphs" in said.getMessage()
    assert ("not permitted" in said.getMessage()) == (what == "it cannot be recorded")
    assert "long tail" not in said.getMessage()


def test_memory_that_is_short_takes_the_recordings_first(monkeypatch: pytest.MonkeyPatch) -> None:
    made = recording("llama")
    branches = Branches(made)
    branches.prompt(30)
    branches.fork(0, 3)
    for _ in range(5):
        branches.step()
    found = made.graphs
    assert found is not None and found.recordings
    monkeypatch.setattr(found, "run", short_of_memory(found.run))
    for _ in range(5):
        branches.step()
    branches.check()
    assert not found._recorded and found.given_up == "memory was short"


def short_of_memory(run: Any) -> Any:
    """Fails once."""
    failed = []

    def limited(*arguments: Any) -> Any:
        if not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*arguments)

    return limited


def test_only_a_gpu_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU there is nothing to launch faster, and a graph is of one device."""
    assert runtime("llama", cuda_graphs=True).graphs is None
    monkeypatch.setattr("arts_hf.pool.KvPool.devices", {torch.device("cuda:0")})
    assert isinstance(runtime("llama", cuda_graphs=True).graphs, graphs.StepGraphs)
    assert runtime("llama").graphs is None
    monkeypatch.setattr("arts_hf.pool.KvPool.devices", {torch.device("cuda:0"), torch.device("cuda:1")})
    assert runtime("llama", cuda_graphs=True).graphs is None


def test_a_recorded_step_waits_for_the_device_once() -> None:
    made = recording("llama")
    branches = Branches(made)
    branches.prompt(20)
    branches.fork(0, 4)
    for _ in range(4):
        branches.step()
    replays = made.graphs.replays if made.graphs else 0
    with HostReads() as reads:
        top = made.rows([Row(sequence, 5) for sequence, _ in branches.all], True)
        top.draw(range(5), Sampling(), [0.3] * 5)
    assert reads.seen == ["cpu"]
    assert made.graphs is not None and made.graphs.replays == replays + 1


def test_a_search_on_a_real_model() -> None:
    """Trees of SmolLM2 with recorded steps are those without them, greedily and for sampled branches."""
    common = {"backend": "hf", "dtype": "float32", "slots": 4, "max_gen_toks": 12, "verifier": "logprob"}
    texts = []
    for record in (False, True):
        backend = HfBackend(Settings.of(model=smollm2(), n_threads=THREADS, **common))
        if record:
            backend.runtime.record_steps(Traced())  # type: ignore[attr-defined]
        with Arts(**common, strategy="best_of_n", budget_trajectories=4, engine=backend) as arts:
            tree = arts.solve("Tom has 3 pens and buys 2 more. How many pens does he have now?")
        texts.append([trajectory.text for trajectory in tree.trajectories()])
        if record:
            assert backend.runtime.graphs.replays > 5  # type: ignore[attr-defined]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4


def test_round_numbers() -> None:
    """Few of them, and never too small or too large."""
    for least in (4, 32):
        found = [rounded_up(count, least) for count in range(1, 2000)]
        assert all(count <= up < max(least + 1, 1.5 * count + 1) for count, up in enumerate(found, 1))
        assert len(set(found)) <= 20
        assert found == sorted(found)
    found = [rounded_down(count, 128) for count in range(5000)]
    assert all(0 <= count - down < max(128, count / 4 + 1) for count, down in enumerate(found))
    assert len(set(found)) <= 20
    assert found == sorted(found)

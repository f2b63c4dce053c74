"""Decoding steps of a fixed shape, recorded once and replayed: CUDA graphs.

A step of a small model is hundreds of kernels that take microseconds each, and launching them one by one from Python takes
longer than they do. A CUDA graph launches all of them at once, but only in the shape and at the addresses with which it was
recorded. So a step is brought into one of few shapes: its rows and their views of the cache are padded, and the prefix that all
rows share is cut, to round numbers. Rows that are only padding write to the pool's spare cell and have no other of their own.
What comes twice in a shape is recorded, and each recording is compared with the step that it was made from.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from arts_hf import attention
from arts_hf.attention import Gathered, Plan, Shared
from arts_hf.pool import KvPool
from arts_hf.prefixes import MEMBERS, common_prefix
from arts_plugin.engine.kv import KvSequence

Array = npt.NDArray[Any]
Step = Callable[[], torch.Tensor]

_MOST_GRAPHS = 64
_LEAST_ROWS, _LEAST_CELLS, _LEAST_PREFIX = 4, 32, 128

log = logging.getLogger("arts_hf.graphs")


class Recorder(Protocol):
    """How a step is recorded."""

    def __call__(self, step: Step) -> tuple[Callable[[], Any], torch.Tensor]:
        """What repeats the step on the tensors that it used, and the tensor in which its result then is.

        Raises:
            Exception: the step cannot be recorded; nothing else has suffered.
        """
        ...

    def release(self) -> None:
        """Give back memory that is held beyond that of recordings; nothing is recorded afterwards."""
        ...


class CudaRecorder:
    """Records steps as CUDA graphs of one device, which share one pool of memory: none of them runs beside another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        # While no graph is alive that uses it, the pool counts as free, and a capture into it is an error.
        self._anchor: torch.cuda.CUDAGraph | None = None

    def __call__(self, step: Step) -> tuple[Callable[[], Any], torch.Tensor]:
        """See `Recorder`."""
        with torch.cuda.device(self._device):  # streams, and so captures, are of the current one
            stream = self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._rehearse(step, stream)
            if self._anchor is None:
                self._anchor = self._trivial(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                result = self._capture(graph, step, stream, self._anchor.pool())
            except BaseException:
                # A capture that failed leaves the device's random generator in its state; one that succeeds mends it.
                with suppress(Exception):
                    self._trivial(stream)
                raise
            torch.cuda.synchronize(self._device)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, result

    def _rehearse(self, step: Step, stream: torch.cuda.Stream) -> None:
        """Run it on the stream of the capture: what libraries set up at first use lies outside the graph's memory then,
        and what the host would wait for, which cannot be captured, is found while nothing can be harmed by it."""
        before = torch.cuda.get_sync_debug_mode()
        stream.wait_stream(torch.cuda.current_stream(self._device))
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(stream):
                step()
        finally:
            torch.cuda.set_sync_debug_mode(before)
            torch.cuda.current_stream(self._device).wait_stream(stream)
        torch.cuda.synchronize(self._device)

    def _trivial(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
        graph, number = torch.cuda.CUDAGraph(), torch.zeros(1, device=self._device)
        torch.cuda.synchronize(self._device)
        self._capture(graph, lambda: number + 1, stream, None)
        return graph

    def _capture(self, graph: torch.cuda.CUDAGraph, step: Step, stream: torch.cuda.Stream, pool: Any) -> torch.Tensor:
        # torch.cuda.graph would stay on its stream if the end of the capture failed.
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                return step()
            finally:
                graph.capture_end()

    def release(self) -> None:
        """See `Recorder`."""
        self._anchor = self._stream = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What a recorded step is for.

    Attributes:
        rows: new tokens, each of a sequence of its own.
        prefix: cells that all rows have in common and that are read once, 0 if they are not.
        length: longest view of what is left.
        windows: the sliding windows that reach less far than the longest sequence.
    """

    rows: int
    prefix: int
    length: int
    windows: tuple[int, ...]


class _View:
    """Cells that the rows see, in tensors that stay where they are: `cells` [rows, length] and how many of them count."""

    def __init__(self, rows: int, length: int, device: torch.device) -> None:
        self.cells = torch.zeros(rows, length, dtype=torch.int32, device=device)
        self.lengths = torch.ones(rows, 1, dtype=torch.int32, device=device)
        self.mask = torch.ones(rows, 1, 1, length, dtype=torch.bool, device=device)
        self._places = torch.arange(length, dtype=torch.int32, device=device)[None]

    def fill(self, views: Sequence[Array], spare: int) -> None:
        """Take in a step's views; rows beyond them see the spare cell.

        What is masked is read all the same, and may be no number where nothing was ever written: it is a cell in use.
        """
        cells = np.full(self.cells.shape, views[0][-1], dtype=np.int32)
        cells[len(views) :, 0] = spare
        lengths = np.ones(self.lengths.shape, dtype=np.int32)
        for i, view in enumerate(views):
            cells[i, : len(view)] = view
            lengths[i] = len(view)
        self.cells.copy_(torch.from_numpy(cells), non_blocking=True)
        self.lengths.copy_(torch.from_numpy(lengths), non_blocking=True)

    def see(self) -> None:
        """The mask that follows from the lengths; part of what is recorded."""
        self.mask[:, 0, 0] = self._places < self.lengths


class _FixedPlan(Plan):
    """A plan whose views lie in tensors that stay where they are."""

    __slots__ = ("_views",)

    def __init__(
        self, pool: KvPool, device: torch.device, new_cells: torch.Tensor, views: dict[int, Gathered | Shared]
    ) -> None:
        super().__init__(pool, device, new_cells, None, [], [], {})
        self._views = views

    @property
    def decodes(self) -> bool:
        return True

    def gathered(self, window: int) -> list[Gathered | Shared]:
        return [self._views[window if window in self._views else 0]]


class _Recorded:
    """One step: its inputs, what repeats it, and what it gives."""

    def __init__(self, shape: Shape, pool: KvPool, device: torch.device) -> None:
        self.shape, self.state = shape, pool.state
        self.fresh = torch.zeros(3, shape.rows, dtype=torch.int64, device=device)  # token, position, cell
        self.prefix = torch.zeros(shape.prefix, dtype=torch.int32, device=device)
        self.views = {0: _View(shape.rows, shape.length, device)}
        self.views |= {window: _View(shape.rows, window, device) for window in shape.windows}
        seen: dict[int, Gathered | Shared] = {w: Gathered(None, v.cells, v.mask) for w, v in self.views.items()}
        if shape.prefix:
            tails = self.views[0]
            seen[0] = Shared(self.prefix, Gathered(None, tails.cells, tails.mask))
        self.plan = _FixedPlan(pool, device, self.fresh[2], seen)
        self.replay: Callable[[], Any] | None = None
        self.result = torch.empty(0)
        self.proven = False

    def fill(self, fresh: Array, views: Sequence[Array], spare: int) -> None:
        """Take in a step's tokens, positions and cells [3, n], and the cells of its sequences."""
        n, prefix = fresh.shape[1], self.shape.prefix
        padded = np.zeros((3, self.shape.rows), dtype=np.int64)
        padded[:, :n], padded[2, n:] = fresh, spare
        self.fresh.copy_(torch.from_numpy(padded), non_blocking=True)
        if prefix:
            self.prefix.copy_(torch.from_numpy(views[0][:prefix].copy()), non_blocking=True)
        for window, view in self.views.items():
            view.fill([cells[-window:] if window else cells[prefix:] for cells in views], spare)


class StepGraphs:
    """Recorded decoding steps of one decoder over one pool.

    Args:
        decoder: from tokens and positions to hidden states, under the active plan.
        windows: the sliding windows of its layers, in tokens.
        off: how far a row's hidden state may be from that of the step itself, relatively: the kernels are the same.
        record: how a step is recorded.
        most: recordings kept; the one that was used longest ago goes first.
    """

    def __init__(
        self,
        decoder: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        pool: KvPool,
        device: torch.device,
        windows: set[int],
        off: float,
        record: Recorder,
        name: str,
        most: int = _MOST_GRAPHS,
    ) -> None:
        self._decoder, self._pool, self._device, self._record = decoder, pool, device, record
        self._windows, self._off, self._name, self._most = sorted(windows - {0}), off, name, most
        self._recorded: OrderedDict[Shape, _Recorded | None] = OrderedDict()
        self.replays = self.recordings = 0
        self.given_up: str | None = None

    def run(self, fresh: Array, sequences: Sequence[KvSequence]) -> torch.Tensor | None:
        """Hidden states [n, n_embd] of one new token at the end of each of n sequences, whose cells are booked.

        Args:
            fresh: token, position and cell of each, int64 [3, n].

        Returns:
            None where the step is to be computed as any other: its shape is new, or recording was given up.
        """
        if self.given_up:
            return None
        views = [np.frombuffer(sequence.cells, dtype=np.int32) for sequence in sequences]
        shape = self._shape(views)
        if shape not in self._recorded:
            self._recorded[shape] = None
            if len(self._recorded) > self._most:
                self._recorded.popitem(last=False)
            return None
        self._recorded.move_to_end(shape)
        found = self._recorded[shape]
        with torch.inference_mode():
            # A pool that grew lies elsewhere, or will once this step has written to it.
            if found is None or found.state != self._pool.state:
                # What an older one holds is free before the new one needs it.
                found = self._recorded[shape] = None
                return self._first(shape, fresh, views)
            found.fill(fresh, views, self._pool.spare)
            if not found.proven:
                # Once more with other inputs: nothing of the first may have been kept for good.
                want = self._step(found)()[: len(sequences)].clone()
                found.proven = True
                return self._compared(found, want)
            assert found.replay is not None
            found.replay()
            self.replays += 1
            return found.result[: len(sequences)].clone()

    def release(self) -> bool:
        """Memory is short: forget all recordings, and make no more. Whether there were any."""
        held = any(self._recorded.values())
        self._recorded.clear()
        self._record.release()
        self.given_up = self.given_up or "memory was short"
        return held

    def _shape(self, views: Sequence[Array]) -> Shape:
        longest = max(map(len, views))
        shared = common_prefix(views, list(range(len(views))), 0) if len(views) >= MEMBERS else 0
        prefix = rounded_down(shared, _LEAST_PREFIX)
        return Shape(
            rounded_up(len(views), _LEAST_ROWS),
            prefix,
            rounded_up(longest - prefix, _LEAST_CELLS),
            tuple(window for window in self._windows if window < longest),
        )

    def _step(self, made: _Recorded) -> Step:
        def step() -> torch.Tensor:
            for view in made.views.values():
                view.see()
            with attention.using(made.plan):
                return self._decoder(made.fresh[0], made.fresh[1])

        return step

    def _first(self, shape: Shape, fresh: Array, views: Sequence[Array]) -> torch.Tensor:
        """Run a step in its shape, record it, and compare the two."""
        made = _Recorded(shape, self._pool, self._device)
        made.fill(fresh, views, self._pool.spare)
        step = self._step(made)
        want = step()[: fresh.shape[1]].clone()
        if made.state != self._pool.state:  # the pool grew while it was written to
            return want
        try:
            made.replay, made.result = self._record(step)
            found = self._compared(made, want)
        except Exception as error:
            return self._give_up(f"{type(error).__name__}: {error}", want)
        if not self.given_up:
            self._recorded[shape] = made
            self.recordings += 1
        return found

    def _compared(self, made: _Recorded, want: torch.Tensor) -> torch.Tensor:
        """What a recording makes of the inputs that it has, if that is `want`; otherwise `want`, and no more recordings."""
        assert made.replay is not None
        made.result.fill_(torch.nan)  # a recording that does nothing must not pass
        made.replay()
        got = made.result[: len(want)].clone()
        off = float(((got.float() - want.float()).norm(dim=1) / want.float().norm(dim=1)).max())
        if off <= self._off:
            return got
        return self._give_up(f"a recording's hidden states differ by {off:.1%} from those of its step", want)

    def _give_up(self, why: str, hidden: torch.Tensor) -> torch.Tensor:
        self.given_up = why.splitlines()[0][:300]
        self.release()
        log.warning("%s: decoding goes on without CUDA graphs (%s)", self._name, self.given_up)
        return hidden


def rounded_up(count: int, least: int) -> int:
    """`count` rounded up to `least` times a power of two or one and a half times such a number: by less than a half."""
    power = least << max(0, -(-count // least) - 1).bit_length()
    return power * 3 // 4 if least < count <= power * 3 // 4 else power


def rounded_down(count: int, least: int) -> int:
    """`count` rounded down to a multiple of `least`, or of a quarter of the power of two below it if that is more."""
    step = max(least, (1 << count.bit_length()) >> 3)
    return count // step * step

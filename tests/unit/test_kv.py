"""The books of the KV cache against a naive model, and against what llama.cpp is told."""

from __future__ import annotations

import random
from array import array

import pytest

from arts_plugin.engine.kv import CacheFullError, KvCache, KvSequence

N_CELLS, N_SEQUENCES = 96, 12


class Memory:
    """Stands in for a runtime: which positions each sequence id holds."""

    def __init__(self) -> None:
        self.positions: dict[int, list[int]] = {}
        self.calls: list[tuple[object, ...]] = []
        self.first: dict[int, int] = {}

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions."""
        self.calls.append(("copy", source, target, length))
        assert not self.positions.get(target)
        self.positions[target] = [p for p in self.positions.get(source, []) if p < length]

    def remove(self, sequence: int, start: int) -> None:
        """Remove the positions from `start` on."""
        self.calls.append(("remove", sequence, start))
        self.positions[sequence] = [p for p in self.positions.get(sequence, []) if p < start]

    def clear(self) -> None:
        """Nothing is held."""
        self.calls.append(("clear",))
        assert not any(self.positions.values())

    def first_position(self, sequence: int) -> int:
        """The first position that is whole in every layer."""
        return self.first.get(sequence, 0)


def cache(window: int = 0) -> tuple[KvCache, Memory]:
    memory = Memory()
    return KvCache(memory, N_CELLS, N_SEQUENCES, window), memory


def append(kv: KvCache, memory: Memory, sequence: KvSequence, tokens: list[int]) -> None:
    """Book and "compute" tokens."""
    at = len(sequence)
    kv.append(sequence, tokens)
    memory.positions.setdefault(sequence.id, []).extend(range(at, at + len(tokens)))


def check(kv: KvCache, memory: Memory, naive: dict[int, list[tuple[int, int]]]) -> None:
    """`naive`: for each sequence id its (token, unique number of the computation that made it)."""
    assert set(kv.sequences) == set(naive)
    cell_of: dict[int, int] = {}
    for id, made in naive.items():
        sequence = kv.sequences[id]
        assert list(sequence.tokens) == [token for token, _ in made]
        assert memory.positions.get(id, []) == list(range(len(made)))
        assert len(set(sequence.cells)) == len(sequence.cells) == len(made)
        for (_, serial), cell in zip(made, sequence.cells, strict=True):
            assert cell_of.setdefault(serial, cell) == cell
    assert len(set(cell_of.values())) == len(cell_of) == kv.used
    assert kv.used + kv.free == N_CELLS
    assert kv.has_free_id == (len(naive) < N_SEQUENCES)


@pytest.mark.parametrize("seed", range(8))
def test_random_life_keeps_the_books(seed: int) -> None:
    """Forks, appends, take-backs and drops in random order: cells, ids and llama.cpp's positions agree throughout."""
    draw = random.Random(seed)
    kv, memory = cache()
    naive: dict[int, list[tuple[int, int]]] = {}
    serial, full = 0, {"cells": 0, "ids": 0}
    for _ in range(600):
        kind = draw.choice(["new", "fork", "append", "append", "append", "take_back", "drop"])
        held = list(kv.sequences.values())
        if kind in ("new", "fork") or not held:
            source = draw.choice(held) if held and kind == "fork" else None
            length = None if source is None or draw.random() < 0.5 else draw.randint(0, len(source))
            if len(held) == N_SEQUENCES:
                full["ids"] += 1
                with pytest.raises(CacheFullError):
                    kv.new(source, length)
            else:
                made = kv.new(source, length)
                naive[made.id] = naive[source.id][: len(source) if length is None else length] if source else []
        elif kind == "append":
            sequence, tokens = draw.choice(held), [draw.randrange(5) for _ in range(draw.randint(1, 9))]
            if len(tokens) > kv.free:
                full["cells"] += 1
                with pytest.raises(CacheFullError):
                    kv.append(sequence, tokens)
            else:
                append(kv, memory, sequence, tokens)
                naive[sequence.id] += [(token, serial + i) for i, token in enumerate(tokens)]
                serial += len(tokens)
        elif kind == "take_back":
            sequence = draw.choice(held)
            count = draw.randint(0, min(3, len(sequence)))
            kv.take_back(sequence, count)
            naive[sequence.id] = naive[sequence.id][: len(naive[sequence.id]) - count]
        else:
            sequence = draw.choice(held)
            kv.drop(sequence)
            del naive[sequence.id]
        check(kv, memory, naive)
        wanted = array("i", [draw.randrange(5) for _ in range(draw.randint(0, 12))])
        if naive and draw.random() < 0.5:
            tokens = [token for token, _ in naive[draw.choice(list(naive))]]
            wanted = array("i", tokens + list(wanted))
        limit = draw.randint(0, len(wanted))
        source, shared = kv.best_source(wanted, limit)
        best = max((prefix([t for t, _ in made], list(wanted)[:limit]) for made in naive.values()), default=0)
        assert shared == best
        assert (source is None) == (best == 0)
        if source is not None:
            assert source.tokens[:shared] == wanted[:shared]
    assert full["ids"] and full["cells"], "the walk never filled the cache"
    for sequence in list(kv.sequences.values()):
        kv.drop(sequence)
    assert kv.used == 0


def prefix(left: list[int], right: list[int]) -> int:
    """Length of the common prefix, counted one by one."""
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def test_nothing_is_booked_when_cells_run_out() -> None:
    """All or nothing."""
    kv, memory = cache()
    sequence = kv.new()
    append(kv, memory, sequence, [1] * (N_CELLS - 1))
    with pytest.raises(CacheFullError):
        kv.append(sequence, [2, 2])
    assert (len(sequence), kv.free) == (N_CELLS - 1, 1)


def test_an_overwritten_window_is_no_source() -> None:
    """llama.cpp reuses what lies behind a sequence's window: a shorter prefix of it may be gone, its end never is."""
    kv, memory = cache(window=8)
    sequence = kv.new()
    tokens = array("i", range(40))
    append(kv, memory, sequence, list(tokens))
    assert kv.best_source(tokens, 12) == (sequence, 12)
    memory.first[sequence.id] = 5
    assert kv.best_source(tokens, 12) == (None, 0)
    assert kv.best_source(tokens, 13) == (sequence, 13)
    assert kv.best_source(tokens, 40) == (sequence, 40)
    other = kv.new()
    append(kv, memory, other, list(tokens[:10]))
    assert kv.best_source(tokens, 12) == (other, 10)

"""Grammars that traces must follow: which tokens may come next, kept for each branch and forked with it.

The parsing is llguidance's (Earley with derivatives of regular expressions; the library that llama.cpp and vLLM use), in
a process for each grammar: see `guide_worker`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import Grammar
from arts_plugin.engine.guide_process import Followed, gate, packed
from arts_plugin.errors import ArtsError

if TYPE_CHECKING:
    from arts_plugin.engine.runtime import Vocabulary

PROBLEM = "the grammar cannot be followed further: "
"""How the error of a trace begins that its grammar ended."""
_KEPT = 4
"""Processes of grammars that outlive whoever followed them, for the next who brings the same."""
_MOST = 32
"""Processes at once: each holds its own copy of the vocabulary, 50 MB for 49,152 tokens."""
_BANK = 10.0
Mask = npt.NDArray[np.bool_]


class Guide:
    """Where one branch stands in a grammar."""

    __slots__ = ("_followed", "_known", "_n_vocab", "_number")

    def __init__(self, followed: Followed, n_vocab: int, number: int, known: tuple[bytes, str] | None = None) -> None:
        self._followed, self._n_vocab, self._number, self._known = followed, n_vocab, number, known

    def __del__(self) -> None:
        with suppress(AttributeError):  # never made
            self._followed.drop(self._number)

    def fork(self) -> Guide:
        """A guide that goes on from here independently."""
        return Guide(self._followed, self._n_vocab, self._followed.fork(self._number), self._known)

    def take(self, token: int) -> None:
        """Go on by a token."""
        self._known = None
        self._followed.take(self._number, token)

    @staticmethod
    def look(guides: Sequence[Guide]) -> None:
        """Have the masks of many guides computed, which takes a single exchange for all of one grammar."""
        waiting: dict[int, list[Guide]] = {}
        for guide in guides:
            if guide._known is None:
                waiting.setdefault(id(guide._followed), []).append(guide)
        for group in waiting.values():
            for guide, known in zip(group, group[0]._followed.masks([g._number for g in group]), strict=True):
                guide._known = known

    def _look(self) -> tuple[bytes, str]:
        self.look([self])
        assert self._known is not None
        return self._known

    def allowed(self) -> Mask:
        """Whether each token may come next, bool [n_vocab]; none where the grammar has failed (see `problem`)."""
        bits = np.unpackbits(np.frombuffer(self._look()[0], dtype=np.uint8), bitorder="little")
        mask = np.zeros(self._n_vocab, dtype=np.bool_)
        mask[: len(bits)] = bits[: self._n_vocab]
        return mask

    @property
    def problem(self) -> str:
        """What is wrong: the grammar has become too complex to follow, say. Empty if nothing is."""
        said = self._look()[1]
        return PROBLEM + said if said else ""


class Guides:
    """The grammars of one model's questions. The vocabulary is read once, when the first of them comes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._pieces: bytes | None = None
        self._ends: list[int] = []
        self._alive: WeakValueDictionary[Grammar, Followed] = WeakValueDictionary()
        self._recent: OrderedDict[Grammar, Followed] = OrderedDict()

    def start(self, grammar: Grammar | None) -> Guide | None:
        """The beginning of a grammar; None without one.

        Raises:
            SettingsError: see `Followed`.
        """
        if grammar is None:
            return None
        followed = self.prepare(grammar)
        return Guide(followed, self._vocabulary.n_vocab, followed.fork(0))

    def prepare(self, grammar: Grammar, bank: float = _BANK) -> Followed:
        """What follows a grammar, made if there is none; `start` is at once while somebody holds it. From any thread.

        Args:
            bank: CPU seconds that its masks may take beyond 2 ms each, if it is made.

        Raises:
            SettingsError: see `Followed`.
            ArtsError: too many grammars are being followed.
        """
        with gate(grammar):
            followed = self._alive.get(grammar)
            if followed is None or not followed.alive:
                if len(self._alive) >= _MOST:
                    raise ArtsError(f"{_MOST} grammars are being followed, as many as may; ask again later")
                followed = self._alive[grammar] = Followed(grammar, *self._read(), bank)
        with self._lock:
            self._recent[grammar] = followed
            self._recent.move_to_end(grammar)
            dropped = [self._recent.popitem(last=False) for _ in range(len(self._recent) - _KEPT)]
        del dropped  # outside the lock: a process may end with it
        return followed

    def _read(self) -> tuple[bytes, list[int]]:
        with self._lock:
            if self._pieces is None:
                words = self._vocabulary
                self._ends = [token for token in range(words.n_vocab) if token in words.eog]
                self._pieces = packed([words.piece(token) for token in range(words.n_vocab)])
            return self._pieces, self._ends

"""Grammars that traces must follow: which tokens may come next, kept for each branch and forked with it.

The parsing is llguidance's (Earley with derivatives of regular expressions; the library that llama.cpp and vLLM use).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import Grammar
from arts_plugin.errors import SettingsError

if TYPE_CHECKING:
    from arts_plugin.engine.runtime import Vocabulary

_MOST_RULES = 500
"""More could lead from one to the next: the library follows such a chain by recursion, and 5000 end the process."""
Mask = npt.NDArray[np.bool_]


def compile_grammar(grammar: Grammar) -> str:
    """A grammar as llguidance takes it.

    Raises:
        SettingsError: it is none, or llguidance is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise SettingsError(
            f"{grammar.kind} needs llguidance, which is not installed: pip install 'arts-plugin[grammar]'"
        ) from error
    try:
        if grammar.kind == "json_schema":
            schema = json.loads(grammar.text)
            links = json.dumps(schema).count('Ref"') + json.dumps(schema).count('$ref"')
            made = llguidance.LLMatcher.grammar_from_json_schema(schema)
        else:
            links = grammar.text.count("::=")
            made = llguidance.grammar_from("gbnf", grammar.text)
        problem = f"it has {links} rules; {_MOST_RULES} are the most" if links > _MOST_RULES else ""
        problem = problem or llguidance.LLMatcher.validate_grammar(made)
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem and not problem.startswith("WARNING"):
        raise SettingsError(f"{grammar.kind} is not one that can be followed: {problem.strip():.300}")
    return str(made)


class Guide:
    """Where one branch stands in a grammar."""

    __slots__ = ("_matcher", "_n_vocab")

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        self._matcher, self._n_vocab = matcher, n_vocab

    def fork(self) -> Guide:
        """A guide that goes on from here independently."""
        return Guide(self._matcher.deep_copy(), self._n_vocab)

    def take(self, token: int) -> None:
        """Go on by a token."""
        self._matcher.consume_token(token)

    def allowed(self) -> Mask:
        """Whether each token may come next, bool [n_vocab]; none where the grammar has failed (see `problem`)."""
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8), bitorder="little")
        mask = np.zeros(self._n_vocab, dtype=np.bool_)
        if not self._matcher.is_error():
            mask[: len(bits)] = bits[: self._n_vocab]
        return mask

    @property
    def problem(self) -> str:
        """What is wrong: the grammar has become too complex to follow, say. Empty if nothing is."""
        return str(self._matcher.get_error()) if self._matcher.is_error() else ""


class Guides:
    """The grammars of one model's questions. The vocabulary is read once, when the first of them comes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._tokens: Any = None
        self._begin = lru_cache(maxsize=64)(self._matcher)

    def start(self, grammar: Grammar | None) -> Guide | None:
        """The beginning of a grammar; None without one.

        Raises:
            SettingsError: see `compile_grammar`.
        """
        return Guide(self._begin(grammar), self._vocabulary.n_vocab).fork() if grammar else None

    def _matcher(self, grammar: Grammar) -> Any:
        made = compile_grammar(grammar)
        import llguidance

        if self._tokens is None:
            ends = sorted(token for token in range(self._vocabulary.n_vocab) if token in self._vocabulary.eog)
            tokens: Any = _Tokens(self._vocabulary, ends)
            self._tokens = llguidance.LLTokenizer(tokens, n_vocab=self._vocabulary.n_vocab, eos_token=ends)
        matcher = llguidance.LLMatcher(self._tokens, made, log_level=0)
        if matcher.is_error():
            raise SettingsError(f"{grammar.kind} cannot be followed with this model's tokens: {matcher.get_error()}")
        return matcher


class _Tokens:
    """A vocabulary, as llguidance reads one (the attributes of its TokenizerWrapper)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, ends: list[int]) -> None:
        pieces = [b"" if token in ends else vocabulary.piece(token) for token in range(vocabulary.n_vocab)]
        self.eos_token_id = ends[0]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        # Tokens that stand for no text still need a name of their own.
        self.tokens = [piece or b"<|%d|>" % token for token, piece in enumerate(pieces)]
        self._ids = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str | bytes) -> list[int]:
        """Greedy, longest piece first. What a grammar leaves no choice about is spelled so, in these tokens alone."""
        data, at, found = text.encode() if isinstance(text, str) else text, 0, []
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                token = self._ids.get(data[at : at + length])
                if token is not None:
                    found.append(token)
                    break
            else:
                length = 1  # a byte that the vocabulary cannot spell
            at += length
        return found

"""Prompts that are too long for the context lose tokens on the left, as with lm-eval's own models, and that is said once."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from arts_plugin.backend import ModelInfo, Prompt
from arts_plugin.errors import SettingsError
from arts_plugin.settings import Settings

log = logging.getLogger("lm_eval.arts")


class Truncation:
    """Cuts token lists on the left, counts what was cut, and tells of it in one warning.

    Args:
        what: what is cut, in the plural: "prompts", for example.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._seen = self._cut = self._lost = self._most = self._longest = 0

    def keep(self, tokens: tuple[int, ...], most: int) -> tuple[int, ...]:
        """The last `most` of `tokens`, a BOS at their beginning cut like any other."""
        self._seen += 1
        lost = len(tokens) - most
        if lost <= 0:
            return tokens
        self._cut += 1
        self._lost += lost
        self._most, self._longest = max(self._most, lost), max(self._longest, len(tokens))
        return tokens[lost:]

    def tell(self, remedy: str) -> None:
        """Warn of what was cut since the last time, if anything was.

        Args:
            remedy: what the user can do, and the lengths that it depends on.
        """
        if self._cut:
            log.warning(
                "%d of %d %s were too long and lost tokens on the left (%d tokens in all, at most %d of one; the longest had %d): %s",
                *(self._cut, self._seen, self._what, self._lost, self._most, self._longest, remedy),
            )
        self._seen = self._cut = self._lost = self._most = self._longest = 0


class PromptTruncation(Truncation):
    """The same for prompts that are generated from: lm-eval's models keep `max_length - max_gen_toks` tokens of one."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__("prompts")
        self._info = info

    def room(self, settings: Settings) -> int:
        """Tokens that a prompt may have beside its answer. A server that takes text has the last word on its own.

        Raises:
            SettingsError: none, as `max_gen_toks` alone fills the context.
        """
        if not self._info.counted:
            return sys.maxsize
        room = self._info.n_ctx - settings.max_gen_toks
        if room < 1:
            raise SettingsError(
                f"max_gen_toks is {settings.max_gen_toks} and the context has {self._info.n_ctx} tokens, which leaves none for "
                "a prompt: generate fewer (--gen_kwargs max_gen_toks=...), or raise n_ctx, as far as the model was trained for it"
            )
        return room

    def fit(self, prompt: Prompt, settings: Settings) -> Prompt:
        """`prompt` with as many of its last tokens as there is room for; its text stays whole.

        Raises:
            SettingsError: see `room`.
        """
        return replace(prompt, token_ids=self.keep(prompt.token_ids, self.room(settings)))

    def warn(self) -> None:
        """Tell of the prompts that were cut."""
        self.tell(
            f"the context has {self._info.n_ctx} tokens, less max_gen_toks for the answer; raise n_ctx, generate fewer tokens or "
            "ask with fewer examples"
        )

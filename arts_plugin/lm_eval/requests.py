"""lm-eval's requests, read: which prompt, where it stops, which settings a task overrides."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arts_plugin.backend import Message
from arts_plugin.errors import SettingsError
from arts_plugin.settings import Settings

log = logging.getLogger("lm_eval.arts")

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = frozenset({"do_sample", "temperature", "top_p", "top_k", "min_p", "num_beams", "num_return_sequences"})
_IGNORED = frozenset({"repetition_penalty", "early_stopping", "use_cache"})
PREFIX = "arts_"


class ChatPrompt(str):
    """A rendered chat that remembers its messages, so that it can be tokenised without mistaking text for markup."""

    messages: list[Message]

    def __new__(cls, text: str, messages: list[Message] | None = None) -> ChatPrompt:
        """A plain string where there are no messages."""
        prompt = super().__new__(cls, text)
        prompt.messages = list(messages or [])
        return prompt

    def __reduce__(self) -> tuple[type[ChatPrompt], tuple[str, list[Message]]]:
        return type(self), (str(self), self.messages)


@dataclass(frozen=True, slots=True)
class Request:
    """One `generate_until` request: `repeats` answers to `context`, under `settings`, ended by `stops`."""

    context: str
    settings: Settings
    stops: tuple[str, ...]
    repeats: int


def read_gen_kwargs(gen_kwargs: Mapping[str, Any], settings: Settings, said: set[str]) -> tuple[Settings, tuple[str, ...]]:
    """The settings and stop strings of a task; `gen_kwargs` is shared between requests and left as it is.

    `until` and the length limit are honoured, `arts_*` keys override settings, and the sampling that stock tasks
    prescribe (greedy, mostly) does not touch the search.

    Raises:
        SettingsError: an `arts_*` key that is no setting, or a bad value.
    """
    until = gen_kwargs.get("until") or []
    stops = tuple(str(stop) for stop in ([until] if isinstance(until, str) else until) if stop)
    changes = {key[len(PREFIX) :]: value for key, value in gen_kwargs.items() if key.startswith(PREFIX)}
    length = next((gen_kwargs[key] for key in _LENGTHS if gen_kwargs.get(key) is not None), None)
    if length is not None and "max_gen_toks" not in changes:
        changes["max_gen_toks"] = length
    ignored = sorted(_SAMPLING & gen_kwargs.keys())
    if ignored:
        said_once(
            said,
            f"the task's {', '.join(ignored)} do not touch the search: it samples with temperature={settings.temperature}, "
            f"top_p={settings.top_p}, top_k={settings.top_k}. Greedy decoding is strategy=greedy; a task overrides "
            f"settings with {PREFIX}* keys only",
        )
    unknown = sorted(gen_kwargs.keys() - _SAMPLING - _IGNORED - set(_LENGTHS) - {"until"} - {PREFIX + key for key in changes})
    if unknown:
        said_once(said, f"gen_kwargs {', '.join(unknown)} mean nothing to the arts model and are ignored")
    for key in ("model", "backend", "slots", "n_ctx", "n_threads", "n_gpu_layers", "trace", "verifier"):
        if key in changes:
            raise SettingsError(f"{PREFIX}{key} in gen_kwargs: {key} belongs to the whole run; set it in --model_args")
    return (settings.with_(changes) if changes else settings), stops


def said_once(said: set[str], message: str, level: int = logging.WARNING) -> None:
    """Log a message the first time it comes."""
    if message not in said:
        said.add(message)
        log.log(level, message)

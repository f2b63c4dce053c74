"""lm-eval's requests, read: which prompt, where it stops, which settings a task overrides."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from arts_plugin.backend import Message
from arts_plugin.errors import SettingsError
from arts_plugin.lm_eval.sampling import OF_USERS, PENALTIES, asked_for, ignored
from arts_plugin.options import misplaced
from arts_plugin.settings import OF_THE_RUN, Settings, coerce

log = logging.getLogger("lm_eval.arts")

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = frozenset({"do_sample", "temperature", "top_p", "top_k", "min_p", "num_beams", "num_return_sequences"})
_IGNORED = frozenset({"early_stopping", "use_cache"})
_KNOWN = frozenset({"until", "stop", *_LENGTHS}) | _SAMPLING | PENALTIES | _IGNORED
PREFIX = "arts_"
_ATTRIBUTE = "arts_settings"
"""Where a request carries its task's own settings: other models look at gen_kwargs, and refuse what they do not know."""


class ChatPrompt(str):
    """A rendered chat that remembers its messages, so that it can be tokenised without mistaking text for markup."""

    messages: list[Message]
    add_generation_prompt: bool

    def __new__(
        cls, text: str = "", messages: list[Message] | None = None, add_generation_prompt: bool = True
    ) -> ChatPrompt:
        """A plain string where there are no messages."""
        prompt = super().__new__(cls, text)
        prompt.messages = list(messages or [])
        prompt.add_generation_prompt = add_generation_prompt
        return prompt

    def __reduce__(self) -> tuple[type[ChatPrompt], tuple[str, list[Message], bool]]:
        return type(self), (str(self), self.messages, self.add_generation_prompt)


@dataclass(frozen=True, slots=True)
class Request:
    """One question: `repeats` answers to `context`, under `settings`, ended by `stops`.

    `place` is that of its first request. Equal questions compare equal, wherever they stand.
    """

    context: str
    settings: Settings
    stops: tuple[str, ...]
    repeats: int
    place: int = field(default=0, compare=False)


def own_settings(values: Any) -> dict[str, Any]:
    """The settings that a task has of its own (its key `arts`), checked one by one.

    Raises:
        SettingsError: not a mapping, no setting, a bad value, or what belongs to the whole run.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise SettingsError(f"arts is {values!r}; it must be settings and their values")
    for name in values:
        if _of_the_run(name):
            raise SettingsError(f"{name} in arts: it belongs to the whole run; set it in --model_args")
    return {name: coerce(name, value) for name, value in values.items()}


def attach(instance: Any, own: Mapping[str, Any]) -> None:
    """Give a request its task's own settings, to be read by `settings_of`. They are pickled with it."""
    setattr(instance, _ATTRIBUTE, dict(own))


def attached(instance: Any) -> dict[str, Any]:
    """What `attach` gave; empty for a request of a task that knows nothing of them."""
    own: dict[str, Any] = getattr(instance, _ATTRIBUTE, {})
    return own


def settings_of(
    instance: Any, settings: Settings, said: set[str], users: Mapping[str, Any] | None = None
) -> tuple[Settings, tuple[str, ...]]:
    """The settings and stop strings of a request: `read_gen_kwargs`, above what its task has of its own.

    Args:
        users: those of its gen_kwargs that are the user's own.

    Raises:
        SettingsError: see `read_gen_kwargs`.
    """
    gen_kwargs, users = instance.args[1], users or {}
    own = {PREFIX + name: value for name, value in attached(instance).items() if name not in users}
    if any(gen_kwargs.get(name) is not None for name in _LENGTHS):
        own.pop(f"{PREFIX}max_gen_toks", None)
    # A task that is made for searches need not be told how they sample.
    for_search = hasattr(instance, _ATTRIBUTE)
    return read_gen_kwargs({**own, **gen_kwargs}, settings, said, users, for_search=for_search)


def _of_the_run(name: str) -> bool:
    return name in OF_THE_RUN | {"slots"}


def read_gen_kwargs(
    gen_kwargs: Mapping[str, Any],
    settings: Settings,
    said: set[str],
    users: Mapping[str, Any] | None = None,
    *,
    for_search: bool = False,
) -> tuple[Settings, tuple[str, ...]]:
    """The settings and stop strings of a task; `gen_kwargs` is shared between requests and left as it is.

    `until` (or `stop`), the length limit and penalties are honoured, and `arts_*` keys override settings. The other
    sampling that stock tasks prescribe (greedy, mostly) does not touch the search; what the user asks for does.

    Args:
        users: those of them that are the user's own.
        for_search: whether the task is made for searches.

    Raises:
        SettingsError: an `arts_*` key that is no setting, a bad value, or see `arts_plugin.lm_eval.sampling.asked_for`.
    """
    users = users or {}
    until = _until(gen_kwargs, users)
    stops = tuple(str(stop) for stop in ([until] if isinstance(until, str) else until) if stop)
    changes = {key[len(PREFIX) :]: value for key, value in gen_kwargs.items() if key.startswith(PREFIX)}
    length = next((gen_kwargs[key] for key in _LENGTHS if gen_kwargs.get(key) is not None), None)
    if length is not None and "max_gen_toks" not in changes:
        changes["max_gen_toks"] = length
    for key in changes:
        if _of_the_run(key):
            raise SettingsError(f"{PREFIX}{key} in gen_kwargs: {key} belongs to the whole run; set it in --model_args")
    penalties = {key: gen_kwargs[key] for key in PENALTIES - users.keys() if gen_kwargs.get(key) is not None}
    settings = settings.with_({**penalties, **changes}) if penalties or changes else settings
    asked = {key: value for key, value in asked_for(users, settings).items() if key not in changes}
    settings = settings.with_(asked) if asked else settings
    if foreign := sorted(misplaced(settings) & {*penalties, *changes, *asked}):
        raise SettingsError(f"{', '.join(foreign)} in gen_kwargs: backend={settings.backend} would ignore it")
    _say_ignored(gen_kwargs, users, settings, said, for_search)
    return settings, stops


def _until(gen_kwargs: Mapping[str, Any], users: Mapping[str, Any]) -> Any:
    """Where traces end. `stop` is another name of `until`: a user's stands in place of the task's."""
    until, stop = (gen_kwargs.get(key) or [] for key in ("until", "stop"))
    if not stop or ("until" in users and "stop" not in users):
        return until
    if "stop" in users and "until" not in users:
        return stop
    return [item for items in (until, stop) for item in ([items] if isinstance(items, str) else items)]


def _say_ignored(
    gen_kwargs: Mapping[str, Any], users: Mapping[str, Any], settings: Settings, said: set[str], for_search: bool
) -> None:
    untouched = sorted((_SAMPLING & gen_kwargs.keys()) - users.keys())
    if untouched and settings.strategy != "greedy" and settings.temperature and not for_search:
        said_once(
            said,
            f"what the task says of {', '.join(untouched)} does not touch the search: it samples with "
            f"temperature={settings.temperature}, top_p={settings.top_p}, top_k={settings.top_k}. Greedy decoding is "
            f"strategy=greedy; a task overrides settings with {PREFIX}* keys only",
        )
    known = _KNOWN | (OF_USERS & users.keys())
    if unknown := sorted(key for key in gen_kwargs if not key.startswith(PREFIX) and key not in known):
        said_once(said, ignored(unknown))


def said_once(said: set[str], message: str, level: int = logging.WARNING) -> None:
    """Log a message the first time it comes."""
    if message not in said:
        said.add(message)
        log.log(level, message)

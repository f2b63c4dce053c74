"""Sampling that the user asks for with --gen_kwargs, as settings of the search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arts_plugin.coercion import convert
from arts_plugin.errors import SettingsError
from arts_plugin.foreign import ours
from arts_plugin.settings import OF_THE_RUN, Settings, coerce, describe

PENALTIES = frozenset({"repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias"})
"""Honoured whoever prescribes them: they leave the traces of a question different."""
OF_USERS = frozenset({"temperature", "top_p", "top_k", "min_p", "seed"}) | PENALTIES
"""Honoured where the user asks for them."""
_OF_OTHERS = {
    "num_beams": "strategy=beam,budget_trajectories=N in --model_args",
    "num_return_sequences": "budget_trajectories=N in --model_args, or `repeats: N` in the task",
    "n": "budget_trajectories=N in --model_args, or `repeats: N` in the task",
    "best_of": "strategy=best_of_n,budget_trajectories=N in --model_args",
}
_SETTINGS = frozenset(name for name, _, _ in describe())


def asked_for(users: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The settings that a user's own gen_kwargs ask for; `do_sample=false` and a temperature of 0 are greedy decoding.

    Args:
        settings: those of the search without them.

    Raises:
        SettingsError: something that this search has under another name or not at all, or sampling under strategy=greedy.
    """
    _refuse(users)
    changes = {name: coerce(name, _unspelled(name, users[name])) for name in OF_USERS if users.get(name) is not None}
    sample = convert("do_sample", users.get("do_sample"), bool | None, None)
    if sample is False:
        changes["temperature"] = 0.0
    _refuse_contradiction(users, sample, changes, settings)
    if settings.strategy == "greedy":
        changes.pop("temperature", None)
    return changes


def _refuse_contradiction(
    users: Mapping[str, Any], sample: Any, changes: Mapping[str, Any], settings: Settings
) -> None:
    cold = settings.temperature == 0 and "temperature" not in changes
    if settings.strategy == "greedy":
        contradicted, how = sample or changes.get("temperature", 0) > 0, "strategy is 'greedy'"
    else:
        contradicted, how = sample and cold, "temperature is 0"
    if contradicted:
        asked = ", ".join(f"{name}={users[name]}" for name in ("do_sample", "temperature") if name in users)
        raise SettingsError(
            f"--gen_kwargs {asked} asks for sampling, and {how} in the model's arguments or the task's. A single sample is "
            "strategy=best_of_n,budget_trajectories=1 in --model_args"
        )


def _refuse(users: Mapping[str, Any]) -> None:
    for name, value in users.items():
        if name in _OF_OTHERS and value not in (None, 1, "1"):
            raise SettingsError(f"--gen_kwargs {name}={value}: write {_OF_OTHERS[name]}")
        if name in OF_THE_RUN:
            raise SettingsError(f"--gen_kwargs {name}={value}: it belongs to the whole run; set it in --model_args")
        if name in _SETTINGS - OF_USERS - {"max_gen_toks"}:
            raise SettingsError(f"--gen_kwargs {name}={value}: write arts_{name}={value}")


def _unspelled(name: str, value: Any) -> Any:
    """vLLM switches top_k off with -1, which is 0 here."""
    return 0 if name == "top_k" and str(value) in {"-1", "-1.0"} else value


def ignored(names: list[str]) -> str:
    """What is said of gen_kwargs that mean nothing here."""
    told = [f"{name} ({ours(name).removeprefix('; ')})" if ours(name) else name for name in names]
    return f"gen_kwargs {', '.join(told)} mean nothing to the arts model and are ignored"

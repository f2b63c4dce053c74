"""What lm-eval adds to a model's arguments of its own accord, and what it was asked for and does not hand to its models.

A model gets its arguments and, with each request, gen_kwargs in which the user's and the task's are one. The seed, the
user's own gen_kwargs and the place of the results stand in the call of `simple_evaluate` under which a model is made and
asked, so they are read there (0.4.13 and 0.5.0.dev1).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from arts_plugin.errors import SettingsError
from arts_plugin.options import lacks
from arts_plugin.settings import Settings

log = logging.getLogger("lm_eval.arts")

_DEVICE = "cuda:0"
"""lm-eval's default, also where there is no GPU."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A call of `simple_evaluate`.

    Attributes:
        seed: `--seed`, of which the first number counts, the one for Python's `random`; None if there is to be none.
        gen_kwargs: `--gen_kwargs` alone, without the task's.
        model_args: `--model_args`, as a text or a mapping.
        tracker: what names the folder of the results; None where nothing is written.
    """

    seed: int | None = None
    gen_kwargs: Mapping[str, Any] = field(default_factory=dict)
    model_args: Any = None
    tracker: Any = None


def running() -> Evaluation:
    """The innermost evaluation that the caller is part of; an empty one if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "simple_evaluate" and frame.f_globals.get("__name__") == "lm_eval.evaluator":
            return _read(frame.f_locals)
        frame = frame.f_back
    return Evaluation()


def _read(arguments: Mapping[str, Any]) -> Evaluation:
    if missing := {"random_seed", "gen_kwargs"} - arguments.keys():
        log.warning(
            "this lm-eval is not known: its %s cannot be seen; set seed= in --model_args, and sampling there as well",
            " and ".join(sorted(missing)),
        )
    seed, gen_kwargs = arguments.get("random_seed"), arguments.get("gen_kwargs")
    return Evaluation(
        seed=None if seed is None else int(seed),
        gen_kwargs=gen_kwargs if isinstance(gen_kwargs, Mapping) else {},
        model_args=arguments.get("model_args"),
        tracker=arguments.get("evaluation_tracker"),
    )


def name_results(name: str) -> None:
    """Name the folder of the results after the model, unless the user's arguments do: lm-eval would draw a random name."""
    evaluation = running()
    tracker = getattr(evaluation.tracker, "general_config_tracker", None)
    if tracker is None or tracker._get_model_name(evaluation.model_args):
        return
    from lm_eval.utils import sanitize_model_name

    tracker.model_name, tracker.model_name_sanitized = name, sanitize_model_name(name)


def arguments(given: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model: the user's, and of those that lm-eval adds what it was asked for.

    It passes a batch size of 1 and the device cuda:0 also where nobody asked for them. Its `--trust_remote_code`, which is
    for data sets, it writes into the user's.

    Raises:
        SettingsError: a `--device` that the backend would ignore.
    """
    found = dict(given)
    foreign = lacks(str(given.get("backend", Settings().backend)))
    if "trust_remote_code" in foreign and _trusts_data():
        found.pop("trust_remote_code", None)
    device = added.get("device")
    if device is not None and given.get("backend") == "hf":
        if _is_there(str(device)):
            found.setdefault("device", device)
    elif "device" in foreign and device not in (None, _DEVICE, "cpu"):
        raise SettingsError(
            f"--device {device}: it is for backend=hf; llama.cpp's GPUs are named by n_gpu_layers and main_gpu in "
            "--model_args, a server's where it is started"
        )
    batch_size = str(added.get("batch_size") or 1)
    if batch_size != "1" and "slots" not in given:
        found.setdefault("batch_size", batch_size)
    return found


def _is_there(device: str) -> bool:
    import torch

    return not device.startswith("cuda") or torch.cuda.is_available()


def _trusts_data() -> bool:
    datasets = sys.modules.get("datasets")
    return bool(getattr(getattr(datasets, "config", None), "HF_DATASETS_TRUST_REMOTE_CODE", False))

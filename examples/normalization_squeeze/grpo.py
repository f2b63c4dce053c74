"""Tuning with `trl.GRPOTrainer` and an exact reward, and what is recorded on the way.

OUT/model/             the tuned model
OUT/track.safetensors  log_p [updates + 1, tracked, routes]: exact log-probabilities before the first and after each
                       update; sampled [updates, tracked, routes]: how often each route was sampled for each
OUT/log.json           reward and seconds
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import model as models
import numpy as np
import torch
from routes import log_probabilities
from safetensors.numpy import save_file
from task import ROUTES, Task
from transformers import TrainerCallback


@dataclass(frozen=True, slots=True)
class Settings:
    """How the model is tuned. What is not here is TRL's default.

    Attributes:
        updates: optimiser steps, one for each batch of fresh samples.
        prompts: problems in a batch.
        group: traces sampled for each of them, at temperature 1 from the whole distribution.
        learning_rate: AdamW's, constant.
        kl: `beta`, weight of the KL term towards the base; 0 is TRL's default.
        scale: how advantages are scaled: "group" (by the group's deviation, TRL's default) or "none".
        loss: TRL's `loss_type`.
    """

    updates: int = 200
    prompts: int = 16
    group: int = 8
    learning_rate: float = 3e-4
    kl: float = 0.0
    scale: str = "group"
    loss: str = "dapo"


class Recorder(TrainerCallback):  # type: ignore[misc]
    """The reward, and for some problems exact probabilities after every update and which routes were sampled for it."""

    def __init__(self, words: Any, tasks: Sequence[Task], tracked: Sequence[Task]) -> None:
        self.words, self.tracked = words, list(tracked)
        self.tasks = {task.prompt: task for task in tasks}
        self.place = {task.prompt: number for number, task in enumerate(tracked)}
        self.log_p: list[np.ndarray] = []
        self.sampled: list[np.ndarray] = []
        self.rewards: list[float] = []
        self.seconds = 0.0
        self.closed = False

    def reward(self, prompts: list[str], completions: list[str], **others: Any) -> list[float]:
        """1 for a right trace, else 0; the samples are counted."""
        counts = np.zeros((len(self.tracked), len(ROUTES)), dtype=np.int16)
        found = []
        for prompt, text in zip(prompts, completions, strict=True):
            task = self.tasks[prompt]
            route = task.route_of(text)
            if route is not None and prompt in self.place:
                counts[self.place[prompt], route] += 1
            found.append(float(route is not None and task.right[route]))
        self.sampled.append(counts)
        self.rewards.append(float(np.mean(found)))
        return found

    def _record(self, network: Any) -> None:
        if not self.tracked:
            return
        began = time.perf_counter()
        self.log_p.append(log_probabilities(network, self.words, self.tracked, batch=32).astype(np.float32))
        self.seconds += time.perf_counter() - began

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the first update."""
        self._record(given["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """After an update."""
        self._record(given["model"])


def tune(
    base: Path, out: Path, tasks: Sequence[Task], settings: Settings, seed: int, tracked: Sequence[Task] = ()
) -> dict[str, Any]:
    """Tune the model of `base` on `tasks`, recording those of `tracked`; what `OUT/log.json` says."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found, unused-ignore]

    began = time.perf_counter()
    words = models.tokenizer()
    recorder = Recorder(words, tasks, tracked)
    config = GRPOConfig(
        output_dir=str(out),
        max_steps=settings.updates,
        per_device_train_batch_size=settings.prompts * settings.group,
        num_generations=settings.group,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        max_completion_length=models.LENGTH - models.PROMPT_TOKENS,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=settings.kl,
        scale_rewards=settings.scale,
        loss_type=settings.loss,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        seed=seed,
        data_seed=seed,
        save_strategy="no",
        logging_steps=max(1, settings.updates // 10),
        report_to=[],
        disable_tqdm=True,
    )
    torch.manual_seed(seed)
    trainer = GRPOTrainer(
        model=models.load(base),
        reward_funcs=recorder.reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": task.prompt} for task in tasks]),
        processing_class=words,
        callbacks=[recorder],
    )
    trainer.train()
    tuned = trainer.accelerator.unwrap_model(trainer.model)
    models.save(tuned, words, out / "model")
    if tracked:
        sampled = np.stack(recorder.sampled[: settings.updates])
        save_file({"log_p": np.stack(recorder.log_p), "sampled": sampled}, out / "track.safetensors")
    seconds = time.perf_counter() - began
    log = {
        "settings": asdict(settings),
        "reward": [round(value, 4) for value in recorder.rewards],
        "seconds": round(seconds, 1),
        "seconds_recording": round(recorder.seconds, 1),
    }
    (out / "log.json").write_text(json.dumps(log) + "\n", encoding="utf-8")
    return log

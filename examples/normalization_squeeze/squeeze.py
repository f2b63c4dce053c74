"""The normalization squeeze on one page: pre-train, tune with GRPO, train verifiers, search the frozen base, compare.

    python squeeze.py --out runs/squeeze --seeds 0 1 2

Every stage of every seed leaves a file that says what it found and how long it took; started again, the command goes
on where it stopped. Last come `OUT/results.json`, `OUT/tables.md` and the figures.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import evaluate
import figures
import grpo
import model
import tables
import torch
import trees
from task import split

LOSSES = ("rfm", "prm", "pairwise", "bce")
SEARCHES: dict[str, dict[str, Any]] = {
    "arts, 16 roots": {"slots": 16},
    "arts, 32 roots": {"slots": 32},
}
"""`strategy=arts`, with the tokens that 16 independent traces cost."""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    pretrain_steps: int = 1000
    tracked: int = 150
    traces: int = 16
    epochs: int = 8
    problems: int | None = None
    losses: tuple[str, ...] = LOSSES
    tunings: dict[str, grpo.Settings] = field(
        default_factory=lambda: {
            "grpo": grpo.Settings(),
            "small steps": grpo.Settings(learning_rate=3e-5),
            "group of 32": grpo.Settings(group=32),
            "KL 0.1": grpo.Settings(kl=0.1),
            "not scaled": grpo.Settings(scale="none"),
        }
    )


TOY = Scale(
    pretrain_steps=200, tracked=8, traces=4, epochs=1, problems=30, losses=("rfm", "prm"),
    tunings={"grpo": grpo.Settings(updates=3, prompts=4)},
)  # fmt: skip


class Seed:
    """One seed's stages, each run once."""

    def __init__(self, out: Path, seed: int, scale: Scale) -> None:
        self.folder, self.seed, self.scale = out / f"seed{seed}", seed, scale
        self.folder.mkdir(parents=True, exist_ok=True)
        train, test = split(seed)
        self.train, self.test = train[: scale.problems], test[: scale.problems]
        self.base = self.folder / "base"
        self.seconds: dict[str, float] = {}

    def stage(self, name: str, work: Callable[[], Any]) -> Any:
        """What a stage found, now or when it was run before."""
        file = self.folder / f"{name.replace(' ', '-')}.json"
        if file.exists():
            record = json.loads(file.read_text(encoding="utf-8"))
        else:
            print(f"seed {self.seed}: {name}", flush=True)
            began = time.perf_counter()
            found = work()
            record = {"seconds": round(time.perf_counter() - began, 1), "found": found}
            partial = file.with_suffix(".tmp")
            partial.write_text(json.dumps(record) + "\n", encoding="utf-8")
            partial.replace(file)
        self.seconds[name] = record["seconds"]
        return record["found"]

    def run(self) -> dict[str, Any]:
        """All stages; what `results.json` keeps of them."""
        scale = self.scale
        self.stage("pretrain", partial(model.pretrain, self.base, self.seed, scale.pretrain_steps))
        tuned = {name: self.folder / name.replace(" ", "-") for name in scale.tunings}
        rewards = {name: self.stage(f"tune {name}", partial(self._tune, name, tuned[name])) for name in tuned}
        pools = {name: self.folder / f"pool-{name}" for name in ("train", "base", "grpo")}
        cost = self.stage("pools", partial(self._pools, pools, tuned["grpo"] / "model"))
        verifiers = {loss: self.folder / "verifiers" / loss for loss in scale.losses}
        for loss, place in verifiers.items():
            self.stage(f"verifier {loss}", partial(self._verifier, pools["train"], loss, place))
        models = {"base": self.base, **{name: folder / "model" for name, folder in tuned.items()}}
        track = tuned["grpo"] / "track.safetensors"
        found = {
            "seed": self.seed,
            "problems": [task.id for task in self.test],
            "kinds": [task.kind for task in self.test],
            "exact": self.stage("exact", partial(evaluate.exact, models, self.test)),
            "decay": self.stage("decay", partial(evaluate.decay, track, self.train[: scale.tracked])),
            "selectors": self.stage("selectors", partial(evaluate.selectors, pools["base"], self.test, verifiers)),
            "tuned": self.stage("tuned pool", partial(evaluate.pool_counts, pools["grpo"], self.test)),
            "search": {
                name: self.stage(name.replace(",", ""), partial(self._search, name, verifiers["rfm"]))
                for name in SEARCHES
            },
            "reward": {name: [log["reward"][0], log["reward"][-1]] for name, log in rewards.items()},
            "pools": cost,
        }
        return {**found, "seconds": self.seconds}

    def _tune(self, name: str, out: Path) -> dict[str, Any]:
        tracked = self.train[: self.scale.tracked] if name == "grpo" else []
        return grpo.tune(self.base, out, self.train, self.scale.tunings[name], self.seed, tracked)

    def _pools(self, pools: dict[str, Path], tuned: Path) -> dict[str, Any]:
        traces = self.scale.traces
        return {
            "train": trees.pool(self.base, pools["train"], self.train, traces, forks=0.5, seed=self.seed),
            "base": trees.pool(self.base, pools["base"], self.test, traces, seed=self.seed),
            "grpo": trees.pool(tuned, pools["grpo"], self.test, traces, seed=self.seed),
        }

    def _verifier(self, run: Path, loss: str, out: Path) -> dict[str, Any]:
        from arts_hf.lora import LoraSettings
        from arts_plugin.training.train import train
        from arts_plugin.training.trainer import TrainingSettings

        lora = LoraSettings(
            str(self.base), learning_rate=3e-3, epochs=self.scale.epochs, dtype="float32", device="cpu", seed=self.seed
        )
        made = train([run], out, loss=loss, settings=TrainingSettings(seed=self.seed), lora=lora)
        return {"auc": made.card.validation["auc"][loss]}

    def _search(self, name: str, verifier: Path) -> dict[str, Any]:
        budget = (model.LENGTH - model.PROMPT_TOKENS) * self.scale.traces
        out = self.folder / name.replace(",", "").replace(" ", "-")
        return trees.search(
            self.base, out, self.test, verifier, seed=self.seed,
            width=3, budget_tokens=budget, budget_trajectories=None, **SEARCHES[name],
        )  # fmt: skip


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", "--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--toy", action="store_true", help="a minute, to see that everything runs; proves nothing")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("arts_plugin").setLevel(logging.ERROR)
    torch.set_num_threads(given.threads)
    scale = TOY if given.toy else Scale()
    found = [Seed(given.out, seed, scale).run() for seed in given.seeds]
    for record in found:
        print(f"seed {record['seed']}: {sum(record['seconds'].values()):.0f} s")
    (given.out / "results.json").write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
    (given.out / "tables.md").write_text(tables.report(found), encoding="utf-8")
    figures.draw(found, given.out)
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()

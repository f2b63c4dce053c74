"""`arts train`: from graded trees to a verifier's folder, with the baselines trained on the same trees beside it.

    OUT/arts_verifier.json, value_head.safetensors, README.md     the verifier and its model card
    OUT/curves.png, validation.json                               how training went, and every scorer on held-out problems
    OUT/baselines/NAME/                                           the other losses' verifiers
    OUT/adapter/                                                  with a backbone: its LoRA adapter

A scorer whose folder was made from the same trees with the same settings is not trained again, which is what resumes
a run that was killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arts_plugin import checkpoint
from arts_plugin.checkpoint import Card, Proposer, TrainedVerifier
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import Bootstrap, Comparison, compare
from arts_plugin.randomness import digest
from arts_plugin.run import RunInfo
from arts_plugin.settings import Settings
from arts_plugin.training.dataset import LabelledTree, describe, features_of, read_runs, require_both
from arts_plugin.training.losses import Loss, make_loss
from arts_plugin.training.pools import pool_of
from arts_plugin.training.trainer import Curve, TrainingSettings, fit, split
from arts_plugin.writing import write_whole, writing

if TYPE_CHECKING:
    from arts_hf.lora import LoraSettings

Say = Callable[[str], None]


def train(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    loss: str = "rfm",
    baselines: Sequence[str] = (),
    stop_gradient: bool = True,
    settings: TrainingSettings | None = None,
    lora: LoraSettings | None = None,
    name: str | None = None,
    command: str = "",
    say: Say = print,
) -> TrainedVerifier:
    """Train a verifier and its baselines on the graded trees of some runs, and write them to `out`.

    Args:
        lora: train a language model of its own with LoRA, instead of a head on the proposer's hidden states; of
            `settings` the rewards, the held-out share and the seed then hold.

    Raises:
        ArtsError: the trees cannot be used: see `arts_plugin.training.dataset`.
    """
    settings = settings or TrainingSettings()
    first = os.environ.get("RANK", "0") == "0"  # of several processes (torchrun) the first one speaks and writes
    if not first:
        say = _silent
    trees, info = read_runs(runs, with_features=lora is None)
    for line in describe(trees):
        say(line)
    training, held_out = split(trees, settings.validation, settings.seed)
    require_both(training, "training")
    say(f"{len(training)} problems to learn from, {len(held_out)} held out")
    folder = Path(out)
    verifiers: dict[str, TrainedVerifier] = {}
    curves: dict[str, list[Curve]] = {}
    for kind in dict.fromkeys([loss, *baselines]):
        place = folder if kind == loss else folder / "baselines" / kind
        objective = make_loss(kind, stop_gradient=stop_gradient)
        card = _card(kind if kind != loss or name is None else name, trees, info, objective, settings, command)
        if lora is not None:
            card = replace(card, training={**card.training, **asdict(lora)})
        made = _again(place, card)
        if made is None and lora is not None:
            made = _fit_lora(training, held_out, objective, settings, lora, card, place, say)
        elif made is None:
            made, curves[kind] = _fit(training, held_out, objective, settings, card, place, say)
        else:
            say(f"{kind}: {place} was trained on these trees with these settings and is kept")
        verifiers[kind] = made
        if kind == loss:
            main = made
    if not first:
        return main
    comparison = on_pool(held_out, verifiers)
    select = preferred_rule(comparison, loss)
    figures = table(comparison)
    card = _with(main.card, select, figures)
    card.save(folder)
    write_whole(folder / "validation.json", json.dumps(figures, indent=1) + "\n")
    if loss in curves:
        from arts_plugin.training.plots import plot_curves

        plot_curves(curves[loss], folder / "curves.png", loss)
    return checkpoint.load(folder)


def _silent(line: str) -> None:
    """Says nothing."""


def _card(
    name: str,
    trees: Sequence[LabelledTree],
    info: RunInfo,
    loss: Loss,
    settings: TrainingSettings,
    command: str,
) -> Card:
    first = trees[0].tree
    rows = trees[0].features
    labels = [[tree.id, sorted(tree.correct.items()), tree.tree.meta.get("key")] for tree in trees]
    leaves = [right for tree in trees for right in tree.correct.values()]
    return Card(
        name=name,
        proposer=Proposer(
            name=str(info.model.get("name", "")),
            digest=str(info.model.get("digest", "")),
            n_embd=0 if rows is None else int(rows.shape[1]),
            family=str(info.model.get("general.name", "")),
        ),
        prompt=checkpoint.prompt_format(first.prompt, str(first.meta.get("question", ""))),
        delimiter=str(info.settings.get("delimiter", Settings().delimiter)),
        feature=settings.feature,
        aggregate=loss.aggregate,
        link=loss.link,
        is_flow=loss.is_flow,
        training={
            "loss": {"name": loss.name, **_options(loss)},
            **asdict(settings),
            "problems": len(trees),
            "traces": len(leaves),
            "traces_right": int(np.sum(leaves)),
            "backend": info.settings.get("backend"),
            "sampling": {key: info.settings.get(key) for key in ("temperature", "top_p", "top_k", "max_gen_toks")},
            "trees": f"{digest(labels):016x}",
            "command": command,
        },
    )


def _options(loss: Loss) -> dict[str, Any]:
    return {key: value for key, value in getattr(loss, "__dict__", {}).items() if not key.startswith("_")}


def _with(card: Card, select: str | None, figures: dict[str, Any]) -> Card:
    return replace(card, select=select, validation=figures)


def _again(place: Path, card: Card) -> TrainedVerifier | None:
    """The verifier that was trained before, if it was on the same trees in the same way."""
    if not (place / checkpoint.CARD_FILE).exists():
        return None
    try:
        old = checkpoint.load(place)
    except ArtsError:
        return None  # half-written by a run that was killed
    said = {key: value for key, value in card.training.items() if key != "command"}
    same = all(old.card.training.get(key) == value for key, value in said.items())
    return old if same and old.card.name == card.name else None


def _fit(
    training: Sequence[LabelledTree],
    held_out: Sequence[LabelledTree],
    loss: Loss,
    settings: TrainingSettings,
    card: Card,
    place: Path,
    say: Say,
) -> tuple[TrainedVerifier, list[Curve]]:
    with writing(place):
        (place / checkpoint.CARD_FILE).unlink(
            missing_ok=True
        )  # it would speak for other weights if this one were killed
    head, curves = fit(training, held_out, loss, settings)
    for number, curve in enumerate(curves, 1):
        train_loss, held_loss, auc = curve.rows[curve.best]
        say(
            f"{loss.name}, head {number} of {len(curves)}: best of {len(curve.rows)} epochs is {curve.best + 1}, "
            f"training loss {train_loss:.3f}, held-out loss {held_loss:.3f}, AUC within a problem {auc:.3f}"
        )
    head.save(place / checkpoint.HEAD_FILE)
    card.save(place)  # last: a folder with a card is whole
    return checkpoint.load(place), curves


def _fit_lora(
    training: Sequence[LabelledTree],
    held_out: Sequence[LabelledTree],
    loss: Loss,
    settings: TrainingSettings,
    lora: LoraSettings,
    card: Card,
    place: Path,
    say: Say,
) -> TrainedVerifier:
    from arts_hf.lora import train as fit_lora

    rewards = (settings.reward_right, settings.reward_wrong)
    with writing(place):
        fit_lora(training, held_out, loss, lora, rewards, card, place, say)
    return checkpoint.load(place)


def on_pool(trees: Sequence[LabelledTree], verifiers: Mapping[str, TrainedVerifier]) -> Comparison:
    """Every scorer on the main traces of held-out trees."""
    scores = {
        name: [verifier.score_tree(tree.tree, lambda tree=tree: features_of(tree)) for tree in trees]  # type: ignore[misc]
        for name, verifier in verifiers.items()
    }
    pool = pool_of(trees, scores)
    n = len(pool[0].answers)
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < n} | {n})
    return compare(pool, ks)


def preferred_rule(comparison: Comparison, loss: str) -> str:
    """`flow` or `weighted_vote`, whichever is more often right with all traces of the held-out problems; the vote, which
    errs less where a verifier knows little, if neither is."""
    flow, vote = (comparison.values[f"{kind}:{loss}"][comparison.n].mean() for kind in ("best_of", "vote"))
    return "flow" if flow > vote else "weighted_vote"


def table(comparison: Comparison) -> dict[str, Any]:
    """Figures with all n traces: accuracy and interval of each selector, AUC of each scorer."""
    boot, n = Bootstrap(len(comparison.problems)), comparison.n

    def estimate(values: Any) -> list[float | None]:
        found = boot.mean(values)
        return [None if x != x else round(float(x), 4) for x in (found.mean, found.low, found.high)]

    return {
        "problems": len(comparison.problems),
        "traces": n,
        "accuracy": {selector: estimate(by_k[n]) for selector, by_k in comparison.values.items()},
        "auc": {name: estimate(values) for name, values in comparison.auc.items()},
    }

"""`arts train`: from graded trees to a verifier's folder, with the baselines trained on the same trees beside it.

    OUT/arts_verifier.json, value_head.safetensors, README.md     the verifier and its model card
    OUT/curves.png, validation.json                               how training went, and every scorer on held-out problems
    OUT/baselines/NAME/                                           the other losses' verifiers

A scorer whose folder was made from the same trees with the same settings is not trained again, which is what resumes
a run that was killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from arts_plugin import checkpoint
from arts_plugin.checkpoint import Card, Proposer, TrainedVerifier
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import Bootstrap, Comparison, compare
from arts_plugin.randomness import digest
from arts_plugin.training.dataset import LabelledTree, RunInfo, describe, read_runs, require_both
from arts_plugin.training.losses import Loss, make_loss
from arts_plugin.training.pools import pool_of
from arts_plugin.training.trainer import Curve, TrainingSettings, fit, split
from arts_plugin.value_head import ValueHeadVerifier

Say = Callable[[str], None]


def train(
    runs: Sequence[str | Path],
    out: str | Path,
    *,
    loss: str = "rfm",
    baselines: Sequence[str] = (),
    stop_gradient: bool = True,
    settings: TrainingSettings | None = None,
    name: str | None = None,
    command: str = "",
    say: Say = print,
) -> TrainedVerifier:
    """Train a verifier and its baselines on the graded trees of some runs, and write them to `out`.

    Raises:
        ArtsError: the trees cannot be used: see `arts_plugin.training.dataset`.
    """
    settings = settings or TrainingSettings()
    trees, info = read_runs(runs)
    for line in describe(trees):
        say(line)
    training, held_out = split(trees, settings.validation, settings.seed)
    require_both(training, "training")
    say(f"{len(training)} problems to learn from, {len(held_out)} held out")
    folder = Path(out)
    verifiers: dict[str, ValueHeadVerifier] = {}
    curves: dict[str, list[Curve]] = {}
    for kind in dict.fromkeys([loss, *baselines]):
        place = folder if kind == loss else folder / "baselines" / kind
        objective = make_loss(kind, stop_gradient=stop_gradient)
        card = _card(kind if kind != loss or name is None else name, trees, info, objective, settings, command)
        made = _again(place, card)
        if made is None:
            made, curves[kind] = _fit(training, held_out, objective, settings, card, place, say)
        else:
            say(f"{kind}: {place} was trained on these trees with these settings and is kept")
        verifiers[kind] = made.verifier
        if kind == loss:
            main = made
    comparison = on_pool(held_out, verifiers)
    select = preferred_rule(comparison, loss)
    figures = table(comparison)
    card = _with(main.card, select, figures)
    card.save(folder)
    (folder / "validation.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if loss in curves:
        from arts_plugin.training.plots import plot_curves

        plot_curves(curves[loss], folder / "curves.png", loss)
    return checkpoint.load(folder)


def _card(
    name: str,
    trees: Sequence[LabelledTree],
    info: RunInfo,
    loss: Loss,
    settings: TrainingSettings,
    command: str,
) -> Card:
    first = trees[0].tree
    if trees[0].features is None:
        raise ArtsError(f"problem {trees[0].id} has no hidden states")
    labels = [[tree.id, sorted(tree.correct.items()), tree.tree.meta.get("key")] for tree in trees]
    leaves = [right for tree in trees for right in tree.correct.values()]
    return Card(
        name=name,
        proposer=Proposer(
            name=str(info.model.get("name", "")),
            digest=str(info.model.get("digest", "")),
            n_embd=int(trees[0].features.shape[1]),
            family=str(info.model.get("general.name", "")),
        ),
        prompt=checkpoint.prompt_format(first.prompt, str(first.meta.get("question", ""))),
        delimiter=str(info.settings["delimiter"]),
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
            "sampling": {key: info.settings.get(key) for key in ("temperature", "top_p", "top_k", "max_gen_toks")},
            "trees": f"{digest(labels):016x}",
            "command": command,
        },
    )


def _options(loss: Loss) -> dict[str, Any]:
    return {key: value for key, value in getattr(loss, "__dict__", {}).items() if not key.startswith("_")}


def _with(card: Card, select: str | None, figures: dict[str, Any]) -> Card:
    from dataclasses import replace

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
    head, curves = fit(training, held_out, loss, settings)
    for number, curve in enumerate(curves, 1):
        train_loss, held_loss, auc = curve.rows[curve.best]
        say(
            f"{loss.name}, head {number} of {len(curves)}: best of {len(curve.rows)} epochs is {curve.best + 1}, "
            f"training loss {train_loss:.3f}, held-out loss {held_loss:.3f}, AUC within a problem {auc:.3f}"
        )
    place.mkdir(parents=True, exist_ok=True)
    head.save(place / checkpoint.HEAD_FILE)
    card.save(place)  # last: a folder with a card is whole
    return checkpoint.load(place), curves


def on_pool(trees: Sequence[LabelledTree], verifiers: dict[str, ValueHeadVerifier]) -> Comparison:
    """Every scorer on the main traces of held-out trees."""
    scores = {
        name: [verifier.score_tree(tree.features, tree.parents) for tree in trees if tree.features is not None]
        for name, verifier in verifiers.items()
    }
    pool = pool_of(trees, scores)
    n = len(pool[0].answers)
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64) if k < n} | {n})
    return compare(pool, ks)


def preferred_rule(comparison: Comparison, loss: str) -> str:
    """`flow` or `weighted_vote`, whichever is more often right with all traces of the held-out problems."""
    flow, vote = (comparison.values[f"{kind}:{loss}"][comparison.n].mean() for kind in ("best_of", "vote"))
    return "weighted_vote" if vote > flow else "flow"


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

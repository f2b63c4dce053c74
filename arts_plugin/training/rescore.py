"""`arts rescore`: recorded trees with other scores and another choice; nothing is generated."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from arts_plugin import checkpoint, features
from arts_plugin.errors import ArtsError, unknown_name
from arts_plugin.lines import read_object
from arts_plugin.run import RUN_FILE, TREES_FILE, RunInfo, read_trees
from arts_plugin.search.select import RULES, select
from arts_plugin.settings import Settings
from arts_plugin.training.grades import GRADES_FILE, read_grades
from arts_plugin.tree import ReasoningTree
from arts_plugin.verifier import close
from arts_plugin.writing import write_whole, writing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many trees were rescored, how many now choose another trajectory, and, where there are grades, how many
    choices were and are right."""

    trees: int
    changed: int
    graded: int
    right_before: int
    right_after: int


def rescore(
    run: str | Path,
    out: str | Path,
    verifiers: Sequence[str],
    rule: str | None = None,
    settings: Settings | None = None,
) -> Outcome:
    """Write the trees of `run` to the run folder `out`, scored by `verifiers` and chosen from again.

    The first verifier's scores become `log_flow`; those of all stand in `scores` beside the ones that were there.

    Args:
        verifiers: folders, built-in names or hub ids; empty keeps the scores and only chooses again.
        rule: the selection rule; default: the first verifier's own, or the tree's.
        settings: of verifiers with a model of their own; see `arts_plugin.checkpoint.load`.

    Raises:
        ArtsError: no run, no hidden states, a verifier of another model, or `out` is in use.
        UnknownNameError: no such verifier or rule.
    """
    if rule is not None and rule not in RULES:
        raise unknown_name("selection rule", rule, RULES)
    loaded = [_load(name, settings) for name in verifiers]
    info = RunInfo.read(run)
    digest = str(info.model.get("digest", ""))
    for trained in loaded:
        if trained.card.proposer.digest != digest:
            log.warning(
                "verifier %r was trained on the states of %s, and %s holds those of %s; its flows may mean less",
                trained.card.name, trained.card.proposer.name, run, info.model.get("name"),
            )  # fmt: skip
    folder = Path(out)
    if (folder / TREES_FILE).exists():
        raise ArtsError(f"{folder} holds a run already; name another --out")
    grades = read_grades(run) if (Path(run) / GRADES_FILE).exists() else {}
    counts = [0, 0, 0, 0, 0]
    partial = folder / f"{TREES_FILE}.tmp"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with writing(partial), partial.open("w", encoding="ascii") as file:
        for tree in read_trees(run):
            before = tree.chosen
            _score(tree, run, digest, loaded)
            tree.select = rule or (loaded[0].card.select if loaded else None) or tree.select
            tree.chosen = select(tree, tree.select, seed=info.seed)
            counts[0] += 1
            counts[1] += before != tree.chosen
            graded = grades.get(str(tree.meta.get("key")))
            if graded is not None:
                counts[2] += 1
                counts[3] += before is not None and graded.correct.get(before, False)
                counts[4] += tree.chosen is not None and graded.correct.get(tree.chosen, False)
            file.write(tree.to_json() + "\n")
    _copy_head(Path(run), folder, verifiers, rule)
    partial.replace(folder / TREES_FILE)
    for trained in loaded:
        close(trained.verifier)
    return Outcome(*counts)


def _load(name: str, settings: Settings | None) -> checkpoint.TrainedVerifier:
    place = checkpoint.find(name)
    if place is None:
        raise unknown_name("verifier", name, checkpoint.shipped())
    return checkpoint.load(place, settings)


def _score(tree: ReasoningTree, run: str | Path, digest: str, loaded: Sequence[checkpoint.TrainedVerifier]) -> None:
    if not loaded:
        return
    for number, trained in enumerate(loaded):
        scores = trained.score_tree(tree, lambda: features.load(run, str(tree.meta["key"]), tree, digest))
        for node, score in zip(tree.nodes, scores.tolist(), strict=True):
            node.scores[trained.card.name] = score
            if number == 0:
                node.log_flow = score
    tree.scorer = loaded[0].card.name


def _copy_head(run: Path, folder: Path, verifiers: Sequence[str], rule: str | None) -> None:
    record = read_object(run / RUN_FILE)
    record["rescored"] = {"from": run.name, "verifiers": list(verifiers), "select": rule}
    write_whole(folder / RUN_FILE, json.dumps(record, indent=1) + "\n")
    if (run / GRADES_FILE).exists():
        write_whole(folder / GRADES_FILE, (run / GRADES_FILE).read_bytes())

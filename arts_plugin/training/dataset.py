"""Trees, their grades and hidden states, as arrays that losses and scorers read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arts_plugin import features
from arts_plugin.errors import ArtsError
from arts_plugin.run import TREES_FILE, RunInfo, read_all
from arts_plugin.training.grades import read_grades, voting
from arts_plugin.tree import ReasoningTree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledTree:
    """One problem.

    Attributes:
        id: the problem's id.
        tree: its tree.
        correct: leaf -> whether its trajectory is right.
        features: hidden states, float32 [n_nodes, n_embd]; None where they were not asked for.
        subject, level: of the question, where its data set says so.
    """

    id: str
    tree: ReasoningTree
    correct: dict[int, bool]
    features: npt.NDArray[np.float32] | None = None
    subject: str = ""
    level: str = ""

    @property
    def parents(self) -> list[int | None]:
        """Parent of each node."""
        return [node.parent for node in self.tree.nodes]

    @property
    def mixed(self) -> bool:
        """Whether right and wrong leaves are both there."""
        return len(set(self.correct.values())) == 2


def features_of(tree: LabelledTree) -> npt.NDArray[np.float32]:
    """A problem's hidden states.

    Raises:
        ArtsError: it has none.
    """
    if tree.features is None:
        raise ArtsError(f"problem {tree.id} has no hidden states")
    return tree.features


def read_labelled(run: str | Path, *, with_features: bool = True) -> list[LabelledTree]:
    """The graded trees of a run. One that cannot be used is named in a warning with its line, and the rest are kept.

    Raises:
        ArtsError: no run is there, it has no grades, or nothing in it can be used.
    """
    info, grades = RunInfo.read(run), read_grades(run)
    kept, ids = [], set()
    for number, tree in read_all(run):
        try:
            if isinstance(tree, ArtsError):
                raise tree
            graded = grades.get(str(tree.meta.get("key")))
            if graded is None:
                raise ArtsError("it has no grades")
            if not graded.correct:
                raise ArtsError(f"problem {graded.id} has no finished trajectory")
            if (name := str(tree.meta.get("id", graded.id))) in ids:
                raise ArtsError(f"problem {name} was there before")
            rows = _features(run, tree, info) if with_features else None
            if graded.votes is not None:
                tree = voting(tree, graded.votes)
            kept.append(LabelledTree(name, tree, graded.correct, rows, graded.subject, graded.level))
            ids.add(name)
        except ArtsError as error:
            log.warning("%s, line %d is left out: %s", Path(run) / TREES_FILE, number, error)
    if not kept:
        raise ArtsError(f"{run} has no graded tree that can be used")
    return kept


def _features(run: str | Path, tree: ReasoningTree, info: RunInfo) -> npt.NDArray[np.float32]:
    rows = features.load(run, str(tree.meta["key"]), tree, str(info.model.get("digest", "")))
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ArtsError(f"the hidden states of {len(bad)} nodes are not finite, node {bad[0]} first")
    return rows


def read_runs(runs: Sequence[str | Path], *, with_features: bool = True) -> tuple[list[LabelledTree], RunInfo]:
    """The graded trees of several runs of one proposer with one prompt format and delimiter.

    Raises:
        ArtsError: the runs are of different models or settings, or hold a problem twice.
    """
    if not runs:
        raise ArtsError("name at least one run folder")
    first = RunInfo.read(runs[0])
    trees: dict[str, LabelledTree] = {}
    for run in runs:
        info = RunInfo.read(run)
        for what, mine, theirs in (
            ("the model", first.model.get("digest"), info.model.get("digest")),
            ("delimiter", first.settings.get("delimiter"), info.settings.get("delimiter")),
            ("chat", first.settings.get("chat"), info.settings.get("chat")),
        ):
            if mine != theirs:
                raise ArtsError(f"{runs[0]} and {run} do not go together: {what} is {mine!r} and {theirs!r}")
        for tree in read_labelled(run, with_features=with_features):
            if tree.id in trees:
                log.warning("%s: problem %s was in an earlier run and is left out here", run, tree.id)
            else:
                trees[tree.id] = tree
    return list(trees.values()), first


def describe(trees: Sequence[LabelledTree]) -> Iterator[str]:
    """What is worth knowing about training trees before one learns from them."""
    leaves = [right for tree in trees for right in tree.correct.values()]
    mixed = sum(tree.mixed for tree in trees)
    yield (
        f"{len(trees)} problems, {len(leaves)} finished traces, {np.mean(leaves):.1%} right; "
        f"{mixed} problems have both right and wrong ones"
    )
    never, always = (sum(set(t.correct.values()) == {right} for t in trees) for right in (False, True))
    if never:
        yield f"{never} problems have no right trace: their leaves teach what wrong looks like, and no ranking"
    if always:
        yield f"{always} problems have no wrong trace"
    forked = sum(any(len(node.children) > 1 for node in tree.tree.nodes[1:]) for tree in trees)
    if not forked:
        yield "no state but the prompt has two children: the sum over children is the child itself everywhere"
    cut = sum(tree.tree.nodes[leaf].stop == "length" for tree in trees for leaf in tree.correct)
    if cut:
        yield f"{cut} traces were cut at max_gen_toks"


def require_both(trees: Sequence[LabelledTree], what: str) -> None:
    """Raises ArtsError where there is no right, or no wrong, leaf to learn from."""
    found = {right for tree in trees for right in tree.correct.values()}
    if found != {True, False}:
        kind = "right" if found == {False} else "wrong"
        raise ArtsError(
            f"not one {kind} leaf among the {len(trees)} {what} problems: nothing can be learned from that; "
            "take more problems, another grader, or another temperature"
        )

"""`arts grade`: recorded trajectories with answers found and graded again; nothing is generated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from arts_plugin.answers.extract import regex_extractor
from arts_plugin.errors import ArtsError
from arts_plugin.hookspecs import Extractor, Grader
from arts_plugin.plugins import Plugins
from arts_plugin.prompts import answer_of
from arts_plugin.run import RunInfo, read_trees
from arts_plugin.steps import REGEX_PREFIX
from arts_plugin.training.grades import Graded, GradesFile, read_grades
from arts_plugin.tree import ReasoningTree


@dataclass(slots=True)
class Changes:
    """What grading again changed: trees that it saw, trajectories in them, those with another label or another vote, and how
    many are right."""

    trees: int = 0
    trajectories: int = 0
    labels: int = 0
    votes: int = 0
    right: int = 0


def grade_again(run: str | Path, grader: str | None = None, extract: str | None = None) -> Changes:
    """Find the answers of a run's trajectories again, and grade them against the gold answers of its labels.

    New labels are appended to the run's, and hold from then on. Trees, and what their searches chose, stay as they are.

    Args:
        grader: a registered one; default: the one that made the labels.
        extract: as in settings; default: what the run was made with.

    Raises:
        ArtsError: no run, no labels, or labels that a task made, of which no grader is named.
        UnknownNameError: no such grader or extractor.
    """
    plugins, known = Plugins(), read_grades(run)
    registered = plugins.registrations("grader")
    foreign = sorted({graded.grader for graded in known.values()} - set(registered))
    if grader is None and foreign:
        raise ArtsError(
            f"the labels of {run} were made by {foreign[0]!r}, which is no grader: run the task again with the same settings "
            f"(its trees are kept), or name one with --grader ({', '.join(registered)})"
        )
    find = _extractor(extract or str(RunInfo.read(run).settings.get("extract") or "auto"), plugins)
    graders: dict[str, Grader] = {}
    changes, file = Changes(), GradesFile(run)
    try:
        for tree in read_trees(run):
            before = known.get(str(tree.meta.get("key")))
            if before is None:
                continue
            name = grader or before.grader
            if name not in graders:
                graders[name] = plugins.make("grader", name)
            after = _graded(tree, replace(before, grader=name), find, graders[name])
            _count(changes, tree, before, after)
            if after != before:
                file.put(after)
    finally:
        file.close()
    return changes


def _extractor(name: str, plugins: Plugins) -> Extractor:
    if name.startswith(REGEX_PREFIX):
        return regex_extractor(name[len(REGEX_PREFIX) :])
    made: Extractor = plugins.make("extractor", name)
    return made


def _graded(tree: ReasoningTree, before: Graded, find: Extractor, grader: Grader) -> Graded:
    think_end = tree.meta.get("think_end")
    votes = {
        end.leaf: None if end.stop == "error" else find(answer_of(end.text, think_end)) for end in tree.trajectories()
    }
    correct = {leaf: vote is not None and grader(vote, before.gold) for leaf, vote in votes.items()}
    return replace(before, correct=correct, votes=votes)


def _count(changes: Changes, tree: ReasoningTree, before: Graded, after: Graded) -> None:
    said = before.votes or {node.id: node.answer for node in tree.nodes if node.terminal}
    changes.trees += 1
    changes.trajectories += len(after.correct)
    changes.right += sum(after.correct.values())
    changes.labels += sum(before.correct.get(leaf) != right for leaf, right in after.correct.items())
    changes.votes += sum(said.get(leaf) != vote for leaf, vote in (after.votes or {}).items())

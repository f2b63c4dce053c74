"""A run's questions as arrays: what figures and tables are computed from. Trees are read one at a time and let go."""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arts_plugin import clock
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import Array, PoolProblem
from arts_plugin.evaluation.search_metrics import Scored, rules
from arts_plugin.run import TREES_FILE, RunInfo, read_all
from arts_plugin.search.select import select
from arts_plugin.training.grades import Graded, read_grades, voting
from arts_plugin.training.pools import INDEPENDENT, main_leaves
from arts_plugin.tree import ReasoningTree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """One question's finished trajectories, in the order in which they were finished; of a pool the main traces. Those that
    ended in an error are left out. A search whose budget ended before any was finished has none, and is wrong.

    Attributes:
        asked: digest of its prompt's text.
        answers: what trajectories vote for [n], as the task sees it where it was asked, else as the search did.
        correct: bool [n].
        scores: scorer -> score of each [n]; `logprob` (mean token log-probability) is there, unless a log knows none.
        counts: how often each was drawn [n], where equal proposals were merged.
        spent: tokens that the search had generated when it was finished [n]; its own, in a pool.
        chosen_right: 1 if what the search chose is right, 0 if it is not, or is unfinished, or is nothing.
        chosen_by: selection rule -> the same of what it chooses from the whole tree; empty for a pool.
        searched: the trajectories as the search saw them, with the answers that it found itself; empty for a pool.
        problem: the tree's key, by which it drew between tied votes.
        decoded: tokens generated and computed again for this question; of Sparse Deep Fork by the main traces.
        judged: tokens that a verifier with a model of its own has read.
        seconds: from its admission to its end; other questions ran beside it.
    """

    id: str
    task: str
    subject: str
    level: str
    gold: str
    asked: str
    answers: tuple[str | None, ...]
    correct: npt.NDArray[np.bool_]
    scores: dict[str, Array]
    counts: npt.NDArray[np.int64]
    spent: npt.NDArray[np.int64]
    chosen_right: float
    chosen_by: dict[str, float]
    searched: tuple[Scored, ...]
    problem: str
    decoded: int
    judged: int
    seconds: float

    @property
    def n(self) -> int:
        """Trajectories; of a tree the different ones."""
        return len(self.answers)

    @property
    def drawn(self) -> int:
        """Trajectories as often as they were drawn."""
        return int(self.counts.sum())

    @property
    def pass_at_1(self) -> float:
        """The share of drawn trajectories that are right."""
        return float(self.correct @ self.counts / self.drawn) if self.n else 0.0

    @property
    def oracle(self) -> float:
        """1 if any trajectory is right, else 0."""
        return float(self.correct.any())

    def pool(self) -> PoolProblem:
        """Its trajectories for comparing selectors."""
        return PoolProblem(self.id, self.answers, self.correct, self.scores)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder's questions.

    Attributes:
        strategy, select, scorer: what made and chose them.
        independent: whether trajectories are independent draws.
        seconds: a question: the whole run's wall-clock time over its questions, where it was kept (`arts bench`), else the
            mean from a question's admission to its end, others beside it.
        left_out: why questions were left out, a line each.
        costed: whether it is known what they cost.
    """

    path: Path
    info: RunInfo
    strategy: str
    select: str
    scorer: str
    independent: bool
    seconds: float
    questions: list[Question]
    left_out: list[str]
    costed: bool = True

    @property
    def name(self) -> str:
        """For legends."""
        return f"{self.path.name}: {self.strategy}"

    @property
    def judged(self) -> bool:
        """Whether a verifier scored it."""
        return self.scorer not in {"", "logprob"}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks that its questions are of; none where no task is named."""
        return sorted({question.task for question in self.questions} - {""})


def read_run(path: str | Path, task: str | None = None) -> Run:
    """A graded run. A tree that cannot be used is named with its line, and the rest are kept.

    Args:
        task: of a run of several tasks, the one whose questions are kept. Without it all are.

    Raises:
        ArtsError: no run is there, it has no grades, nothing in it can be used, it mixes searches, or it is of other tasks.
    """
    info, grades = RunInfo.read(path), read_grades(path)
    tasks: list[str] = []
    kinds: dict[tuple[str, str, str], str] = {}
    questions: dict[str, Question] = {}
    asked: dict[str, str] = {}
    seen: set[str] = set()
    left_out: list[str] = []
    for place, found in usable_trees(path, left_out):
        graded = grades.get(str(found.meta.get("key")))
        try:
            if graded is None:
                raise ArtsError("it has no grades")
            seen.add(graded.key)
            question = _fitting(found, graded, info)
            tasks.append(question.task)
            if task is not None and question.task not in {task, ""}:
                continue
            if question.id in questions:
                raise ArtsError(f"question {question.id} was there before")
            if (other := asked.setdefault(question.asked, question.id)) != question.id:
                raise ArtsError(f"question {question.id} asks what {other} asks, word for word")
            questions[question.id] = question
            kinds.setdefault((found.strategy, found.select, found.scorer), question.id)
        except ArtsError as error:
            left_out.append(f"{place}: {error}")
    missing = [graded.id for key, graded in grades.items() if key not in seen]
    if missing:
        left_out.append(f"{len(missing)} graded questions have no tree, {missing[0]} first")
    for reason in left_out:
        log.warning("%s: left out: %s", path, reason)
    if not questions and task is not None and tasks:
        raise ArtsError(f"{path} has no question of task {task!r}; it has those of {', '.join(sorted(set(tasks)))}")
    if not questions:
        why = f": {left_out[0]}" if left_out else ""
        raise ArtsError(f"{path} has no graded tree that can be used{why}")
    if len({kind[0] for kind in kinds}) > 1 or len({kind[2] for kind in kinds}) > 1:
        of = "; ".join(f"{name}: strategy={s}, scorer={v}" for (s, _, v), name in kinds.items())
        raise ArtsError(f"{path} mixes searches that do not go into one figure ({of}); report on runs of one search")
    strategy, rule, scorer = next(iter(kinds))
    wall = clock.seconds(Path(path))
    seconds = float(np.mean([q.seconds for q in questions.values()])) if wall is None else wall / len(tasks)
    listed = list(questions.values())
    return Run(Path(path), info, strategy, rule, scorer, strategy in INDEPENDENT, seconds, listed, left_out)


def usable_trees(path: str | Path, left_out: list[str]) -> Iterator[tuple[str, ReasoningTree]]:
    """(its line, for messages; tree) of each tree of a run that can be read; why others cannot goes to `left_out`.

    Raises:
        ArtsError: no run is there.
    """
    for number, found in read_all(path):
        place = f"{TREES_FILE}, line {number}"
        if isinstance(found, ReasoningTree):
            yield place, found
        else:
            left_out.append(f"{place}: {found}")


def _fitting(tree: ReasoningTree, graded: Graded, info: RunInfo) -> Question:
    """The question of a tree.

    Raises:
        ArtsError: the tree is of another model than the run, or has no trace, grade or score where there must be one.
    """
    made_by, digest = tree.meta.get("model"), str(info.model.get("digest", ""))
    name = str(tree.meta.get("id", graded.id))
    if made_by is not None and made_by != digest:
        raise ArtsError(f"question {name} is of another model ({made_by}) than the run ({digest})")
    # Trees made under lm-eval have no id of their own: that of their grades is task/document.
    named, slash, _ = graded.id.partition("/")
    task = graded.task or (named if slash and "id" not in tree.meta else "")
    return _question(name, task, tree, graded, info.seed)


def _question(name: str, task: str, tree: ReasoningTree, graded: Graded, seed: int) -> Question:
    independent = tree.strategy in INDEPENDENT
    ends = main_leaves(tree) if independent else [node.id for node in tree.nodes if node.terminal]
    leaves = [leaf for leaf in ends if tree.nodes[leaf].stop != "error"]
    if not leaves and independent:
        raise ArtsError(f"question {name} has no finished trace")
    ungraded = [leaf for leaf in ends if leaf not in graded.correct]
    if ungraded:
        raise ArtsError(f"question {name}: trajectory {ungraded[0]} has no grade")
    found = [tree.trajectory(leaf, order) for order, leaf in enumerate(leaves)]
    scores = _scores(name, tree, leaves, [trajectory.mean_logprob for trajectory in found])
    flows = scores.get(tree.scorer) if tree.scorer != "logprob" else None
    nodes = [tree.nodes[leaf] for leaf in leaves]
    searched = (
        ()
        if independent
        else tuple(
            Scored(
                correct=graded.correct[node.id],
                answer=node.answer,
                log_flow=None if flows is None else float(flows[i]),
                mean_logprob=found[i].mean_logprob,
                count=node.count,
            )
            for i, node in enumerate(nodes)
        )
    )
    if graded.votes is not None:
        tree = voting(tree, graded.votes)
    tokens = [len(trajectory.token_ids) for trajectory in found]
    so_far = np.cumsum([len(node.token_ids) * node.count if node.id else 0 for node in tree.nodes])
    return Question(
        id=name,
        task=task,
        subject=graded.subject,
        level=graded.level,
        gold=graded.gold,
        asked=hashlib.blake2b(tree.prompt.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest(),
        answers=tuple(tree.nodes[leaf].answer for leaf in leaves),
        correct=np.array([graded.correct[leaf] for leaf in leaves], dtype=bool),
        scores=scores,
        counts=np.array([node.count for node in nodes], dtype=np.int64),
        spent=np.array(tokens if independent else so_far[leaves], dtype=np.int64),
        chosen_right=_right(graded, tree.chosen),
        chosen_by={} if independent else {
            rule: _right(graded, select(tree, rule, seed=seed))
            for rule in rules(tree.scorer not in {"", "logprob"})
        },
        searched=searched,
        problem=tree.problem,
        # The forks of Sparse Deep Fork are no part of its pool.
        decoded=sum(tokens) if tree.strategy == "sdf" else tree.cost.decoded_tokens + tree.cost.refilled_tokens,
        judged=tree.cost.verifier_tokens,
        seconds=tree.cost.seconds,
    )  # fmt: skip


def _right(graded: Graded, leaf: int | None) -> float:
    """An unfinished trajectory, which is chosen for want of a finished one, has no grade and is wrong."""
    return float(leaf is not None and graded.correct.get(leaf, False))


def _scores(name: str, tree: ReasoningTree, leaves: Sequence[int], likely: Sequence[float]) -> dict[str, Array]:
    """Scorer -> score of each leaf [n].

    Raises:
        ArtsError: one is not finite.
    """
    nodes = [tree.nodes[leaf] for leaf in leaves]
    shared = [key for key in nodes[0].scores if all(key in node.scores for node in nodes)] if nodes else []
    scores = {key: np.array([node.scores[key] for node in nodes]) for key in shared}
    flows = not nodes or nodes[0].log_flow is not None
    if tree.scorer not in {"", "logprob"} and tree.scorer not in scores and flows:
        scores[tree.scorer] = np.array([math.nan if n.log_flow is None else n.log_flow for n in nodes])
    scores["logprob"] = np.array(likely, dtype=np.float64)
    if odd := odd_score(scores, leaves):
        raise ArtsError(f"question {name}: {odd}")
    return scores


def odd_score(scores: Mapping[str, Array], names: Sequence[int] | None = None) -> str:
    """Which score is the first that is not finite; empty if all are. `names` are those of the trajectories [n]."""
    for key, values in scores.items():
        odd = np.flatnonzero(~np.isfinite(values))
        if len(odd):
            place = int(odd[0])
            value = str(values[place]).replace("nan", "NaN")
            return f"{key} of trajectory {place if names is None else names[place]} is {value}"
    return ""


def even(run: Run) -> tuple[list[Question], list[str]]:
    """The questions with as many traces as most have, which k-subsets can be taken of, and who was left out."""
    sizes = [question.n for question in run.questions]
    n = max(set(sizes), key=lambda size: (sizes.count(size), size))
    odd = [question.id for question in run.questions if question.n != n]
    notes = [f"{len(odd)} questions have not {n} finished traces, {odd[0]} first"] if odd else []
    return [question for question in run.questions if question.n == n], notes


def common(runs: Sequence[Run]) -> tuple[list[list[Question]], list[str]]:
    """The questions that all runs have, in the order of the first, and who was left out.

    They are paired by id, where their gold answers agree, for under one id two data sets may hold different questions. Where
    no id is shared, they are paired by the text of their prompts.

    Raises:
        ArtsError: there is none.
    """
    notes: list[str] = []
    for name in ("id", "asked"):
        found = [{getattr(question, name): question for question in run.questions} for run in runs]
        shared = [key for key in found[0] if all(key in other for other in found[1:])]
        same = [key for key in shared if len({other[key].gold for other in found}) == 1]
        if shared and len(same) < len(shared):
            odd = next(key for key in shared if key not in same)
            notes.append(
                f"{len(shared) - len(same)} questions have other gold answers in {' or '.join(run.path.name for run in runs[1:])} "
                f"than in {runs[0].path.name}, {found[0][odd].id} first"
            )
        if same:
            return [[other[key] for key in same] for other in found], notes
        if shared:
            break
    first, last = runs[0].questions[0].id, runs[-1].questions[0].id
    raise ArtsError(
        f"{' and '.join(str(run.path) for run in runs)} have no question in common ({first!r} and {last!r} are the first"
        + (f"; {notes[0]})" if notes else ")")
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Different names of levels or subjects: numbers by their size, also inside of text ("9 steps" before "10 steps")."""
    distinct = set(names)
    try:
        return sorted(distinct, key=lambda name: float(name or "inf"))
    except ValueError:
        return sorted(distinct, key=_by_numbers)


def _by_numbers(name: str) -> list[Any]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]

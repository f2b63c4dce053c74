"""A run's questions as arrays: what figures and tables are computed from. Trees are read one at a time and let go."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from arts_plugin import clock
from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import Array, PoolProblem
from arts_plugin.evaluation.search_metrics import Scored
from arts_plugin.run import TREES_FILE
from arts_plugin.training.dataset import RunInfo
from arts_plugin.training.grades import Graded, read_grades
from arts_plugin.training.pools import INDEPENDENT, main_leaves
from arts_plugin.tree import ReasoningTree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """One question's finished trajectories, in the order in which they were finished; of a pool the main traces. A search
    whose budget ended before any was finished has none, and is wrong.

    Attributes:
        correct: bool [n].
        scores: scorer -> score of each [n]; `logprob` (mean token log-probability) is always there.
        tokens: of each trajectory [n].
        spent: tokens that the search had generated when it was finished [n]; its own, in a pool.
        chosen: place of the one that the search chose; None if that was none of these.
        judged: tokens that a verifier with a model of its own has read.
        decoded: tokens generated and computed again for this question; of a pool by the main traces.
        seconds: from its admission to its end; other questions ran beside it.
    """

    id: str
    subject: str
    level: str
    answers: tuple[str | None, ...]
    correct: npt.NDArray[np.bool_]
    scores: dict[str, Array]
    tokens: npt.NDArray[np.int64]
    spent: npt.NDArray[np.int64]
    chosen: int | None
    decoded: int
    judged: int
    seconds: float

    @property
    def n(self) -> int:
        """Trajectories."""
        return len(self.answers)

    @property
    def pass_at_1(self) -> float:
        """The share of trajectories that are right."""
        return float(self.correct.mean()) if self.n else 0.0

    @property
    def chosen_right(self) -> float:
        """1 if the chosen trajectory is right, 0 if it is not or there is none."""
        return 0.0 if self.chosen is None else float(self.correct[self.chosen])

    def scored(self, scorer: str) -> list[Scored]:
        """Its trajectories for `tree_values`; without flows where `scorer` is the model's own log-probability."""
        flows = self.scores.get(scorer) if scorer != "logprob" else None
        return [
            Scored(
                bool(self.correct[i]),
                self.answers[i],
                None if flows is None else float(flows[i]),
                float(self.scores["logprob"][i]),
            )
            for i in range(self.n)
        ]

    def pool(self) -> PoolProblem:
        """The same for comparing selectors."""
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

    @property
    def name(self) -> str:
        """For legends."""
        return f"{self.path.name}: {self.strategy}"


def read_run(path: str | Path) -> Run:
    """A graded run. A tree that cannot be used is named with its line, and the rest are kept.

    Raises:
        ArtsError: no run is there, it has no grades, nothing in it can be used, or it mixes searches.
    """
    info, grades = RunInfo.read(path), read_grades(path)
    kinds: dict[tuple[str, str, str], str] = {}
    questions: dict[str, Question] = {}
    seen: set[str] = set()
    left_out: list[str] = []
    for place, found in usable_trees(path, left_out):
        graded = grades.get(str(found.meta.get("key")))
        try:
            if graded is None:
                raise ArtsError("it has no grades")
            seen.add(graded.key)
            name = str(found.meta.get("id", graded.id))
            if name in questions:
                raise ArtsError(f"question {name} was there before")
            questions[name] = _question(name, found, graded)
            kinds.setdefault((found.strategy, found.select, found.scorer), name)
        except ArtsError as error:
            left_out.append(f"{place}: {error}")
    missing = [graded.id for key, graded in grades.items() if key not in seen]
    if missing:
        left_out.append(f"{len(missing)} graded questions have no tree, {missing[0]} first")
    for reason in left_out:
        log.warning("%s: left out: %s", path, reason)
    if not questions:
        raise ArtsError(f"{path} has no graded tree that can be used")
    if len({kind[0] for kind in kinds}) > 1 or len({kind[2] for kind in kinds}) > 1:
        of = "; ".join(f"{name}: strategy={s}, scorer={v}" for (s, _, v), name in kinds.items())
        raise ArtsError(f"{path} mixes searches that do not go into one figure ({of}); report on runs of one search")
    strategy, select, scorer = next(iter(kinds))
    wall = clock.seconds(Path(path))
    seconds = float(np.mean([q.seconds for q in questions.values()])) if wall is None else wall / len(questions)
    listed = list(questions.values())
    return Run(Path(path), info, strategy, select, scorer, strategy in INDEPENDENT, seconds, listed, left_out)


def usable_trees(path: str | Path, left_out: list[str]) -> Iterator[tuple[str, ReasoningTree]]:
    """(its line, for messages; tree) of each tree of a run that can be read; why others cannot goes to `left_out`.

    Raises:
        ArtsError: no run is there.
    """
    file = Path(path) / TREES_FILE
    if not file.exists():
        raise ArtsError(f"no run at {path}: there is no {TREES_FILE} in it")
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{file.name}, line {number}"
            try:
                if not line.endswith(b"\n"):
                    raise ArtsError("the line is not complete (was the run killed?)")
                tree = ReasoningTree.from_json(line)
            except ArtsError as error:
                left_out.append(f"{place}: {error}")
                continue
            yield place, tree


def _question(name: str, tree: ReasoningTree, graded: Graded) -> Question:
    independent = tree.strategy in INDEPENDENT
    leaves = main_leaves(tree) if independent else [node.id for node in tree.nodes if node.terminal]
    if not leaves and independent:
        raise ArtsError(f"question {name} has no finished trace")
    ungraded = [leaf for leaf in leaves if leaf not in graded.correct]
    if ungraded:
        raise ArtsError(f"question {name}: trajectory {ungraded[0]} has no grade")
    found = [tree.trajectory(leaf, order) for order, leaf in enumerate(leaves)]
    nodes = [tree.nodes[leaf] for leaf in leaves]
    scores = {key: np.array([node.scores[key] for node in nodes]) for key in (nodes[0].scores if nodes else ())}
    flows = not nodes or nodes[0].log_flow is not None
    if tree.scorer not in {"", "logprob"} and tree.scorer not in scores and flows:
        scores[tree.scorer] = np.array([math.nan if n.log_flow is None else n.log_flow for n in nodes])
    scores["logprob"] = np.array([trajectory.mean_logprob for trajectory in found])
    for key, values in scores.items():
        if np.isnan(values).any():
            raise ArtsError(f"question {name}: {key} of trajectory {leaves[int(np.isnan(values).argmax())]} is NaN")
    tokens = np.array([len(trajectory.token_ids) for trajectory in found], dtype=np.int64)
    so_far = np.cumsum([len(node.token_ids) * node.count if node.id else 0 for node in tree.nodes])
    return Question(
        id=name,
        subject=graded.subject,
        level=graded.level,
        answers=tuple(node.answer for node in nodes),
        correct=np.array([graded.correct[leaf] for leaf in leaves], dtype=bool),
        scores=scores,
        tokens=tokens,
        spent=tokens if independent else so_far[leaves].astype(np.int64),
        chosen=leaves.index(tree.chosen) if tree.chosen in leaves else None,
        decoded=int(tokens.sum()) if independent else tree.cost.decoded_tokens + tree.cost.refilled_tokens,
        judged=tree.cost.verifier_tokens,
        seconds=tree.cost.seconds,
    )


def even(run: Run) -> tuple[list[Question], list[str]]:
    """The questions with as many traces as most have, which k-subsets can be taken of, and who was left out."""
    sizes = [question.n for question in run.questions]
    n = max(set(sizes), key=lambda size: (sizes.count(size), size))
    odd = [question.id for question in run.questions if question.n != n]
    notes = [f"{len(odd)} questions have not {n} finished traces, {odd[0]} first"] if odd else []
    return [question for question in run.questions if question.n == n], notes


def common(runs: Sequence[Run]) -> list[list[Question]]:
    """The questions that all runs have, in the order of the first.

    Raises:
        ArtsError: there is none.
    """
    by_id = [{question.id: question for question in run.questions} for run in runs]
    shared = [name for name in by_id[0] if all(name in other for other in by_id[1:])]
    if not shared:
        raise ArtsError(
            f"{' and '.join(str(run.path) for run in runs)} have no question in common "
            f"({next(iter(by_id[0]))!r} and {next(iter(by_id[-1]))!r} are the first)"
        )
    return [[found[name] for name in shared] for found in by_id]

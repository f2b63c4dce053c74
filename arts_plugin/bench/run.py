"""Running all methods, one after another, with one engine; each in a run folder of its own, so that all can be resumed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from arts_plugin.api import Arts
from arts_plugin.bench.methods import SAMPLES, Method
from arts_plugin.clock import Clock
from arts_plugin.report.data import read_run
from arts_plugin.settings import Settings
from arts_plugin.training.grades import read_grades
from arts_plugin.training.sdf import Problem, Progress, make_trees

log = logging.getLogger(__name__)

MakeProblems = Callable[[Arts], Iterable[Problem]]


@dataclass(frozen=True, slots=True)
class Step:
    """A question was finished: `done` of `total` by this method."""

    method: Method
    done: int
    total: int
    progress: Progress


def run_methods(
    methods: Sequence[Method], settings: Settings, problems: MakeProblems, grader: str, out: Path
) -> Iterator[Step]:
    """Run what is missing of each method in `out/NAME`.

    The pool runs before the searches, because a search may spend on a question what the pool spent on it: the tokens of
    the pool's traces. A question that failed in the pool is not searched.

    Args:
        problems: the questions, made for an `Arts`, whose settings they take.
        grader: name that is recorded with the grades.

    Raises:
        RunFolderError: a folder holds a run with other settings or another model.
        ArtsError: nothing of the pool can be used.
    """
    with Arts(settings.with_(trace=None)) as owner:
        for method in methods:
            with Arts(
                settings.with_({**method.changes, "trace": str(method.folder(out))}), engine=owner.backend
            ) as arts:
                yield from _run(method, arts, list(problems(arts)), grader, out)


def _run(method: Method, arts: Arts, problems: list[Problem], grader: str, out: Path) -> Iterator[Step]:
    if method.matched:
        budgets = {question.id: question.decoded for question in read_run(out / SAMPLES).questions}
        wanted = [problem for problem in problems if problem.id in budgets]
        if len(wanted) < len(problems):
            log.warning(
                "%s: %d questions failed in the pool and are left out", method.name, len(problems) - len(wanted)
            )
        problems = [
            replace(p, settings=(p.settings or arts.settings).with_(budget_tokens=budgets[p.id])) for p in wanted
        ]
    folder = method.folder(out)
    known = set(read_grades(folder)) if (folder / "grades.jsonl").exists() else set()
    with closing(Clock(folder)) as clock:
        for done, (tree, progress) in enumerate(make_trees(arts, problems, grader), 1):
            if tree.meta.get("key") not in known:
                clock.tick(str(tree.meta.get("id")))
            yield Step(method, done, len(problems), progress)

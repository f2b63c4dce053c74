"""Where commands take their questions from: JSON lines, or lm-eval tasks. One set of options for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from arts_plugin.lines import loads

if TYPE_CHECKING:
    from arts_plugin.api import Arts
    from arts_plugin.training.sdf import Problem

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Source:
    """What the options say."""

    files: tuple[str, ...]
    question_key: str
    answer_key: str
    grader: str
    tasks: str | None
    split: str
    include_path: str | None
    metadata: str | None
    num_fewshot: int | None
    limit: int | None

    def open(self) -> tuple[str, Callable[[Arts], Iterable[Problem]]]:
        """(name of the grader, how the questions are made for an `Arts`). Files and tasks are read once, here.

        Raises:
            UsageError: neither or both of `--data` and `--tasks`, or `--metadata` that is no JSON object.
            ArtsError: a file or task cannot be used.
        """
        if bool(self.files) == bool(self.tasks):
            raise click.UsageError("give either --data or --tasks")
        if self.tasks:
            from arts_plugin.lm_eval.problems import load_tasks, task_problems

            loaded = load_tasks(
                self.tasks.split(","), self.split, self.include_path, _object(self.metadata), self.num_fewshot
            )
            return "lm-eval", lambda arts: task_problems(arts, loaded, self.limit)
        from arts_plugin.training.rows import read_rows
        from arts_plugin.training.sdf import problems_of

        rows = read_rows(self.files, question_key=self.question_key, answer_key=self.answer_key)[: self.limit]
        return self.grader, lambda arts: problems_of(rows, arts, arts.plugins.make("grader", self.grader))


def source_options(split: str) -> Callable[[F], F]:
    """Options that fill a `Source`, which the command gets as `source`.

    Args:
        split: the default of `--split`.
    """

    def decorate(command: F) -> Any:
        @wraps(command)
        def with_source(**given: Any) -> Any:
            own = {name: given.pop(name) for name in (f.name for f in fields(Source))}
            return command(source=Source(**own), **given)

        for option in reversed(_options(split)):
            with_source = option(with_source)
        return with_source

    return decorate


def _options(split: str) -> list[Callable[[Any], Any]]:
    return [
        click.option(
            "--data",
            "files",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False),
            help="JSON lines; repeatable.",
        ),
        click.option(
            "--question_key", "--question-key", default="question", show_default=True, help="Field of the question."
        ),
        click.option(
            "--answer_key", "--answer-key", default="answer", show_default=True, help="Field of the gold answer."
        ),
        click.option(
            "--grader", default="numeric", show_default=True, help="How answers are compared with the gold ones."
        ),
        click.option(
            "--tasks", default=None, help="lm-eval tasks instead of --data, graded by their own filters and metric."
        ),
        click.option(
            "--split", type=click.Choice(["train", "test"]), default=split, show_default=True, help="Of --tasks."
        ),
        click.option("--include_path", "--include-path", default=None, help="Folder of lm-eval task files."),
        click.option(
            "--metadata", default=None, metavar="JSON", help='For --tasks, as lm-eval\'s: {"arts_data": "FOLDER"}.'
        ),
        click.option(
            "--num_fewshot",
            "--num-fewshot",
            type=click.IntRange(0),
            default=None,
            help="Examples in the prompt of --tasks; default: the task's.",
        ),
        click.option("--limit", type=click.IntRange(1), default=None, help="The first problems only (of each task)."),
    ]


def _object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = loads(text)
    except ValueError as error:
        raise click.UsageError(f"--metadata is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise click.UsageError(f"--metadata is {text}; it must be a JSON object")
    return found

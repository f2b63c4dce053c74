"""A disk that is full for a moment: what was found is handed out, what is kept stays whole, and the run goes on from there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from scripted import ScriptedBackend, random_script
from served import Serve, serving

from arts_llama_cpp import plugin as llama_cpp
from arts_plugin import builtin, cli, lines
from arts_plugin.answers.extract import extract_auto
from arts_plugin.api import Arts
from arts_plugin.backend import Prompt
from arts_plugin.errors import NotWrittenError
from arts_plugin.lm_eval.labels import Labels
from arts_plugin.plugins import Plugins
from arts_plugin.report.page import write_report
from arts_plugin.report.view import write_view
from arts_plugin.run import read_trees
from arts_plugin.training.compare import compare_runs
from arts_plugin.training.grades import Graded, GradesFile, read_grades
from arts_plugin.training.sdf import Problem, Verdict, make_trees
from arts_plugin.tree import ReasoningTree
from tests.report_runs import random_trees, write_run

QUESTIONS = ["q", "q1", "q2"]


Disk = Callable[[], Any]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Within its block, writing fails as on a full disk: amid a line, or with nothing of a file written."""

    @contextmanager
    def within() -> Iterator[None]:
        with monkeypatch.context() as patch:
            whole = lines.LinesFile.append

            def append(self: lines.LinesFile, record: str) -> tuple[int, int]:
                real, self._file = self._file, HalfWritten(self._file)  # type: ignore[assignment]
                try:
                    return whole(self, record)
                finally:
                    self._file = real

            patch.setattr(lines.LinesFile, "append", append)
            patch.setattr(Path, "write_bytes", refuse)
            yield

    return within


def refuse(self: Path, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))


class HalfWritten:
    """A raw file that takes half of what it is given, and then no more."""

    def __init__(self, file: Any) -> None:
        self.file, self.taken = file, False

    def write(self, data: bytes) -> int:
        if self.taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.taken = True
        found: int = self.file.write(bytes(data[: len(data) // 2]))
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.fixture
def plugins() -> Plugins:
    """The built-in plugins and the default backend, which is never made."""
    made = Plugins(load=False)
    made.register(builtin, "builtin")
    made.register(llama_cpp, "llama_cpp")
    return made


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


def scripted(plugins: Plugins, folder: Path, **settings: Any) -> Arts:
    backend = ScriptedBackend({**random_script(3), **{q: random_script(3)["q"] for q in QUESTIONS}}, slots=4)
    defaults = {"verifier": "none", "slots": 4, "budget_trajectories": 3, "trace": str(folder)}
    return Arts(registry=plugins, engine=backend, **{**defaults, **settings})


def test_a_served_answer_is_given_and_the_folder_stays_whole(
    serve: Serve, full: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    served = serve(trace=str(folder))
    assert served.chat("q").status_code == 200
    with full():
        reply = served.chat("one way")
    assert reply.status_code == 200 and "answer is 3" in reply.json()["choices"][0]["message"]["content"]
    assert "a tree is not kept" in caplog.text and "No space left" in caplog.text
    assert served.chat("thinks").status_code == 200
    assert len(list(read_trees(folder))) == 2
    served.service.stop()
    again = serve(trace=str(folder))
    for question in ("q", "one way", "thinks"):
        assert again.chat(question).status_code == 200
    assert len(list(read_trees(folder))) == 3


def searched(arts: Arts) -> list[ReasoningTree]:
    jobs = [arts.job(arts.backend.encode(question)) for question in QUESTIONS]
    return [event.tree for event in arts.events(jobs) if event.kind == "finished"]


def test_a_search_is_handed_out_and_said(
    plugins: Plugins, full: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted(plugins, tmp_path / "run") as arts:
        assert arts.run_folder is not None
        with full():
            trees = searched(arts)
        assert all(tree.n_finished == 3 for tree in trees)
        said = [record.getMessage() for record in caplog.records if "is not kept" in record.getMessage()]
        assert len(said) == 1 and "make room" in said[0]
        assert list(read_trees(tmp_path / "run")) == []
        searched(arts)
    assert len(list(read_trees(tmp_path / "run"))) == 3


def problems(arts: Arts) -> list[Problem]:
    return [
        Problem(q, q, Prompt(q, arts.backend.encode(q).token_ids), "1", lambda t: Verdict(True, extract_auto(t.text)))
        for q in QUESTIONS
    ]


def test_training_trees_end_with_what_is_kept(
    plugins: Plugins, full: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Trees and grades fail alike; the same call makes what is missing, once each."""
    folder = tmp_path / "run"
    with scripted(plugins, folder, strategy="sdf", width=2) as arts:
        made = make_trees(arts, problems(arts), "exact")
        next(made)
        with (
            full(),
            pytest.raises(NotWrittenError, match=r"(trees|grades)\.jsonl cannot be written.*same command again"),
        ):
            list(made)
    assert "finished and are kept in trace=" in caplog.text
    kept = [tree.meta["id"] for tree in read_trees(folder)]
    assert 1 <= len(kept) < 3
    with scripted(plugins, folder, strategy="sdf", width=2) as arts:
        assert len(list(make_trees(arts, problems(arts), "exact"))) == 3
    assert sorted(tree.meta["id"] for tree in read_trees(folder)) == sorted(QUESTIONS)
    assert {graded.id for graded in read_grades(folder).values()} == set(QUESTIONS)
    assert len((folder / "grades.jsonl").read_bytes().splitlines()) == 3


def test_a_tree_that_is_made_again_is_graded_again(plugins: Plugins, tmp_path: Path) -> None:
    """A kill may lose a tree whose labels are kept: they are not those of the one that takes its place."""
    folder = tmp_path / "run"

    def make() -> None:
        with scripted(plugins, folder, strategy="sdf", width=2) as arts:
            assert len(list(make_trees(arts, problems(arts), "exact"))) == 3

    make()
    labels = read_grades(folder)
    trees, grades = folder / "trees.jsonl", GradesFile(folder)
    trees.write_bytes(b"".join(trees.read_bytes().splitlines(keepends=True)[:-1]))
    lost = (labels.keys() - {tree.meta["key"] for tree in read_trees(folder)}).pop()
    grades.put(replace(labels[lost], correct={99: True}, votes={99: "3"}))
    grades.close()
    make()
    assert read_grades(folder) == labels


def test_labels_of_an_evaluation_are_not_worth_its_figures(
    full: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = Labels()
    graded = Graded("0" * 16, "t/1", "1", "exact", {1: True})
    with full():
        labels.put(str(tmp_path), graded)
        labels.put(str(tmp_path), graded)
    assert caplog.text.count("labels of trees are not kept") == 1
    labels.put(str(tmp_path), graded)
    labels.close()
    assert read_grades(tmp_path)["0" * 16] == graded


WRITERS: dict[str, Callable[[Path, Path], Any]] = {
    "report": lambda run, out: write_report(run, out=out),
    "view": lambda run, out: write_view(run, out / "view.html"),
    "compare": lambda run, out: compare_runs([run], out=out),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_pages_say_what_is_the_matter(writer: str, full: Disk, tmp_path: Path) -> None:
    """And leave the page that was there as it was."""
    pytest.importorskip("matplotlib")
    trees, gold = random_trees(8, 4)
    run, out = write_run(tmp_path / "run", trees, gold), tmp_path / "out"
    WRITERS[writer](run, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with full(), pytest.raises(NotWrittenError, match=r"cannot be written \(No space left on device\)"):
        WRITERS[writer](run, out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device", "/x"), OSError(errno.EROFS, "Read-only")]
)
def test_no_command_answers_with_a_traceback(error: OSError) -> None:
    """Whatever it was that the system refused."""

    @click.command()
    def failing() -> None:
        raise error

    cli.main.add_command(failing)
    try:
        result = CliRunner().invoke(cli.main, ["failing"])
    finally:
        del cli.main.commands["failing"]
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert error.strerror in result.output and "Traceback" not in result.output

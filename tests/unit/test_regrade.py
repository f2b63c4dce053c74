"""`arts grade`: labels of recorded trajectories made again from their texts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from arts_plugin.cli import main
from arts_plugin.errors import ArtsError
from arts_plugin.run import RUN_FILE, TREES_FILE
from arts_plugin.training.compare import compare_runs
from arts_plugin.training.grades import Graded, GradesFile, read_grades
from arts_plugin.training.regrade import grade_again
from arts_plugin.tree import ReasoningTree

TEXTS = [r"So \boxed{\frac{36}{2}}.", "#### Step 2: say it\nThe answer is 18.", "I give up", "cut"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A question with four traces, whose answers and labels an older version recorded, and one without labels."""
    settings = {"extract": "auto", "delimiter": "\\n", "chat": "auto", "seed": 0}
    (tmp_path / RUN_FILE).write_text(json.dumps({"settings": settings, "model": {"digest": "d"}}))
    lines = []
    for number in range(2):
        tree = ReasoningTree(problem=f"{number:016x}", strategy="best_of_n", select="majority", scorer="logprob")
        tree.meta.update(key=f"{number:016x}", id=f"q{number}")
        for index, text in enumerate(TEXTS):
            stop = "error" if text == "cut" else "eos"
            tree.add(0, index=index, text=text, token_ids=[1], terminal=True, stop=stop, answer="old", logprob=-1.0)
        lines.append(tree.to_json())
    (tmp_path / TREES_FILE).write_text("".join(line + "\n" for line in lines))
    file = GradesFile(tmp_path)
    file.put(Graded("0" * 16, "q0", "18", "numeric", dict.fromkeys(range(1, 5), False)))
    file.close()
    return tmp_path


def test_labels_and_votes_are_made_again(run: Path) -> None:
    trees = (run / TREES_FILE).read_bytes()
    changes = grade_again(run)
    assert (changes.trees, changes.trajectories, changes.labels, changes.votes, changes.right) == (1, 4, 2, 4, 2)
    graded = read_grades(run)["0" * 16]
    assert graded.correct == {1: True, 2: True, 3: False, 4: False}
    assert graded.votes == {1: r"\frac{36}{2}", 2: "18", 3: None, 4: None}
    assert (run / TREES_FILE).read_bytes() == trees
    again = grade_again(run)
    assert (again.labels, again.votes, again.right) == (0, 0, 2)


def test_comparisons_vote_as_the_labels_say(run: Path) -> None:
    grade_again(run)
    table = compare_runs([run], ks=[4])
    majority = next(line for line in table.splitlines() if line.startswith("majority@k"))
    assert "100.0" in majority, table


def test_labels_of_a_task_are_the_tasks(run: Path) -> None:
    file = GradesFile(run)
    file.put(Graded("0" * 16, "q0", "18", "arts_svamp: acc, none", dict.fromkeys(range(1, 5), False)))
    file.close()
    with pytest.raises(ArtsError, match=r"'arts_svamp: acc, none'.*run the task again.*--grader"):
        grade_again(run)
    shown = CliRunner().invoke(main, ["grade", str(run), "--grader", "numeric", "--extract", "regex:answer is (\\d+)"])
    assert shown.exit_code == 0, shown.output
    assert (
        "4 trajectories of 1 trees; 1 have another label and 4 another answer than before; 1 are right" in shown.output
    )
    assert read_grades(run)["0" * 16].grader == "numeric"

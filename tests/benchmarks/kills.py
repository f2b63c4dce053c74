"""How a run stands being killed: `arts sdf`, killed again and again amid its work, must lose nothing and make nothing twice.

    python -m tests.benchmarks.kills [KILLS]

Each life of the run ends with SIGKILL, at a random moment after it has begun to write. A last life ends by itself. Then the
folder is compared with that of a run that nobody touched: the same trees, hidden states and labels, each once.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from arts_plugin.lines import read_lines
from arts_plugin.run import read_trees
from arts_plugin.training.grades import read_grades
from arts_plugin.tree import ReasoningTree

ROWS_A_KILL = 4


def command(rows: Path, out: Path) -> list[str]:
    """Short traces, so that a kill often comes amid a write."""
    return [
        *(sys.executable, "-m", "arts_plugin.cli", "sdf", "--data", str(rows), "--out", str(out), "--traces", "2"),
        *("--max_gen_toks", "6", "--n_threads", "1", "--slots", "8", "--fork_probability", "0.5"),
    ]


def main(kills: int) -> None:
    """Kill, finish, compare."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        rows, torn, whole = (Path(scratch) / name for name in ("rows.jsonl", "torn", "whole"))
        made = [
            {"id": f"r{i}", "question": f"What is {i} plus {i + 1}?", "answer": str(2 * i + 1)}
            for i in range(ROWS_A_KILL * kills + 20)
        ]
        rows.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        cut = 0
        for life in range(kills):
            before = _size(torn)
            with subprocess.Popen(command(rows, torn), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
                while _size(torn) == before and process.poll() is None:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
            lines = (torn / "trees.jsonl").read_bytes()
            cut += not lines.endswith(b"\n")
            done = lines.count(b"\n")
            print(f"kill {life + 1}: {done} trees", flush=True)
        for out in (torn, whole):
            subprocess.run(command(rows, out), check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        found, wanted = ({tree.meta["key"]: tree for tree in read_trees(out)} for out in (torn, whole))
        count = {name: sum(1 for _ in read_lines(torn / name)) for name in ("trees.jsonl", "grades.jsonl")}
        features = {out: {file.name for file in (out / "features").iterdir()} for out in (torn, whole)}
        # Which questions run beside each other changes near-ties, never which are asked.
        assert found.keys() == wanted.keys() and len(found) == len(made) == count["trees.jsonl"], count
        assert read_grades(torn).keys() == found.keys() and count["grades.jsonl"] == len(made), count
        assert features[torn] == features[whole] == {f"{key}.safetensors" for key in found}
        same = sum(_tokens(found[key]) == _tokens(wanted[key]) for key in found)
        print(
            f"{kills} kills, {cut} half lines: {len(found)} trees, each once; {same} have the tokens of the run that nobody touched"
        )


def _tokens(tree: ReasoningTree) -> list[list[int]]:
    return [node.token_ids for node in tree.nodes]


def _size(run: Path) -> int:
    file = run / "trees.jsonl"
    return file.stat().st_size if file.exists() else 0


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)

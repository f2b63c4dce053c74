"""The problems that the shipped verifiers learn from and are tested on.

    python examples/verifier/make_rows.py SHARED_DATA examples/verifier

Training: GSM8K train and SVAMP's training side. Test: GSM8K test, SVAMP and MultiArith, test sides of `split.json`, in
which problems that differ only in their numbers lie on one side. Shuffled, so that any beginning is a fair sample.

`train_more` and `test_new` hold none of these, nor any question of `examples/bench`, not even with other numbers: more
training problems (GSM8K train, and the training sides of AddSub, SingleEq and SingleOp), and test problems that no pool held.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Container
from pathlib import Path
from typing import Any

from arts_plugin.lines import loads, read_lines

GSM8K_TRAIN, GSM8K_TEST, SVAMP_TEST, MULTIARITH_TEST = 260, 110, 122, 122
MORE_GSM8K_TRAIN, NEW_TEST = 420, 100
BENCH = Path(__file__).parent.parent / "bench"


def rows(data: Path, name: str, side: str | None = None) -> list[dict[str, Any]]:
    """Rows of one file, in a seeded order."""
    split = json.loads((data / "split.json").read_text())
    found = [loads(line) for _, line in read_lines(data / f"{name}.jsonl")]
    kept = [
        {"id": row["id"], "question": row["question"], "answer": row["answer"]}
        for row in found
        if (side is None or split[row["id"]] == side) and row["id"] != "svamp-chal-680"  # its answer is wrong
    ]
    random.Random(0).shuffle(kept)
    return kept


def write(file: Path, chosen: list[dict[str, Any]]) -> None:
    """One row a line, shuffled."""
    random.Random(1).shuffle(chosen)
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    print(f"{file}: {len(chosen)} problems")


def shape(question: str) -> str:
    """A question's words: what it shares with those that differ from it in numbers and punctuation alone."""
    return re.sub(r"\W+", " ", re.sub(r"\d+", "#", question.lower())).strip()


def fresh(candidates: list[dict[str, Any]], seen: Container[str]) -> list[dict[str, Any]]:
    """The candidates whose words are not among `seen`, each of them once."""
    kept = {shape(row["question"]): row for row in reversed(candidates)}
    return [row for words, row in reversed(kept.items()) if words not in seen]


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_more(data: Path, out: Path) -> None:
    """`train_more` and `test_new`, which share no question with what was written before them."""
    held = [out / "train.jsonl", out / "test.jsonl", BENCH / "svamp.jsonl", BENCH / "gsm8k_test.jsonl"]
    seen = {shape(row["question"]) for file in held for row in read(file)}
    easy = [row for name in ("addsub", "singleeq", "singleop") for row in rows(data, name, "train")]
    more = fresh(rows(data, "gsm8k_train"), seen)[:MORE_GSM8K_TRAIN] + fresh(easy, seen)
    write(out / "train_more.jsonl", more)
    seen |= {shape(row["question"]) for row in more}
    # The test side of MultiArith is nearly used up; no verifier was trained on its training side.
    multiarith = rows(data, "multiarith", "test") + rows(data, "multiarith", "train")
    sources = (rows(data, "gsm8k_test"), rows(data, "svamp_fresh"), multiarith)
    write(out / "test_new.jsonl", [row for source in sources for row in fresh(source, seen)[:NEW_TEST]])


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    write(out / "train.jsonl", rows(data, "gsm8k_train")[:GSM8K_TRAIN] + rows(data, "svamp", "train"))
    write(
        out / "test.jsonl",
        rows(data, "gsm8k_test")[:GSM8K_TEST]
        + rows(data, "svamp", "test")[:SVAMP_TEST]
        + rows(data, "multiarith", "test")[:MULTIARITH_TEST],
    )
    write_more(data, out)


if __name__ == "__main__":
    main()

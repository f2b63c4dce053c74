"""The problems that the shipped verifiers learn from and are tested on.

    python examples/verifier/make_rows.py SHARED_DATA examples/verifier

Training: GSM8K train and SVAMP's training side. Test: GSM8K test, SVAMP and MultiArith, test sides of `split.json`, in
which problems that differ only in their numbers lie on one side. Shuffled, so that any beginning is a fair sample.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from arts_plugin.lines import loads, read_lines

GSM8K_TRAIN, GSM8K_TEST, SVAMP_TEST, MULTIARITH_TEST = 260, 110, 122, 122


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


def main() -> None:
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    write(out / "train.jsonl", rows(data, "gsm8k_train")[:GSM8K_TRAIN] + rows(data, "svamp", "train"))
    write(
        out / "test.jsonl",
        rows(data, "gsm8k_test")[:GSM8K_TEST]
        + rows(data, "svamp", "test")[:SVAMP_TEST]
        + rows(data, "multiarith", "test")[:MULTIARITH_TEST],
    )


if __name__ == "__main__":
    main()

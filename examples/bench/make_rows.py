"""The questions of the comparison: 200 of SVAMP and 200 of GSM8K's test side that the shipped verifiers never saw.

    python make_rows.py DATA ../verifier/train.jsonl

DATA holds svamp.jsonl and gsm8k_test.jsonl, one object a line with id, question, answer and solution.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from arts_plugin.lines import loads, read_lines

HERE, SIZE = Path(__file__).parent, 200


def main(data: Path, trained: Path) -> None:
    seen = {loads(line)["question"] for _, line in read_lines(trained)}
    for name in ("svamp.jsonl", "gsm8k_test.jsonl"):
        rows = [loads(line) for _, line in read_lines(data / name)]
        fresh = [row for row in rows if row["question"] not in seen]
        chosen = random.Random(0).sample(fresh, SIZE)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

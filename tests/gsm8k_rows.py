"""The stock gsm8k tasks of the installed lm-eval, on rows of a folder instead of the hub's data set."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

from tests.models import data

STOCK = {"gsm8k_rows": "gsm8k.yaml", "gsm8k_cot_rows": "gsm8k-cot.yaml"}
_SPLITS = {"train": "gsm8k_train.jsonl", "test": "gsm8k_test.jsonl"}


def write(folder: Path, rows: int = 20) -> Path:
    """Write the tasks `gsm8k_rows` and `gsm8k_cot_rows` and their data into `folder`, for lm-eval's --include_path."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: _write_rows(folder / f"{split}.jsonl", data(name), rows) for split, name in _SPLITS.items()}
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("lm_eval is not installed")
    stock = Path(spec.origin).parent / "tasks" / "gsm8k"
    for task, name in STOCK.items():
        # JSON is YAML. The stock `tag` would come along and take the place of the stock tag's members.
        lines = {
            "include": str(stock / name),
            "task": task,
            "tag": None,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files},
        }
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items())
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")
    return folder


def _write_rows(target: Path, source: Path, rows: int) -> str:
    with source.open(encoding="utf-8") as lines:
        read = [json.loads(line) for line, _ in zip(lines, range(rows), strict=False)]
    # The hub's rows end in the answer; ours keep it apart.
    stock = [{"question": row["question"], "answer": f"{row['solution']}\n#### {row['answer']}"} for row in read]
    target.write_text("".join(f"{json.dumps(row)}\n" for row in stock), encoding="utf-8")
    return str(target)

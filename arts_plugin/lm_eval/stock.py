"""Stock lm-eval tasks as a base for others: their YAML, and local rows in place of a data set on a hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arts_plugin.errors import ArtsError, did_you_mean
from arts_plugin.lines import loads, read_lines

log = logging.getLogger("lm_eval.arts")

Row = dict[str, Any]
_NOT_ASKED = frozenset({"id", "answer", "Answer", "solution", "cot_content", "subject", "level"})
"""Fields of a document that tell of a question what is not part of it."""


def stock_config(base: str) -> dict[str, Any]:
    """The configuration of a task that lm-eval has.

    Args:
        base: a YAML file in lm-eval's task folder (`gsm8k/gsm8k.yaml`), any other YAML file, or a task's name, which
            costs the seconds that lm-eval takes to index its tasks.

    Raises:
        ArtsError: there is none, or it does not generate text.
    """
    from lm_eval import tasks
    from lm_eval.tasks import _yaml_loader

    path = Path(base).expanduser()
    if not path.is_absolute():
        path = Path(tasks.__file__).parent / base
    if not path.suffix:
        index = tasks.TaskManager().task_index
        entry = index.get(base)
        if entry is None or entry.yaml_path is None:
            raise ArtsError(f"base is {base!r}, and lm-eval has no task of that name{did_you_mean(base, index)}")
        path = entry.yaml_path
    if not path.exists():
        raise ArtsError(f"base is {base!r}, and there is no {path}")
    config: dict[str, Any] = _yaml_loader.load_yaml(path, resolve_func=True)
    if "class" in config or config.get("output_type") != "generate_until":
        kind = "a Python class" if "class" in config else config.get("output_type")
        raise ArtsError(
            f"base is {base!r}, which is {kind}; only tasks that generate text (generate_until) have traces"
        )
    return config


def local_splits(
    place: str, files: Mapping[str, str], read: Callable[[Row], Row] | None, needed: Mapping[str, str]
) -> dict[str, Any]:
    """Data sets from JSON lines.

    Args:
        place: a folder that holds `files`, or one file, which is the first split of `files`.
        files: split -> file name.
        read: turns a row into a document of the task.
        needed: split -> what it is needed for; a missing one is an error.

    Raises:
        ArtsError: a file is missing, empty or damaged, or a row cannot be read.
    """
    from datasets import Dataset

    path = Path(place).expanduser()
    if not path.exists():
        raise ArtsError(f"arts_data is {place!r}, and there is no such file or folder")
    splits: dict[str, Any] = {}
    for number, (split, name) in enumerate(files.items()):
        file = path / name if path.is_dir() else path if number == 0 else path.with_name(name)
        if file.exists():
            splits[split] = Dataset.from_list(_rows(file, read))
        elif split in needed:
            raise ArtsError(f"arts_data is {place!r}, and {file} is missing; it is needed for {needed[split]}")
    return splits


def _rows(file: Path, read: Callable[[Row], Row] | None) -> list[Row]:
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, line in read_lines(file):
        if not line.strip():
            continue
        try:
            row = loads(line)
            made = read(row) if read else row
            asked = _asked({**made, "question": row["question"]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtsError(f"{file}, line {number} is no row of this task: {type(error).__name__}: {error}") from error
        if asked in seen:
            log.warning("%s, line %d asks what line %d asks: left out", file, number, seen[asked])
            continue
        seen[asked] = number
        rows.append(made)
    if not rows:
        raise ArtsError(f"{file} has no rows")
    return rows


def _asked(document: Row) -> str:
    """What makes a question itself: its text is not enough, for options and numbers may stand beside it."""
    return json.dumps({k: v for k, v in document.items() if k not in _NOT_ASKED}, sort_keys=True, default=str)

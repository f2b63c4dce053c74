"""Problems with gold answers, from JSON lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arts_plugin.errors import ArtsError
from arts_plugin.lines import loads, read_lines

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """A problem. `id` is unique among the rows of a run; `place` is its file and line; `subject` and `level` are the
    fields of these names, if they are there."""

    id: str
    question: str
    gold: str
    place: str = ""
    subject: str = ""
    level: str = ""


def read_rows(
    files: Iterable[str | Path],
    *,
    question_key: str = "question",
    answer_key: str = "answer",
    id_key: str = "id",
    only: Sequence[str] = (),
) -> list[Row]:
    """The rows of JSONL files, in order. A row that cannot be used is named in a warning, and the rest are kept.

    Args:
        only: prefixes of ids to keep; empty keeps all.

    Raises:
        ArtsError: a file cannot be read, or not one row can be used.
    """
    rows: dict[str, Row] = {}
    for name in files:
        file = Path(name)
        for number, line in read_lines(file):
            if not line.strip():
                continue
            try:
                keys = (question_key, answer_key, id_key)
                row = _row(loads(line), f"{file.stem}-{number}", f"{file}, line {number}", *keys)
                if row.id in rows:
                    raise ValueError(f"id {row.id!r:.100} occurs twice")
            except (ValueError, KeyError, TypeError) as error:
                said = f"no {error}" if isinstance(error, KeyError) else str(error)
                log.warning("%s, line %d is left out: %s", file, number, said)
                continue
            if not only or row.id.startswith(tuple(only)):
                rows[row.id] = row
    if not rows:
        raise ArtsError(f"not one problem in {', '.join(map(str, files))} can be used")
    return list(rows.values())


def _row(record: Any, default_id: str, place: str, question_key: str, answer_key: str, id_key: str) -> Row:
    if not isinstance(record, dict):
        raise TypeError(f"it is {type(record).__name__}, not an object")
    question, gold = record[question_key], record[answer_key]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"its {question_key} is {question!r:.100}")
    if isinstance(gold, bool | dict | list) or gold is None or not str(gold).strip():
        raise ValueError(f"its {answer_key} is {gold!r:.100}")
    notes = {name: str(record.get(name) or "") for name in ("subject", "level")}
    return Row(str(record.get(id_key, default_id)), question, str(gold).strip(), place, **notes)

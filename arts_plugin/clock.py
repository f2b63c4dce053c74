"""Wall-clock time of a run, over all the processes that it took."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

FILE = "clock.jsonl"
log = logging.getLogger(__name__)


class Clock:
    """Appends the seconds since the last finished question to a run folder. What a killed process did after its last
    finished question is lost with the trees that it had not finished, and so is the line that it had half written."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        if self._file.exists():
            kept = self._file.read_bytes()
            if kept and not kept.endswith(b"\n"):
                self._file.write_bytes(kept[: kept.rfind(b"\n") + 1])
        self._last = time.perf_counter()

    def tick(self, question: str) -> None:
        """A question was searched to its end."""
        now = time.perf_counter()
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"question": question, "seconds": round(now - self._last, 3)}) + "\n")
        self._last = now


def seconds(folder: Path) -> float | None:
    """All of them; None if nobody kept the time. An unfinished last line is passed over; a damaged one is named as well."""
    file = folder / FILE
    if not file.exists():
        return None
    total = 0.0
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            total += float(json.loads(line)["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s, line %d is passed over: %r", file, number, error)
    return total

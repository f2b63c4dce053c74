"""Wall-clock time of a run, over all the processes that it took."""

from __future__ import annotations

import json
import time
from pathlib import Path

FILE = "clock.jsonl"


class Clock:
    """Appends the seconds since the last finished question to a run folder. What a killed process did after its last
    finished question is lost with the trees that it had not finished."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE
        self._last = time.perf_counter()

    def tick(self, question: str) -> None:
        """A question was searched to its end."""
        now = time.perf_counter()
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"question": question, "seconds": round(now - self._last, 3)}) + "\n")
        self._last = now

    def skip(self) -> None:
        """A question was there already."""
        self._last = time.perf_counter()


def seconds(folder: Path) -> float | None:
    """All of them; None if nobody kept the time. An unfinished last line is passed over."""
    file = folder / FILE
    if not file.exists():
        return None
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]
    return float(sum(json.loads(line)["seconds"] for line in lines))

"""Wall-clock time of a run, over all the processes that it took."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

from arts_plugin.lines import LinesFile, loads, whole_lines

FILE = "clock.jsonl"
log = logging.getLogger(__name__)


class Clock:
    """Appends the seconds since the last finished question to a run folder. What a killed process did after its last
    finished question is lost with the trees that it had not finished, and so is the line that it had half written."""

    def __init__(self, folder: Path) -> None:
        self._file = LinesFile(folder / FILE)
        self._file.mend()
        self._last = time.perf_counter()

    def tick(self, question: str) -> None:
        """A question was searched to its end.

        Raises:
            NotWrittenError: that cannot be noted.
        """
        now = time.perf_counter()
        self._file.append(json.dumps({"question": question, "seconds": round(now - self._last, 3)}))
        self._last = now

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def seconds(folder: Path) -> float | None:
    """Total seconds of the run; None if no clock file exists. A damaged or unfinished line is named and passed over."""
    file = folder / FILE
    if not file.exists():
        return None
    total = 0.0

    def passed_over(number: int, reason: object) -> None:
        log.warning("%s, line %d is passed over: %s", file, number, reason)

    for number, line in whole_lines(file, passed_over):
        try:
            spent = float(loads(line)["seconds"])
            if not 0 <= spent < math.inf:
                raise ValueError(f"seconds is {spent}")
            total += spent
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            passed_over(number, f"{error!r:.300}")
    return total

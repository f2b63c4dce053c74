"""What the task adapter costs beside the generation: `python tests/benchmarks/adapter.py RUN TASK DATA [LIMIT] [lm-eval keywords as JSON]`.

RUN is a finished run of the task (`trace=RUN`, or the `samples` folder of `arts bench`), which keeps its wall-clock time in
clock.jsonl; lm-eval finds every tree in it, so what is timed here is the adapter and nothing else.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.tasks import TaskManager

from arts_plugin import clock
from arts_plugin.lm_eval.model import ArtsLM
from arts_plugin.lm_eval.task import TreeSearchTask

SPENT: dict[str, float] = {}


def timed(name: str) -> None:
    """Add up the time of a method of the task."""
    method: Callable[..., Any] = getattr(TreeSearchTask, name)

    def run(*arguments: Any, **keywords: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*arguments, **keywords)
        finally:
            SPENT[name] = SPENT.get(name, 0.0) + time.perf_counter() - start

    setattr(TreeSearchTask, name, run)


def main(run: str, task: str, data: str, limit: int = 200, keywords: str = "{}") -> None:
    """Print it."""
    settings = json.loads((Path(run) / "run.json").read_text())["settings"]
    for name in ("apply_filters", "process_results", "aggregation"):
        timed(name)
    lm = ArtsLM.create_from_arg_obj({**{k: v for k, v in settings.items() if v is not None}, "trace": run})
    decoded = lm.arts.backend.stats.decoded_tokens
    lm_eval.simple_evaluate(
        lm, tasks=[task], task_manager=TaskManager(metadata={"arts_data": data}), limit=limit, **json.loads(keywords)
    )
    assert lm.arts.backend.stats.decoded_tokens == decoded, "the run was not finished, or is of other settings"
    mine, made = sum(SPENT.values()), clock.seconds(Path(run))
    print({name: round(seconds, 2) for name, seconds in SPENT.items()})
    if made:
        print(f"{mine:.1f} s for a run of {made:.0f} s: {100 * mine / (mine + made):.2f} %")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:5]), *sys.argv[5:6])

"""The process in which chat templates are rendered: `python -m arts_plugin.chat.worker`.

Templates come with model files, and no limit inside a process stops `'a' * 10**10`. This one reads a JSON object a line
(template, messages, variables, limits) and answers with a JSON object a line. It has so much memory, and so much of the
processor's time for each line: the system ends it when it takes more, also when nobody waits for it any more.
"""

from __future__ import annotations

import json
import signal
import sys
from typing import Any

import jinja2

from arts_plugin.chat.environment import RefusedError, rendered, spans


def _limit_memory(size: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not on Windows, or not allowed: the time limit remains


def _limit_time(seconds: float) -> None:
    """End this process, whatever it is doing, after so many seconds of computing; 0 takes the limit away."""
    if hasattr(signal, "setitimer"):  # on Windows the parent's clock alone counts
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The rendered chat and what in it the template wrote, or the error."""
    most = question["characters"]
    try:
        text = rendered(question["template"], question["messages"], question["variables"], most)
    except OverflowError:
        return {"limit": "characters"}
    except MemoryError:
        return {"limit": "memory"}
    except RecursionError:
        return {"error": "RecursionError", "message": "it calls itself too deeply"}
    except Exception as error:  # whatever a template can raise is its fault
        kind = "TemplateError" if isinstance(error, RefusedError) else type(error).__name__
        refused = isinstance(error, RefusedError)
        return {"error": kind, "message": str(error)[:2000], "refused": refused}
    return {"text": text, "own": spans(text)}


def main() -> None:
    """Answer until standard input ends."""
    jinja2.Environment().from_string("{{ 1 }}").render()  # so that what jinja2 loads late is no question's time
    _limit_memory(int(sys.argv[1]))
    for line in sys.stdin:
        try:
            question = json.loads(line)
            _limit_time(question["seconds"])
            told = json.dumps(answer(question))
        except MemoryError:
            told = json.dumps({"limit": "memory"})
        _limit_time(0)
        print(told, flush=True)


if __name__ == "__main__":
    main()

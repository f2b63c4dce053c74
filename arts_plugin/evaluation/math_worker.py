"""The process in which math-verify compares expressions: `python -m arts_plugin.evaluation.math_worker`.

Reads a JSON list `[answer, gold]` a line and answers with a JSON object a line. It has no time limit of its own: its
parent kills it. math-verify's own limits rest on `signal.alarm`, which a computation inside SymPy's C code or a
power tower outlasts.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space, where the system can limit it: an expression that wants more is a bomb."""


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # not on Windows, or not allowed: the time limit remains


def compare(answer: str, gold: str) -> dict[str, Any]:
    """`equal`, and whether each of the two could be parsed at all."""
    from math_verify import LatexExtractionConfig, parse, verify

    # Not ExprExtractionConfig: it hands text to SymPy's parse_expr, which is Python's eval in the end.
    configs = [LatexExtractionConfig()]
    # Bare LaTeX is not found: a gold answer of `\frac{1}{2}` would not even equal itself.
    left, right = (parse(f"${text}$", configs, parsing_timeout=None) for text in (gold, answer))
    equal = bool(left and right) and bool(verify(left, right, timeout_seconds=None))
    return {"equal": equal, "gold": bool(left), "answer": bool(right)}


def main() -> None:
    """Answer until standard input ends."""
    import math_verify  # noqa: F401 - imported before the first question, so that its time is not the question's

    _limit_memory()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            result = compare(*json.loads(line))
        except Exception as error:  # model text made SymPy fail; that is no match, and the next line is another's
            result = {"equal": False, "error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

"""The process in which expressions are resolved: `python -m arts_plugin.answers.worker SECONDS`.

Reads an expression a line, as a JSON string, and answers with a JSON object a line: `number` (an exact fraction in
hexadecimal), `value` (what equal expressions share), or neither where it cannot tell.

An expression that takes longer than SECONDS of processor time ends the process. So does its parent's end, on Linux at once,
elsewhere with the next line that it waits for or with its time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from fractions import Fraction
from typing import Any

MEMORY = 2 << 30
"""Bytes of address space, where the system can limit it: an expression that wants more is a bomb."""
DIGITS = 30
"""Digits to which values are compared that are no fractions; they are computed to `_WORKING` digits."""
_WORKING = 60
_LARGEST_BELOW = 10**6
"""Denominators up to here are looked for in a value: sin^2 x + cos^2 x is 1, not 1.000..."""


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent ends: SIGKILL gives a parent no time to do it."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # not on Windows, or not allowed: the time limit remains


def _limit_time(seconds: int) -> None:
    """End this process after so much more processor time; where that cannot be limited, of time on the wall."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 1 + seconds, hard))
    except (ImportError, ValueError, OSError):
        # Its own thread needs no interpreter lock, which a computation in C holds to its end.
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.stderr)


def resolve(expression: str) -> dict[str, Any]:
    """What equal expressions share: exact fractions, else the value at fixed points, to `DIGITS` digits."""
    import sympy
    from latex2sympy2_extended import latex2sympy

    parsed = latex2sympy(expression)
    if isinstance(parsed, sympy.Equality):
        return _equation(parsed.lhs - parsed.rhs)
    if not isinstance(parsed, sympy.Expr):
        return {"value": sympy.srepr(parsed)}
    parsed = parsed.doit()
    exact = sympy.nsimplify(parsed) if isinstance(parsed, sympy.Float) else parsed
    if exact.is_Rational:
        return {"number": f"{int(exact.p):x}/{int(exact.q):x}"}
    first, second = (_number(parsed, point) for point in range(2))
    if first is None or second is None:
        return {"value": sympy.srepr(parsed)}
    (real, imaginary), other = _digits(first), _digits(second)
    if (real, imaginary) == other and imaginary == "0" and (fraction := _fraction(real)) is not None:
        return {"number": f"{fraction.numerator:x}/{fraction.denominator:x}"}
    return {"value": " ".join((real, imaginary, *other))}


def _equation(difference: Any) -> dict[str, Any]:
    """Of an equation, which any factor leaves as it is, the ratios of lhs - rhs at fixed points."""
    import sympy

    difference = difference.doit()
    points = [_number(difference, point) for point in range(3)]
    if any(point is None for point in points):
        return {"value": f"{sympy.srepr(difference)} = 0"}
    first = next((point for point in points if point != 0), None)
    if first is None:
        return {"value": "0 = 0"}
    return {"value": " ".join("/".join(_digits(point / first)) for point in points) + " = 0"}


def _number(expression: Any, point: int) -> Any:
    """The value at one of several fixed points, positive and negative; None if it has none."""
    import random

    import sympy

    places = {}
    for symbol in expression.free_symbols:
        if symbol.name == "i":
            places[symbol] = sympy.I
            continue
        drawn = random.Random(f"{symbol.name} {point}")
        size = sympy.Rational(drawn.randrange(10**17, 3 * 10**18), 10**18)
        places[symbol] = -size if point and drawn.random() < 0.5 else size
    value = sympy.N(expression.xreplace(places), _WORKING)
    if not (value.is_number and value.is_finite) or value.has(sympy.zoo, sympy.nan):
        return None
    return value if all(part.is_Float or part.is_Rational for part in value.as_real_imag()) else None


def _digits(value: Any) -> tuple[str, str]:
    import mpmath

    parts = [mpmath.mpf(0) if part == 0 else part._to_mpmath(_WORKING * 4) for part in value.as_real_imag()]
    size = max(1, *(abs(part) for part in parts))
    with mpmath.workdps(_WORKING):
        shown = [
            "0" if abs(part) < size * mpmath.mpf(10) ** -(DIGITS + 10) else str(mpmath.nstr(part, DIGITS))
            for part in parts
        ]
    return shown[0], shown[1]


def _fraction(digits: str) -> Fraction | None:
    value = Fraction(digits)
    near = value.limit_denominator(_LARGEST_BELOW)
    return near if abs(near - value) * 10 ** (DIGITS - 3) <= abs(value) else None


def main() -> None:
    """Answer until standard input ends."""
    _die_with_parent()
    sys.set_int_max_str_digits(0)
    import latex2sympy2_extended  # noqa: F401 - before the first question, so that its time is not the question's
    import math_verify  # noqa: F401

    _limit_memory()
    seconds = int(sys.argv[1])
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        _limit_time(seconds)
        try:
            result = resolve(json.loads(line))
        except Exception as error:  # model text made SymPy fail; the next line is another's
            result = {"error": f"{type(error).__name__}: {error}"[:200]}
        print(json.dumps(result), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()

"""The llama-cpp-python bindings, imported late, with llama.cpp's own log kept for error messages."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from typing import Any

from arts_plugin.errors import ModelError

_lines: deque[str] = deque(maxlen=40)
_LEVEL_WARN, _LEVEL_ERROR = 3, 4


@cache
def llama() -> Any:
    """The module `llama_cpp`, its backend initialised and its log caught.

    Raises:
        ModelError: it is not installed, or does not load.
    """
    try:
        import llama_cpp
    except ImportError as error:
        raise ModelError(
            f"backend llama_cpp needs the package llama-cpp-python ({error}): pip install 'arts-plugin[llama]'. "
            "It is compiled during the installation, so a C++ compiler is needed"
        ) from error
    # llama.cpp keeps only the pointer: without this reference the callback is freed and the process crashes.
    llama._callback = llama_cpp.llama_log_callback(_keep_line)  # type: ignore[attr-defined]
    llama_cpp.llama_log_set(llama._callback, ctypes.c_void_p(0))  # type: ignore[attr-defined]
    llama_cpp.llama_backend_init()
    return llama_cpp


def _keep_line(level: int, text: bytes, data: Any) -> None:
    if level in (_LEVEL_WARN, _LEVEL_ERROR):
        _lines.append(text.decode("utf-8", "replace").strip())


def last_errors(count: int = 3) -> str:
    """llama.cpp's latest complaints, joined; they are forgotten."""
    lines = [line for line in _lines if line][-count:]
    _lines.clear()
    return "; ".join(lines)

"""Text that others wrote, on its way to a terminal, a page or a log: models, servers, data sets, cards and templates.

A control character would be obeyed there (escape sequences move the cursor and set titles and colours), and a bidirectional
one would show text in another order. Both are shown as their codes instead.
"""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
OURS = ("arts_plugin", "arts_hf", "arts_llama_cpp", "arts_server", "arts_tasks", "lm_eval.arts")
"""The loggers above all of this distribution's."""


def printable(text: str) -> str:
    """`text` with every control, format, surrogate and line-separator character but newline and tab replaced by its code."""
    if text.translate(_KEPT).isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _CONTROL else _code(ord(c)) for c in text)


_KEPT = {ord("\n"): " ", ord("\t"): " "}


def _code(number: int) -> str:
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def printed(value: Any) -> Any:
    """A JSON value with all texts in it made printable; names stay as they are."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {name: printed(item) for name, item in value.items()}
    return [printed(item) for item in value] if isinstance(value, (list, tuple)) else value


def echo(text: object = "", err: bool = False) -> None:
    """Print a line, or several, for a person."""
    import click

    click.echo(printable(str(text)), err=err)


class _Cleaner(logging.Handler):
    """Makes records printable before the handlers above, which are the host's, see them."""

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = printable(_message(record)), None
        if record.exc_info and not record.exc_text:
            record.exc_text = printable(logging.Formatter().formatException(record.exc_info))
        # Where nobody has set up logging, Python prints warnings; but not where there is a handler, such as this one.
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and not _handled(record.name):
            last.handle(record)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # a log line never ends a run
        return f"{record.msg} {record.args!r} ({error})"


def _handled(name: str) -> bool:
    """Whether somebody else handles what this logger says."""
    logger: logging.Logger | None = logging.getLogger(name)
    while logger is not None:
        if any(not isinstance(handler, _Cleaner) for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


def clean_logs() -> None:
    """Have whatever our loggers say made printable, wherever it goes. Idempotent."""
    for name in OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Cleaner) for handler in logger.handlers):
            logger.addHandler(_Cleaner())

"""What goes wrong, said so that it can be mended: the fact, the value found, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from arts_plugin.terminal import printable


class ArtsError(Exception):
    """Base class of every error that arts-plugin raises on purpose. What it quotes from others is made printable, for it is
    shown in terminals, with a traceback or without. `code` is what OpenAI's API calls it, if it has a name for it."""

    code: str | None = None

    def __str__(self) -> str:
        return printable(super().__str__())


class SettingsError(ArtsError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""

    code = "invalid_value"


class UnknownNameError(ArtsError, LookupError):
    """A backend, strategy, verifier, grader or extractor of that name is not registered."""


class ModelError(ArtsError):
    """A model file is missing, damaged or of a kind that the backend cannot run."""


class PromptTooLongError(ArtsError):
    """A prompt leaves no room for a single generated token. Refused for its question alone."""

    code: str | None = "context_length_exceeded"


class EmptyPromptError(PromptTooLongError):
    """A prompt has no token that a model could begin from."""

    code = None


class RunFolderError(ArtsError):
    """A run folder belongs to other settings, or is in use."""


class NotWrittenError(ArtsError):
    """A file cannot be written: the disk is full, the folder is read-only. What was written before is whole."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Close matches and the whole list, as the tail of an error message."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else "."
    return f"{hint} Known: {', '.join(names) or 'none'}."


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that nobody registered."""
    return UnknownNameError(
        f"unknown {kind} {name!r}{did_you_mean(name, known)} `arts plugins` shows where each comes from."
    )

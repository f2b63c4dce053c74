"""Hidden states of a run's trees: `RUN/features/KEY.safetensors`, one file a tree, one row a node.

Rows are the proposer's post-norm hidden states at the last kept token of each node, in the order of `tree.nodes`
(row 0 is the prompt), as float16: half the space, and a rounding of 5e-4, below what a quantised model's own
arithmetic leaves uncertain. Nothing is ever unpickled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from arts_plugin.errors import ArtsError
from arts_plugin.tree import ReasoningTree, check_key
from arts_plugin.writing import write_whole

FOLDER = "features"
_TENSOR = "features"


def file_of(run: str | Path, key: str) -> Path:
    """Where the features of the tree with this key lie.

    Raises:
        ArtsError: it is no key, and might lead anywhere.
    """
    try:
        check_key(key)
    except ValueError as error:
        raise ArtsError(f"{run}: {error}") from None
    return Path(run) / FOLDER / f"{key}.safetensors"


def save(run: str | Path, key: str, tree: ReasoningTree, model: str = "") -> bool:
    """Write the features that the tree's nodes carry; False if they carry none.

    A node without one (an error, say) gets a row of NaN. `model` is the proposer's digest.
    """
    carried = [node.feature for node in tree.nodes if node.feature is not None]
    if not carried:
        return False
    rows = np.full((len(tree.nodes), len(carried[0])), np.nan, dtype=np.float32)
    for node in tree.nodes:
        if node.feature is not None:
            rows[node.id] = node.feature
    write(file_of(run, key), rows, model)
    return True


def write(file: Path, rows: npt.NDArray[np.float32], model: str) -> None:
    """Write `rows` [n_nodes, n_embd] whole or not at all; float32 where float16 would overflow.

    Raises:
        NotWrittenError: the system does not let us.
    """
    from safetensors.numpy import save

    fits = not np.any(np.abs(rows) > np.finfo(np.float16).max)
    write_whole(file, save({_TENSOR: rows.astype(np.float16 if fits else np.float32)}, metadata={"model": model}))


def load(run: str | Path, key: str, tree: ReasoningTree, model: str = "") -> npt.NDArray[np.float32]:
    """The features of a tree, float32 [n_nodes, n_embd].

    Raises:
        ArtsError: there are none, they are another tree's, of another model, or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    file = file_of(run, key)
    if not file.exists():
        raise ArtsError(f"{file} does not exist: search with features=true, or derive them with `arts features {run}`")
    try:
        with safe_open(file, framework="numpy") as opened:
            theirs = (opened.metadata() or {}).get("model", "")
            rows = np.asarray(opened.get_tensor(_TENSOR), dtype=np.float32)
    except (
        SafetensorError,
        OSError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:  # the latter for types that numpy lacks
        raise ArtsError(f"{file} cannot be read: {error}; derive it again with `arts features {run}`") from error
    if model and theirs and theirs != model:
        raise ArtsError(f"{file} holds features of another model ({theirs}, the run's is {model})")
    if rows.ndim != 2 or len(rows) != len(tree.nodes):
        raise ArtsError(f"{file} has shape {rows.shape}, and the tree has {len(tree.nodes)} nodes")
    return rows

"""`arts features`: the hidden states of recorded trees, computed again from their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arts_plugin import features
from arts_plugin.backend import Backend
from arts_plugin.errors import ArtsError
from arts_plugin.run import read_trees
from arts_plugin.training.dataset import RunInfo


def check_model(run: str | Path, backend: Backend) -> None:
    """Raises ArtsError unless the run's trees came from this model."""
    model = RunInfo.read(run).model
    if model.get("digest") != backend.digest():
        raise ArtsError(
            f"{run} was made with {model.get('name')} ({model.get('digest')}), and the model is {backend.info.name} "
            f"({backend.digest()}); name the right one with --model"
        )


def derive(run: str | Path, backend: Backend, *, again: bool = False) -> Iterator[str]:
    """Compute what is missing (or everything, `again`) and write it; the key of each tree as it is done.

    Raises:
        ArtsError: the run is another model's, or a tree does not hold its prompt's tokens.
    """
    check_model(run, backend)
    for tree in read_trees(run):
        key = str(tree.meta.get("key", ""))
        if not again and features.file_of(run, key).exists():
            yield key
            continue
        if not tree.nodes[0].token_ids:
            raise ArtsError(
                f"the tree {key} of {run} does not hold the tokens of its prompt (an older release made it)"
            )
        nodes = tree.nodes
        rows = backend.tree_features(
            [node.token_ids for node in nodes], [node.parent for node in nodes], [node.cut_tokens for node in nodes]
        )
        features.write(features.file_of(run, key), rows, backend.digest())
        yield key

"""`arts features`: the hidden states of recorded trees, computed again from their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arts_plugin import features
from arts_plugin.backend import Backend
from arts_plugin.errors import ArtsError
from arts_plugin.run import RunInfo, read_trees


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
        ArtsError: the run is another model's, or a tree has no key, or not the tokens that its prompt must have.
    """
    check_model(run, backend)
    for tree in read_trees(run):
        key = tree.meta.get("key")
        if key is None:
            raise ArtsError(f"a tree of {run} has no key to keep its hidden states by; was it made by hand?")
        if not again and features.file_of(run, key).exists():
            yield key
            continue
        nodes, n_vocab = tree.nodes, backend.info.n_vocab
        if not nodes[0].token_ids:
            raise ArtsError(
                f"the tree {key} of {run} does not hold the tokens of its prompt (an older release made it)"
            )
        ids = [token for node in nodes for token in node.token_ids]
        if min(ids) < 0 or (n_vocab and max(ids) >= n_vocab):
            raise ArtsError(f"the tree {key} of {run} has tokens that are none of the model's {n_vocab}")
        rows = backend.tree_features(
            [node.token_ids for node in nodes], [node.parent for node in nodes], [node.cut_tokens for node in nodes]
        )
        features.write(features.file_of(run, key), rows, backend.digest())
        yield key

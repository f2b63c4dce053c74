"""Hidden states from a pooling server beside the one that generates: what a verifier's head reads."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from arts_plugin.backend import FloatArray
from arts_plugin.errors import ModelError
from arts_server.dialect import served, tokenizer_of
from arts_server.faults import RetryError, reading, shorten, shown
from arts_server.replicas import Replica
from arts_server.transport import Transport

EMBEDDINGS = "/v1/embeddings"
START = (
    'vLLM: --runner pooling --convert embed --pooler-config \'{"pooling_type": "LAST", "use_activation": false}\'; '
    "llama-server: --embeddings --pooling last"
)
_UNIT = 1e-3
_AT_ONCE = 256
"""Hidden states that one request asks for, so that a reply is not too long."""
_TELLING = "Step 12: x_1 = 2024 + \u00bd;\n\n  return na\u00efve(\u65e5\u672c\u8a9e, '\u043e\u0442\u0432\u0435\u0442') # \U0001f600 "
"""Vocabularies that are not the same hardly ever agree on all of this."""
log = logging.getLogger(__name__)


class PoolingServer:
    """The state at the last token of each of some token sequences.

    Raises:
        ModelError: it serves no single model, gives no embeddings, or scales them to length one.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        names = {str(entry["id"]) for entry in transport.each(self._served, "features_url")}
        if len(names) > 1:
            raise ModelError(f"the servers of features_url are not alike: {shorten(', '.join(sorted(names)))}")
        self.model = names.pop()
        self.n_embd = 0  # until it is known
        # Two tokens that every vocabulary has: hidden states of different tokens are hardly ever both of length one.
        rows = transport.do(self.states([(1,), (1, 2)]))
        if np.all(np.abs(np.linalg.norm(rows, axis=1) - 1) < _UNIT):
            raise ModelError(
                f"features_url scales its hidden states to length one, which no verifier has learned from. {START}"
            )
        self.n_embd = int(rows.shape[1])

    async def _served(self, replica: Replica) -> dict[str, Any]:
        try:
            return await served(self.transport, replica, None)
        except ModelError as error:
            raise ModelError(f"features_url must serve one pooling model ({error}). {START}") from error

    def check(self, model: str, tokenize: Callable[[str], Sequence[int]]) -> None:
        """Whether the model here can be the one that generates.

        Args:
            model, tokenize: its name, and its tokens of a text.

        Raises:
            ModelError: the servers give different tokens for a text.
        """
        wanted = list(tokenize(_TELLING))
        for replica, tokens in self.transport.each(self._tokens, "features_url"):
            if tokens is not None and tokens != wanted:
                raise ModelError(
                    f"{replica.root} serves {shorten(self.model)}, which has another vocabulary than {shorten(model)}: "
                    "features_url must serve the model that generates"
                )
        if model != self.model:
            log.warning(
                "features_url serves %s and base_url %s: hidden states mean nothing if they are of another model",
                shorten(self.model),
                shorten(model),
            )

    async def _tokens(self, replica: Replica) -> tuple[Replica, list[int] | None]:
        """None where it has no endpoint for it."""
        return replica, (await tokenizer_of(self.transport, replica, self.model, _TELLING))[1]

    async def states(self, sequences: Sequence[Sequence[int]]) -> FloatArray:
        """Post-norm hidden states at the last tokens, float32 [n, n_embd]."""
        found = [await self._some(sequences[at : at + _AT_ONCE]) for at in range(0, len(sequences), _AT_ONCE)]
        return np.concatenate(found)

    async def _some(self, sequences: Sequence[Sequence[int]]) -> FloatArray:
        body = {
            "model": self.model,
            "input": [list(ids) for ids in sequences],
            "encoding_format": "base64",
            "embd_normalize": -1,  # llama-server's word for leaving them as they are
        }
        return await self.transport.post(EMBEDDINGS, body, read=lambda reply: _rows(reply, len(sequences), self.n_embd))


def _rows(reply: dict[str, Any], wanted: int, n_embd: int = 0) -> FloatArray:
    data = reply.get("data")
    if not isinstance(data, list) or len(data) != wanted:
        raise RetryError(f"{EMBEDDINGS} gives no {wanted} embeddings: {shown(reply)}")
    with reading("an embedding"):
        places = [entry.get("index", place) for place, entry in enumerate(data)]
        if sorted(places) != list(range(wanted)):
            raise ValueError(f"the indexes of {wanted} embeddings are {places}")
        rows = np.stack(
            [_vector(entry["embedding"]) for _, entry in sorted(zip(places, data, strict=True), key=_index)]
        )
        if rows.ndim != 2 or not rows.size or (n_embd and rows.shape[1] != n_embd):
            raise ValueError(
                f"embeddings of shape {rows.shape}" + (f", which had {n_embd} numbers before" if n_embd else "")
            )
        return rows


def _index(pair: tuple[int, Any]) -> int:
    return pair[0]


def _vector(embedding: Any) -> FloatArray:
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)

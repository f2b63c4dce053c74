"""Published process reward models as scorers, read step by step over the KV pool like any verifier with a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from arts_hf import loading, memory
from arts_hf.decoder import PoolDecoder
from arts_hf.layouts import Layout, LinearHead, TokenPair
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.backbone_verifier import N_CTX, BackboneVerifier, Item, PathAggregate
from arts_plugin.backend import FloatArray
from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings
from arts_plugin.verifier import StateView

Read = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states [n, n_embd] -> log-probability that the step is good [n]."""


class PrmBody:
    """See `arts_plugin.backbone_verifier.Body`."""

    def __init__(self, decoder: PoolDecoder, vocabulary: HfVocabulary, read: Read) -> None:
        self.decoder, self.vocabulary, self.read = decoder, vocabulary, read
        self.kv, self.n_batch = decoder.kv, decoder.n_batch

    def tokenize(self, text: str) -> Sequence[int]:
        """Ordinary text."""
        return self.vocabulary.tokenize(text)

    def tokenize_prompt(self, text: str) -> Sequence[int]:
        """Ordinary text: a layout spells its own BOS."""
        return self.vocabulary.tokenize(text)

    def states(self, items: Sequence[Item], at: Sequence[int]) -> FloatArray:
        """Log-probabilities in place of hidden states, [len(at), 1]: they are all that anybody asks for."""
        with torch.inference_mode():
            return np.asarray(self.read(self.decoder.hidden_at(items, at))[:, None].float().cpu().numpy())

    def close(self) -> None:
        """Let go of the model."""
        closed: Any = None
        self.decoder = self.read = self.kv = closed
        memory.give_back()


class PrmVerifier(BackboneVerifier):
    """A process reward model by its layout. Scores are logarithms of probabilities, so a vote weighs by probability.

    Args:
        body: the model.
        layout: see `arts_hf.layouts.Layout`.
        aggregate: in place of the layout's.
    """

    is_flow = False

    def __init__(self, body: PrmBody, layout: Layout, aggregate: PathAggregate | None = None) -> None:
        super().__init__(body, layout.name, aggregate or layout.aggregate)
        self.layout, self.vocabulary = layout, body.vocabulary

    def read_prompt(self, state: StateView) -> Sequence[int]:
        """The question in its layout."""
        return self._fill(self.layout.prompt, False, question=state.question.strip())

    def read_step(self, state: StateView, first: bool) -> Sequence[int]:
        """A step with its tag; a step without text has none."""
        step = state.step_text.strip()
        if not step:
            return []
        filled = self._fill((self.layout.before if first else self.layout.between) + self.layout.step, True, step=step)
        return [*filled, *self.vocabulary.tokenize(self.layout.tag)[-1:]]

    def outputs(self, rows: FloatArray) -> npt.NDArray[np.float64]:
        """What the body has read; the prompt by itself is neither good nor bad."""
        return np.asarray(rows[:, 0], dtype=np.float64)

    def _fill(self, template: str, continued: bool, **texts: str) -> list[int]:
        """Tokens of a template with texts in it. The template's special tokens are tokens, those in texts are text;
        the rest is tokenised between special tokens, not piece by piece, as it is in the strings of training.

        Args:
            continued: whether other tokens stand before these.
        """
        tokens: list[int] = []
        plain = ""
        texts["bos"] = ""
        if self.vocabulary.bos is not None and template.startswith("{bos}"):
            tokens.append(self.vocabulary.bos)
        for i, part in enumerate(re.split(r"\{(\w+)\}", template.replace("{{}}", "\0"))):
            if i % 2:
                plain += texts[part]
                continue
            for j, piece in enumerate(re.split(f"({self.vocabulary.special.pattern})", part.replace("\0", "{}"))):
                if j % 2:
                    tokens += [
                        *self._text(plain, continued and not tokens),
                        *self.vocabulary.tokenize(piece, special=True),
                    ]
                    plain = ""
                else:
                    plain += piece
        return [*tokens, *self._text(plain, continued and not tokens)]

    def _text(self, text: str, continued: bool) -> list[int]:
        if not text:
            return []
        return self.vocabulary.continuation(text) if continued else self.vocabulary.tokenize(text)


def load(layout: Layout, settings: Settings) -> PrmVerifier:
    """The scorer of a layout, with the model that `verifier_model` names or the published one.

    Raises:
        ModelError: the model cannot be loaded, or has not what its layout reads.
    """
    # The revision is the proposer's.
    wanted = settings.with_(
        model=settings.verifier_model or layout.model, revision=None, n_ctx=max(N_CTX, settings.n_ctx)
    )
    bare = isinstance(layout.readout, LinearHead)
    loaded = loading.load(wanted, with_head=not bare)
    name = loaded.source.stem
    vocabulary = HfVocabulary(
        loaded.tokenizer, loaded.model.config, getattr(loaded.model, "generation_config", None), name
    )
    read = _linear(layout.readout, loaded, name) if bare else _pair(layout.readout, loaded.model, vocabulary)  # type: ignore[arg-type]
    decoder = PoolDecoder(loaded.model, name, wanted.n_ctx, max(512, wanted.n_ubatch))
    made = PrmVerifier(PrmBody(decoder, vocabulary, read), layout, settings.verifier_aggregate)
    _check_tag(made, layout, name)
    return made


def _check_tag(made: PrmVerifier, layout: Layout, name: str) -> None:
    """Special tokens of a layout must be tokens of the vocabulary: as text, they would be read as something else."""
    known = set(made.body.vocabulary.tokenizer.get_vocab())  # type: ignore[attr-defined]
    marks = re.findall(r"<\|?[\w ]+\|?>", layout.prompt + layout.step + layout.between)
    missing = [mark for mark in dict.fromkeys(marks) if mark not in known]
    if missing:
        raise ModelError(f"{name} is no model for {layout.name}: its vocabulary has no {', '.join(missing)}")


def _linear(readout: LinearHead, loaded: loading.Loaded, name: str) -> Read:
    tensors = loading.tensors(
        loaded.source, [f"{layer}.{part}" for layer in readout.layers for part in ("weight", "bias")]
    )
    weights = []
    for layer in readout.layers:
        if f"{layer}.weight" not in tensors:
            raise ModelError(f"{name} has no tensor {layer}.weight, which its head is made of")
        kind = {"device": loaded.model.device, "dtype": loaded.model.dtype}
        bias = tensors.get(f"{layer}.bias")
        weights.append((tensors[f"{layer}.weight"].to(**kind), None if bias is None else bias.to(**kind)))
    if weights[-1][0].shape[0] != readout.classes:
        raise ModelError(f"the head of {name} has {weights[-1][0].shape[0]} outputs, and its layout {readout.classes}")

    def read(hidden: torch.Tensor) -> torch.Tensor:
        for number, (weight, bias) in enumerate(weights):
            # The last layers of a model that is spread over devices lie on another than its first.
            here = None if bias is None else bias.to(hidden.device)
            hidden = torch.nn.functional.linear(
                hidden if number == 0 else torch.relu(hidden), weight.to(hidden.device), here
            )
        if readout.classes == 1:
            return torch.nn.functional.logsigmoid(hidden[:, 0].float())
        return torch.log_softmax(hidden.float(), 1)[:, 1]

    return read


def _pair(readout: TokenPair, model: Any, vocabulary: HfVocabulary) -> Read:
    ids = [vocabulary.tokenize(text)[-1] for text in (readout.good, readout.bad)]
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{vocabulary.name} has no language-model head, which its judgement is read from")
    weight = head.weight[ids]

    def read(hidden: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax((hidden @ weight.to(hidden.device).T).float(), 1)[:, 0]

    return read

"""A verifier on disk: `arts_verifier.json` and `value_head.safetensors`. JSON and safetensors only; nothing is unpickled.

The card records what the verifier was trained on, so that it can say when it is used on something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from arts_plugin.backend import Backend, FloatArray
from arts_plugin.errors import ArtsError
from arts_plugin.lines import read_object
from arts_plugin.records import check_fields
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree
from arts_plugin.value_head import Aggregate, Link, StateFeature, ValueHead, ValueHeadVerifier, width
from arts_plugin.verifier import Verifier
from arts_plugin.writing import write_whole

CARD_FILE, HEAD_FILE = "arts_verifier.json", "value_head.safetensors"
HF_ADAPTER, GGUF_ADAPTER = "adapter/adapter_model.safetensors", "adapter.gguf"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Proposer:
    """The model whose states a verifier was trained on. `digest` is that of its weights."""

    name: str
    digest: str
    n_embd: int
    family: str = ""


@dataclass(frozen=True, slots=True)
class Backbone:
    """The model of a verifier that has one of its own. `source` is where it was loaded from when it was trained."""

    name: str
    digest: str
    source: str
    n_embd: int


@dataclass(frozen=True, slots=True)
class Card:
    """`arts_verifier.json`.

    Attributes:
        name: under which its scores are kept in a tree.
        proposer: see `Proposer`.
        prompt: what stands before and after the question in the prompts that it was trained on.
        delimiter: what ended a step there.
        feature, aggregate, link, is_flow: see `arts_plugin.value_head`.
        backbone: the verifier's own model; None for a head on the proposer's hidden states.
        select: the selection rule that did best on its validation problems; None leaves the default.
        training: the loss, settings and data it came from, and how to make it again.
        validation: figures on held-out problems of the training data.
    """

    name: str
    proposer: Proposer
    prompt: tuple[str, str]
    delimiter: str
    feature: StateFeature
    aggregate: Aggregate
    link: Link
    is_flow: bool
    select: str | None = None
    backbone: Backbone | None = None
    training: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write the card into a verifier's folder.

        Raises:
            NotWrittenError: the system does not let us.
        """
        text = json.dumps({"format": FORMAT_VERSION, **asdict(self)}, indent=1)
        write_whole(Path(folder) / CARD_FILE, text + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Card:
        """Read a card.

        Raises:
            ArtsError: there is none, it is damaged, or of a later format.
        """
        file = Path(folder) / CARD_FILE
        try:
            record = read_object(file)
        except OSError as error:
            raise ArtsError(f"no verifier at {folder}: {CARD_FILE} cannot be read ({error})") from error
        except ValueError as error:
            raise ArtsError(f"{file} is not JSON of a card: {error}") from error
        try:
            version = record.pop("format")
            if version != FORMAT_VERSION:
                raise ArtsError(
                    f"{file} has format {version!r:.80}; this release of arts-plugin reads {FORMAT_VERSION}"
                )
            check_fields(cls, record)
            check_fields(Proposer, record["proposer"])
            head, tail = record["prompt"]
            body = record.get("backbone")
            if body is not None:
                check_fields(Backbone, body)
            record["backbone"] = Backbone(**body) if body else None
            card = cls(**{**record, "proposer": Proposer(**record["proposer"]), "prompt": (head, tail)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtsError(f"{file} is damaged: {error!r:.300}") from error
        return card

    def remarks(self, backend: Backend, settings: Settings) -> list[str]:
        """What differs from the conditions that the verifier was trained under.

        Raises:
            ArtsError: the proposer's hidden states are of another size.
        """
        info = backend.info
        if self.backbone is None and info.n_embd != self.proposer.n_embd:
            raise ArtsError(
                f"verifier {self.name!r} reads hidden states of size {self.proposer.n_embd} (trained on "
                f"{self.proposer.name}), and those of {info.name} have {info.n_embd}; use verifier=none or another"
            )
        found = []
        if backend.digest() != self.proposer.digest:
            found.append(f"it was trained on the states of {self.proposer.name}, and the proposer is {info.name}")
        if settings.delimiter != self.delimiter:
            found.append(f"its steps ended at {self.delimiter!r}, and these end at {settings.delimiter!r}")
        return found

    def same_prompt(self, text: str) -> bool:
        """Whether a prompt has the format that the verifier was trained on."""
        return text.startswith(self.prompt[0]) and text.endswith(self.prompt[1])


def prompt_format(prompt: str, question: str) -> tuple[str, str]:
    """What stands before and after the question in a prompt.

    Raises:
        ArtsError: the question is not in it.
    """
    head, found, tail = prompt.partition(question)
    if not found or not question:
        raise ArtsError(f"the prompt does not hold its question: {question[:60]!r} is not in {prompt[:60]!r}")
    return head, tail


def family(backend: Backend) -> str:
    """The model apart from its quantisation, as far as its file says; empty if it does not."""
    return str(backend.info.details.get("general.name", ""))


@dataclass(frozen=True, slots=True)
class TrainedVerifier:
    """A verifier and its card. `digest` is that of the weights that it was trained to: the head's and an adapter's."""

    card: Card
    head: ValueHead
    verifier: Verifier
    digest: str

    def identity(self) -> dict[str, str]:
        """What tells it from every other one: its name, and the digests of its weights and of its base model's."""
        body = {} if self.card.backbone is None else {"backbone": self.card.backbone.digest}
        return {"name": self.card.name, "digest": self.digest, **body}

    def score_tree(self, tree: ReasoningTree, rows: Callable[[], FloatArray]) -> npt.NDArray[np.float64]:
        """The scores of all states of a recorded tree, [n_nodes].

        Args:
            rows: gives the proposer's hidden states [n_nodes, n_embd]; called only if the verifier reads them.
        """
        if isinstance(self.verifier, ValueHeadVerifier):
            return self.verifier.score_tree(rows(), [node.parent for node in tree.nodes])
        recorded: Any = self.verifier
        return np.asarray(recorded.score_recorded(tree))


def load(folder: str | Path, settings: Settings | None = None) -> TrainedVerifier:
    """Read a verifier's folder.

    Args:
        settings: of a verifier with a model of its own: where that is (`verifier_model`) and how it runs (`device`,
            `dtype`, `n_threads`, `n_gpu_layers`...).

    Raises:
        ArtsError: the card or the head is missing, damaged, or they contradict each other.
    """
    card = Card.load(folder)
    file = Path(folder) / HEAD_FILE
    if not file.exists():
        raise ArtsError(f"{folder} has a {CARD_FILE} and no {HEAD_FILE}")
    head = ValueHead.load(file)
    if card.backbone is not None:
        return _with_backbone(Path(folder), card, head, settings or Settings())
    if head.n_embd != (wanted := width(card.feature, card.proposer.n_embd)):
        raise ArtsError(f"{file} reads {head.n_embd} numbers, and by its card it should read {wanted}")
    made = ValueHeadVerifier(
        head,
        card.name,
        feature=card.feature,
        aggregate=card.aggregate,
        link=card.link,
        is_flow=card.is_flow,
    )
    return TrainedVerifier(card, head, made, _digest(file))


def _digest(*weights: Path) -> str:
    made = hashlib.sha256()
    for file in weights:
        try:
            made.update(file.read_bytes())
        except OSError as error:
            raise ArtsError(f"{file} cannot be read: {error.strerror or error}; fetch or train it again") from error
    return made.hexdigest()


def runs_on(folder: Path) -> str:
    """The backend that runs the model of a verifier that has one: `llama_cpp` for an exported adapter, else `hf`."""
    return "llama_cpp" if (folder / GGUF_ADAPTER).exists() else "hf"


def _with_backbone(folder: Path, card: Card, head: ValueHead, settings: Settings) -> TrainedVerifier:
    """A verifier that is a language model itself."""
    body = card.backbone
    if body is not None and head.n_embd != body.n_embd:
        raise ArtsError(f"{folder / HEAD_FILE} reads {head.n_embd} numbers, and {body.name} has {body.n_embd}")
    exported = runs_on(folder) == "llama_cpp"
    adapter = folder / (GGUF_ADAPTER if exported else HF_ADAPTER)
    if not adapter.exists():
        raise ArtsError(f"verifier {card.name!r} has a model of its own, and {folder} holds no {HF_ADAPTER}")
    try:
        if exported:
            from arts_llama_cpp.verifier import load as load_backbone
        else:
            from arts_hf.verifier import load as load_backbone
    except ImportError as error:
        extra = "llama" if exported else "hf"
        raise ArtsError(
            f"verifier {card.name!r} has a model of its own: pip install 'arts-plugin[{extra}]' ({error})"
        ) from error
    made = load_backbone(folder, card, head, settings)
    return TrainedVerifier(card, head, made, _digest(folder / HEAD_FILE, adapter))


# Shipped verifiers.
def shipped_folder() -> Path:
    """Where the verifiers lie that come with the package."""
    return Path(str(files("arts_plugin").joinpath("verifiers")))


@cache
def shipped() -> dict[str, Card]:
    """Name -> card of the verifiers that come with the package."""
    return dict(_shipped())


def _shipped() -> Iterator[tuple[str, Card]]:
    folder = shipped_folder()
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (place / CARD_FILE).exists():
            yield place.name, Card.load(place)


def matching(backend: Backend) -> tuple[str, Card] | None:
    """The shipped verifier that was trained on this proposer: the same weights, else the same model quantised
    otherwise; None if there is none."""
    fits = {name: card for name, card in shipped().items() if card.proposer.n_embd == backend.info.n_embd}
    if not fits:
        return None
    digest = backend.digest()
    for name, card in fits.items():
        if card.proposer.digest == digest:
            return name, card
    model = family(backend)
    return next(((name, card) for name, card in fits.items() if model and card.proposer.family == model), None)


def find(name: str) -> Path | None:
    """The folder of a verifier by built-in name, path or `owner/name` on a hub; None if it is none of these.

    Raises:
        ArtsError: the hub does not have it, or cannot be reached.
    """
    if name in shipped():
        return shipped_folder() / name
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return None
    return _download(name)


def _download(repo_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ArtsError(
            f"verifier={repo_id} is no folder here; to look on a hub, pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(repo_id, allow_patterns=[CARD_FILE, HEAD_FILE, GGUF_ADAPTER, "adapter/*"]))
    except Exception as error:  # the hub library's errors are many, and all mean that it is not to be had
        raise ArtsError(f"verifier={repo_id} is no folder here and was not found on the hub: {error}") from error

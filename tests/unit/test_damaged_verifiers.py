"""Verifier files that are damaged, edited or made to harm: each is refused by one kind of error, which names the file."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from arts_plugin import checkpoint
from arts_plugin.checkpoint import CARD_FILE, HEAD_FILE, Card, Proposer
from arts_plugin.errors import ArtsError
from arts_plugin.value_head import ValueHead, read_tensors

N = 4
TENSORS = {
    "w1": np.ones((3, N), np.float32), "b1": np.ones(3, np.float32), "w2": np.ones(3, np.float32), "b2": np.ones((), np.float32),
}  # fmt: skip


def bfloat16(kind: str = "BF16") -> bytes:
    """A head in a type that numpy lacks."""
    header = json.dumps({"w1": {"dtype": kind, "shape": [1, 1], "data_offsets": [0, 2]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = Card("mine", Proposer("m", "sha256:1", N), ("<", ">"), "\n", "last", "terminal", "identity", True)
    made.save(tmp_path)
    save_file(TENSORS, tmp_path / HEAD_FILE)
    checkpoint.load(tmp_path)
    return tmp_path


def with_tensor(name: str, value: Any) -> bytes:
    return save({**TENSORS, name: np.asarray(value)})


HEADS: dict[str, bytes] = {
    "empty": b"",
    "text": b"{}",
    "half": save(TENSORS)[:-5],
    "half a header": save(TENSORS)[:20],
    "a header without end": struct.pack("<Q", 1 << 62) + b"{}",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "bfloat16": bfloat16(),
    "float8": bfloat16("F8_E4M3"),
    "nothing": save({}),
    "no w2": save({name: TENSORS[name] for name in ("w1", "b1", "b2")}),
    "flat": with_tensor("w1", np.ones(3, np.float32)),
    "two outputs": with_tensor("b2", np.ones(2, np.float32)),
    "another size": with_tensor("b1", np.ones(5, np.float32)),
    "NaN": with_tensor("w1", np.full((3, N), np.nan, np.float32)),
    "one NaN": with_tensor("b1", np.array([0, np.nan, 0], np.float32)),
    "infinite": with_tensor("w2", np.array([0, np.inf, 0], np.float32)),
    "NaN bias": with_tensor("b2", np.float32(np.nan)),
    "beyond float32": with_tensor("w2", np.array([1.0, 1e300, 0.0])),
}


@pytest.mark.parametrize("what", HEADS)
def test_heads(what: str, folder: Path) -> None:
    (folder / HEAD_FILE).write_bytes(HEADS[what])
    with pytest.raises(ArtsError, match=HEAD_FILE) as error:
        checkpoint.load(folder)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("file", [HEAD_FILE, CARD_FILE])
def test_a_folder_in_the_place_of_a_file(file: str, folder: Path) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    with pytest.raises(ArtsError, match=file):
        checkpoint.load(folder)


DEEP = "[" * 100_000 + "]" * 100_000
CARDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "name": lambda card: card.update(name=7),
    "proposer": lambda card: card.update(proposer=None),
    "proposer's size": lambda card: card["proposer"].update(n_embd="4"),
    "proposer's huge size": lambda card: card["proposer"].update(n_embd=10**400),
    "proposer's digest": lambda card: card["proposer"].pop("digest"),
    "prompt": lambda card: card.update(prompt=["a"]),
    "prompt of numbers": lambda card: card.update(prompt=[1, 2]),
    "prompt as text": lambda card: card.update(prompt="ab"),
    "delimiter": lambda card: card.update(delimiter=None),
    "feature": lambda card: card.update(feature=["last"]),
    "is_flow": lambda card: card.update(is_flow="yes"),
    "select": lambda card: card.update(select=1),
    "backbone": lambda card: card.update(backbone=[1]),
    "half a backbone": lambda card: card.update(backbone={"name": "m"}),
    "training": lambda card: card.update(training=[]),
    "format": lambda card: card.update(format=[1]),
    "no format": lambda card: card.pop("format"),
    "another field": lambda card: card.update(run="rm -rf"),
}


@pytest.mark.parametrize("what", CARDS)
def test_cards(what: str, folder: Path) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    CARDS[what](card)
    (folder / CARD_FILE).write_text(json.dumps(card))
    with pytest.raises(ArtsError, match=CARD_FILE):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", '"text"', DEEP, '{"a":' * 300 + "1" + "}" * 300, "\xff" * 10**6]
)
def test_cards_that_are_none(text: str, folder: Path) -> None:
    (folder / CARD_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtsError, match=CARD_FILE) as error:
        checkpoint.load(folder)
    assert len(repr(error.value)) < 1000


def test_any_byte_may_be_another(folder: Path) -> None:
    """A file that was changed anywhere loads, or is refused: nothing else comes of it."""
    rng = random.Random(0)
    for name in (HEAD_FILE, CARD_FILE):
        whole = (folder / name).read_bytes()
        for _ in range(150):
            changed = bytearray(whole)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(whole))] = rng.randrange(256)
            (folder / name).write_bytes(bytes(changed[: rng.choice([len(whole), rng.randrange(len(whole))])]))
            try:
                checkpoint.load(folder)
            except ArtsError:
                continue
        (folder / name).write_bytes(whole)


def test_what_is_sound_is_read(folder: Path) -> None:
    """Other types of number than float32 are read as that."""
    np.testing.assert_array_equal(read_tensors(folder / HEAD_FILE)["w1"], TENSORS["w1"])
    save_file({name: value.astype(np.float64) for name, value in TENSORS.items()}, folder / HEAD_FILE)
    assert ValueHead.load(folder / HEAD_FILE)(np.ones((2, N), np.float32)).shape == (2,)

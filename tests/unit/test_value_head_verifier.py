"""The value head on a search's states: incremental features against whole trees."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from arts_plugin import checkpoint
from arts_plugin.backend import ModelInfo
from arts_plugin.checkpoint import Card, Proposer, prompt_format
from arts_plugin.errors import ArtsError
from arts_plugin.settings import Settings
from arts_plugin.value_head import StateFeature, ValueHead, ValueHeadVerifier, path_least, state_features, width
from arts_plugin.verifier import StateView

N = 12
PARENTS = [None, 0, 1, 2, 1, 4, 0, 6]
ROWS = np.random.default_rng(0).normal(size=(len(PARENTS), N)).astype(np.float32)


def head(inputs: int, seed: int = 0) -> ValueHead:
    rng = np.random.default_rng(seed)
    return ValueHead(
        rng.normal(size=(7, inputs)).astype(np.float32), rng.normal(size=7).astype(np.float32),
        rng.normal(size=7).astype(np.float32), 0.3,
    )  # fmt: skip


def view(row: np.ndarray | None, handle: object) -> StateView:
    return StateView("p", "", (), "", (), 0.0, row, False, handle)


def slow_feature(kind: str, node: int) -> np.ndarray:
    path = [node]
    while PARENTS[path[0]] is not None:
        path.insert(0, PARENTS[path[0]])
    mean = ROWS[path[1:]].astype(np.float64).mean(axis=0) if len(path) > 1 else ROWS[0].astype(np.float64)
    return {"last": ROWS[node], "mean": mean, "shift": mean - ROWS[0], "mean_last": np.concatenate([mean, ROWS[node]])}[
        kind
    ]


@pytest.mark.parametrize("kind", get_args(StateFeature))
def test_features_of_a_tree(kind: StateFeature) -> None:
    found = state_features(kind, ROWS, PARENTS)
    assert found.shape == (len(PARENTS), width(kind, N))
    for node in range(len(PARENTS)):
        np.testing.assert_allclose(found[node], slow_feature(kind, node), atol=1e-5)


@pytest.mark.parametrize("link", ["identity", "log_sigmoid"])
@pytest.mark.parametrize("aggregate", ["terminal", "min"])
@pytest.mark.parametrize("kind", get_args(StateFeature))
def test_scores_of_a_search_are_those_of_the_tree(kind: StateFeature, aggregate: str, link: str) -> None:
    """States come in batches, siblings together, the root with its first children; each is forked from its parent."""
    verifier = ValueHeadVerifier(head(width(kind, N)), feature=kind, aggregate=aggregate, link=link)
    handles: dict[int, object] = {0: verifier.open("p")}
    found: dict[int, float] = {}
    for batch in ([0, 1, 6], [2, 4], [7, 3, 5]):
        for node in batch:
            if node:
                handles[node] = verifier.fork(handles[PARENTS[node]])
        scores = verifier.score([view(ROWS[node], handles[node]) for node in batch])
        found.update(zip(batch, scores.tolist(), strict=True))
        again = verifier.score([view(ROWS[node], handles[node]) for node in batch])
        assert again.tolist() == scores.tolist(), "scoring a state twice changes nothing"
    expected = verifier.score_tree(ROWS, PARENTS)
    np.testing.assert_allclose([found[i] for i in range(len(PARENTS))], expected, atol=1e-5)
    if link == "log_sigmoid":
        assert (expected <= 0).all()


def test_least_over_a_path() -> None:
    outputs = np.array([-9.0, 3.0, 1.0, 2.0, 4.0, 0.0, 5.0, 7.0])
    assert path_least(outputs, PARENTS).tolist() == [-9.0, 3.0, 1.0, 1.0, 3.0, 0.0, 5.0, 5.0]


def test_a_state_before_its_parent_is_an_error() -> None:
    verifier = ValueHeadVerifier(head(N), feature="mean")
    with pytest.raises(ArtsError, match="before the state it came from"):
        verifier.score([view(ROWS[1], verifier.fork(verifier.open("p")))])
    with pytest.raises(ArtsError, match="not its own"):
        verifier.fork(object())


# On disk.


def card(**changes: object) -> Card:
    base = Card(
        name="mine", proposer=Proposer("model-q4", "sha256:1", N, "model"), prompt=("<user>", "<end>"), delimiter="\n",
        feature="mean", aggregate="terminal", link="identity", is_flow=True, training={"seed": 0},
    )  # fmt: skip
    return replace(base, **changes)


def saved(folder: Path, **changes: object) -> Path:
    card(**changes).save(folder)
    head(N).save(folder / "value_head.safetensors")
    return folder


class Model:
    """What a card looks at of a backend."""

    def __init__(
        self, digest: str = "sha256:1", n_embd: int = N, name: str = "model-q4", general: str = "model"
    ) -> None:
        self.info = ModelInfo(name, 100, 10, n_embd, details={"general.name": general})
        self._digest = digest

    def digest(self) -> str:
        return self._digest


def test_card_and_head_survive_the_disk(tmp_path: Path) -> None:
    made = checkpoint.load(saved(tmp_path))
    assert made.card == card()
    assert made.verifier.name == "mine"
    np.testing.assert_array_equal(
        made.verifier.score_tree(ROWS, PARENTS), head(N)(state_features("mean", ROWS, PARENTS))
    )
    assert made.identity() == checkpoint.load(tmp_path).identity()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arts_verifier.json", "value_head.safetensors"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "arts_verifier.json").unlink(), "no verifier at"),
        (lambda f: (f / "arts_verifier.json").write_text("{"), "is not JSON"),
        (lambda f: (f / "arts_verifier.json").write_text("{}"), "is damaged"),
        (lambda f: (f / "value_head.safetensors").unlink(), "no value_head"),
        (lambda f: card(feature="mean_last").save(f), "by its card it should read 24"),
        (lambda f: card(link="eval").save(f), "link is 'eval'; it must be 'identity' or 'log_sigmoid'"),
        (
            lambda f: (f / "arts_verifier.json").write_text(
                (f / "arts_verifier.json").read_text().replace('t": 1', 't": 9', 1)
            ),
            "has format 9",
        ),
    ],
)
def test_damaged_folders(tmp_path: Path, damage: object, message: str) -> None:
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtsError, match=message):
        checkpoint.load(tmp_path)


def test_remarks_on_other_conditions() -> None:
    assert card().remarks(Model(), Settings()) == []
    (said,) = card().remarks(Model("sha256:2", name="other"), Settings())
    assert "model-q4" in said and "other" in said
    (said,) = card().remarks(Model(), Settings(delimiter="\n\n"))
    assert r"'\n\n'" in said
    with pytest.raises(ArtsError, match="size 12"):
        card().remarks(Model(n_embd=64), Settings())


def test_prompt_format() -> None:
    assert prompt_format("<user>How many?<end>", "How many?") == ("<user>", "<end>")
    assert card().same_prompt("<user>anything<end>")
    assert not card().same_prompt("anything<end>")
    with pytest.raises(ArtsError, match="does not hold its question"):
        prompt_format("<user>", "How many?")


def test_matching_takes_the_same_weights_first_then_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {
        "far": card(proposer=Proposer("x", "sha256:9", N, "x")),
        "near": card(proposer=Proposer("model-q8", "sha256:8", N, "model")),
        "same": card(),
    }
    monkeypatch.setattr(checkpoint, "shipped", lambda: cards)
    assert checkpoint.matching(Model())[0] == "same"
    assert checkpoint.matching(Model("sha256:5"))[0] == "near"
    assert checkpoint.matching(Model("sha256:5", general="other")) is None
    assert checkpoint.matching(Model("sha256:5", general="")) is None
    assert checkpoint.matching(Model(n_embd=99)) is None


def test_find_by_path_name_and_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.find(str(saved(tmp_path / "mine"))) == tmp_path / "mine"
    assert checkpoint.find("no-such-verifier") is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ArtsError, match="nobody/nothing is no folder here"):
        checkpoint.find("nobody/nothing")

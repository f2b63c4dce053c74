"""Verifiers with a model of their own: packed trees against separate sequences, reading step by step against reading
at once, adapters that fit and that do not."""

from __future__ import annotations

import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arts_plugin.checkpoint import Backbone, Card, Proposer
from arts_plugin.errors import ArtsError, ModelError
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree
from arts_plugin.verifier import LogprobScorer, StateView, close

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from arts_hf import backbone  # noqa: E402
from arts_hf.packed import NAME as PACKED  # noqa: E402
from arts_hf.packed import segments_of  # noqa: E402
from arts_hf.runtime import HfRuntime  # noqa: E402
from arts_hf.verifier import HfBody, HfVerifier  # noqa: E402
from arts_plugin.backbone_verifier import BackboneVerifier  # noqa: E402
from arts_plugin.training.dataset import LabelledTree  # noqa: E402
from arts_plugin.training.losses import make_loss  # noqa: E402
from arts_plugin.training.packing import pack  # noqa: E402
from arts_plugin.training.trainer import Head, forest_of  # noqa: E402
from arts_plugin.value_head import ValueHead  # noqa: E402
from tests.real.test_hf_engine import COMMON, KINDS  # noqa: E402

WIDTH = 32


class Letters:
    """A vocabulary of characters."""

    name, n_vocab = "letters", 97

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        return [ord(c) % 97 for c in text]

    def encode(self, text: str) -> Any:
        return type("Prompt", (), {"token_ids": (1, *self.tokenize(text))})()


def network(kind: str) -> Any:
    name, more = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**COMMON, **more})
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def tree(seed: int = 0, n_nodes: int = 30) -> ReasoningTree:
    """A random tree of short texts, some of them empty."""
    numbers = random.Random(seed)
    made = ReasoningTree(prompt="how many pens are left", strategy="sdf")
    for _ in range(n_nodes):
        parent = numbers.choice([node.id for node in made.nodes if not node.terminal][-8:])
        text = "".join(numbers.choice("abcdefg ") for _ in range(numbers.choice([0, 3, 5, 9])))
        made.add(parent, text=text, index=len(made.nodes), terminal=numbers.random() < 0.3)
    for node in made.nodes:
        if not node.children:
            node.terminal = True
    return made


def path_tokens(made: ReasoningTree, node: int) -> list[int]:
    letters = Letters()
    return [*letters.encode(made.prompt).token_ids, *(t for n in made.path(node) for t in letters.tokenize(n.text))]


def test_packing() -> None:
    """Each token once, at its depth, after its ancestors."""
    made = tree()
    packed = pack(made, Letters().tokenize, lambda text: Letters().encode(text).token_ids)
    mask = packed.mask()
    assert len(packed.tokens) == len(path_tokens(made, 0)) + sum(len(node.text) for node in made.nodes[1:])
    for node in made.nodes:
        seen = np.flatnonzero(mask[packed.ends[node.id]])
        assert packed.tokens[seen].tolist() == path_tokens(made, node.id)
        assert packed.positions[seen].tolist() == list(range(len(seen)))
    leaves = [node.id for node in made.nodes if not node.children]
    assert packed.alone == sum(len(path_tokens(made, leaf)) for leaf in leaves)
    with pytest.raises(ArtsError, match="no token to begin from"):
        pack(made, lambda text: [])


@pytest.mark.parametrize("way", ["sdpa", "segments", "segments, checkpointing", "too many segments"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral, window 7", "gemma3, window 5"])
def test_packed_equals_separate(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states of all nodes, and the gradients of a loss over them, also where activations are computed again."""
    made = tree(3)
    packed = pack(made, Letters().tokenize, lambda text: Letters().encode(text).token_ids)
    model = network(kind)
    if way != "sdpa":
        model.set_attn_implementation(PACKED)
        found = segments_of(packed, torch.device("cpu"))
        assert found is not None and 3 < len(found.parts) < len(made.nodes)
    if way == "too many segments":
        monkeypatch.setattr("arts_hf.packed.MOST_SEGMENTS", 2)
    if way == "segments, checkpointing":
        model.gradient_checkpointing_enable()
        model.train()
    weight = next(p for n, p in model.named_parameters() if n.endswith("layers.0.self_attn.o_proj.weight"))
    together = backbone.hidden_states(model, packed)[torch.from_numpy(packed.ends)]
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    (together @ direction).square().sum().backward()
    gradient = weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_disable()
    model.eval().set_attn_implementation("sdpa")
    alone = torch.stack(
        [
            backbone.decoder_of(model)(
                input_ids=torch.tensor([path_tokens(made, node.id)]), use_cache=False
            ).last_hidden_state[0, -1]
            for node in made.nodes
        ]
    )
    (alone @ direction).square().sum().backward()
    assert torch.allclose(together, alone, atol=2e-5)
    assert torch.allclose(gradient, weight.grad, rtol=1e-4, atol=1e-4 * float(gradient.abs().max()))


def test_nobody_is_seen_by_mistake() -> None:
    """Under arts_packed, a pass that says nothing of who sees whom is an error, not full attention."""
    model = network("llama")
    model.set_attn_implementation(PACKED)
    with pytest.raises(ModelError, match="does not hand its arguments on to its attention"):
        backbone.decoder_of(model)(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)


def test_masks_need_sdpa() -> None:
    """Eager attention would add a boolean mask to its scores."""
    model = network("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="needs attn_implementation='sdpa'"):
        backbone.hidden_states(model, pack(tree(), Letters().tokenize))


def card(**more: Any) -> Card:
    values: dict[str, Any] = {
        "name": "lora", "proposer": Proposer("p", "sha256:0", 8), "prompt": ("", ""), "delimiter": "\n",
        "feature": "last", "aggregate": "terminal", "link": "identity", "is_flow": True,
        "backbone": Backbone("letters", "sha256:1", "nowhere", WIDTH),
    }  # fmt: skip
    return Card(**{**values, **more})


def head() -> ValueHead:
    numbers = np.random.default_rng(0)
    parts = [numbers.normal(size=shape).astype(np.float32) for shape in ((16, WIDTH), (16,), (16,))]
    return ValueHead(parts[0], parts[1], parts[2], 0.5)


def verifier(kind: str = "qwen2", n_ctx: int = 2048, **more: Any) -> HfVerifier:
    settings = Settings.of(n_ctx=n_ctx, n_ubatch=64)
    runtime = HfRuntime(network(kind), Letters(), settings, features=True)  # type: ignore[arg-type]
    return HfVerifier(HfBody(runtime), head(), card(**more))


def step_by_step(made: HfVerifier, found: ReasoningTree, drops: bool = True) -> np.ndarray:
    """Score a tree as a search would: by depth, all states of a depth at once, inner states dropped when used up."""
    handles: dict[int, Any] = {}
    scores = np.zeros(len(found.nodes))
    depth = {0: 0}
    for node in found.nodes[1:]:
        depth[node.id] = depth[node.parent] + 1
    for level in range(max(depth.values()) + 1):
        nodes = [node for node in found.nodes if depth[node.id] == level]
        for node in nodes:
            if node.id not in handles:
                handles[node.id] = made.open(found.prompt) if node.parent is None else made.fork(handles[node.parent])
        views = [
            StateView(found.prompt, "", (), node.text, (), 0.0, None, node.terminal, handles[node.id]) for node in nodes
        ]
        for node, score in zip(nodes, made.score(views), strict=True):
            scores[node.id] = score
        if drops:  # as a search does it: once all children are under way, before any of them is scored
            following = [node for node in found.nodes if depth[node.id] == level + 1]
            for node in following:
                handles[node.id] = made.fork(handles[node.parent])
            for node in nodes:
                made.drop(handles[node.id])
    return scores


@pytest.mark.parametrize("aggregate", ["terminal", "min"])
@pytest.mark.parametrize("kind", ["qwen2", "gemma3, window 5"])
def test_step_by_step_equals_at_once(kind: str, aggregate: str) -> None:
    """Reading new tokens alone, in forks of the parent's KV, gives what one packed pass gives."""
    made, found = verifier(kind, aggregate=aggregate), tree(1)
    scores = step_by_step(made, found)
    distinct = len(path_tokens(found, 0)) + sum(len(node.text) for node in found.nodes[1:])
    assert made.computed_tokens == distinct
    assert np.allclose(scores, made.score_recorded(found), atol=1e-4)
    assert made.body.kv.used == 0
    replayed = verifier(kind, aggregate=aggregate)
    assert np.allclose(scores, BackboneVerifier.score_recorded(replayed, found), atol=1e-4)
    assert replayed.body.kv.used == 0


def test_short_of_memory() -> None:
    """Branches that were given up are computed again; what never fits is an error that says so."""
    found = tree(2, 40)
    ample, tight = verifier(), verifier(n_ctx=82)
    want = step_by_step(ample, found, drops=False)
    assert ample.body.kv.used > 96
    assert np.allclose(step_by_step(tight, found, drops=False), want, atol=1e-4)
    assert tight.computed_tokens > ample.computed_tokens
    with pytest.raises(ArtsError, match=r"cannot hold a trace of 2\d tokens"):
        step_by_step(verifier(n_ctx=20), found)


def test_dropped_branches_leave_nothing() -> None:
    made, found = verifier(), tree(1)
    root = made.open(found.prompt)
    made.score([StateView(found.prompt, "", (), "", (), 0.0, None, False, root)])
    child = made.fork(root)
    made.score([StateView(found.prompt, "ab", (), "ab", (), 0.0, None, False, child)])
    made.drop(root)
    made.drop(child)
    assert made.body.kv.used == 0
    with pytest.raises(ArtsError, match="not its own"):
        made.fork("other")


def test_adapters(tmp_path: Path) -> None:
    """A saved adapter comes back; one for another model, or from a bare AutoModel, is an error and never silence."""
    made = backbone.add_lora(network("qwen2"), 4, 8, 0.0)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    packed = pack(tree(), Letters().tokenize)
    made.save_pretrained(tmp_path / "whole")
    want = backbone.hidden_states(made.eval(), packed)
    again = backbone.put_on(network("qwen2"), tmp_path / "whole")
    assert torch.allclose(backbone.hidden_states(again.eval(), packed), want, atol=1e-5)
    assert torch.allclose(backbone.hidden_states(again.merge_and_unload(), packed), want, atol=1e-4)
    assert not torch.allclose(backbone.hidden_states(network("qwen2"), packed), want, atol=1e-2)
    targets = {name.rsplit(".", 1)[-1] for name, m in made.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}

    from safetensors.torch import load_file, save_file

    bare = tmp_path / "bare"
    made.save_pretrained(bare)
    tensors = load_file(bare / "adapter_model.safetensors")
    save_file(
        {key.replace("model.model.layers", "model.layers"): value for key, value in tensors.items()},
        bare / "adapter_model.safetensors",
    )
    with pytest.raises(ModelError, match=r"belong nowhere, like .* bare AutoModel"):
        backbone.put_on(network("qwen2"), bare)
    with pytest.raises(ModelError, match="does not fit the model"):
        backbone.put_on(network("phi3"), tmp_path / "whole")
    with pytest.raises(ModelError, match="holds no adapter_model"):
        backbone.put_on(network("qwen2"), tmp_path)


def test_losses_reach_the_adapters() -> None:
    """Every loss gives every adapter and the head a gradient through one packed pass."""
    found = tree(1)
    leaves = [node.id for node in found.nodes if node.terminal]
    labelled = LabelledTree("a", found, {leaf: i % 2 == 0 for i, leaf in enumerate(leaves)})
    packed = pack(found, Letters().tokenize)
    for name in ("rfm", "rfm_mean", "subtb", "leaf", "prm", "pairwise", "bce"):
        body = backbone.add_lora(network("llama"), 2, 4, 0.0)
        for parameter_name, parameter in body.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.1)
        value = Head(WIDTH, 8, 0.0)
        f = value(backbone.hidden_states(body, packed)[torch.from_numpy(packed.ends)])
        make_loss(name)(f, forest_of([labelled], 10.0, 0.1)).backward()
        moved = [p for p in [*body.parameters(), *value.parameters()] if p.requires_grad]
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in moved), name


def test_the_card_and_the_head_must_agree(tmp_path: Path) -> None:
    from arts_plugin import checkpoint

    card().save(tmp_path)
    numbers = np.zeros((4, WIDTH + 1), dtype=np.float32)
    ValueHead(numbers, numbers[:, 0], numbers[:, 0], 0.0).save(tmp_path / checkpoint.HEAD_FILE)
    with pytest.raises(ArtsError, match="reads 33 numbers, and letters has 32"):
        checkpoint.load(tmp_path)
    head().save(tmp_path / checkpoint.HEAD_FILE)
    with pytest.raises(ArtsError, match="holds no adapter/adapter_model"):
        checkpoint.load(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / checkpoint.HF_ADAPTER).write_bytes(b"")
    with pytest.raises(ArtsError, match=r"needs its model nowhere: .*verifier_model= names another place"):
        checkpoint.load(tmp_path)
    with pytest.raises(ArtsError, match="needs its model elsewhere"):
        checkpoint.load(tmp_path, Settings.of(verifier_model="elsewhere"))
    assert Card.load(tmp_path) == card()
    assert replace(card(), backbone=None).backbone is None


def test_closing_frees_the_model() -> None:
    """Of a verifier that was given to nobody else; one without a model has nothing to close."""
    made = verifier()
    held = weakref.ref(made.body.runtime.network)
    close(made)
    assert held() is None
    close(LogprobScorer())

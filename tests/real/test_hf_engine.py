"""Tree decoding by the hf backend against full recompute, on small random models of many architectures.

Random weights make every token a near-tie of thousands, so hidden states are compared, at every token of every branch.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from arts_hf import attention, prefixes  # noqa: E402
from arts_hf.pool import KvPool  # noqa: E402
from arts_hf.runtime import HfRuntime  # noqa: E402
from arts_plugin.backend import Sampling  # noqa: E402
from arts_plugin.engine.kv import CacheFullError, KvSequence  # noqa: E402
from arts_plugin.engine.runtime import Row  # noqa: E402
from arts_plugin.errors import ModelError  # noqa: E402
from arts_plugin.settings import Settings  # noqa: E402

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mistral, window 7": ("MistralConfig", {"sliding_window": 7, "head_dim": 8}),
    "gemma3, window 5": (
        "Gemma3TextConfig",
        {
            "sliding_window": 5,
            "head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3Config", {"pad_token_id": 0}),
    "one key head": ("LlamaConfig", {"num_key_value_heads": 1}),
    "as many key heads": ("LlamaConfig", {"num_key_value_heads": 4}),
}


class Vocabulary:
    """As much of one as the runtime looks at."""

    name, n_vocab = "random", 97


def runtime(kind: str, **settings: Any) -> HfRuntime:
    name, more = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**COMMON, **more})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    return HfRuntime(model, Vocabulary(), Settings.of(n_ctx=2048, **settings), features=True)  # type: ignore[arg-type]


def recompute(made: HfRuntime, tokens: list[int]) -> Any:
    """Hidden states of a whole sequence by the model's own sdpa attention."""
    made.network.set_attn_implementation("sdpa")
    with torch.inference_mode():
        out = made.decoder(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
    made.network.set_attn_implementation(attention.NAME)
    return out


def test_every_kind_is_checked() -> None:
    """The configurations are what their names say."""
    assert KINDS.keys() == {
        "llama", "qwen2", "qwen3", "mistral, window 7", "gemma3, window 5", "phi3", "one key head", "as many key heads",
    }  # fmt: skip


@pytest.mark.parametrize("way", ["gathered", "grouped by length", "cascade", "cascade, grouped", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_trees_equal_full_recompute(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill, forks, ragged lengths, dropped branches and reused cells, beyond the window: every hidden state."""
    calls = []
    if "grouped" in way:
        monkeypatch.setattr(attention, "_GROUP", 2)
    if "cascade" in way:
        monkeypatch.setattr(prefixes, "MEMBERS", 2)
        monkeypatch.setattr(prefixes, "LENGTH", 1)
        cascade = attention._cascade
        monkeypatch.setattr(attention, "_cascade", lambda *a: calls.append(1) or cascade(*a))
    made = runtime(kind, attn_implementation="eager" if way == "eager" else "sdpa")
    numbers = random.Random(5)
    draw = lambda count: [numbers.randrange(97) for _ in range(count)]  # noqa: E731
    prompts = [draw(23), draw(4), draw(40)]
    branches: list[tuple[KvSequence, list[Any]]] = []
    for prompt in prompts:
        sequence = made.kv.new()
        made.prefill(sequence, prompt[:-1])
        rows = made.rows([Row(sequence, prompt[-1])], True)
        branches.append((sequence, [rows.hidden[0]]))
    for step in range(40):
        if step % 5 == 2:
            at = numbers.randrange(len(branches))
            sequence, states = branches[at]
            cut = len(sequence) - numbers.randrange(min(4, len(states)))
            twin = made.kv.new(sequence, cut)
            branches.append((twin, states[: len(states) - (len(sequence) - cut)]))
        if step % 7 == 6 and len(branches) > 4:
            made.kv.drop(branches.pop(numbers.randrange(len(branches)))[0])
        chosen = numbers.sample(branches, numbers.randrange(1, len(branches) + 1))
        batch, owners = [], []
        for sequence, states in chosen:
            for token in draw(numbers.choice([1, 1, 1, 3])):  # now and then several of one sequence, in order
                batch.append(Row(sequence, token))
                owners.append(states)
        made_rows = made.rows(batch, True)
        for states, hidden in zip(owners, made_rows.hidden, strict=True):
            states.append(hidden)
    for sequence, states in branches:
        want = recompute(made, list(sequence.tokens))[-len(states) :]
        assert torch.allclose(torch.tensor(list(map(list, states))), want, atol=2e-5), kind
    distinct = {tuple(s.tokens[:i]) for s, _ in branches for i in range(1, len(s) + 1)}
    assert made.kv.used == len(distinct)
    assert bool(calls) == ("cascade" in way)


class HostReads(torch.overrides.TorchFunctionMode):
    """Notes what would wait for a GPU: the ways in which a tensor's numbers reach the host (on a CPU, `to` is none)."""

    WAYS = ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.WAYS:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["llama", "gemma3, window 5"])
@pytest.mark.parametrize("branches", [3, 40])
def test_a_step_waits_for_the_device_once(kind: str, branches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many branches it has, shared prefix and all."""
    monkeypatch.setattr(prefixes, "MEMBERS", 2)
    monkeypatch.setattr(prefixes, "LENGTH", 1)
    made = runtime(kind, slots=64)
    root = made.kv.new()
    made.prefill(root, list(range(20)))
    rows = [Row(made.kv.new(root), token) for token in range(branches)]
    made.rows(rows, True)
    with HostReads() as reads:
        top = made.rows([Row(row.sequence, row.token + 1) for row in rows], True)
        top.draw(range(branches), Sampling(), [0.3] * branches)
    assert reads.seen == ["cpu"]


def test_prefixes_that_are_shared() -> None:
    """Groups cover all sequences once, share what they say they share, and read no more cells than any one level would."""
    few_shot = list(range(1000, 1300))
    questions = [[*few_shot, *range(start, start + 80)] for start in (2000, 3000)]
    cells = [[*questions[i % 2], *range(10_000 + 100 * i, 10_010 + 100 * i + i)] for i in range(16)]
    cells += [[*range(50_000, 50_020)]]
    views = [np.array(row, dtype=np.int32) for row in cells]
    found = prefixes.shared_prefixes(views)
    assert sorted(i for members, _ in found for i in members) == list(range(17))
    assert sorted((len(members), length) for members, length in found) == [(1, 0), (8, 380), (8, 380)]
    # Questions shorter than what the few-shot text is worth stay together.
    short = [np.array([*few_shot, 2000 + i % 8, 9000 + i], dtype=np.int32) for i in range(32)]
    assert [(len(m), n) for m, n in prefixes.shared_prefixes(short)] == [(32, 300)]
    numbers = random.Random(3)
    tree: list[list[int]] = [list(range(60))]
    for i in range(60):
        parent = numbers.choice(tree)
        tree.append(
            [
                *parent[: numbers.randrange(20, len(parent) + 1)],
                *range(1000 * (i + 1), 1000 * (i + 1) + numbers.randrange(1, 90)),
            ]
        )
    views = [np.array([*row, 10**6 + i], dtype=np.int32) for i, row in enumerate(tree)]
    found = prefixes.shared_prefixes(views)
    assert sorted(i for members, _ in found for i in members) == list(range(61))
    for members, length in found:
        assert all((views[i][:length] == views[members[0]][:length]).all() for i in members)
        assert all(len(views[i]) > length for i in members)
    read = sum(length + sum(len(views[i]) - length for i in members) for members, length in found)
    assert read < sum(map(len, views))
    assert prefixes.shared_prefixes([views[0]]) == [([0], 0)]


@pytest.mark.parametrize("kind", ["llama", "gemma3, window 5"])
def test_memory_is_that_of_distinct_tokens(kind: str) -> None:
    """The pool holds each distinct token once and little more."""
    made = runtime(kind)
    sequence = made.kv.new()
    made.prefill(sequence, [i % 97 for i in range(400)])
    branches = [made.kv.new(sequence) for _ in range(16)]
    for step in range(60):
        made.rows([Row(branch, step) for branch in branches], False)
    distinct = 400 + 16 * 60
    assert made.kv.used == distinct
    config = made.network.config
    token = 2 * config.num_key_value_heads * getattr(config, "head_dim", 8) * config.num_hidden_layers * 4
    assert distinct * token <= made.pool.bytes <= 1.2 * distinct * token


def test_a_full_cache_computes_nothing() -> None:
    made = runtime("llama")
    sequence = made.kv.new()
    made.prefill(sequence, [1] * 2040)
    with pytest.raises(CacheFullError, match="9 cells wanted, 8 free"):
        made.rows([Row(sequence, 1)] * 9, False)
    assert len(sequence) == 2040


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is computed in parts, with the same result; a single token that does not fit is an error."""
    made, twin = runtime("llama"), runtime("llama")
    fits = 3
    compute = made._compute

    def limited(items: Any) -> Any:
        if len(items) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(items)

    monkeypatch.setattr(made, "_compute", limited)
    found = []
    for each in (made, twin):
        sequences = [each.kv.new() for _ in range(7)]
        found.append(each.rows([Row(s, i) for i, s in enumerate(sequences) for _ in range(2)], True).hidden)
    assert torch.allclose(torch.tensor(found[0]), torch.tensor(found[1]), atol=1e-6)
    fits = 0
    with pytest.raises(ModelError, match="no memory left for a single token"):
        made.rows([Row(made.kv.new(), 1)], False)


def test_a_pool_that_cannot_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that ends while the pool grows, in the middle of a pass, is a cache that is full at what it has; what was
    there is whole, and smaller work goes on."""
    made, whole = runtime("llama"), runtime("llama")
    grow = KvPool._grow
    limit = 650

    def scarce(self: KvPool, layer: int, *others: Any) -> Any:
        if self._cells > limit and layer == 1:
            raise torch.OutOfMemoryError("pretended")
        return grow(self, layer, *others)

    monkeypatch.setattr(KvPool, "_grow", scarce)
    base = made.kv.new()
    tokens = [3 * i % 90 for i in range(400)]
    made._forward([(base, token) for token in tokens[:300]])
    made._forward([(base, token) for token in tokens[300:]])  # 28 cells more than it needs
    with pytest.raises(CacheFullError, match="memory for 428 cells"):
        made._forward([(base, token) for token in tokens[:300]])
    assert made.kv.n_cells == 428 and made.kv.used == len(base) == 400
    got = made._forward([(base, 5), (base, 6)])
    monkeypatch.undo()
    other = whole.kv.new()
    want = whole._forward([(other, token) for token in [*tokens, 5, 6]])[-2:]
    assert torch.allclose(got, want, atol=2e-5)


class Shifted(torch.nn.Module):
    """A decoder that does something else with attention than the check can see through."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.calls = 0

    def forward(self, **arguments: Any) -> Any:
        self.calls += 1
        out = self.inner(**arguments)
        if self.calls > 1:
            out.last_hidden_state = out.last_hidden_state.flip(-1)
        return out


def test_other_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose hidden states differ over the pool is refused when it is loaded, with the measure."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**COMMON)).eval()
    shifted = Shifted(model.get_decoder())
    monkeypatch.setattr(model, "get_decoder", lambda: shifted)
    with pytest.raises(ModelError, match=r"differ by \d+\.\d% from those of its own forward pass"):
        HfRuntime(model, Vocabulary(), Settings.of(n_ctx=64), features=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4)", None),
        ("Gemma2Config(**COMMON, head_dim=8)", "softcap"),
        ("MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)", "it has layers of linear_attention"),
    ],
)
def test_architectures_that_differ(config: str, message: str | None) -> None:
    """Each either agrees with full recompute or is refused by name; none is silently wrong."""
    torch.manual_seed(0)
    name, arguments = config.split("(", 1)
    values = dict(COMMON) if "COMMON" in arguments else {}
    for part in arguments.rstrip(")").split(", "):
        if "=" in part:
            key, value = part.split("=")
            values[key] = int(value)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(**values)).eval()
    if message is None:
        HfRuntime(model, Vocabulary(), Settings.of(n_ctx=64), features=True)  # type: ignore[arg-type]
    else:
        with pytest.raises(ModelError, match=message):
            HfRuntime(model, Vocabulary(), Settings.of(n_ctx=64), features=True)  # type: ignore[arg-type]

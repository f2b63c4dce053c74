"""What packing a tree into one row saves in training, beside reading its leaves one by one, in turns in one run.

`python tests/benchmarks/packing.py RUN [MODEL] [TREES] [THREADS]`: RUN holds graded trees (`examples/verifier/pools.py`
makes one of the pools that come with the project), MODEL is the verifier's backbone.

Both ways compute the same loss of the same states, forward and backward, with LoRA on every projection. Leaf by leaf, a
tree's traces are batches of up to eight of similar length, padded on the right.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import numpy as np
import torch

from arts_hf import backbone, loading
from arts_hf.lora import FlowModel, Item, LoraSettings, prepare
from arts_hf.packed import NAME as PACKED
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.settings import Settings
from arts_plugin.training.dataset import read_runs
from arts_plugin.training.losses import make_loss
from arts_plugin.training.trainer import Head

_BATCH = 8


def leaf_batches(item: Item) -> list[tuple[torch.Tensor, torch.Tensor, list[tuple[int, int, int]]]]:
    """(token ids, attention mask, [(row, place, node)] of the states that are read there), each state once."""
    tree, packed = item.labelled.tree, item.packed
    own = [packed.tokens[packed.node == n] for n in range(len(tree.nodes))]
    paths = [[node.id for node in tree.path(leaf.id)] for leaf in tree.leaves()]
    paths.sort(key=lambda path: sum(len(own[n]) for n in path))
    taken: set[int] = set()
    found = []
    for start in range(0, len(paths), _BATCH):
        rows, reads = [], []
        for row, path in enumerate(paths[start : start + _BATCH]):
            rows.append(np.concatenate([own[n] for n in path]))
            place = 0
            for n in path:
                place += len(own[n])
                if n not in taken:
                    taken.add(n)
                    reads.append((row, place - 1, n))
        width = max(map(len, rows))
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row_tokens in enumerate(rows):
            ids[i, : len(row_tokens)] = torch.from_numpy(row_tokens)
            mask[i, : len(row_tokens)] = 1
        found.append((ids, mask, reads))
    return found


def leaf_wise(model: FlowModel, item: Item) -> torch.Tensor:
    """The loss of a tree, its leaves read one by one."""
    decoder = backbone.decoder_of(model.body)
    n = len(item.labelled.tree.nodes)
    parts: list[Any] = [None] * n
    for ids, mask, reads in leaf_batches(item):
        hidden = decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        for row, place, node in reads:
            parts[node] = hidden[row, place]
    f = model.head(torch.stack(parts).float())
    return model.objective(f, item.forest)


def timed(work: Any) -> tuple[float, float]:
    """(seconds of forward and backward, the loss)."""
    start = time.perf_counter()
    loss = work()
    loss.backward()
    return time.perf_counter() - start, float(loss.detach())


def main(run: str, model: str | None = None, trees: int = 12, threads: int = 2) -> None:
    """Print tokens, seconds, and how much of the saving in tokens is saved in time."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loaded = loading.load(Settings.of(model=model, device="cpu"))
    vocabulary = HfVocabulary(loaded.tokenizer, loaded.model.config, loaded.model.generation_config, "backbone")
    labelled = read_runs([run], with_features=False)[0][:trees]
    items = prepare(labelled, vocabulary, LoraSettings(str(model)), (10.0, 0.1), print)
    body = backbone.add_lora(loaded.model, 16, 32, 0.0).train()
    flow = FlowModel(body, Head(vocabulary.n_embd, 256, 0.0), make_loss("rfm"))
    read, alone = sum(len(i.packed.tokens) for i in items), sum(i.packed.alone for i in items)
    padded = sum(ids.numel() for i in items for ids, _, _ in leaf_batches(i))
    print(
        f"{len(items)} trees: packed {read} tokens, leaf by leaf {alone} ({padded} with padding): {alone / read:.2f} times"
    )
    ratios, sums = [], [0.0, 0.0]
    for number, item in enumerate([items[0], *items]):
        loaded.model.set_attn_implementation(PACKED)
        one, a = timed(lambda item=item: flow([item])["loss"])
        loaded.model.set_attn_implementation("sdpa")
        two, b = timed(lambda item=item: leaf_wise(flow, item))
        assert abs(a - b) < 0.05 * max(1.0, abs(a)), (a, b)
        if number:  # the first is a warm-up
            ratios.append(two / one / (item.packed.alone / len(item.packed.tokens)))
            sums[0], sums[1] = sums[0] + one, sums[1] + two
            print(f"  {len(item.packed.tokens):5} tokens for {item.packed.alone:5}: {one:6.2f} s against {two:6.2f} s")
    print(
        f"time {sums[1] / sums[0]:.2f} times; of the saving in tokens {sums[1] / sums[0] / (alone / read):.2f}, median over "
        f"trees {statistics.median(ratios):.2f}"
    )


if __name__ == "__main__":
    main(sys.argv[1], *sys.argv[2:3], *map(int, sys.argv[3:]))

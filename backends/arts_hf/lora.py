"""Training the paper's verifier: a separate causal LM with LoRA adapters and a value head on the last token of each
step (arXiv 2602.12846), by `transformers.Trainer`, one packed tree in each forward pass.

    OUT/adapter/                                       the adapter, as PEFT saves it
    OUT/value_head.safetensors, arts_verifier.json     the head and the card

The weights are those of the best epoch; the card comes last, so a training that was killed is begun again. Optimiser
states are not saved, since reading them back means unpickling.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from arts_hf import backbone, loading
from arts_hf.packed import NAME as PACKED
from arts_hf.vocabulary import HfVocabulary
from arts_plugin.checkpoint import CARD_FILE, HEAD_FILE, Backbone, Card
from arts_plugin.errors import ArtsError
from arts_plugin.settings import Settings
from arts_plugin.training.dataset import LabelledTree
from arts_plugin.training.losses import Forest, Loss
from arts_plugin.training.packing import PackedTree, pack
from arts_plugin.training.trainer import DIVERGED, Head, forest_of, merit, trace_scores, within_problem_auc
from arts_plugin.value_head import ValueHead

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How a LoRA verifier is trained; the paper's values where it gives them.

    Attributes:
        backbone: the verifier's own model: a folder, `owner/name` on a hub, or a GGUF file.
        r, alpha, dropout: of the adapters.
        hidden: units of the value head.
        learning_rate, weight_decay: AdamW's; the head learns at `head_rate`.
        batch_problems: trees in an optimiser step, over all processes.
        epochs: passes over the trees; the epoch with the best within-problem AUC on held-out problems is kept.
        max_tokens: trees with more tokens are left out (attention is quadratic in them).
        dtype, device: of the model.
        checkpointing: compute activations again in the backward pass, for memory.
        seed: of adapters, head, dropout and order.
    """

    backbone: str
    r: int = 16
    alpha: int = 32
    dropout: float = 0.1
    hidden: int = 256
    learning_rate: float = 1e-4
    head_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_problems: int = 8
    epochs: int = 3
    max_tokens: int = 8192
    dtype: str = "auto"
    device: str | None = None
    checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """A problem, packed, with what the losses read."""

    labelled: LabelledTree
    packed: PackedTree
    forest: Forest


class FlowModel(nn.Module):
    """Backbone and head: packed trees in, the loss out."""

    def __init__(self, body: Any, head: Head, loss: Loss) -> None:
        super().__init__()
        self.body, self.head, self.objective = body, head, loss

    def outputs(self, packed: PackedTree) -> Tensor:
        """The head's output at every node, float32 [n_nodes]."""
        hidden = backbone.hidden_states(self.body, packed)
        ends = torch.from_numpy(packed.ends).to(hidden.device)
        found: Tensor = self.head(hidden[ends].float())
        return found

    def forward(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """The mean loss over some problems."""
        losses = []
        for item in items:
            f = self.outputs(item.packed)
            losses.append(self.objective(f, item.forest.on(f.device)))
        return {"loss": torch.stack(losses).mean()}


class FlowTrainer(transformers.Trainer):
    """One packed tree at a time through the model, gradients accumulated over a batch of problems."""

    # compute_loss gives the mean over its own trees, which accumulation must still divide by its steps.
    loss_is_scaled_for_ga = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **others: Any) -> Any:
        """The model computes it."""
        made = model(inputs["items"])
        return (made["loss"], made) if return_outputs else made["loss"]


class _KeepBest(transformers.TrainerCallback):
    """After each epoch: the held-out AUC, said and, where it is the best so far, saved."""

    def __init__(self, model: FlowModel, held_out: Sequence[Item], save: Callable[[], None], say: Say) -> None:
        self.model, self.held_out, self.save, self.say = model, held_out, save, say
        self.best = -np.inf
        self.rows: list[tuple[float, float]] = []

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if not state.is_world_process_zero:
            return
        loss, auc = evaluate(self.model, self.held_out)
        figure = merit(loss, auc)
        better = figure > self.best
        self.rows.append((loss, auc))
        self.say(f"epoch {state.epoch:.0f}: held-out loss {loss:.4f}, AUC {auc:.3f}{' (kept)' if better else ''}")
        if better:
            self.best = figure
            self.save()


def prepare(
    trees: Sequence[LabelledTree],
    vocabulary: HfVocabulary,
    settings: LoraSettings,
    rewards: tuple[float, float],
    say: Say,
) -> list[Item]:
    """Pack graded trees; those with too many tokens are left out and counted."""
    items, long = [], 0
    for labelled in trees:
        packed = pack(labelled.tree, vocabulary.tokenize, lambda text: vocabulary.encode(text).token_ids)
        if len(packed.tokens) > settings.max_tokens:
            long += 1
            continue
        items.append(Item(labelled, packed, forest_of([labelled], *rewards)))
    if long:
        say(f"{long} problems have more than {settings.max_tokens} tokens in their tree and are left out (max_tokens)")
    if not items:
        raise ArtsError(f"no tree has at most {settings.max_tokens} tokens; raise max_tokens")
    return items


def saving(items: Sequence[Item]) -> tuple[int, int]:
    """(tokens that are read, tokens that the same traces would have one by one)."""
    return sum(len(item.packed.tokens) for item in items), sum(item.packed.alone for item in items)


@torch.no_grad()
def evaluate(model: FlowModel, items: Sequence[Item]) -> tuple[float, float]:
    """(mean loss, within-problem AUC) of some problems."""
    training = model.training
    model.eval()
    losses, scores = [], []
    for item in items:
        f = model.outputs(item.packed)
        losses.append(float(model.objective(f, item.forest.on(f.device))))
        scores.append(trace_scores(item.labelled, f.double().cpu().numpy(), model.objective.aggregate))
    model.train(training)
    return float(np.mean(losses)), within_problem_auc([item.labelled for item in items], scores)


def train(
    training: Sequence[LabelledTree],
    held_out: Sequence[LabelledTree],
    loss: Loss,
    settings: LoraSettings,
    rewards: tuple[float, float],
    card: Card,
    out: str | Path,
    say: Say = print,
) -> Card:
    """Train on graded trees and write the verifier to `out`; its card.

    Under torchrun or accelerate each process has a share of the trees, and the first one saves.

    Raises:
        ModelError: the backbone cannot be loaded.
        ArtsError: no tree is short enough, `batch_problems` cannot be shared by the processes, the device is one that
            the Trainer does not train on, or no epoch made sense.
    """
    folder = Path(out)
    torch.manual_seed(settings.seed)
    loaded = loading.load(Settings.of(model=settings.backbone, dtype=settings.dtype, device=_device(settings)))
    loaded.model.set_attn_implementation(PACKED)
    vocabulary = HfVocabulary(loaded.tokenizer, loaded.model.config, loaded.model.generation_config, loaded.source.stem)
    fit_on = prepare(training, vocabulary, settings, rewards, say)
    watch = prepare(held_out, vocabulary, settings, rewards, say)
    read, alone = saving(fit_on)
    say(f"{len(fit_on)} trees of {read} tokens; the same traces one by one have {alone} ({alone / read:.1f} times)")
    body = backbone.add_lora(loaded.model, settings.r, settings.alpha, settings.dropout)
    if settings.checkpointing:
        body.gradient_checkpointing_enable()
        body.enable_input_require_grads()
    head = Head(vocabulary.n_embd, settings.hidden, settings.dropout)
    if loss.is_flow:
        mean = np.mean([float(i.forest.log_reward[i.forest.terminal].mean()) for i in fit_on])
        nn.init.constant_(head.second.bias, float(mean))
    model = FlowModel(body, head.to(next(body.parameters()).device), loss)
    made = replace(
        card,
        feature="last",
        backbone=Backbone(vocabulary.name, loading.digest(loaded.source), str(settings.backbone), vocabulary.n_embd),
        training={**card.training, **asdict(settings)},
    )

    # The card of an earlier training would speak for the weights of this one, if it were killed half-way.
    (folder / CARD_FILE).unlink(missing_ok=True)

    def save() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        body.save_pretrained(folder / backbone.ADAPTER)
        numpy_head(head).save(folder / HEAD_FILE)

    keep = _KeepBest(model, watch, save, say)
    trainer = _trainer(model, fit_on, settings, folder, keep)
    trainer.train()
    try:
        if trainer.is_world_process_zero():
            if keep.best == -np.inf:
                raise ArtsError(DIVERGED)
            made.save(folder)  # last: a folder with a card is whole
    finally:  # the others would wait for a process that has failed
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    return made


def _device(settings: LoraSettings) -> str | None:
    """Where this process loads the backbone: on the GPU that the Trainer will put it on.

    Raises:
        ArtsError: it would put it on another.
    """
    if settings.device == "auto" or (settings.device or "").startswith("cuda:"):
        raise ArtsError(
            f"lora device is {settings.device!r}: a backbone is trained on one GPU a process; choose it by "
            "CUDA_VISIBLE_DEVICES, or several by torchrun"
        )
    rank = os.environ.get("LOCAL_RANK")
    if rank is not None and settings.device != "cpu" and torch.cuda.is_available():
        return f"cuda:{rank}"
    return settings.device


def _trainer(model: FlowModel, items: list[Item], settings: LoraSettings, folder: Path, keep: _KeepBest) -> FlowTrainer:
    processes = transformers.TrainingArguments(output_dir=str(folder), use_cpu=settings.device == "cpu").world_size
    if settings.batch_problems % processes:
        raise ArtsError(
            f"batch_problems is {settings.batch_problems}, which {processes} processes cannot share equally"
        )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=settings.batch_problems // processes,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        save_strategy="no",
        logging_strategy="epoch",
        report_to=[],
        remove_unused_columns=False,
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    # Several GPUs in one process would mean DataParallel, which cannot split trees: one GPU a process.
    arguments._n_gpu = min(1, arguments.n_gpu)
    groups = [
        {"params": [p for p in model.body.parameters() if p.requires_grad], "lr": settings.learning_rate},
        {"params": list(model.head.parameters()), "lr": settings.head_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return FlowTrainer(
        model=model,
        args=arguments,
        train_dataset=items,
        data_collator=lambda batch: {"items": batch},
        optimizers=(optimiser, None),
        callbacks=[keep],
    )


def numpy_head(head: Head) -> ValueHead:
    """The head as the core reads it."""
    w1, b1 = head.first.weight, head.first.bias
    parts = [t.detach().float().cpu().numpy() for t in (w1, b1, head.second.weight[0], head.second.bias[0])]
    return ValueHead(parts[0], parts[1], parts[2], float(parts[3]))

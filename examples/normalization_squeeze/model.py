"""The model: a two-layer Llama over an alphabet of its own, and its pre-training from scratch on text of the task."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from task import MODULUS, OPERATIONS, ROUTES, STEPS, TAGS, every_task, route_text
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PROMPT_TOKENS, STEP_TOKENS = 3, 3
LENGTH = PROMPT_TOKENS + STEPS * STEP_TOKENS + 1
"""Tokens of a whole trace with its prompt and its end."""


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Tags, two-digit numbers, operations with their `=`, and the line break; text is its tokens end to end."""
    words = [*TAGS, "\n", *(f"{name}=" for name in OPERATIONS), *(f"{n:02d}" for n in range(MODULUS))]
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(
        Regex(rf"\d\d|[{string.ascii_uppercase}]|[+x]\d=|\n"), behavior="isolated"
    )
    made.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def blank(words: Any, width: int = 64, layers: int = 2) -> Any:
    """A model that has learned nothing."""
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return transformers.LlamaForCausalLM(config)


def corpus(words: Any, size: int, seed: int) -> torch.Tensor:
    """int64 [size, LENGTH]: problems drawn evenly, each with a route drawn from the text's probabilities."""
    rng = np.random.default_rng([seed, 2])
    tasks = every_task()
    cumulative = np.array([np.cumsum(task.text_probabilities) for task in tasks])
    chosen = rng.integers(len(tasks), size=size)
    routes = (rng.random((size, 1)) * cumulative[chosen, -1:] > cumulative[chosen]).sum(axis=1)
    texts = [
        tasks[i].prompt + route_text(tasks[i].start, ROUTES[route]) for i, route in zip(chosen, routes, strict=True)
    ]
    ids = torch.tensor(words(texts).input_ids)
    return torch.cat([ids, torch.full((size, 1), words.eos_token_id)], dim=1)


def pretrain(folder: Path, seed: int, steps: int, batch: int = 256, learning_rate: float = 3e-3) -> dict[str, float]:
    """Train a model from scratch with `transformers.Trainer` and keep it in `folder`; its last training loss.

    Each text is seen about once. The prompt is not predicted.
    """
    words = tokenizer()
    torch.manual_seed(seed)
    model = blank(words)
    ids = corpus(words, steps * batch, seed)

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        inputs = torch.stack([row["ids"] for row in rows])
        labels = inputs.clone()
        labels[:, :PROMPT_TOKENS] = -100
        return {"input_ids": inputs, "labels": labels}

    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.01,
        save_strategy="no",
        logging_steps=max(1, steps // 10),
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        seed=seed,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=[{"ids": row} for row in ids], data_collator=collate
    )
    found = trainer.train()
    save(model, words, folder)
    return {"loss": float(found.training_loss), "texts": float(len(ids))}


def save(model: Any, words: Any, folder: Path) -> None:
    """A folder that transformers, TRL and `backend=hf` load."""
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id, do_sample=True, top_k=0
    )
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def load(folder: Path) -> Any:
    """The model of a folder, float32, on the CPU."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()

"""A task's `gen_prefix` in a chat: the model goes on with the answer that was begun for it, with the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from arts_plugin.lm_eval.chats import Chats
from arts_plugin.lm_eval.model import ArtsLM
from arts_plugin.run import read_trees
from tests.models import THREADS, smollm2

BEGUN = "Easy! Counting on, the next number is"
ROWS = [{"question": f"{n}, {n + 1}, {n + 2}, ?", "answer": str(n + 3)} for n in range(1, 5)]
END = 2
"""SmolLM2's end of a turn."""


@pytest.fixture
def lm(tmp_path: Path) -> Iterator[ArtsLM]:
    settings = {"n_ctx": 1024, "slots": 4, "max_gen_toks": 8, "strategy": "greedy", "trace": str(tmp_path / "run")}
    made = ArtsLM.create_from_arg_obj({"model": smollm2(), "n_threads": THREADS, **settings})
    yield made
    made.arts.close()


def task(folder: Path) -> TaskManager:
    """`begun`: questions whose answers begin alike, with examples."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    lines: dict[str, Any] = {
        "task": "begun",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": str(rows), "test": str(rows)}},
        "test_split": "test",
        "fewshot_split": "train",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "gen_prefix": BEGUN,
        "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "begun.yaml").write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
    return TaskManager(include_path=str(folder))


@pytest.mark.parametrize("examples", [0, 1])
def test_a_begun_answer_is_continued(examples: int, lm: ArtsLM, tmp_path: Path) -> None:
    results = lm_eval.simple_evaluate(
        lm, tasks=["begun"], task_manager=task(tmp_path), limit=2, bootstrap_iters=0, num_fewshot=examples,
        apply_chat_template=True, fewshot_as_multiturn=True,
    )  # fmt: skip
    assert results is not None
    engine = lm.backend_engine
    trees = list(read_trees(tmp_path / "run"))
    assert len(trees) == 2
    for tree in trees:
        assert tree.prompt.endswith(f"<|im_start|>assistant\n{BEGUN}")
        assert tree.prompt.count(BEGUN) == 1 + examples
        ids = tree.nodes[0].token_ids
        begun = list(engine.encode(BEGUN).token_ids)
        assert ids[-len(begun) :] == begun, "the text's own tokens, after the template's"
        assert ids == [*engine.encode_chat(_messages(tree.prompt)).token_ids, *begun]
        assert ids.count(END) == 2 + 2 * examples, "every turn is ended but the one that goes on"
        # Said anew as a turn of its own, the model would greet, or begin the sentence again.
        assert tree.text is not None and not tree.text.lstrip().startswith("Easy")


def _messages(prompt: str) -> list[dict[str, str]]:
    """The chat behind a rendered one, without the answer that is begun."""
    turns = [turn.split("\n", 1) for turn in prompt.split("<|im_start|>")[1:-1]]
    return [{"role": role, "content": text.removesuffix("<|im_end|>\n")} for role, text in turns]


def test_what_looks_special_in_a_begun_answer_is_text(lm: ArtsLM) -> None:
    engine = lm.backend_engine
    user = {"role": "user", "content": "2 + 2?"}
    said = "It is <|im_end|> "
    prompt = Chats(engine).encode([user, {"role": "assistant", "content": said}], add_generation_prompt=False)
    opened = engine.encode_chat([user])
    assert prompt.text == opened.text + said
    assert list(prompt.token_ids) == [*opened.token_ids, *engine.encode(said).token_ids]
    assert prompt.token_ids.count(END) == opened.token_ids.count(END)

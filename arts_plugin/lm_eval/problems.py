"""Problems of lm-eval tasks for `arts sdf`: the task's own prompt, and its own filters and metric as the grader."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from arts_plugin.api import Arts
from arts_plugin.errors import ArtsError
from arts_plugin.lm_eval.chats import Chats
from arts_plugin.lm_eval.requests import settings_of
from arts_plugin.prompts import answer_of
from arts_plugin.training.sdf import Judge, Problem, Verdict
from arts_plugin.tree import Trajectory

log = logging.getLogger(__name__)

_FEWSHOT_SEED = 1234
"""lm-eval's default."""


def load_tasks(
    names: Sequence[str],
    split: str,
    include_path: str | None = None,
    metadata: dict[str, Any] | None = None,
    num_fewshot: int | None = None,
) -> list[Any]:
    """The generative tasks of these names, turned to a split.

    Args:
        split: "train", which is what training is for, or "test" for pools that scorers are compared on.
        metadata: as lm-eval's `--metadata`, like {"arts_data": FOLDER}.
        num_fewshot: examples in the prompt; None is what the task says.

    Raises:
        ArtsError: no such task, one that does not generate, or one without that split.
    """
    from lm_eval.tasks import TaskManager

    try:
        loaded = TaskManager(include_path=include_path, metadata=metadata).load(list(names))["tasks"]
    except (KeyError, ValueError) as error:
        raise ArtsError(f"lm-eval cannot load {', '.join(names)}: {error}") from error
    for name, task in loaded.items():
        if task.OUTPUT_TYPE != "generate_until":
            raise ArtsError(f"task {name} is {task.OUTPUT_TYPE}; only generative tasks make trees")
        if num_fewshot is not None or task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        if split == "train":
            if not task.has_training_docs():
                raise ArtsError(f"task {name} has no training split; --split test would train on what it is tested on")
            task.config.test_split = task.config.training_split
            # lm-eval prefers a test split, and knows of no other way to be asked for the training documents.
            task.config.validation_split = None
    return list(loaded.values())


def task_problems(arts: Arts, tasks: Sequence[Any], limit: int | None = None) -> Iterator[Problem]:
    """One problem a document, with the prompt that it has under `lm_eval --model arts` (with --apply_chat_template where the
    model has a template, unless `chat` is plain), few-shot examples and all; `limit` of each task."""
    said: set[str] = set()
    chats = Chats(arts.backend)
    templated = arts.settings.chat != "plain" and bool(
        arts.settings.chat == "template" or arts.backend.info.chat_template
    )
    for task in tasks:
        # Examples are drawn as the prompts are made, and are to be the same for everybody who asks.
        task.set_fewshot_seed(_FEWSHOT_SEED)
        task.build_all_requests(
            limit=limit,
            rank=0,
            world_size=1,
            apply_chat_template=templated,
            fewshot_as_multiturn=templated,
            chat_template=chats.render if templated else None,
            tokenizer_name=arts.backend.info.name if templated else "",
        )
        for instance in list(task.instances):
            context = instance.args[0]
            settings, stops = settings_of(instance, arts.settings, said)
            chat = chats.behind(context)
            yield Problem(
                id=f"{instance.task_name}-{instance.doc_id}",
                question=chat.messages[-1]["content"] if chat else str(context),
                prompt=chats.prompt(context, settings.chat),
                gold=str(task.doc_to_target(instance.doc)),
                judge=_judge(task, instance, settings.think_end_token),
                stops=stops,
                settings=settings,
                subject=str(instance.doc.get("subject") or ""),
                level=str(instance.doc.get("level") or ""),
                task=str(instance.task_name),
                grader=_grader_of(task),
            )


def _grader_of(task: Any) -> str:
    """As the labels of the task under lm-eval have it; of a task that is not ours nothing."""
    return f"{task.config.task}: {task.primary}, {task.filter_name}" if hasattr(task, "judged") else ""


def _judge(task: Any, instance: Any, think_end: str | None) -> Judge:
    """What the task says of a trajectory's text; thinking is no answer.

    A task of ours is right and votes as in the run folders of lm-eval. Another is right if any of its filters finds a right
    answer, by its first metric, and leaves the vote to the search.
    """

    def judged(trajectory: Trajectory) -> Verdict:
        text = answer_of(trajectory.text, think_end)
        if hasattr(task, "judged"):
            return Verdict(*task.judged(instance, text))
        return Verdict(_right(task, instance, text), trajectory.answer)

    return judged


def _right(task: Any, instance: Any, text: str) -> bool:
    from arts_plugin.lm_eval.releases import pipelines, scores, unwrapped

    instance.resps, instance.filtered_resps = [text], {}
    metric = next(iter(task.config.metric_list or [{"metric": None}]))["metric"]
    for pipeline in pipelines(task):
        pipeline.apply([instance])
    for name, filtered in instance.filtered_resps.items():
        response = unwrapped(filtered)
        found = scores(task, task.process_results(instance.doc, [response]), instance.doc, response, name)
        value = found.get(metric, next(iter(found.values()), 0.0))
        if isinstance(value, int | float) and value > 0.5:
            return True
    return False

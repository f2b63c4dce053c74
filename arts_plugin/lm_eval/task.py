"""The task adapter: any generative lm-eval task, with the figures of a search beside its own.

A YAML file names this class, the task it is based on, and the sizes to report:

    task: my_gsm8k
    class: !function arts_plugin.lm_eval.task.TreeSearchTask
    base: gsm8k/gsm8k.yaml
    ks: [1, 2, 4, 8, 16]

Prompts, filters and metrics are the stock task's, and the filters and metrics run on every trajectory of an answer. An
answer without trajectories is one trajectory, and `repeats: N` of a model that samples is N: so any model can run it.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval.api.metrics import mean

from arts_plugin.answers.extract import extract_auto
from arts_plugin.errors import ArtsError, did_you_mean
from arts_plugin.evaluation.search_metrics import Values, ratio, ratio_stderr
from arts_plugin.lm_eval import releases
from arts_plugin.lm_eval.entries import COSTS, Entries, Entry, figures
from arts_plugin.lm_eval.labels import Labels
from arts_plugin.lm_eval.requests import attach, own_settings
from arts_plugin.lm_eval.stock import local_splits, stock_config
from arts_plugin.training.grades import Graded

log = logging.getLogger("lm_eval.arts")

_OWN = ("arts", "base", "class", "data", "filter", "ks", "metric", "rows", "vote")
_INVALID = "[invalid]"
"""What lm-eval's regex filter gives where it finds nothing."""


class TreeSearchTask(releases.GenerateTask):
    """See the module. Keys of its own, beside those of any task:

    - `base`: the stock task: a file in lm-eval's task folder or a name. Without it, the YAML is the whole task.
    - `ks`: numbers of traces to report.
    - `arts`: settings of the search for this task, like {chat: template}. They override the model's, and `arts_*` keys of
      gen_kwargs override them. Other models never see them.
    - `metric`: which of the task's metrics says whether a trajectory is right; default: the first.
    - `filter`: which of the task's filter pipelines it is whose results are right or wrong, and vote, in the run folder's
      labels; default: the first. lm-eval prints the figures of all of them.
    - `vote`: function(doc, response) -> the answer that a trajectory votes for, or None. Default: what the filter left, or
      the last boxed or stated number where no filter takes anything away.
    - `data`: split -> file of JSON lines, and `rows`: function(row) -> document, for `--metadata '{"arts_data": FOLDER}'`.

    Raises:
        ArtsError: `arts`, `ks`, `base`, `filter` or `arts_data` cannot be used.
    """

    def __init__(self, config: dict[str, Any] | None = None, **others: Any) -> None:
        given = dict(config or {})
        own = {name: given.pop(name, None) for name in _OWN}
        self.base: str | None = own["base"]
        self.arts = own_settings(own["arts"])
        self.ks = _ks(own["ks"] or [1, 2, 4, 8, 16], given.get("task"))
        stock = stock_config(self.base) if self.base else {}
        for name in ("tag", "group", "task", "task_alias"):
            stock.pop(name, None)
        merged = {**stock, **given, "metadata": {**(stock.get("metadata") or {}), **(given.get("metadata") or {})}}
        self._rows, self._files = own["rows"], own["data"] or {}
        self._no_examples = ""
        # A task that brings its rows along has nothing to look for there.
        self._place = merged["metadata"].get("arts_data") if not merged.get("custom_dataset") else None
        if self._place:
            self._read_locally(merged)
        metrics = merged.get("metric_list") or [{"metric": "exact_match"}]
        self.primary: str = own["metric"] or metrics[0]["metric"]
        self._vote: Callable[[dict[str, Any], str], str | None] | None = own["vote"]
        self._kinds: dict[str, bool] = {}
        self._labels = Labels()
        self._reported = self.ks
        merged["metric_list"] = releases.metric_list(merged)
        super().__init__(config=merged, **others)
        self.filter_name = self._filter_of(own["filter"])

    def _filter_of(self, name: str | None) -> str:
        names = [pipeline.name for pipeline in releases.pipelines(self)]
        if name is not None and name not in names:
            raise ArtsError(
                f"filter of {self.config.task} is {name!r}; it has {', '.join(names)}{did_you_mean(name, names)}"
            )
        return name or names[0]

    def _read_locally(self, config: dict[str, Any]) -> None:
        if not self._files:
            raise ArtsError(f"arts_data is {self._place!r}, and {config.get('task')} does not say which files it reads")
        needed = {config.get("test_split") or next(iter(self._files)): "the questions"}
        self._local = local_splits(str(self._place), self._files, self._rows, needed)
        split = config.get("fewshot_split")
        if split in self._files and split not in self._local:
            # Said when examples are asked for: --num_fewshot 0 is only known after this.
            self._no_examples = (
                f"arts_data is {str(self._place)!r}, and {self._files[split]} is missing; it is needed for the examples in "
                "the prompt (--num_fewshot 0: none)"
            )
        for name in ("training_split", "validation_split", "fewshot_split"):
            if config.get(name) not in self._local:
                config[name] = None

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The rows under `arts_data`, or the stock data set.

        Raises:
            ArtsError: the data set cannot be loaded.
        """
        if self._place:
            self.dataset = self._local
            return
        try:
            if callable(self.config.custom_dataset):
                # lm-eval's own would warn, of each task, that --metadata may hold something.
                given = {**(self.config.metadata or {}), **(self.config.dataset_kwargs or {})}
                self.dataset = self.config.custom_dataset(**given)
                return
            super().download(dataset_kwargs, **kwargs)
        except Exception as error:
            wanted = " and ".join(self._files.values())
            hint = f'; with {wanted} in FOLDER, --metadata \'{{"arts_data": "FOLDER"}}\' needs no hub' if wanted else ""
            raise ArtsError(
                f"{self.config.task}: its data set {self.DATASET_PATH} cannot be loaded: {type(error).__name__}: {error}{hint}"
            ) from error

    def fewshot_docs(self) -> Any:
        """Documents to draw examples from; never the test's own for want of a file."""
        return None if self._no_examples else super().fewshot_docs()

    def fewshot_context(self, doc: dict[str, Any], num_fewshot: int, *arguments: Any, **keywords: Any) -> Any:
        """The prompt.

        Raises:
            ArtsError: it should hold examples, and there is no file of them.
        """
        if num_fewshot and self._no_examples:
            raise ArtsError(f"{self.config.task}: {self._no_examples}")
        return super().fewshot_context(doc, num_fewshot, *arguments, **keywords)

    def dump_config(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        return {
            **super().dump_config(),
            "arts": self.arts,
            "base": self.base,
            "ks": self.ks,
            "metric": self.primary,
            "filter": self.filter_name,
        }

    def build_all_requests(self, **keywords: Any) -> Any:
        """lm-eval's requests, with the task's own settings: also those that were pickled with others."""
        made = super().build_all_requests(**keywords)
        for instance in self._instances:
            attach(instance, self.arts)
        return made

    def construct_requests(self, doc: dict[str, Any], ctx: Any, **keywords: Any) -> Any:
        """lm-eval's request, with the task's own settings."""
        made = super().construct_requests(doc, ctx, **keywords)
        for instance in made if isinstance(made, list) else [made]:
            attach(instance, self.arts)
        return made

    # From answers to trajectories.
    def apply_filters(self) -> None:
        """The stock filters on every trajectory, each as if it were the only answer."""
        self._check_cached()
        clones: list[Any] = []
        spans: list[tuple[Any, list[dict[str, Any]], int]] = []
        labelled: list[Entries] = []
        for instance in self._instances:
            found = _trajectories(instance.resps)
            spans.append((instance, found, len(clones)))
            for text in [str(instance.resps[0]), *(trajectory["text"] for trajectory in found)]:
                clones.append(_alone(instance, text))
        for pipeline in releases.pipelines(self):
            pipeline.apply(clones)
        for instance, found, start in spans:
            of_answer, *of_found = clones[start : start + 1 + len(found)]
            for number, (name, chosen) in enumerate(of_answer.filtered_resps.items()):
                entries = Entries(
                    self._entry(instance.doc, trajectory, releases.unwrapped(clone.filtered_resps[name]))
                    for trajectory, clone in zip(found, of_found, strict=True)
                )
                answer = instance.resps[0]
                entries.chosen, entries.filter = releases.unwrapped(chosen), name
                entries.search = getattr(answer, "search", {})
                entries.id = f"{self.config.task}/{instance.doc.get('id') or instance.doc_id}"
                # What a search cost is said once, however many filters look at it.
                entries.cost = getattr(answer, "cost", {}) if number == 0 else {}
                instance.filtered_resps[name] = releases.wrapped(entries)
                if name == self.filter_name:
                    labelled.append(entries)
        self._say_odd(labelled)
        self._count([found for _, found, _ in spans])

    def _check_cached(self) -> None:
        """lm-eval's cache knows a request by its gen_kwargs, of which the task's own settings are none."""
        for instance in self._instances:
            search = getattr(instance.resps[0], "search", {})
            if search.get("own", self.arts) != self.arts:
                raise ArtsError(
                    f"{self.config.task}: answers in lm-eval's cache were made with arts {search['own']}, and the task says "
                    f"{self.arts}. Use another --use_cache"
                )

    def _say_odd(self, questions: Sequence[Entries]) -> None:
        odd = [entries.id for entries in questions if entries.odd]
        if odd:
            log.warning(
                "%s: scores that are no finite numbers, in %d of %d questions (%s): such a trace counts as the lowest, as in "
                "the search, or with +inf as the highest", self.config.task, len(odd), len(questions), ", ".join(odd[:5]),
            )  # fmt: skip

    def _count(self, found: Sequence[Sequence[dict[str, Any]]]) -> None:
        drawn = [sum(trajectory.get("count", 1) for trajectory in trajectories) for trajectories in found]
        most = max(drawn, default=0)
        short = sum(1 for n in drawn if n < min(most, max(self.ks)))
        if short:
            log.warning(
                "%s: %d of %d questions have fewer finished traces than %d, which others have; figures of k traces take "
                "what there is", self.config.task, short, len(found), min(most, max(self.ks)),
            )  # fmt: skip
        self._reported = [k for k in self.ks if k <= most] or [1]

    def _entry(self, doc: dict[str, Any], trajectory: dict[str, Any], response: Any) -> Entry:
        tokens, logprob = trajectory.get("tokens"), trajectory.get("logprob")
        return Entry(
            response=response,
            vote=self._vote_of(doc, trajectory["text"], response),
            correct=None,
            log_flow=trajectory.get("log_flow"),
            mean_logprob=None if logprob is None else logprob / tokens if tokens else 0.0,
            tokens=tokens,
            count=trajectory.get("count", 1),
            leaf=trajectory.get("leaf"),
            chosen=trajectory.get("chosen", False),
        )

    def _vote_of(self, doc: dict[str, Any], text: str, response: Any) -> str | None:
        if self._vote is not None:
            return self._vote(doc, response)
        if response == text:
            return extract_auto(text)
        return None if response is None or response == _INVALID else str(response)

    def judged(self, instance: Any, text: str) -> tuple[bool, str | None]:
        """Whether a trajectory with this text is right, and what it votes for, as the run folder's labels have it.

        Args:
            instance: a request of this task; left as it is.

        Raises:
            ArtsError: the task lacks its `metric`.
        """
        clone = _alone(instance, text)
        next(pipeline for pipeline in releases.pipelines(self) if pipeline.name == self.filter_name).apply([clone])
        response = releases.unwrapped(clone.filtered_resps[self.filter_name])
        right = self._right(self._scores(clone.doc, response, self.filter_name))
        return right, self._vote_of(clone.doc, text, response)

    # From trajectories to figures.
    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """The stock metrics of the answer, and the search's; of a plain string, which no filter of ours made, the stock's."""
        entries = results[0]
        if not isinstance(entries, Entries):
            return self._scores(doc, entries, self.filter_name)
        stock = self._scores(doc, entries.chosen, entries.filter)
        if releases.only_predicts(self):
            return stock
        known: dict[str, bool] = {}
        for entry in entries:
            key = str(entry["response"])
            if key not in known:
                known[key] = self._right(self._scores(doc, entry["response"], entries.filter))
            entry["correct"] = known[key]
        if entries.filter == self.filter_name:
            self._label(doc, entries)
        return {**stock, **self._noted(figures(entries, self._reported))}

    def _scores(self, doc: dict[str, Any], response: Any, pipeline: str) -> dict[str, Any]:
        return releases.scores(self, super().process_results(doc, [response]), doc, response, pipeline)

    def _label(self, doc: dict[str, Any], entries: Entries) -> None:
        """Note for the run folder what is right and what votes."""
        run, key = entries.search.get("run"), entries.search.get("key")
        if not run or not key:
            return
        subject, level = (str(doc.get(name) or "") for name in ("subject", "level"))
        graded = Graded(
            key=key,
            id=entries.id,
            gold=str(self.doc_to_target(doc)),
            grader=f"{self.config.task}: {self.primary}, {self.filter_name}",
            correct={int(entry["leaf"]): bool(entry["correct"]) for entry in entries},
            subject=subject,
            level=level,
            task=str(self.config.task),
            votes={int(entry["leaf"]): entry["vote"] for entry in entries},
        )
        self._labels.put(run, graded)

    def _right(self, metrics: dict[str, Any]) -> bool:
        if self.primary not in metrics:
            raise ArtsError(
                f"{self.config.task} has no metric {self.primary!r}, which says what is right; it has {', '.join(metrics)}"
            )
        return float(metrics[self.primary]) > 0.5

    def _noted(self, values: Values) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            pair = isinstance(value, tuple)
            self._kinds[name] = pair
            found[name] = value
            if pair and not releases.BOOTSTRAPS_RATIOS:  # it prints what it is given under this name
                found[f"{name}_stderr"] = value
        return found

    def aggregation(self) -> dict[str, Any]:
        """The stock aggregations, and ours. lm-eval asks for them when every document has been scored."""
        self._labels.close()
        own: dict[str, Any] = {name: _told(ratio) if pair else mean for name, pair in self._kinds.items()}
        own.update({f"{name}_stderr": _told(ratio_stderr) for name, pair in self._kinds.items() if pair})
        return {**super().aggregation(), **own}

    def higher_is_better(self) -> dict[str, bool]:
        """Everything but costs."""
        own = {name: name not in COSTS for name in self._kinds}
        return {**super().higher_is_better(), **own}


def _told(aggregate: Callable[[Sequence[Any]], float]) -> Callable[[Sequence[Any]], float | str]:
    """The aggregation with lm-eval's own word for a figure that there is not: JSON has no NaN. Where lm-eval bootstraps it, in
    other processes, a number it must be."""
    return aggregate if releases.BOOTSTRAPS_RATIOS else partial(_number_or_word, aggregate)


def _number_or_word(aggregate: Callable[[Sequence[Any]], float], items: Sequence[Any]) -> float | str:
    value = aggregate(items)
    return value if math.isfinite(value) else "N/A"


def _alone(instance: Any, text: str) -> Any:
    """The request with this text as its only answer, for filters."""
    clone = copy.copy(instance)
    clone.resps, clone.filtered_resps = [text], {}
    return clone


def _trajectories(responses: Sequence[Any]) -> list[dict[str, Any]]:
    """Those of a search, or the responses themselves."""
    if hasattr(responses[0], "trajectories"):
        found: list[dict[str, Any]] = responses[0].trajectories
        return found
    return [{"text": str(text), "chosen": i == 0} for i, text in enumerate(responses)]


def _ks(values: Any, task: Any) -> list[int]:
    try:
        ks = sorted({int(k) for k in values})
    except (TypeError, ValueError):
        raise ArtsError(f"ks of {task} is {values!r}; it must be a list of numbers of traces") from None
    if not ks or ks[0] < 1:
        raise ArtsError(f"ks of {task} is {values!r}; numbers of traces are at least 1")
    return ks

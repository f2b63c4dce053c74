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
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.extract import extract_auto
from arts_plugin.evaluation.search_metrics import Scored, Values, pool_values, ratio, ratio_stderr, tree_values
from arts_plugin.lm_eval.stock import local_splits, stock_config
from arts_plugin.training.grades import Graded, GradesFile

log = logging.getLogger("lm_eval.arts")

_OWN = ("base", "class", "data", "ks", "metric", "rows", "vote")
_INDEPENDENT = frozenset({"best_of_n", "greedy"})
_INVALID = "[invalid]"
"""What lm-eval's regex filter gives where it finds nothing."""


class Entry(dict[str, Any]):
    """One trajectory in lm-eval's sample log, which writes everything as `str` makes it: as JSON, to be read again."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False, default=str)


class Entries(list[Entry]):
    """What one filter made of an answer's trajectories.

    Attributes:
        chosen: what it made of the answer itself.
        search, cost: see `arts_plugin.lm_eval.answer.Answer`; empty for a plain string.
    """

    chosen: Any
    search: dict[str, Any]
    cost: dict[str, Any]
    id: str


class TreeSearchTask(ConfigurableTask):
    """See the module. Keys of its own, beside those of any task:

    - `base`: the stock task: a file in lm-eval's task folder or a name. Without it, the YAML is the whole task.
    - `ks`: numbers of traces to report.
    - `metric`: which of the task's metrics says whether a trajectory is right; default: the first.
    - `vote`: function(doc, response) -> the answer that a trajectory votes for, or None. Default: what the filter left, or
      the last boxed or stated number where no filter takes anything away.
    - `data`: split -> file of JSON lines, and `rows`: function(row) -> document, for `--metadata '{"arts_data": FOLDER}'`.

    Raises:
        ArtsError: `ks`, `base` or `arts_data` cannot be used.
    """

    def __init__(self, config: dict[str, Any] | None = None, **others: Any) -> None:
        given = dict(config or {})
        own = {name: given.pop(name, None) for name in _OWN}
        self.base: str | None = own["base"]
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
        self._labels: dict[tuple[str, str], Graded] = {}
        self._reported = self.ks
        super().__init__(config=merged, **others)

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
        return {**super().dump_config(), "base": self.base, "ks": self.ks, "metric": self.primary}

    # From answers to trajectories.
    def apply_filters(self) -> None:
        """The stock filters on every trajectory, each as if it were the only answer."""
        clones: list[Any] = []
        spans: list[tuple[Any, list[dict[str, Any]], int]] = []
        for instance in self._instances:
            found = _trajectories(instance.resps)
            spans.append((instance, found, len(clones)))
            for text in [str(instance.resps[0]), *(trajectory["text"] for trajectory in found)]:
                clone = copy.copy(instance)
                clone.resps, clone.filtered_resps = [text], {}
                clones.append(clone)
        for ensemble in self._filters:
            ensemble.apply(clones)
        for instance, found, start in spans:
            of_answer, *of_found = clones[start : start + 1 + len(found)]
            for number, (name, chosen) in enumerate(of_answer.filtered_resps.items()):
                entries = Entries(
                    self._entry(instance.doc, trajectory, clone.filtered_resps[name])
                    for trajectory, clone in zip(found, of_found, strict=True)
                )
                answer = instance.resps[0]
                entries.chosen = chosen
                entries.search = getattr(answer, "search", {})
                entries.id = f"{self.config.task}/{instance.doc.get('id') or instance.doc_id}"
                # What a search cost is said once, however many filters look at it.
                entries.cost = getattr(answer, "cost", {}) if number == 0 else {}
                instance.filtered_resps[name] = entries
        drawn = [sum(trajectory.get("count", 1) for trajectory in found) for _, found, _ in spans]
        most = max(drawn, default=0)
        short = sum(1 for n in drawn if n < min(most, max(self.ks)))
        if short:
            log.warning(
                "%s: %d of %d questions have fewer finished traces than %d, which others have; figures of k traces take "
                "what there is", self.config.task, short, len(spans), min(most, max(self.ks)),
            )  # fmt: skip
        self._reported = [k for k in self.ks if k <= most] or [1]

    def _entry(self, doc: dict[str, Any], trajectory: dict[str, Any], response: Any) -> Entry:
        tokens, logprob = trajectory.get("tokens"), trajectory.get("logprob")
        if self._vote is not None:
            vote = self._vote(doc, response)
        elif response == trajectory["text"]:
            vote = extract_auto(trajectory["text"])
        else:
            vote = None if response is None or response == _INVALID else str(response)
        return Entry(
            response=response,
            vote=vote,
            correct=None,
            log_flow=trajectory.get("log_flow"),
            mean_logprob=None if logprob is None else logprob / tokens if tokens else 0.0,
            tokens=tokens,
            count=trajectory.get("count", 1),
            leaf=trajectory.get("leaf"),
            chosen=trajectory.get("chosen", False),
        )

    # From trajectories to figures.
    def process_results(self, doc: dict[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """The stock metrics of the answer, and the search's; of a plain string, which no filter of ours made, the stock's."""
        entries = results[0]
        if not isinstance(entries, Entries):
            return dict(super().process_results(doc, results))
        stock: dict[str, Any] = super().process_results(doc, [entries.chosen])
        if "bypass" in self._metric_fn_list:  # --predict_only
            return stock
        known: dict[str, bool] = {}
        for entry in entries:
            key = str(entry["response"])
            if key not in known:
                known[key] = self._right(super().process_results(doc, [entry["response"]]))
            entry["correct"] = known[key]
        self._label(doc, entries)
        return {**stock, **self._noted(_figures(entries, self._reported))}

    def _label(self, doc: dict[str, Any], entries: Entries) -> None:
        """Note for the run folder what is right by any of the filters."""
        run, key = entries.search.get("run"), entries.search.get("key")
        if not run or not key:
            return
        before = self._labels.get((run, key))
        correct = {int(e["leaf"]): bool(e["correct"]) for e in entries}
        if before is not None:
            correct = {leaf: right or before.correct[leaf] for leaf, right in correct.items()}
        subject, level = (str(doc.get(name) or "") for name in ("subject", "level"))
        gold, grader = str(self.doc_to_target(doc)), f"{self.config.task}: {self.primary}"
        self._labels[run, key] = Graded(key, entries.id, gold, grader, correct, subject, level)

    def _keep_labels(self) -> None:
        """Beside the trees: `arts report`, `arts view`, `arts compare` and `arts train` read them there."""
        for run in {run for run, _ in self._labels}:
            file = GradesFile(run)
            for (place, key), graded in self._labels.items():
                if place == run and file.known.get(key) != graded:
                    file.put(graded)
            file.close()
        self._labels.clear()

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
            if pair:  # lm-eval knows no standard error of a ratio, and prints what it is given under this name
                found[f"{name}_stderr"] = value
        return found

    def aggregation(self) -> dict[str, Any]:
        """The stock aggregations, and ours. lm-eval asks for them when every document has been scored."""
        self._keep_labels()
        own: dict[str, Any] = {name: ratio if pair else mean for name, pair in self._kinds.items()}
        own.update({f"{name}_stderr": ratio_stderr for name, pair in self._kinds.items() if pair})
        return {**super().aggregation(), **own}

    def higher_is_better(self) -> dict[str, bool]:
        """Everything but costs."""
        own = {name: name not in _COSTS for name in self._kinds}
        return {**super().higher_is_better(), **own}


_COSTS = frozenset({"proposer_tokens", "verifier_tokens", "seconds"})


def _figures(entries: Entries, ks: Sequence[int]) -> Values:
    judged = entries.search.get("scorer", "logprob") != "logprob"
    # Equal proposals were merged with a count; each draw is a trace.
    traces = [
        Scored(
            correct=bool(entry["correct"]),
            answer=entry["vote"],
            log_flow=entry["log_flow"] if judged else None,
            mean_logprob=entry["mean_logprob"],
        )
        for entry in entries
        for _ in range(entry["count"])
    ]
    answered = sum(trace.answer is not None for trace in traces)
    values: Values = {"answer_coverage": (float(answered), float(len(traces)))}
    if entries.search.get("strategy", "best_of_n") in _INDEPENDENT:
        values.update(pool_values(traces, ks))
    else:
        values.update(tree_values(traces, ks, entries.search["select"]))
    if cost := entries.cost:
        values["traces"] = float(len(traces))
        values["proposer_tokens"] = float(cost["decoded_tokens"] + cost["refilled_tokens"])
        values["verifier_tokens"] = float(cost["verifier_tokens"])
        values["seconds"] = float(cost["seconds"])
    return values


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

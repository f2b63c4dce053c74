"""pass@k, maj@k and votes over the `repeats` of any task that generates text, with any model.

A task's YAML names them as it names lm-eval's own:

    repeats: 16
    generation_kwargs: {do_sample: true, temperature: 0.7, until: ["Question:"]}
    filter_list:
      - name: flexible-extract
        filter:
          - {function: regex, group_select: -1, regex_pattern: '(-?[$0-9.,]{2,})|(-?[0-9]+)'}
          - {function: arts_repeats}
    metric_list:
      - {metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [',', '\\$']}
      - {metric: arts_pass_at_k, k: [1, 4, 16], aggregation: mean, higher_is_better: true, regexes_to_ignore: [',', '\\$']}
      - {metric: arts_maj_at_k, k: [4, 16], aggregation: mean, higher_is_better: true, regexes_to_ignore: [',', '\\$']}

lm-eval calls filters and metrics once everything has been generated, so a setting that cannot be used ends no run: the
error is logged, the figure is left out, and everything else is reported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.api.filter import Filter

from arts_plugin.errors import ArtsError, did_you_mean
from arts_plugin.evaluation.pool import PoolProblem, subsets_of, vote
from arts_plugin.evaluation.statistics import oracle_at_k
from arts_plugin.lm_eval import releases
from arts_plugin.plugins import plugins

log = logging.getLogger("lm_eval.arts")

INVALID = "[invalid]"
"""What lm-eval's filters leave where they find nothing. It votes for nothing."""
_HINT = "set `repeats` in the task, and let the filter pipeline end in arts_repeats"
_said: set[str] = set()

Correct = npt.NDArray[np.bool_]


class Repeats(str):
    """The first response of a document, which lm-eval's metrics see, with all of them for ours.

    lm-eval makes the gold answer the same type as the response, so this takes one positional argument.
    """

    responses: tuple[str, ...]

    def __new__(cls, text: str = "", responses: Iterable[str] = ()) -> Repeats:
        made = super().__new__(cls, text)
        made.responses = tuple(responses) or (str(text),)
        return made


class RepeatsFilter(Filter):
    """`arts_repeats`, the last step of a pipeline: keeps all responses, where `take_first` keeps one."""

    def __init__(self, **_: Any) -> None:
        pass

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[Any]:
        """One value a document."""
        found = [[str(response) for response in responses] for responses in resps]
        if any(len(responses) > 1 for responses in found) and all(len(set(responses)) == 1 for responses in found):
            log.warning(
                "arts_repeats: the repeats of each of %d questions are equal, so pass@k and maj@k say nothing. Does the model "
                "sample (do_sample: true and a temperature above 0)?", len(found),
            )  # fmt: skip
        return [releases.repeated(responses, Repeats) for responses in found]


class MajorityFilter(Filter):
    """`arts_majority`: what most of the responses say, equal answers counted as one; like `majority_vote`, before `take_first`.

    Args:
        k: of how many responses, from the first; default: all.
    """

    def __init__(self, k: int | None = None, **_: Any) -> None:
        if k is not None and k < 1:
            raise ArtsError(f"arts_majority: k is {k!r}; it must be at least 1")
        self.k = k

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """One response a document, in a list: the first one of the largest class."""
        return [[_majority([str(response) for response in responses][: self.k])] for responses in resps]


class ExtractFilter(Filter):
    """`arts_extract`: the answer inside each response.

    Args:
        extract: the name of an extractor: auto, boxed, hashes, phrase, number, or a plugin's.
        fallback: what stands for a response without an answer.
    """

    def __init__(self, extract: str = "auto", fallback: str = INVALID, **_: Any) -> None:
        self.extract = plugins().make("extractor", extract)
        self.fallback = fallback

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """As many responses a document as before."""
        return [[self.extract(str(response)) or self.fallback for response in responses] for responses in resps]


def pass_at_k(references: Sequence[Any], predictions: Sequence[Any], **options: Any) -> dict[str, Any]:
    """`arts_pass_at_k`: the probability that k responses hold a right one, `pass@K` for each k.

    The unbiased estimate 1 - C(n - c, k) / C(n, k), with c right ones among n responses; pass@1 is their mean.

    Args:
        references: the gold answer.
        predictions: the responses, as `arts_repeats` (or lm-eval's `take_first_k`) leaves them.
        options: `k`, a number or a list (default: 1 and all); what says whether a response is right, either `score`, a metric
            of lm-eval (default: exact_match), or `grader`, one of ours (exact, numeric, choice, math, or a plugin's); all
            others go to that metric.
    """
    return _figures("arts_pass_at_k", "pass", lambda _, right, k: oracle_at_k(len(right), int(right.sum()), k), references, predictions, options)  # fmt: skip


def maj_at_k(references: Sequence[Any], predictions: Sequence[Any], **options: Any) -> dict[str, Any]:
    """`arts_maj_at_k`: how often the most frequent answer of k responses is right, `maj@K` for each k.

    The mean over k-subsets (over 200 of them where there are more than 2048), ties decided at random and averaged. Equal
    answers vote together, however they are written; what a filter called `[invalid]` does not vote. Arguments as
    `pass_at_k`.
    """
    return _figures("arts_maj_at_k", "maj", _majority_at_k, references, predictions, options)


def _majority_at_k(responses: Sequence[str], right: Correct, k: int) -> float:
    return vote(_classes(responses, right), right, np.zeros(len(right)), subsets_of(len(right), k, 0))


def _classes(responses: Sequence[str], right: Correct) -> npt.NDArray[np.int64]:
    votes = tuple(response if response.strip() and response != INVALID else None for response in responses)
    return PoolProblem("", votes, right, {}).classes()


def _majority(responses: Sequence[str]) -> str:
    classes = _classes(responses, np.zeros(len(responses), dtype=bool))
    voting = classes[classes >= 0]
    if not len(voting):
        return responses[0]
    return responses[int(np.argmax(classes == np.argmax(np.bincount(voting))))]


class _Figures(dict[str, Any]):
    """lm-eval asks for the metric's own name where a document has several right answers, each of which it has judged alone."""

    def __missing__(self, name: str) -> Any:
        raise ArtsError(
            f"{name}: this task has several right answers to a question, and this lm-eval passes them to metrics one by one. "
            "Use class: !function arts_plugin.lm_eval.task.TreeSearchTask with base: TASK, which reports pass@1, oracle@k and "
            "majority@k of any task"
        )


def _figures(
    name: str,
    prefix: str,
    measure: Callable[[Sequence[str], Correct, int], float],
    references: Sequence[Any],
    predictions: Sequence[Any],
    options: dict[str, Any],
) -> dict[str, Any]:
    responses = _responses(predictions)
    try:
        ks = _ks(name, options.pop("k", None), len(responses))
        right = np.array(_judged(references[0], responses, **options), dtype=bool)
    except ArtsError as error:
        _say(logging.ERROR, f"{name} is left out: {error}")
        return _Figures()
    return _Figures({f"{prefix}@{k}": releases.score(measure(responses, right, k)) for k in ks})


def _responses(predictions: Sequence[Any]) -> list[str]:
    found: list[str] = []
    for prediction in predictions:
        if isinstance(prediction, Repeats):
            found += prediction.responses
        else:
            found += map(str, prediction if isinstance(prediction, (list, tuple)) else [prediction])
    return found


def _ks(name: str, k: Any, n: int) -> list[int]:
    asked = {1, n} if k is None else set(k) if isinstance(k, (list, tuple)) else {k}
    if not asked or any(not isinstance(one, int) or isinstance(one, bool) or one < 1 for one in asked):
        raise ArtsError(f"k is {k!r}; it must be a whole number of at least 1, or a list of them")
    if too_many := sorted(one for one in asked if one > n):
        listed = ", ".join(map(str, too_many))
        _say(
            logging.WARNING,
            f"{name}: k = {listed} is left out, for a question has {n} response{'s' * (n != 1)}; {_HINT}",
        )
    return sorted(one for one in asked if one <= n)


def _judged(
    gold: Any, responses: Sequence[str], score: str = "exact_match", grader: str | None = None, **options: Any
) -> list[bool]:
    """Whether each response is right; equal ones are judged once."""
    several = options.pop("multiple_targets", False)
    golds = [str(one) for one in gold] if several else [str(gold)]
    one_is_right = _graded(grader, options) if grader is not None else _scored(score, options)
    known = {response: any(one_is_right(response, one) for one in golds) for response in dict.fromkeys(responses)}
    return [known[response] for response in responses]


def _scored(score: str, options: dict[str, Any]) -> Callable[[str, str], bool]:
    metric = releases.metric_function(score)
    if metric is None:
        raise ArtsError(
            f"score is {score!r}, and lm-eval has no metric of that name{did_you_mean(score, releases.metric_names())}"
        )

    def right(response: str, gold: str) -> bool:
        try:
            found = metric(references=[gold], predictions=[response], **options)
        except TypeError as error:  # of which lm-eval would make a call with other arguments
            raise ArtsError(f"the metric {score} cannot judge one response with {options}: {error}") from error
        value = found.get(score, next(iter(found.values()))) if isinstance(found, dict) else found
        return float(value[0] if isinstance(value, list) else value) > 0.5

    return right


def _graded(grader: str, options: dict[str, Any]) -> Callable[[str, str], bool]:
    if options:
        raise ArtsError(f"the grader {grader} takes no {', '.join(options)}")
    grade = _grader(grader)

    def right(response: str, gold: str) -> bool:
        # A gold answer may be a whole solution, which states its answer in one of two ways.
        stated = _extractor("boxed")(gold) or _extractor("hashes")(gold) or gold
        return response != INVALID and bool(grade(response, stated))

    return right


@cache
def _grader(name: str) -> Callable[[str, str], bool]:
    grade: Callable[[str, str], bool] = plugins().make("grader", name)
    return grade


@cache
def _extractor(name: str) -> Callable[[str], str | None]:
    extract: Callable[[str], str | None] = plugins().make("extractor", name)
    return extract


def _say(level: int, line: str) -> None:
    if line not in _said:
        _said.add(line)
        log.log(level, "%s", line)


arts_pass_at_k = releases.declared("arts_pass_at_k", pass_at_k)
arts_maj_at_k = releases.declared("arts_maj_at_k", maj_at_k)

"""What releases of lm-eval do differently: up to 0.4.13 a task filters and scores, from 0.5 on each pipeline has a scorer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api import registry
from lm_eval.api import task as tasks

_SCORERS = hasattr(tasks, "GenerateTask")
"""Whether filters and metrics belong to a task's scorers, and a filter's result is always a list."""
BOOTSTRAPS_RATIOS = _SCORERS
"""Whether lm-eval finds a standard error for every aggregation; else it has one for those that it knows."""
GenerateTask: Any = getattr(tasks, "GenerateTask", tasks.ConfigurableTask)
"""The class of tasks that generate text."""


def pipelines(task: Any) -> list[Any]:
    """The filter pipelines of a task, each with `name` and `apply(instances)`."""
    return [scorer.filter for scorer in task.scorers] if _SCORERS else list(task._filters)


def unwrapped(filtered: Any) -> Any:
    """What a pipeline made of an instance's only response."""
    return next(iter(filtered)) if _SCORERS else filtered


def wrapped(result: Any) -> Any:
    """`result` as a pipeline would leave it, which is what `process_results` gets."""
    return [result] if _SCORERS else result


def scores(
    task: Any, found: dict[str, Any] | None, doc: dict[str, Any], response: Any, pipeline: str
) -> dict[str, Any]:
    """The metrics of one response.

    Args:
        found: what the task's own `process_results` made of it; None where lm-eval leaves that to the pipeline's scorer.
    """
    if found is None:
        scorer = next(scorer for scorer in task.scorers if scorer.name == pipeline)
        found = scorer.score(task.doc_to_target(doc), [response])
    return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def only_predicts(task: Any) -> bool:
    """Whether lm-eval runs with --predict_only."""
    return bool(task._has_metric("bypass") if _SCORERS else "bypass" in task._metric_fn_list)


def metric_list(config: dict[str, Any]) -> Any:
    """The metrics of a task that generates text, so that lm-eval takes them.

    From 0.5 on it refuses a metric of its own that is for multiple choice, like `acc`, although `process_results` has made
    the value by itself; of a function it takes the name.
    """
    metrics = config.get("metric_list")
    if not (_SCORERS and metrics and callable(config.get("process_results"))):
        return metrics
    return [
        {**metric, "metric": _named(metric["metric"])} if isinstance(metric.get("metric"), str) else metric
        for metric in metrics
    ]


def _named(name: str) -> Any:
    def made_by_process_results(*_: Any, **__: Any) -> float:
        raise RuntimeError(f"the metric {name} is made by process_results")

    made_by_process_results.__name__ = name
    return made_by_process_results


def repeated(responses: Sequence[str], kind: Callable[[str, Sequence[str]], Any]) -> Any:
    """All responses of a document, for a pipeline that ends here: a list, or one value of `kind` where lm-eval expects that."""
    return list(responses) if _SCORERS else kind(responses[0], responses)


def score(value: float) -> Any:
    """A metric's value for a document as lm-eval wants it."""
    return [value] if _SCORERS else value


def rolling_text(arguments: Sequence[Any]) -> str:
    """The text of a request `loglikelihood_rolling`: its first argument, or from 0.5 on the one behind an empty context."""
    text: str = arguments[1] if _behind_context(arguments) else arguments[0]
    return text


def rolling_answer(arguments: Sequence[Any], total: float) -> Any:
    """The answer to that request: its log-likelihood, from 0.5 on with a flag, as for any continuation."""
    return (total, False) if _behind_context(arguments) else total


def _behind_context(arguments: Sequence[Any]) -> bool:
    return len(arguments) == 2 and arguments[0] == "" and isinstance(arguments[1], str)


def metric_names() -> list[str]:
    """Every registered metric."""
    return list(registry.metric_registry.keys())


def metric_function(name: str) -> Callable[..., Any] | None:
    """function(references=, predictions=, ...) of lm-eval's metric `name`; None where nobody registered it."""
    if name not in registry.metric_registry:
        return None
    found: Any = registry.metric_registry.get(name)
    function: Callable[..., Any] = found.fn if _SCORERS else found
    return function


def declared(name: str, function: Callable[..., Any]) -> Any:
    """What an entry point of the group `lm_eval.metrics` names: a metric that is averaged, of which more is better.

    lm-eval's decorator would say the same, but registers the name as well, which the entry point has taken by then.
    """
    if _SCORERS:
        from lm_eval.api.metrics import Metric, mean

        return Metric(name=name, fn=function, aggregation=mean, output_type={"generate_until"})
    from lm_eval.api.metrics import mean

    for known, value in ((registry.metric_agg_registry, mean), (registry.higher_is_better_registry, True)):
        if name not in known:
            known.register(name, target=value)
    return function

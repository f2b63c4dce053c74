"""What is said of a search, and what is not: a warning that tells most users nothing hides the ones that do."""

import logging
from typing import Any

import pytest
from scripted import Script, ScriptedBackend, Step

from arts_plugin.api import NO_VERIFIER, Arts

LONG = "one paragraph without a single break to its very end."
PARAGRAPH: Script = {"q": [Step(LONG, 0.5, None, 40), Step("B" + LONG, 0.5, None, 40)]}
ONE_LINE: Script = {"q": [Step("The answer is 4.", 0.5, None, 5), Step("The answer is 5.", 0.5, None, 5)]}
STEPS: Script = {"q": [Step("First.\n", 1.0, "r", 2)], "r": [Step(LONG, 1.0, None, 40)]}


def said(script: Script, caplog: pytest.LogCaptureFixture, stops: tuple[str, ...] = (), **settings: Any) -> str:
    with (
        caplog.at_level(logging.WARNING),
        Arts(engine=ScriptedBackend(script), budget_trajectories=3, **settings) as arts,
    ):
        jobs = [arts.job(arts.backend.encode("q"), stops=stops) for _ in range(2)]
        assert any(event.kind == "finished" for event in arts.events(jobs))
    return caplog.text


@pytest.mark.parametrize("strategy", ["arts", "beam", "mcts", "adaptive"])
def test_a_search_among_steps_that_there_are_not(strategy: str, caplog: pytest.LogCaptureFixture) -> None:
    assert said(PARAGRAPH, caplog, strategy=strategy).count("did not occur") == 1


@pytest.mark.parametrize(
    ("script", "stops", "settings"),
    [
        (PARAGRAPH, (), {"strategy": "greedy"}),
        (PARAGRAPH, (), {"strategy": "best_of_n"}),
        (PARAGRAPH, (), {"strategy": "self_consistency"}),
        (PARAGRAPH, (), {"temperature": 0}),
        (PARAGRAPH, ("\n",), {}),
        (PARAGRAPH, ("Q:", "\n\n"), {"delimiter": r"regex:\n+"}),
        (ONE_LINE, (), {}),
        (STEPS, (), {}),
    ],
)
def test_nobody_looks_for_steps(
    script: Script, stops: tuple[str, ...], settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert "did not occur" not in said(script, caplog, stops, **settings)


def test_a_short_answer_does_not_settle_it(caplog: pytest.LogCaptureFixture) -> None:
    """The first question may be the only one of one line."""
    script = {**ONE_LINE, "long": PARAGRAPH["q"]}
    with caplog.at_level(logging.WARNING), Arts(engine=ScriptedBackend(script)) as arts:
        list(arts.events(arts.job(arts.backend.encode(prompt)) for prompt in ("q", "long", "long")))
    assert caplog.text.count("did not occur") == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "arts"}, True),
        ({"strategy": "best_of_n", "select": "flow"}, True),
        ({"strategy": "best_of_n"}, False),
        ({"strategy": "greedy"}, False),
        ({"strategy": "greedy", "select": "flow"}, False),
        ({"strategy": "arts", "temperature": 0}, False),
    ],
)
def test_a_judge_that_is_missed(settings: dict[str, Any], expected: bool, caplog: pytest.LogCaptureFixture) -> None:
    assert (NO_VERIFIER in said(ONE_LINE, caplog, verifier="none", **settings)) is expected

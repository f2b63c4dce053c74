"""What the user asks of lm-eval, told apart from what tasks prescribe: sampling and stop strings."""

import logging
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from arts_plugin.errors import SettingsError
from arts_plugin.lm_eval.host import Evaluation, running
from arts_plugin.lm_eval.requests import attach, own_settings, read_gen_kwargs, settings_of
from arts_plugin.settings import Settings

STOCK = {"until": ["Q:"], "do_sample": False, "temperature": 0.0}


def read(users: dict[str, Any], task: dict[str, Any] = STOCK, **settings: Any) -> tuple[Settings, tuple[str, ...]]:
    """As lm-eval hands them over: one mapping, the user's above the task's."""
    return read_gen_kwargs({**task, **users}, Settings.of(settings), set(), users)


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ({"temperature": 1.5, "do_sample": True}, {"temperature": 1.5}),
        ({"temperature": "0.9"}, {"temperature": 0.9}),
        ({"do_sample": True}, {}),
        ({"do_sample": False}, {"temperature": 0.0}),
        ({"do_sample": "false", "temperature": 1.5}, {"temperature": 0.0}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"top_p": 0.5, "top_k": 7, "min_p": 0.1}, {"top_p": 0.5, "top_k": 7, "min_p": 0.1}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": "-1"}, {"top_k": 0}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"frequency_penalty": 0.5, "presence_penalty": -1}, {"frequency_penalty": 0.5, "presence_penalty": -1.0}),
        ({"logit_bias": {5: -100}}, {"logit_bias": "5:-100"}),
        ({"seed": 9}, {"seed": 9}),
        ({"temperature": 1.5, "arts_temperature": 0.2}, {"temperature": 0.2}),
        ({"num_beams": 1, "num_return_sequences": 1}, {}),
    ],
)
def test_the_users_sampling_is_that_of_the_search(
    users: dict[str, Any], expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        settings, stops = read(users)
    assert (settings, stops) == (Settings.of(expected), ("Q:",))
    told = [name for name in users if f" {name}," in caplog.text or f"{name} does not touch" in caplog.text]
    assert not told, "the user's own is said to be the task's"


def test_a_tasks_own_settings_stand_below_the_users() -> None:
    instance = Instance("generate_until", {}, ("q", {**STOCK, "temperature": 1.5}), 0)
    attach(instance, own_settings({"temperature": 0.3, "top_p": 0.8}))
    settings, _ = settings_of(instance, Settings(), set(), {"temperature": 1.5})
    assert (settings.temperature, settings.top_p) == (1.5, 0.8)


@pytest.mark.parametrize("penalty", [{"repetition_penalty": 1.1}, {"presence_penalty": 0.5}])
def test_penalties_are_honoured_whoever_prescribes_them(penalty: dict[str, float]) -> None:
    assert read({}, {**STOCK, **penalty})[0] == Settings.of(penalty)


@pytest.mark.parametrize(
    ("users", "words"),
    [
        ({"num_beams": 4}, "num_beams=4: write strategy=beam,budget_trajectories=N"),
        ({"num_return_sequences": 8}, "num_return_sequences=8: write budget_trajectories=N"),
        ({"n": 2}, "n=2: write budget_trajectories=N"),
        ({"width": 4}, "width=4: write arts_width=4"),
        ({"strategy": "beam"}, "strategy=beam: write arts_strategy=beam"),
        ({"n_ctx": 100}, "n_ctx=100: it belongs to the whole run"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"do_sample": "perhaps"}, "do_sample is 'perhaps'"),
    ],
)
def test_refused_with_what_to_write(users: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(users)


@pytest.mark.parametrize("users", [{"do_sample": True}, {"temperature": 1.5}, {"temperature": 1.5, "do_sample": True}])
def test_sampling_contradicts_greedy_decoding(users: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"asks for sampling, and strategy is 'greedy'.*strategy=best_of_n"):
        read(users, strategy="greedy")
    with pytest.raises(SettingsError, match="asks for sampling"):
        read({**users, "arts_strategy": "greedy"})
    if "temperature" in users:
        assert read(users, temperature=0)[0].temperature == 1.5
    else:
        with pytest.raises(SettingsError, match="asks for sampling, and temperature is 0"):
            read(users, temperature=0)


@pytest.mark.parametrize("users", [{"do_sample": False}, {"temperature": 0.0}, {"do_sample": False, "temperature": 1}])
def test_greedy_decoding_twice_is_no_contradiction(users: dict[str, Any]) -> None:
    assert read(users, strategy="greedy")[0] == Settings(strategy="greedy")


@pytest.mark.parametrize("wanted", [{"frequency_penalty": 0.5}, {"arts_grammar": 'root ::= "a"'}])
def test_what_the_backend_lacks(wanted: dict[str, Any]) -> None:
    """Whoever asks for it: every question would be refused, and count as wrong."""
    (name,) = wanted
    for users, task in ((wanted, STOCK), ({}, {**STOCK, **wanted})):
        with pytest.raises(
            SettingsError, match=f"{name.removeprefix('arts_')} in gen_kwargs: backend=server would ignore"
        ):
            read(users, task, backend="server")
    assert read({"frequency_penalty": 0}, {**STOCK, "frequency_penalty": 0.5}, backend="server")[0].backend == "server"


@pytest.mark.parametrize(
    ("users", "task", "stops"),
    [
        ({"stop": ["END"]}, STOCK, ("END",)),
        ({"stop": "END"}, STOCK, ("END",)),
        ({"until": ["END"]}, STOCK, ("END",)),
        ({"until": ["END"]}, {"stop": ["Q:"]}, ("END",)),
        ({"until": ["A"], "stop": ["B"]}, STOCK, ("A", "B")),
        ({}, {"until": ["A"], "stop": ["B"]}, ("A", "B")),
        ({}, {"stop": "B"}, ("B",)),
        ({"stop": []}, STOCK, ("Q:",)),
    ],
)
def test_stop_is_another_name_of_until(users: dict[str, Any], task: dict[str, Any], stops: tuple[str, ...]) -> None:
    assert read(users, task)[1] == stops


def test_a_task_for_searches_knows_how_they_sample(caplog: pytest.LogCaptureFixture) -> None:
    instance = Instance("generate_until", {}, ("q", STOCK), 0)
    settings_of(instance, Settings(), set())
    assert caplog.text.count("does not touch the search") == 1
    attach(instance, {})
    settings_of(instance, Settings(), set())
    assert caplog.text.count("does not touch the search") == 1


def test_no_evaluation_is_running() -> None:
    def simple_evaluate(random_seed: int = 7) -> Evaluation:
        return running()

    assert running() == simple_evaluate() == Evaluation()

"""examples/normalization_squeeze: what its figures rest on. The whole example, at a toy size, is opt-in: it needs TRL."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "normalization_squeeze"
MODULES = ("task", "model", "routes", "closed_form", "results", "tables")


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, Any]]:
    """The example's modules, which import each other by bare names, as its own command sees them."""
    pytest.importorskip("transformers")
    import importlib

    hidden = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(EXAMPLE))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(EXAMPLE))
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


@pytest.fixture(scope="module")
def network(example: dict[str, Any]) -> tuple[Any, Any]:
    """An untrained model, its weights large enough for probabilities to be far from even, and its alphabet."""
    import torch

    torch.manual_seed(0)
    words = example["model"].tokenizer()
    made = example["model"].blank(words, width=32)
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(3.0)
    return made.eval(), words


def test_every_right_route_is_known_by_its_text(example: dict[str, Any]) -> None:
    task = example["task"]
    for one in task.every_task()[::50]:
        texts = [task.route_text(one.start, route) for route in task.ROUTES]
        assert [one.route_of(text) for text in texts] == list(range(len(task.ROUTES)))
        ends = {
            int(text.splitlines()[-1].partition("=")[2]) for text, right in zip(texts, one.right, strict=True) if right
        }
        assert ends <= set(task.ENDS[one.tag].tolist())
        assert one.text_probabilities.sum() == pytest.approx(1.0)
    wrong = texts[0][:-3] + f"{(int(texts[0][-3:-1]) + 1) % 31:02d}\n"
    assert one.route_of(wrong) is None and not one.is_right(texts[0].rstrip("\n")) and one.route_of("") is None


def test_problems_to_train_on_are_not_those_to_test_on(example: dict[str, Any]) -> None:
    train, test = example["task"].split(3)
    assert not set(train) & set(test)
    assert len(train) + len(test) == len(example["task"].every_task())


def test_text_is_its_tokens_end_to_end(example: dict[str, Any], network: tuple[Any, Any]) -> None:
    task, words = example["task"], network[1]
    text = task.Task(1, 5).prompt + task.route_text(5, task.ROUTES[17])
    ids = words(text).input_ids
    assert words.decode(ids) == text and len(ids) + 1 == example["model"].LENGTH


def test_enumerated_probabilities_are_the_models(example: dict[str, Any], network: tuple[Any, Any]) -> None:
    import torch

    task, (net, words) = example["task"], network
    tasks = [task.Task(1, 5), task.Task(7, 30)]
    found = example["routes"].log_probabilities(net, words, tasks)
    for one, row in zip(tasks, found, strict=True):
        texts = [one.prompt + task.route_text(one.start, route) for route in task.ROUTES]
        ids = torch.tensor([[*words(text).input_ids, words.eos_token_id] for text in texts])
        with torch.no_grad():
            log_p = torch.log_softmax(net(ids).logits.double(), dim=-1)
        alone = log_p[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)[:, example["model"].PROMPT_TOKENS - 1 :].sum(1)
        assert np.abs(alone.numpy() - row).max() < 1e-4


def test_probabilities_of_routes_and_of_leaving_them_sum_to_one(
    example: dict[str, Any], network: tuple[Any, Any]
) -> None:
    """A network whose every other token is impossible has nothing but routes: theirs sum to one."""
    import torch

    task, routes, (net, words) = example["task"], example["routes"], network
    one = task.Task(3, 11)
    assert 0 < np.exp(routes.log_probabilities(net, words, [one])).sum() < 1

    class Grammar(torch.nn.Module):
        """Operations evenly, then what they give, then the line break, and the end after the last."""

        def forward(self, input_ids: Any, position_ids: Any, **others: Any) -> Any:
            logits = torch.full((*input_ids.shape, len(words)), -1e9)
            names = [words.convert_tokens_to_ids(f"{name}=") for name in task.OPERATIONS]
            depth = (position_ids - example["model"].PROMPT_TOKENS) % 3
            last = position_ids == example["model"].LENGTH - 2
            for row in range(input_ids.shape[0]):
                for place in range(input_ids.shape[1] - 1):
                    if last[row, place]:
                        logits[row, place, words.eos_token_id] = 0.0
                    elif depth[row, place] == 2:
                        logits[row, place, names] = 0.0
                    else:
                        logits[row, place, input_ids[row, place + 1]] = 0.0
                logits[row, -1, words.eos_token_id] = 0.0
            return type("Out", (), {"logits": logits})()

    found = np.exp(routes.log_probabilities(Grammar(), words, [one]))
    assert found.sum() == pytest.approx(1.0) and found[0] == pytest.approx(1 / 81)


def test_pass_at_k_is_exact(example: dict[str, Any]) -> None:
    found = example["routes"].pass_at(np.array([0.0, 0.25, 1.0]), 2)
    assert found == pytest.approx([0.0, 1 - 0.75**2, 1.0])


def test_raised_logits_squeeze_the_rest_as_the_closed_form_says(example: dict[str, Any]) -> None:
    """A softmax over routes, its own parameters: raising sampled ones divides every other by 1 + alpha, exactly."""
    task, form = example["task"], example["closed_form"]
    rng = np.random.default_rng(0)
    one = task.Task(2, 9)
    logits = rng.normal(size=len(task.ROUTES)) * 2
    log_p, sampled = [logits - np.logaddexp.reduce(logits)], []
    for _ in range(20):
        counts = rng.multinomial(8, np.exp(log_p[-1]))
        logits = logits + np.where(counts > 0, rng.uniform(0.05, 0.5, size=len(logits)), 0.0)
        log_p.append(logits - np.logaddexp.reduce(logits))
        sampled.append(counts)
    factor = form.log_factor(np.array(log_p[:-1]), np.array(log_p[1:]), np.array(sampled) > 0)
    never = np.sum(sampled, axis=0) == 0
    assert never.any() and (factor < 0).all()
    moved = np.array(log_p)[:, never] - log_p[0][never]
    assert moved[1:] == pytest.approx(np.cumsum(factor)[:, None] * np.ones(never.sum()), abs=1e-9)

    found = form.measure(np.array(log_p)[:, None], np.array(sampled)[:, None].astype(np.int16), [one])
    for name in ("right", "mass", "visits"):
        assert found["last"][name][0] == pytest.approx(moved[-1, 0], rel=1e-3)
    assert found["step"]["slope"] == pytest.approx(1.0) and found["step"]["correlation"] == pytest.approx(1.0)


def test_the_readme_says_what_was_found(example: dict[str, Any]) -> None:
    """The tables are those of the results that lie beside them, and every interval of the README is in the tables."""
    found = json.loads((EXAMPLE / "results.json").read_text(encoding="utf-8"))
    tables = example["tables"].report(found)
    assert (EXAMPLE / "TABLES.md").read_text(encoding="utf-8") == tables
    interval = r"[-+]?\d+\.\d \[[-+]?\d+\.\d, [-+]?\d+\.\d\]"
    said = re.findall(interval, (EXAMPLE / "README.md").read_text(encoding="utf-8"))
    assert len(said) > 60
    assert not set(said) - set(re.findall(interval, tables))


@pytest.mark.trl
@pytest.mark.skipif(not os.environ.get("ARTS_TEST_TRL"), reason="opt-in: ARTS_TEST_TRL=1, pip install trl")
def test_the_whole_example_runs_at_a_toy_size_and_resumes(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE / "squeeze.py"), "--out", str(tmp_path), "--seed", "0", "--toy"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr
    assert "tune grpo" not in done.stdout
    (found,) = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert set(found["exact"]) == {"base", "grpo"} and len(found["exact"]["base"]["right"]) == len(found["problems"])
    for name in ("pass_at_k", "decay", "extinct"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5000

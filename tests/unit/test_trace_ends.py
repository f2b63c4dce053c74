"""Where traces of models that think end, and control tokens that end them: token by token, without a model."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest

from arts_plugin.backend import Prompt
from arts_plugin.ends import TraceEnds, begun, opener
from arts_plugin.prompts import answer_of
from arts_plugin.steps import Delimiter, StepScanner

CONTROL = {
    100: "<|im_start|>",
    101: "</think>",
    102: "<think>",
    103: "<|channel|>",
    104: "<|message|>",
    105: "[/THINK]",
}
EMPTY = Prompt("q", (1,))


def controls(text: str) -> dict[int, str]:
    pattern = "|".join(map(re.escape, CONTROL.values()))
    ids = {spelled: token for token, spelled in CONTROL.items()}
    return {ids[spelled]: spelled for spelled in re.findall(pattern, text)}


def ended(
    stream: Sequence[str | int], stops: tuple[str, ...], think_end: str | None = None
) -> tuple[str, bool, list[int]]:
    """(the trace's text, whether a stop string ended it, places of its kept tokens) of a stream of texts and control
    tokens."""
    ends = TraceEnds.of(stops, think_end, EMPTY, controls)
    scanner = ends.scanner(Delimiter("\n"))
    before, kept, step = "", [], list[int]()
    for place, piece in enumerate(stream):
        step.append(place)
        token, data = (piece, b"") if isinstance(piece, int) else (0, piece.encode())
        end = ends.push(scanner, token, data)
        if end and end.reason == "stop":
            scanner.cut(end)
            kept = kept[: len(kept) - end.cut_tokens] + step[: end.keep_tokens]
            return before[: len(before) - end.cut_chars] + scanner.flush(), True, kept
        if end:
            before, kept, step = before + scanner.text, kept + step, []
            scanner.begin_step()
            scanner = scanner.fork()
    return before + scanner.flush(), False, kept + step


PIECES = [
    "a",
    "b ",
    "\n",
    "\n\n",
    " ",
    "Q:",
    "Q",
    ":",
    "a\n",
    "</",
    "think",
    ">",
    "</think",
    "</think>",
    "c</think>\n",
    "é",
]
STOPS = ["\n\n", "Q:", "\n", "b", "</thi", "é"]  # none begins inside another, where lm-eval goes by their order


@pytest.mark.parametrize("block", range(10))
def test_answers_are_those_of_lm_evals_own_models(block: int) -> None:
    """Random streams, cut while they come, against lm-eval's cut of the whole text."""
    post = pytest.importorskip("lm_eval.models.utils").postprocess_generated_text
    stopped = 0
    for seed in range(200 * block, 200 * block + 200):
        rng = random.Random(seed)
        stream, stops = rng.choices(PIECES, k=rng.randint(1, 25)), tuple(rng.sample(STOPS, rng.randint(0, 3)))
        whole = "".join(stream)
        if whole.count("</think>") > 1:
            continue  # the first counts here, the last there
        text, early, _ = ended(stream, stops, "</think>")
        assert answer_of(text, "</think>", stops) == post(whole, list(stops), "</think>"), (stream, stops)
        assert not early or "</think>" in text, "a stop string has ended the thinking"
        stopped += early
    assert stopped > 5


@pytest.mark.parametrize(
    ("stream", "stops", "text", "kept"),
    [
        (["a", 100, "b"], ("<|im_start|>",), "a", [0]),
        (["a", 100, "user", "\n"], ("<|im_start|>user",), "a", [0]),
        (["a\n", "b", "\n", 100, "us", "er"], ("b\n<|im_start|>user",), "a\n", [0]),  # over several steps
        (["a", "END", 100], ("END<|im_start|>",), "a", [0]),
        (["a", 100, 105, "b"], ("<|im_start|>[/THINK]",), "a", [0]),
        (["<|im_", "start|>", "b"], ("<|im_start|>",), "", []),  # spelled in ordinary tokens
    ],
)
def test_control_tokens_in_stop_strings(
    stream: list[str | int], stops: tuple[str, ...], text: str, kept: list[int]
) -> None:
    assert ended(stream, stops) == (text, True, kept)


def test_what_is_not_quite_a_stop_string_is_not_shown() -> None:
    stream = ["a", 100, "assistant", "\n", 100, "b"]
    assert ended(stream, ("<|im_start|>user",)) == ("aassistant\nb", False, [0, 1, 2, 3, 4, 5])
    assert ended(stream, ("user",)) == ("aassistant\nb", False, [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("think_end", "stream", "text", "answer"),
    [
        ("</think>", [102, "\n", "Q:", "\n\n", 101, "\n\n", "four", "\n\n"], "<think>\nQ:\n\n</think>\n\nfour", "four"),
        ("[/THINK]", ["Q:", 105, "four", "Q:"], "Q:[/THINK]four", "four"),
        ("<|im_start|>", ["\n\n", 100, "four", "\n\n"], "\n\n<|im_start|>four", "four"),
        (
            "<|channel|>final<|message|>",
            [103, "analysis", 104, "\n\n", 103, "final", 104, "four", "\n\n"],
            "<|channel|>analysis<|message|>\n\n<|channel|>final<|message|>four",
            "four",
        ),
    ],
)
def test_control_tokens_end_thinking(think_end: str, stream: list[str | int], text: str, answer: str) -> None:
    found, early, _ = ended(stream, ("\n\n", "Q:"), think_end)
    assert (found, early) == (text, True)
    assert answer_of(found, think_end, ("\n\n", "Q:")) == answer


@pytest.mark.parametrize(("stop", "kept"), [("<|im_start|>", "ab"), ("b<|im_start|>user", "a")])
def test_control_tokens_in_thinking_that_never_ends(stop: str, kept: str) -> None:
    stream = ["a", "b", 100, "user", "\n", "c"]
    text, early, _ = ended(stream, (stop,), "</think>")
    assert (text, early) == ("ab<|im_start|>user\nc", False)
    assert answer_of(text, "</think>", (stop,)) == kept
    text, early, _ = ended([*stream, "</think>", *stream], (stop,), "</think>")
    assert (text, early) == (f"ab<|im_start|>user\nc</think>{kept}", True)


def test_the_end_of_thinking_may_end_generations_elsewhere() -> None:
    ends = TraceEnds.of((), "</think>", EMPTY, controls)
    scanner: StepScanner = ends.scanner(Delimiter("\n"))
    assert ends.ends_thinking(scanner, 101) and not ends.ends_thinking(scanner, 102)
    ends.push(scanner, 101, b"")
    assert not scanner.thinking and not ends.ends_thinking(scanner, 101)


@pytest.mark.parametrize(
    ("end", "start"),
    [
        ("</think>", "<think>"),
        ("[/THINK]", "[THINK]"),
        ("<|END_THINKING|>", "<|START_THINKING|>"),
        ("<|end_of_thought|>", "<|begin_of_thought|>"),
        ("<|channel|>final<|message|>", ""),
        ("END", ""),
        (None, ""),
    ],
)
def test_what_opens_thinking(end: str | None, start: str) -> None:
    assert opener(end) == start


@pytest.mark.parametrize(
    ("text", "user", "found"),
    [
        ("<|user|>what?<|assistant|><think>\n", "what?", "opened"),
        ("<|user|>what?<|assistant|><think>\n\n</think>\n\n", "what?", "closed"),
        ("<|user|>what?<|assistant|><think>\n\n</think>\n\nThe", "what?", "closed"),
        ("<|user|>what?<|assistant|><think>\nLet me", "what?", "opened"),
        ("<|user|>what?<|assistant|>", "what?", ""),
        ("<|user|>what is <think>?<|assistant|>", "what is <think>?", ""),
        ("<|user|>what is <think>?<|assistant|>", "what is <think>?\n", ""),  # the template has stripped it
        ("<|user|>WHAT IS <think>?<|assistant|>", "what is <think>?", ""),
        ("<think>a</think>b<|user|>what?<|assistant|>", "what?", ""),
        ("Q: what is <think>?\nA:", "", ""),
        ("Q: what?\n<think>a</think> b\nQ: what?\nA:", "", ""),
        ("Q: what?\nA: <think>", "", "opened"),
        ("Q: what?\nA: <think></think>", "", "closed"),
    ],
)
def test_what_a_prompt_says(text: str, user: str, found: str) -> None:
    assert begun(Prompt(text, (1,), user), "</think>") == found
    assert begun(Prompt(text, (1,), user), None) == ""


def test_stops_count_at_once_where_the_prompt_has_closed_the_thinking() -> None:
    ends = TraceEnds.of(("\n",), "</think>", Prompt("<think></think>", (1,)), controls)
    assert not ends.scanner(Delimiter("\n")).thinking
    assert not begun(Prompt("a<|im_start|>assistant", (1,), "a"), "<|im_start|>")

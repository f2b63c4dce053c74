"""What ends a trace and a model's thinking: texts, and the control tokens that are spelled in them.

A control token stands for no text, so a text that spells one (`<|im_start|>user`) is matched by the token's id where a
model or a server tells ids. Those of stop strings are matched through marks, which no reader sees; those of the end of
thinking are shown, for it has to be found again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from arts_plugin.backend import Prompt
from arts_plugin.steps import Delimiter, StepEnd, StepScanner, mark

Controls = Callable[[str], Mapping[int, str]]
"""The control tokens that a text spells: id -> spelling."""

END_TOKENS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "</s>"),
    *(
        "<|fim_pad|>",
        "<|repo_name|>",
        "<|file_sep|>",
        "<reponame>",
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
)
"""Tokens that end a generation, whatever a generation config forgot to say. llama.cpp knows them by text too, so that
the same model ends in the same places under both backends."""
_OPENERS = (("/", ""), ("END_", "START_"), ("end_of_", "begin_of_"))
"""How the texts that open thinking are told from those that end it: `</think>`, `[/THINK]`, `<|END_THINKING|>`, ..."""


def opener(think_end: str | None) -> str:
    """The text that opens the thinking which `think_end` ends; empty if that cannot be told."""
    text = think_end or ""
    return next((text.replace(end, start, 1) for end, start in _OPENERS if end in text), "")


def begun(prompt: Prompt, think_end: str | None) -> Literal["opened", "closed", ""]:
    """Whether a prompt has opened the model's thinking, or has closed it already; empty where it says nothing.

    Only what follows the user's last message counts, or the very end of a plain prompt: templates put it there, and the
    messages may speak of anything.
    """
    if not think_end:
        return ""
    start, whole = opener(think_end), prompt.text.rstrip()
    if whole.endswith(think_end):
        return "closed"
    user = prompt.user.strip()  # as templates have it
    tail = whole.rpartition(user)[2] if user and user in whole else whole[-len(start) :]
    started = tail.rfind(start) if start else -1
    if started == -1:
        return ""
    return "closed" if tail.rfind(think_end) > started else "opened"


@dataclass(frozen=True, slots=True)
class TraceEnds:
    """Where the traces of one question end.

    Attributes:
        stops: strings that end a trace; of one that spells control tokens also the form in which marks stand for them.
        think_end: the text that ends the thinking; None where there is none, or where the prompt has ended it.
        spellings: the control tokens that they spell.
        marks: what stands in a scanner's text for a control token: its spelling, if it belongs to the thinking's end or
            beginning, else a mark, which is never shown. Inside the thinking all of them are spelled: if it never ends,
            stop strings are looked for in its text.
    """

    stops: tuple[str, ...] = ()
    think_end: str | None = None
    spellings: Mapping[int, str] = field(default_factory=dict)
    marks: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, stops: tuple[str, ...], think_end: str | None, prompt: Prompt, controls: Controls) -> TraceEnds:
        """The ends of the traces of `prompt`, with the control tokens that they spell.

        Args:
            controls: finds control tokens in a text.
        """
        if begun(prompt, think_end) == "closed":
            think_end = None
        marks = dict(controls(f"{think_end} {opener(think_end)}")) if think_end else {}
        spellings, found = dict(marks), list(stops)
        for stop in stops:
            spelled = dict(sorted(controls(stop).items(), key=lambda item: -len(item[1])))
            spellings |= spelled
            for token, text in spelled.items():
                stop = stop.replace(text, marks.setdefault(token, mark(len(marks))))
            found.append(stop)
        return cls(tuple(dict.fromkeys(found)), think_end, spellings, marks)

    def scanner(self, delimiter: Delimiter) -> StepScanner:
        """A scanner at the beginning of a trace."""
        return StepScanner(delimiter, self.stops, self.think_end)

    def push(self, scanner: StepScanner, token: int, piece: bytes) -> StepEnd | None:
        """Show a token to a scanner; see `StepScanner.push`."""
        found = (self.spellings if scanner.thinking else self.marks).get(token, "")
        return scanner.push(b"" if found else piece, found)

    def ends_thinking(self, scanner: StepScanner, token: int) -> bool:
        """Whether a token that may end generations ends the model's thinking here instead."""
        return scanner.thinking and self.think_end is not None and self.marks.get(token) == self.think_end

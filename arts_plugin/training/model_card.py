"""The model card beside a verifier: what it is, what it saw, how it did, how to make it again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from arts_plugin.checkpoint import Card
from arts_plugin.terminal import printable
from arts_plugin.writing import write_whole


def write_model_card(folder: str | Path, card: Card) -> None:
    """Write `README.md` into the verifier's folder, from what the card records. Text below a line `## Data` or
    `## Test` stays."""
    file = Path(folder) / "README.md"
    kept = ""
    if file.exists():
        found = re.search(r"\n## (Data|Test)\n", text := file.read_text(encoding="utf-8", errors="replace"))
        kept = text[found.start() :] if found else ""
    write_whole(file, printable(_text(card)) + kept)


def _loss(record: dict[str, Any]) -> str:
    options = ", ".join(f"{key} {value}" for key, value in record.items() if key != "name")
    return f"`{record['name']}`" + (f" ({options})" if options else "")


def _text(card: Card) -> str:
    training, figures = card.training, card.validation
    sampling = ", ".join(f"{name} {value}" for name, value in training["sampling"].items())
    rows = "\n".join(
        f"| {selector} | {100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] |"
        for selector, (mean, low, high) in figures["accuracy"].items()
    )
    kind = "log-flow of a state (nats)" if card.is_flow else "score of a state"
    return f"""# {card.name}: a verifier for {card.proposer.name}

A value head on the proposer's own hidden states (arXiv 2602.12846), read by `verifier=` of arts-plugin. Its output is
the {kind}; a trace's score is taken at its {"end" if card.aggregate == "terminal" else "weakest step"}.

| | |
|---|---|
| proposer | {card.proposer.name}, `{card.proposer.digest}` |
| prompt | that of `arts solve`: question, instruction, the model's chat template |
| step delimiter | `{card.delimiter!r}` |
| state feature | `{card.feature}` |
| loss | {_loss(training["loss"])} |
| trees | {training["problems"]} problems, {training["traces"]} traces, {training["traces_right"]} right; {sampling} |
| states | of backend `{training["backend"]}` |
| rewards | {training["reward_right"]} / {training["reward_wrong"]} |
| made by | `{training["command"]}` |

## Validation

{figures["problems"]} held-out training problems, {figures["traces"]} independent traces each; percent, 95 % bootstrap
intervals over problems. Early stopping and the selection rule (`{card.select}`) were chosen on these problems.

| selector | accuracy |
|---|---|
{rows}
"""

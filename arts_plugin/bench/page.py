"""The comparison on disk and on the terminal: `bench.json`, `questions.jsonl` (a line a question), `bench.md`, and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arts_plugin.bench.result import MAJORITY, RANDOM, verdicts
from arts_plugin.evaluation.table import markdown_table
from arts_plugin.report.figures import label
from arts_plugin.report.page import percent
from arts_plugin.terminal import printable
from arts_plugin.writing import save_figure, write_whole

Plain = dict[str, Any]


def write(result: Plain, folder: Path) -> Path:
    """Write the numbers, those of each question, the text and, with matplotlib, the picture; the text's path."""
    figures = {key: value for key, value in result.items() if key != "values"}
    write_whole(folder / "bench.json", json.dumps(figures, indent=1, allow_nan=False) + "\n")
    lines = [json.dumps(value, allow_nan=False) + "\n" for value in result["values"]]
    write_whole(folder / "questions.jsonl", "".join(lines))
    page = folder / "bench.md"
    write_whole(page, text(result) + "\n")
    try:
        from matplotlib.figure import Figure
    except ImportError:  # the figures come with the extra `report`
        return page
    figure = Figure(figsize=(8, 0.9 + 0.3 * len(result["rows"])), layout="constrained")
    _draw(figure, result)
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        save_figure(figure, folder / f"bench.{ending}", dpi=130, metadata=metadata)
    return page


def text(result: Plain) -> str:
    """Tables and sentences, in Markdown."""
    cost = {item["method"]: item for item in result["cost"]}
    rows = []
    for row in result["rows"]:
        spent = cost[row["method"]]
        # One sample of the pool is one trace's cost.
        share = spent["traces"] if row["label"] == RANDOM else 1.0
        seconds = spent["seconds"]
        rows.append(
            [
                row["label"],
                percent(row["accuracy"]),
                "" if row["label"] == MAJORITY else _signed(row["minus_majority"]),
                "" if row["label"] == MAJORITY else f"{row['wins']} / {row['losses']}",
                f"{spent['tokens'] / share:.0f}",
                f"{spent['verifier_tokens'] / share:.0f}",
                f"{spent['traces'] / share:.1f}",
                "-" if seconds is None else f"{seconds / share:.1f}",
            ]
        )
    header = ["", "right, %", "- majority", "better / worse on", "tokens", "verifier's", "traces", "seconds"]
    parts = [
        f"{result['questions']} questions, {result['model']}, {result['traces']} samples; percent right with 95 % bootstrap "
        "intervals over questions, differences paired; tokens (the model's and a verifier's own), finished traces and seconds a question",
        markdown_table(header, rows),
        "\n".join(f"- {line}" for line in verdicts(result)),
        _where(result),
    ]
    if result["left_out"]:
        parts.append("\n".join(["left out:", *(f"- {line}" for line in result["left_out"])]))
    return printable("\n\n".join(parts))


def _where(result: Plain) -> str:
    """Accuracies by kind of question, for the contestants that one would choose between."""
    searched = [item["left"] for item in result["differences"]]
    shown = list(
        dict.fromkeys([RANDOM, "greedy", MAJORITY, *(i["right"] for i in result["differences"][:5]), *searched])
    )
    shown = [rule for rule in shown if rule in result["where"][0]["accuracy"]]
    rows = [
        [
            f"{item['kind']}: {item['group']}",
            str(item["questions"]),
            *(f"{100 * item['accuracy'][rule][0]:.1f}" for rule in shown),
        ]
        for item in result["where"]
    ]
    return markdown_table(["where", "questions", *shown], rows)


def _signed(values: list[float]) -> str:
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * v for v in values))


def _draw(figure: Any, result: Plain) -> None:
    axes = figure.subplots()
    labels = [label(row["label"]) for row in result["rows"]]
    for place, row in enumerate(result["rows"]):
        mean, low, high = (100 * v for v in row["accuracy"])
        searched = row["method"] not in {"greedy", "samples"}
        axes.errorbar(
            mean, place, xerr=[[mean - low], [high - mean]], fmt="s" if searched else "o", capsize=2.5,
            color="#d55e00" if searched else "#0072b2" if row["method"] == "samples" else "#555555",
        )  # fmt: skip
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set(xlabel=f"right, % of {result['questions']} questions")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

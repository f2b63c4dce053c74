"""A report on disk: `report.html`, which needs nothing beside it, the pictures, the tables, and the numbers of all.

`report.json` holds what is on the page, `questions.jsonl` a line a question, from which all of it can be computed again.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from arts_plugin import __version__
from arts_plugin.evaluation.pool import EXACT, SUBSETS
from arts_plugin.evaluation.table import markdown_table
from arts_plugin.report.analysis import analyse
from arts_plugin.report.figures import draw, their_traces
from arts_plugin.report.samples import read_any
from arts_plugin.terminal import printed
from arts_plugin.writing import write_whole

Plain = dict[str, Any]


def write_report(
    run: str | Path,
    others: Sequence[str | Path] = (),
    against: str | Path | None = None,
    out: str | Path | None = None,
    task: str | None = None,
) -> tuple[Path, Plain]:
    """Make a run's report in `out` (default: RUN/report); the page's path and the report's numbers. A run is a run folder, or
    the output of lm-eval with its sample log.

    Args:
        task: of runs of several tasks, the one to report on.

    Raises:
        ArtsError: a run cannot be used, is of several tasks, or matplotlib is not installed.
    """
    main = read_any(run, task)
    beside = [read_any(other, task) for other in others]
    report = analyse(main, beside, None if against is None else read_any(against, task))
    per_question = report.pop("per_question")
    report["made_with"] = f"arts-plugin {__version__}"
    folder = Path(out) if out is not None else Path(run) / "report"
    # The numbers keep what they are of; on a page it is text that somebody else wrote.
    shown = printed(report)
    pictures = draw(shown, folder)
    write_whole(folder / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    lines = [json.dumps(record, allow_nan=False) + "\n" for record in per_question]
    write_whole(folder / "questions.jsonl", "".join(lines))
    header, rows = as_rows(shown)
    write_whole(folder / "table.md", markdown_table(header, rows) + "\n")
    write_whole(folder / "table.csv", as_csv(shown))
    page = folder / "report.html"
    write_whole(page, _render(shown, folder, pictures, header, rows))
    return page, report


def percent(values: Sequence[float] | None) -> str:
    """`41.2 [38.0, 44.5]`, or a dash."""
    return "-" if values is None else "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * v for v in values))


def as_rows(report: Plain) -> tuple[list[str], list[list[str]]]:
    """The main table as text."""
    if not report["independent"]:
        return ["chosen", "right, %"], [[row["label"], percent(row["all"])] for row in report["table"]]
    n = str(report["traces"])
    shown = [k for k in report["table"][0]["at"] if k not in {"1", n}]
    header = ["selector", *(f"k={k}" for k in shown), f"k={n}", "gap closed", "rare", "AUC", "- majority"]
    rows = []
    for row in report["table"]:
        auc = row["auc"]
        rows.append(
            [
                row["label"],
                *(f"{100 * row['at'][k][0]:.1f}" for k in shown),
                percent(row["all"]),
                percent(row["gap_closed"]),
                percent(row["rare"]),
                f"{auc[0]:.3f}" if auc else "-",
                percent(row["over_majority"]),
            ]
        )
    return header, rows


def as_csv(report: Plain) -> str:
    """Selector, k, and what was measured with its interval, a line each; unrounded."""
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(["selector", "k", "figure", "value", "low", "high"])
    for row in report["table"]:
        at = row.get("at") or {str(report["traces"]): row["all"]}
        for k, values in at.items():
            writer.writerow([row["selector"], k, "accuracy", *(values or ["", "", ""])])
        for figure in ("gap_closed", "rare", "auc", "over_majority"):
            if row.get(figure):
                writer.writerow([row["selector"], report["traces"], figure, *row[figure]])
    return made.getvalue()


def _render(
    report: Plain,
    folder: Path,
    pictures: Sequence[tuple[str, str]],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    import jinja2

    # What a model or a data set wrote is text on this page: escaped, and no script may run at all.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = percent
    environment.filters["their_traces"] = their_traces
    source = files("arts_plugin.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    shown = [
        {
            "name": name,
            "caption": caption,
            "data": base64.b64encode((folder / f"{name}.svg").read_bytes()).decode("ascii"),
        }
        for name, caption in pictures
    ]
    return environment.from_string(source).render(
        report=report, pictures=shown, header=header, rows=rows, exact=EXACT, subsets=SUBSETS
    )

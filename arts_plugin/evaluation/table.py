"""A comparison of selectors as text, JSON and Markdown. Every number has its 95 % bootstrap interval over problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from arts_plugin.evaluation.pool import Array, Bootstrap, Comparison
from arts_plugin.evaluation.statistics import Estimate
from arts_plugin.terminal import printable


@dataclass(frozen=True, slots=True)
class Row:
    """One selector: accuracy for each k, and with all n traces what it gains."""

    selector: str
    label: str
    accuracy: dict[int, Estimate]
    gap_closed: Estimate | None
    rare: Estimate
    auc: Estimate | None
    over_random: Estimate | None
    over_majority: Estimate | None


def labels(comparison: Comparison) -> list[tuple[str, str]]:
    """(selector, label) in the order of the table."""
    scorers = [s.partition(":")[2] for s in comparison.values if s.startswith("best_of:")]
    return [
        ("random", "pass@1 (random)"),
        *((f"best_of:{s}", f"best_of@k, {s}") for s in scorers),
        ("majority", "majority@k"),
        *((f"vote:{s}", f"vote@k, {s}") for s in scorers),
        ("oracle", "oracle@k"),
    ]


def rows(comparison: Comparison, boot: Bootstrap) -> list[Row]:
    """The whole table."""
    n, values = comparison.n, comparison.values
    base, ceiling, majority = (values[s][n] for s in ("random", "oracle", "majority"))
    made = []
    for selector, label in labels(comparison):
        at_n: Array = values[selector][n]
        kind, _, scorer = selector.partition(":")
        made.append(
            Row(
                selector=selector,
                label=label,
                accuracy={k: boot.mean(v) for k, v in values[selector].items()},
                gap_closed=None if selector == "random" else boot.ratio(at_n - base, ceiling - base),
                rare=boot.mean(at_n, comparison.rare),
                auc=boot.mean(comparison.auc[scorer]) if kind == "best_of" else None,
                over_random=None if selector == "random" else boot.mean(at_n - base),
                over_majority=None if selector == "majority" else boot.mean(at_n - majority),
            )
        )
    return made


def differences(comparison: Comparison, boot: Bootstrap, scorer: str) -> dict[str, Estimate]:
    """Paired differences of one scorer's best_of@n against every other's, and of its vote against majority."""
    n, values = comparison.n, comparison.values
    others = [s.partition(":")[2] for s in values if s.startswith("best_of:") and s != f"best_of:{scorer}"]
    mine = values[f"best_of:{scorer}"][n]
    found = {f"best_of@{n} - {other}": boot.mean(mine - values[f"best_of:{other}"][n]) for other in others}
    found[f"best_of@{n} - random"] = boot.mean(mine - values["random"][n])
    found[f"vote@{n} - majority@{n}"] = boot.mean(values[f"vote:{scorer}"][n] - values["majority"][n])
    rare = comparison.rare
    if rare.any():
        # How many times as often as a random draw; on the rare subset alone.
        found["rare: best_of / random"] = boot.ratio(
            np.where(rare, mine, 0.0), np.where(rare, values["random"][n], 0.0)
        )
    return found


def percent(estimate: Estimate | None) -> str:
    """`41.2 [38.0, 44.5]`, or a dash."""
    return "-" if estimate is None or estimate.mean != estimate.mean else str(estimate)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown. What would end a cell or a line inside of one does not."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in cells)


def _cell(text: str) -> str:
    # A backslash that stands before the bar already would take away the one that is put there.
    return re.sub(r"(\\*)\|", r"\1\1\\|", " ".join(printable(text).splitlines()))


def as_text(comparison: Comparison, table: Sequence[Row], markdown: bool = False) -> str:
    """The table: accuracies in percent for each k, then what all n traces give."""
    n = comparison.n
    shown = [k for k in comparison.ks if k not in (1, n)]
    header = ["selector", *(f"k={k}" for k in shown), f"k={n}", "gap closed", "rare", "AUC", "- majority"]
    body = [
        [
            row.label,
            *(f"{100 * row.accuracy[k].mean:.1f}" for k in shown),
            percent(row.accuracy[n]),
            percent(row.gap_closed),
            percent(row.rare),
            "-" if row.auc is None or row.auc.mean != row.auc.mean else f"{row.auc.mean:.3f}",
            percent(row.over_majority),
        ]
        for row in table
    ]
    if markdown:
        return markdown_table(header, body)
    widths = [max(len(cells[i]) for cells in [header, *body]) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in [header, *body]
    )


def as_json(comparison: Comparison, table: Sequence[Row]) -> dict[str, Any]:
    """Everything, numbers unrounded, with the per-problem values that they are computed from."""
    return {
        "problems": list(comparison.problems),
        "traces": comparison.n,
        "ks": list(comparison.ks),
        "rare": int(comparison.rare.sum()),
        "rows": [asdict(row) for row in table],
        "values": {s: {str(k): v.tolist() for k, v in by_k.items()} for s, by_k in comparison.values.items()},
    }

"""`arts compare`: every selector on one pool of recorded, independent traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation import table
from arts_plugin.evaluation.pool import Bootstrap, compare
from arts_plugin.terminal import printable
from arts_plugin.training.dataset import read_runs
from arts_plugin.training.pools import pool_of
from arts_plugin.writing import write_whole


def compare_runs(
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    scorer: str | None = None,
    ks: Sequence[int] | None = None,
    only: str | None = None,
) -> str:
    """The comparison as text; with `out` also compare.json, compare.md and compare.png there.

    Args:
        scorer: whose paired differences are shown; default: what guided the first tree.
        ks: numbers of traces; default: powers of two, up to all.
        only: a prefix of problem ids.

    Raises:
        ArtsError: the runs hold no pool of independent, graded traces, or a k or the scorer is not in them.
    """
    trees, _ = read_runs(runs, with_features=False)
    trees = [tree for tree in trees if only is None or tree.id.startswith(only)]
    if not trees:
        raise ArtsError(f"no problem's id begins with {only!r}")
    pool = pool_of(trees)
    n = len(pool[0].answers)
    try:
        comparison = compare(pool, ks or sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < n} | {n}))
    except ValueError as error:
        raise ArtsError(str(error)) from error
    boot = Bootstrap(len(comparison.problems))
    rows = table.rows(comparison, boot)
    name = scorer or trees[0].tree.scorer
    if f"best_of:{name}" not in comparison.values:
        known = ", ".join(sorted(comparison.auc))
        raise ArtsError(f"no scorer {name!r} in these trees: they hold {known}; `arts rescore` adds others")
    lines = [
        f"{len(comparison.problems)} problems, {n} traces each, {int(comparison.rare.sum())} rare (1/16 to 1/8 of the "
        "traces right); percent, 95 % bootstrap intervals over problems",
        "",
        table.as_text(comparison, rows),
        "",
        f"paired differences of {name}:",
    ]
    found = table.differences(comparison, boot, name)
    lines += [
        f"  {what:>36}  {e.mean:.2f} [{e.low:.2f}, {e.high:.2f}] times" if " / " in what else f"  {what:>36}  {e}"
        for what, e in found.items()
    ]
    if out is not None:
        folder = Path(out)
        record = table.as_json(comparison, rows)
        record["differences"] = {what: [e.mean, e.low, e.high] for what, e in found.items()}
        write_whole(folder / "compare.json", json.dumps(record) + "\n")
        write_whole(folder / "compare.md", printable(table.as_text(comparison, rows, markdown=True)) + "\n")
        from arts_plugin.training.plots import plot_comparison

        shown = [("random", "pass@1"), ("majority", "majority"), ("oracle", "oracle")]
        shown += [(f"best_of:{name}", f"best of k, {name}"), (f"vote:{name}", f"vote weighted by {name}")]
        plot_comparison(comparison, folder / "compare.png", shown)
        lines.append(f"\nwritten to {folder}")
    return "\n".join(lines)

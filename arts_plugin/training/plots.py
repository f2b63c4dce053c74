"""Figures of training and of comparisons, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arts_plugin.errors import ArtsError
from arts_plugin.evaluation.pool import Bootstrap, Comparison
from arts_plugin.report.figures import label as readable
from arts_plugin.writing import save_figure

if TYPE_CHECKING:
    from arts_plugin.training.trainer import Curve


def _figure(width: float, height: float, columns: int) -> tuple[Any, Any]:
    try:
        # Figure, not pyplot: no window system, no global state.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ArtsError("figures need matplotlib: pip install 'arts-plugin[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def plot_curves(curves: Sequence[Curve], file: Path, title: str) -> None:
    """Loss and held-out AUC against the epoch, one line a head; the epoch that was kept is marked."""
    figure, (losses, areas) = _figure(9, 3.6, 2)
    for number, curve in enumerate(curves):
        colour, epochs = f"C{number}", range(1, len(curve.rows) + 1)
        losses.plot(epochs, [row[0] for row in curve.rows], color=colour, label=f"head {number + 1}, training")
        losses.plot(
            epochs, [row[1] for row in curve.rows], color=colour, linestyle="--", label=f"head {number + 1}, held out"
        )
        areas.plot(epochs, [row[2] for row in curve.rows], color=colour)
        areas.plot(curve.best + 1, curve.rows[curve.best][2], "o", color=colour)
    losses.set(xlabel="epoch", ylabel="loss", title=f"{title}: loss", yscale="log")
    losses.legend(fontsize="small")
    areas.set(xlabel="epoch", ylabel="AUC within a problem", title="held-out problems; the dot is what was kept")
    save_figure(figure, file, dpi=120)


def plot_comparison(comparison: Comparison, file: Path, selectors: Sequence[tuple[str, str]]) -> None:
    """Accuracy against k for (selector, label) pairs, with 95 % bootstrap bands."""
    figure, axes = _figure(7.5, 5, 1)
    boot = Bootstrap(len(comparison.problems))
    for number, (selector, label) in enumerate(selectors):
        colour = f"C{number % 10}"
        estimates = [boot.mean(comparison.values[selector][k]) for k in comparison.ks]
        axes.plot(comparison.ks, [100 * e.mean for e in estimates], marker="o", color=colour, label=readable(label))
        axes.fill_between(
            comparison.ks,
            [100 * e.low for e in estimates],
            [100 * e.high for e in estimates],
            color=colour,
            alpha=0.1,
            linewidth=0,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(comparison.ks, [str(k) for k in comparison.ks])
    axes.set(
        xlabel="traces (k)",
        ylabel="accuracy, %",
        title=f"{len(comparison.problems)} problems, all k-subsets of {comparison.n} traces; 95 % bands",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_figure(figure, file, dpi=120)

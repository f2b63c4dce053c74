"""A report's pictures, each from the report's numbers alone, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arts_plugin.errors import ArtsError
from arts_plugin.terminal import printable
from arts_plugin.writing import save_figure

Plain = dict[str, Any]
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#555555",
    "#882255",
    "#117733",
    "#999933",
)
"""Okabe and Ito's, which the colour-blind can tell apart, and some of Tol's."""
_MARKS = "osD^vP*Xhd"


def draw(report: Plain, folder: Path) -> list[tuple[str, str]]:
    """Write the pictures; (file name without ending, what it shows) of each.

    Raises:
        ArtsError: matplotlib is not installed, or the pictures cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure  # not pyplot: no window system, no global state
    except ImportError as error:
        raise ArtsError("a report needs matplotlib: pip install 'arts-plugin[report]'") from error
    made = []
    # The same report gives the same files.
    with mpl.rc_context(
        {"svg.hashsalt": "arts", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}
    ):
        for name, caption, size, paint in _pictures(report):
            figure = Figure(figsize=size, layout="constrained")
            paint(figure)
            for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                save_figure(figure, folder / f"{name}.{ending}", dpi=130, metadata=metadata)
            made.append((name, caption))
    return made


def _pictures(report: Plain) -> Iterator[tuple[str, str, tuple[float, float], Any]]:
    what = "k-subsets of its traces" if report["independent"] else "its first k finished trajectories"
    yield "accuracy", f"Accuracy against k: {what}.", (7.5, 4.6), lambda f: _accuracy(f, report)
    if report["cost"]["tokens"] is not None:
        yield "cost", _COST, (10, 4.4), lambda f: _cost(f, report)
    if _calibrated(report):
        yield "calibration", _CALIBRATION, (7.5, 4.2), lambda f: _calibration(f, report)
    for kind in ("level", "subject"):
        if rows := report["groups"][kind]:
            height = 1.2 + 0.42 * len(rows)
            yield (
                kind,
                f"By {kind}: a random trace, the chosen one, and whether any is right.",
                (7.5, height),
                _by(rows),
            )
    if (extinct := report["extinct"]) and extinct["questions"]:
        height = 1.2 + 0.34 * (len(extinct["rows"]) + 1)
        caption = (
            f"The extinction zone: questions that none of the other run's traces gets right ({their_traces(extinct)} a "
            "question), and some trace of this one does."
        )
        yield "extinct", caption, (7.5, height), lambda f: _extinct(f, extinct)


def their_traces(extinct: Plain) -> str:
    """`16`, or `3 to 40`: how many traces of a question the other run has."""
    least, most = extinct["their_traces"]
    return str(most) if least == most else f"{least} to {most}"


_COST = (
    "Accuracy against what a question cost: tokens generated, and seconds (the run's wall-clock time over its questions where "
    "it was kept, else from a question's admission to its end, others beside it). Dots with a label are other runs."
)
_CALIBRATION = "How often trajectories are right, in tenths by score; bars are 95 % intervals over questions."


def _shown(report: Plain) -> list[Plain]:
    return [curve for curve in report["curves"] if curve["shown"]]


def _accuracy(figure: Any, report: Plain) -> None:
    axes = figure.subplots()
    for i, curve in enumerate(_shown(report)):
        _line(axes, curve["k"], curve["accuracy"], i, label(curve["label"]))
    ks = report["curves"][0]["k"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set(xlabel="traces (k)", ylabel="right, %")
    _finish(axes)


def _cost(figure: Any, report: Plain) -> None:
    for axes, unit in zip(figure.subplots(1, 2, sharey=True), ("tokens", "seconds"), strict=True):
        for i, curve in enumerate(_shown(report)):
            _line(axes, curve[unit], curve["accuracy"], i, label(curve["label"]))
        for i, point in enumerate(report["points"]):
            if point[unit] is None:
                continue
            mean, low, high = (100 * v for v in point["accuracy"])
            colour = _COLOURS[(len(_shown(report)) + i) % len(_COLOURS)]
            axes.errorbar(point[unit], mean, [[mean - low], [high - mean]], fmt="o", color=colour, capsize=3, ms=7)
            axes.annotate(
                label(point["label"]), (point[unit], mean), textcoords="offset points", xytext=(7, 5), fontsize=8
            )
        axes.set(xlabel=f"{unit} a question")
        if any(x > 0 for curve in _shown(report) for x in curve[unit]):
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.4g}")
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        if unit == "tokens":
            axes.set(ylabel="right, %")
            axes.legend(fontsize=7.5, frameon=False)


def _calibrated(report: Plain) -> list[str]:
    found = report["calibration"]
    return [
        name for name in dict.fromkeys((report["run"]["scorer"], "logprob")) if name in found and found[name]["bins"]
    ]


def _calibration(figure: Any, report: Plain) -> None:
    found, shown = report["calibration"], _calibrated(report)
    for axes, name in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        bins = found[name]["bins"]
        x = [b["score"] for b in bins]
        y = [100 * b["right"][0] for b in bins]
        bars = [
            [100 * (b["right"][0] - b["right"][1]) for b in bins],
            [100 * (b["right"][2] - b["right"][0]) for b in bins],
        ]
        axes.errorbar(x, y, bars, fmt="-o", color=_COLOURS[0], capsize=2.5, ms=4)
        auc = found[name]["auc"]
        title = f"{label(name)}\nAUC within a question " + (
            f"{auc[0]:.3f} [{auc[1]:.3f}, {auc[2]:.3f}]" if auc else "-"
        )
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="score (nats)", ylabel="right, %" if name == shown[0] else "")
        axes.grid(alpha=0.25)


def _by(rows: list[Plain]) -> Any:
    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for i, (what, shift) in enumerate((("pass@1", 0.22), ("chosen", 0.0), ("oracle", -0.22))):
            _dots(axes, [row[what] for row in rows], shift, i, what)
        names = [f"{_short(row['group'])} ({row['questions']})" for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.invert_yaxis()
        axes.set(xlabel="right, %")
        axes.grid(alpha=0.25)
        figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)  # nothing inside is free of dots

    return paint


def _extinct(figure: Any, extinct: Plain) -> None:
    axes = figure.subplots()
    rows = [{"label": "a random trace", "accuracy": extinct["pass@1"]}, *extinct["rows"]]
    _dots(axes, [row["accuracy"] for row in rows], 0.0, 0, None)
    axes.set_yticks(range(len(rows)), [label(row["label"]) for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=f"right, % of {extinct['questions']} questions")
    axes.grid(alpha=0.25)


def _dots(axes: Any, estimates: list[Any], shift: float, number: int, name: str | None) -> None:
    places = [i + shift for i, e in enumerate(estimates) if e is not None]
    shown = [[100 * v for v in e] for e in estimates if e is not None]
    bars = [[m - low for m, low, _ in shown], [high - m for m, _, high in shown]]
    axes.errorbar(
        [m for m, _, _ in shown],
        places,
        xerr=bars,
        fmt=_MARKS[number],
        color=_COLOURS[number],
        capsize=2,
        ms=5,
        label=name,
    )


def _line(axes: Any, x: list[float], estimates: list[Any], number: int, name: str) -> None:
    colour = _COLOURS[number % len(_COLOURS)]
    at = [i for i, e in enumerate(estimates) if e is not None]
    xs = [x[i] for i in at]
    mean, low, high = ([100 * estimates[i][part] for i in at] for part in range(3))
    axes.plot(xs, mean, marker=_MARKS[number % len(_MARKS)], ms=4.5, color=colour, label=name)
    axes.fill_between(xs, low, high, color=colour, alpha=0.1, linewidth=0)


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)


def _short(text: str, most: int = 34) -> str:
    return label(text if len(text) <= most else f"{text[: most - 1]}\N{HORIZONTAL ELLIPSIS}")


def label(text: str) -> str:
    """`text` as a picture can show it: on one line, and no mathematics between dollars, which matplotlib would set."""
    return " ".join(printable(text).split()).replace("$", r"\$")

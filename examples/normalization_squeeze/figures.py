"""The figures of the README. Colours are those of Okabe and Ito, which colour-blind readers can tell apart.

python figures.py results.json FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from results import Results
from tables import LABELS

BLUE, ORANGE, GREEN, PURPLE, GREY, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777", "#56B4E9"


def draw(seeds: Sequence[dict[str, Any]], folder: Path) -> None:
    """All figures, as PNG files in `folder`."""
    found = Results(seeds)
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("pass_at_k", passes), ("decay", decay), ("extinct", extinct)):
        made = figure(found)
        made.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(made)


def passes(found: Results) -> Any:
    """pass@k of base and tuned model against k, over all problems and over those that the habit rarely solves."""
    ks = [2**i for i in range(11)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, constrained_layout=True)
    zones = {"all test problems": found.zones["all"], "where the habit is rarely right": found.kinds == "rare"}
    for axis, (title, where) in zip(axes, zones.items(), strict=True):
        for name, label, colour, style in (
            ("base", "base", BLUE, "-"),
            ("grpo", "after GRPO", ORANGE, "-"),
            ("small steps", "after GRPO, small steps", GREY, "--"),
        ):
            if name in found.exact:
                values = [found.mean(found.pass_exact(name, k), where) for k in ks]
                axis.plot(ks, [100 * v.mean for v in values], style, color=colour, label=label)
                band = [[100 * v.low for v in values], [100 * v.high for v in values]]
                axis.fill_between(ks, *band, color=colour, alpha=0.2, linewidth=0)
        for right, colour, marker in ((found.base_right, BLUE, "o"), (found.tuned_right, ORANGE, "s")):
            some = [k for k in (1, 2, 4, 8, 16) if k <= found.traces]
            dots = [100 * found.mean(found.pass_sampled(right, k), where).mean for k in some]
            axis.plot(some, dots, marker, color=colour, markersize=4)
        axis.set(xscale="log", xlabel="k, traces", title=f"{title} ({int(where.sum())})", ylim=(0, 101))
        axis.set_xticks(ks[::2], [str(k) for k in ks[::2]])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("pass@k, %")
    axes[0].plot([], [], "o", color=GREY, markersize=4, label="sampled (16 traces)")
    axes[0].legend(loc="lower right", frameon=False)
    return figure


def decay(found: Results) -> Any:
    """Routes that were never sampled against the closed form: along the tuning, and one update at a time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), constrained_layout=True)
    shown = (
        ("right", "measured, right routes", BLUE, "-"),
        ("wrong", "measured, wrong routes", ORANGE, "-"),
        ("mass", "closed form, all updates", GREEN, "--"),
        ("visits", "closed form, own updates", PURPLE, ":"),
    )
    x = found.seeds[0]["decay"]["updates"]
    for name, label, colour, style in shown:
        curves = np.array([seed["decay"]["curves"][name] for seed in found.seeds])  # [seed, update, (mean, low, high)]
        mean = curves[:, :, 0].mean(axis=0)
        # Seeds are independent: the interval of their mean from theirs.
        below, above = (
            np.sqrt(((curves[:, :, side] - curves[:, :, 0]) ** 2).sum(axis=0)) / len(curves) for side in (1, 2)
        )
        left.plot(x, mean, style, color=colour, label=label)
        left.fill_between(x, mean - below, mean + above, color=colour, alpha=0.15, linewidth=0)
    left.set(xlabel="update", ylabel="mean log of (probability / base's)", title="routes that were never sampled")
    left.legend(frameon=False)
    points = np.array([point for seed in found.seeds for point in seed["decay"]["step"]["sample"]])
    right.plot(points[:, 0], points[:, 1], ".", color=BLUE, markersize=3, alpha=0.5)
    span = [float(np.percentile(points, 0.5)), float(np.percentile(points, 99.5))]
    right.plot(span, span, "--", color=GREEN, label="closed form")
    right.set(
        xlabel="-log(1 + alpha), from the sampled set's mass", ylabel="measured change of log probability",
        title="one update, right routes not sampled", xlim=span, ylim=span,
    )  # fmt: skip
    right.legend(frameon=False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure


def extinct(found: Results) -> Any:
    """Every method on all problems and in the extinction zone."""
    names = [
        name
        for name in LABELS
        if name in found.values and not (name.startswith("vote:") and name != "vote:rfm") and name != "best_of:logprob"
    ]
    figure, axis = plt.subplots(figsize=(9, 5.2), constrained_layout=True)
    place = np.arange(len(names))[::-1]
    zones = (("all", "all test problems", GREY, 0.2), ("extinct", "extinction zone", ORANGE, -0.2))
    for zone, label, colour, shift in zones:
        values = [found.mean(found.values[name], found.zones[zone]) for name in names]
        means = np.array([100 * v.mean for v in values])
        spread = [means - [100 * v.low for v in values], [100 * v.high for v in values] - means]
        axis.barh(
            place + shift, means, 0.38, xerr=np.maximum(spread, 0), color=colour, alpha=0.85,
            label=f"{label} ({int(found.zones[zone].sum())})", error_kw={"elinewidth": 1, "capsize": 2},
        )  # fmt: skip
    axis.set_yticks(place, [LABELS[name] for name in names])
    axis.set(xlabel="right, %", xlim=(0, 101))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))

"""The tables of the README, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from results import Results

LABELS = {
    "random": "one trace at random (pass@1)",
    "best_of:logprob": "best of 16, likeliest trace",
    "majority": "majority of 16",
    "best_of:rfm": "best of 16, RFM (ARTS's flow)",
    "best_of:prm": "best of 16, PRM",
    "best_of:pairwise": "best of 16, pairwise RM",
    "best_of:bce": "best of 16, leaf classifier",
    "vote:rfm": "vote of 16 weighted by RFM",
    "vote:prm": "vote of 16 weighted by PRM",
    "vote:pairwise": "vote of 16 weighted by pairwise RM",
    "vote:bce": "vote of 16 weighted by leaf classifier",
    "arts, 16 roots": "tree search with RFM, 16 roots",
    "arts, 32 roots": "tree search with RFM, 32 roots",
    "oracle": "oracle, any of 16",
    "tuned": "GRPO: one trace (pass@1)",
    "tuned: majority": "GRPO: majority of 16",
    "tuned: oracle": "GRPO: oracle, any of 16",
}


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def report(seeds: Sequence[dict[str, Any]]) -> str:
    """Every table."""
    found = Results(seeds)
    parts = [
        ("pass@k, exact", passes(found)),
        ("pass@k, sampled", sampled(found)),
        ("Conditions", conditions(found)),
        ("The closed form", closed_form(found)),
        ("Who recovers them", methods(found)),
        ("Paired differences", differences(found)),
        ("Search", searches(found)),
        ("Seed by seed", by_seed(found)),
        ("Seconds", seconds(found)),
    ]
    return "\n".join(f"### {title}\n\n{table}" for title, table in parts)


def passes(found: Results) -> str:
    """Exact pass@k of base and tuned model, over all problems and by kind."""
    ks, rows = (1, 4, 16, 64, 256), []
    for kind in ("all", "easy", "mixed", "rare"):
        where = found.zones["all"] if kind == "all" else found.kinds == kind
        for name in ("base", "grpo"):
            figures = [str(found.mean(found.pass_exact(name, k), where)) for k in ks]
            rows.append([f"{kind} ({int(where.sum())})", name, *figures])
    return markdown(["problems", "model", *(f"k={k}" for k in ks)], rows)


def sampled(found: Results) -> str:
    """pass@k by the unbiased estimator from the sampled traces."""
    ks = [k for k in (1, 4, 16) if k <= found.traces]
    rows = [
        [name, *(str(found.mean(found.pass_sampled(right, k))) for k in ks)]
        for name, right in (("base", found.base_right), ("grpo", found.tuned_right))
    ]
    return markdown(["model", *(f"k={k}" for k in ks)], rows)


def conditions(found: Results) -> str:
    """Every tuning against the base."""
    rows = []
    base = {k: found.pass_exact("base", k) for k in (1, 16, 64)}
    for name in found.exact:
        gone = (found.pass_exact(name, 16) < 0.1) & (base[16] >= 0.5)
        entropy = np.mean([seed["exact"][name]["entropy"] for seed in found.seeds])
        cells = [str(found.mean(found.pass_exact(name, 1)))]
        cells += [
            "-" if name == "base" else signed(found.mean(found.pass_exact(name, k) - base[k])) for k in (1, 16, 64)
        ]
        rows.append([name, *cells, str(found.mean(gone.astype(float))), f"{entropy:.2f}"])
    header = ["tuning", "pass@1", "pass@1 - base", "pass@16 - base", "pass@64 - base", "extinct", "entropy (nats)"]
    return markdown(header, rows)


def closed_form(found: Results) -> str:
    """Measured and predicted decay, seed by seed."""
    rows = []
    for seed in found.seeds:
        decay, single = seed["decay"], seed["decay"]["step"]
        last = {name: values[-1] for name, values in decay["curves"].items()}
        rows.append(
            [
                str(seed["seed"]),
                f"{decay['routes']} of {decay['routes_right']}",
                *(f"{m:.2f} [{low:.2f}, {high:.2f}]" for m, low, high in (last[n] for n in ("right", "wrong", "visits", "mass"))),
                f"{single['mean_measured']:.4f} / {single['mean_closed_form']:.4f}",
                f"{single['correlation']:.2f}",
                f"{decay['own'][0]:.2f} in {100 * decay['visited']:.1f} % of updates",
                f"{decay['sharpening'][0]:.2f} [{decay['sharpening'][1]:.2f}, {decay['sharpening'][2]:.2f}]",
            ]
        )  # fmt: skip
    header = [
        "seed", "right routes never sampled", "log ratio, right", "log ratio, wrong", "closed form, own updates",
        "closed form, all updates", "one update: measured / closed form", "correlation",
        "log ratio, right, in own updates", "sharpening",
    ]  # fmt: skip
    return markdown(header, rows)


def methods(found: Results) -> str:
    """Accuracy of every method on every zone."""
    rows = []
    for name, label in LABELS.items():
        if name in found.values:
            cells = [str(found.mean(found.values[name], where)) for where in found.zones.values()]
            rows.append([label, *cells])
    return markdown(["method", *(f"{z} ({int(w.sum())})" for z, w in found.zones.items())], rows)


PAIRS = (
    ("best_of:rfm", "best_of:prm"),
    ("best_of:rfm", "best_of:pairwise"),
    ("best_of:rfm", "best_of:bce"),
    ("best_of:rfm", "majority"),
    ("vote:rfm", "majority"),
    ("best_of:rfm", "tuned"),
    ("best_of:rfm", "tuned: majority"),
    ("best_of:rfm", "random"),
    ("best_of:prm", "random"),
    ("best_of:pairwise", "random"),
    ("arts, 16 roots", "best_of:rfm"),
    ("arts, 32 roots", "best_of:rfm"),
)


def differences(found: Results) -> str:
    """Paired differences, in points."""
    zones = ("all", "rare", "extinct")
    rows = [
        [f"{LABELS[a]} - {LABELS[b]}", *(signed(found.mean(found.values[a] - found.values[b], found.zones[z])) for z in zones)]
        for a, b in PAIRS
        if a in found.values and b in found.values
    ]  # fmt: skip
    return markdown(["difference", *zones], rows)


def searches(found: Results) -> str:
    """What tree search costs and finds."""
    tokens = np.mean([seed["pools"]["base"]["tokens"] / seed["pools"]["base"]["problems"] for seed in found.seeds])
    rows = [["16 independent traces", f"{tokens:.0f}", "-", f"{found.traces}", str(found.mean(found.values["oracle"]))]]
    for name in found.seeds[0]["search"]:
        mean = {
            key: np.mean([seed["search"][name][key] for seed in found.seeds])
            for key in ("tokens", "verifier_tokens", "finished")
        }
        figures = [f"{mean['tokens']:.0f}", f"{mean['verifier_tokens']:.0f}", f"{mean['finished']:.1f}"]
        rows.append([LABELS[name], *figures, str(found.mean(found.values[f"{name}: oracle"]))])
    header = ["", "proposer tokens a problem", "verifier tokens", "finished traces (merged)", "oracle over them"]
    return markdown(header, rows)


def by_seed(found: Results) -> str:
    """The main figures of each seed."""
    rows = []
    for number, seed in enumerate(found.seeds):
        here = found.of_seed(number)
        cells = [
            *(f"{100 * found.pass_exact(model, k)[here].mean():.1f}" for model in ("base", "grpo") for k in (1, 16)),
            str(int((found.zones["extinct"] & here).sum())),
        ]
        for name in ("best_of:rfm", "best_of:prm", "best_of:pairwise", "best_of:bce"):
            if name in found.values:
                extinct = found.values[name][here & found.zones["extinct"]]
                cells.append(
                    f"{100 * found.values[name][here].mean():.1f} / {100 * extinct.mean():.1f}" if len(extinct) else "-"
                )
        rows.append([str(seed["seed"]), *cells])  # fmt: skip
    header = ["seed", "base pass@1", "base pass@16", "GRPO pass@1", "GRPO pass@16", "extinct"]
    names = ["RFM", "PRM", "pairwise", "classifier"][: len(rows[0]) - len(header)]
    return markdown([*header, *(f"{n}: all / extinct" for n in names)], rows)


def seconds(found: Results) -> str:
    """Seconds of each stage, mean over seeds."""
    stages = list(found.seeds[0]["seconds"])
    mean = {stage: float(np.mean([seed["seconds"][stage] for seed in found.seeds])) for stage in stages}
    rows = [[stage, f"{value:.0f}"] for stage, value in mean.items()]
    return markdown(["stage", "seconds"], [*rows, ["all", f"{sum(mean.values()):.0f}"]])


def signed(estimate: Any) -> str:
    """`+3.1 [1.0, 5.2]`, in points."""
    if estimate.mean != estimate.mean:
        return "-"
    return f"{100 * estimate.mean:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"

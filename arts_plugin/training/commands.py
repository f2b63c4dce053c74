"""`arts sdf`, `arts train`, and what belongs to them. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from arts_plugin.cli_options import given, settings_options
from arts_plugin.terminal import echo
from arts_plugin.training.sources import Source, source_options


def training_options(command: Any) -> Any:
    """One option for each field of `TrainingSettings`; that class imports torch, so they are spelled here."""
    for name, default, kind, doc in reversed(_TRAINING):
        names = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        command = click.option(*names, name, default=default, type=kind, show_default=True, help=doc)(command)
    return command


def lora_options(command: Any) -> Any:
    """One `--lora_` option for each field of `LoraSettings` that training settings do not share."""
    for name, default, kind, doc in reversed(_LORA):
        names = [f"--lora_{name}", f"--lora-{name.replace('_', '-')}"]
        flag = {"is_flag": True} if kind is bool else {"type": kind, "show_default": True}
        command = click.option(*names, f"lora_{name}", default=default, help=f"With --backbone: {doc}", **flag)(command)
    return command


_LORA: list[tuple[str, Any, Any, str]] = [
    ("r", 16, click.IntRange(1), "rank of the adapters."),
    ("alpha", 32, click.IntRange(1), "their alpha."),
    ("hidden", 256, click.IntRange(1), "hidden units of the head."),
    ("learning_rate", 1e-4, float, "AdamW's, for the adapters."),
    ("head_rate", 1e-3, float, "AdamW's, for the head."),
    ("epochs", 3, click.IntRange(1), "passes over the trees."),
    ("batch_problems", 8, click.IntRange(1), "trees in an optimiser step."),
    ("max_tokens", 8192, click.IntRange(1), "trees with more tokens are left out."),
    ("dtype", "auto", str, "bfloat16, float16, float32 or auto."),
    ("device", None, str, "cuda, cpu, ...; default: cuda if there is one."),
    ("checkpointing", False, bool, "compute activations again in the backward pass."),
]

_TRAINING: list[tuple[str, Any, Any, str]] = [
    ("feature", "mean", click.Choice(["last", "mean", "shift", "mean_last"]), "What the head reads of a state."),
    ("hidden", 128, click.IntRange(1), "Hidden units of a head."),
    ("heads", 3, click.IntRange(1), "Heads from different seeds, averaged."),
    ("reward_right", 10.0, float, "R of right leaves."),
    ("reward_wrong", 0.1, float, "R of wrong leaves."),
    ("dropout", 0.1, click.FloatRange(0, 1, max_open=True), "Dropout."),
    ("learning_rate", 1e-3, float, "AdamW's."),
    ("weight_decay", 1e-2, float, "AdamW's."),
    ("batch_problems", 16, click.IntRange(1), "Trees in a step."),
    ("epochs", 60, click.IntRange(1), "Epochs, at most."),
    ("patience", 10, click.IntRange(1), "Epochs without improvement on held-out problems before training stops."),
    ("validation", 0.2, click.FloatRange(0, 1, min_open=True, max_open=True), "Share of problems held out."),
    ("seed", 0, int, "Seed of the split, the weights and the order."),
]


@click.command()
@click.option(
    "--out", required=True, type=click.Path(file_okay=False), help="Run folder; started again, it is resumed."
)
@click.option("--traces", default=16, show_default=True, type=click.IntRange(1), help="N, main traces a problem.")
@source_options(split="train")
@settings_options(without=("trace", "strategy", "width", "budget_trajectories"))
def sdf(source: Source, out: str, traces: int, **settings: Any) -> None:
    """Make Sparse Deep Fork training trees: main traces, forks from their inner states, graded leaves.

    With --fork_probability 0 it makes a pool of independent traces, which is what scorers are compared on.
    """
    from tqdm import tqdm

    from arts_plugin.api import Arts
    from arts_plugin.training.sdf import make_trees

    grader, problems_for = source.open()
    wanted = {"features": True, "verifier": "none", **given(settings)}
    # Every main trace may be forked, so 2 N trajectories are a limit that is never in the way.
    made = Arts(strategy="sdf", width=traces, budget_trajectories=2 * traces, trace=out, **wanted)
    with made as arts:
        problems = list(problems_for(arts))
        if not problems:
            raise click.ClickException("there is no problem to make a tree of")
        bar = tqdm(total=len(problems), unit="problem", smoothing=0.05)
        for _, progress in make_trees(arts, problems, grader):
            stats = arts.backend.stats
            rate = stats.decoded_tokens / max(stats.decode_seconds + stats.prefill_seconds, 1e-9)
            bar.update()
            bar.set_postfix_str(f"{progress.traces} traces, {progress.pass_rate:.1%} right, {rate:.0f} tokens/s")
        bar.close()
    echo(f"{out}: {progress.problems} problems, {progress.traces} finished traces, {progress.pass_rate:.1%} right")
    for line in progress.failed:
        echo(f"  left out: {line}", err=True)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--model", default=None, help="The proposer, where it lies elsewhere than when the run was made.")
@click.option("--n_threads", "--n-threads", type=click.IntRange(1), default=None, help="Threads.")
@click.option("--again", is_flag=True, help="Compute also what is there.")
def features(run: str, model: str | None, n_threads: int | None, again: bool) -> None:
    """Compute the hidden states of RUN's trees from their tokens, for runs that were made without them."""
    from tqdm import tqdm

    from arts_plugin.plugins import plugins
    from arts_plugin.run import RunInfo, read_trees
    from arts_plugin.settings import Settings
    from arts_plugin.training.derive import derive

    recorded = {
        name: value for name, value in RunInfo.read(run).settings.items() if name in {"model", "backend", "n_ctx"}
    }
    wanted = given({"model": model, "n_threads": n_threads})
    settings = Settings.of({**recorded, **wanted})
    backend = plugins().make("backend", settings.backend, settings, features=True)
    try:
        total = sum(1 for _ in read_trees(run))
        for _ in tqdm(derive(run, backend, again=again), total=total, unit="tree"):
            pass
    finally:
        backend.close()


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The verifier's folder.")
@click.option("--loss", default="rfm", show_default=True, help="rfm, rfm_mean, subtb, leaf, prm, pairwise or bce.")
@click.option(
    "--baselines",
    default=None,
    help="Other losses to train, or none.  [default: leaf,prm,pairwise,rfm_mean; with --backbone none]",
)
@click.option("--stop_gradient/--full_gradient", default=True, show_default=True, help="Are flow targets constants?")
@click.option("--name", default=None, help="Name of the verifier in trees; default: its loss.")
@click.option("--backbone", default=None, help="Train a language model of its own with LoRA: folder, hub id or GGUF.")
@lora_options
@training_options
def train(
    runs: tuple[str, ...],
    out: str,
    loss: str,
    baselines: str | None,
    stop_gradient: bool,
    name: str | None,
    backbone: str | None,
    **values: Any,
) -> None:
    """Train a verifier on the graded trees of RUNS (see `arts sdf`), and baselines on the same trees."""
    from arts_plugin.training.model_card import write_model_card
    from arts_plugin.training.train import train as fit
    from arts_plugin.training.trainer import TrainingSettings

    if baselines is None:
        baselines = "leaf,prm,pairwise,rfm_mean" if backbone is None else "none"
    others = [] if baselines == "none" else [part.strip() for part in baselines.split(",") if part.strip()]
    lora_values = {field: values.pop(f"lora_{field}") for field, *_ in _LORA}
    lora = None
    if backbone is not None:
        from arts_hf.lora import LoraSettings

        lora = LoraSettings(backbone, seed=values["seed"], dropout=values["dropout"], **lora_values)
    spelled = [f"--backbone {Path(backbone).name}"] if backbone else []
    spelled += [f"--lora_{f} {lora_values[f]}" for f, default, *_ in _LORA if backbone and lora_values[f] != default]
    command = " ".join(["arts train", *(Path(run).name for run in runs), f"--loss {loss}", *spelled, *_spelled(values)])
    made = fit(
        runs, out, loss=loss, baselines=others, stop_gradient=stop_gradient, settings=TrainingSettings(**values),
        lora=lora, name=name, command=command, say=echo,
    )  # fmt: skip
    write_model_card(out, made.card)
    _print_validation(made.card.validation)
    echo(f"\nwritten to {out}; use it with verifier={out}")


def _spelled(values: dict[str, Any]) -> list[str]:
    from arts_plugin.training.trainer import TrainingSettings

    default = TrainingSettings()
    return [f"--{name} {value}" for name, value in values.items() if value != getattr(default, name)]


def _print_validation(figures: dict[str, Any]) -> None:
    echo(f"\n{figures['problems']} held-out problems, {figures['traces']} traces each; percent, 95 % intervals")
    for selector, (mean, low, high) in figures["accuracy"].items():
        auc = figures["auc"].get(selector.partition(":")[2]) if selector.startswith("best_of:") else None
        tail = "" if auc is None or auc[0] is None else f"   AUC {auc[0]:.3f} [{auc[1]:.3f}, {auc[2]:.3f}]"
        echo(f"{selector:>24} {100 * mean:5.1f} [{100 * low:.1f}, {100 * high:.1f}]{tail}")


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--verifier", "verifiers", multiple=True, help="Folder, built-in name or hub id; repeatable, the first guides."
)
@click.option("--select", default=None, help="Selection rule: flow, weighted_vote, majority, logprob, random.")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Run folder for the rescored trees.")
@click.option("--verifier_model", "--verifier-model", default=None, help="Where a LoRA verifier's own model lies.")
@click.option("--device", default=None, help="Where a LoRA verifier runs: cuda, cpu, ...")
@click.option("--dtype", default="auto", show_default=True, help="In what it computes.")
def rescore(run: str, verifiers: tuple[str, ...], select: str | None, out: str, **model: Any) -> None:
    """Score RUN's trees with other verifiers, or choose by another rule, without generating again."""
    from arts_plugin.settings import Settings
    from arts_plugin.training.rescore import rescore as redo

    if not verifiers and select is None:
        raise click.UsageError("give --verifier or --select")
    found = redo(run, out, verifiers, select, Settings.of(model))
    echo(f"{found.trees} trees, {found.changed} with another choice; written to {out}")
    if found.graded:
        echo(f"right: {found.right_before} of {found.graded} before, {found.right_after} now")


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--grader", default=None, help="numeric, math, choice, exact or a plugin's; default: the labels' own.")
@click.option("--extract", default=None, help="How answers are found; default: as when the run was made.")
def grade(run: str, grader: str | None, extract: str | None) -> None:
    """Find and grade the answers of RUN's trajectories again, as this version does; nothing is generated."""
    from arts_plugin.training.regrade import grade_again

    made = grade_again(run, grader, extract)
    click.echo(
        f"{run}: {made.trajectories} trajectories of {made.trees} trees; {made.labels} have another label and {made.votes} "
        f"another answer than before; {made.right} are right"
    )


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--out", default=None, type=click.Path(file_okay=False), help="Folder for compare.json, .md and .png.")
@click.option(
    "--scorer", default=None, help="Show this scorer's paired differences; default: the one that guided the run."
)
@click.option("--ks", default=None, help="Numbers of traces, like 1,4,16; default: powers of two.")
@click.option("--only", default=None, help="Problems whose id begins with this.")
def compare(runs: tuple[str, ...], out: str | None, scorer: str | None, ks: str | None, only: str | None) -> None:
    """Every selector on the independent traces of RUNS: pass@1, best-of-k, votes, oracle, with paired intervals."""
    from arts_plugin.training.compare import compare_runs

    try:
        numbers = [int(part) for part in ks.split(",")] if ks else None
    except ValueError:
        raise click.UsageError(f"--ks is {ks!r}; it takes numbers, like 1,4,16") from None
    echo(compare_runs(runs, out=out, scorer=scorer, ks=numbers, only=only))


@click.command()
@click.argument("verifier", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--gguf", "out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write.")
@click.option(
    "--base",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="GGUF of the verifier's base model, in any quantisation.",
)
def export(verifier: Path, out: Path, base: Path) -> None:
    """Write a LoRA verifier as a GGUF adapter and a head, so that it runs under llama.cpp over BASE."""
    from arts_hf.export import export as write

    made = write(verifier, out, base)
    echo(
        f"written to {out}; use it with verifier={out} ({made.backbone.name if made.backbone else ''} is loaded beside it)"
    )


COMMANDS = (sdf, features, train, rescore, grade, compare, export)

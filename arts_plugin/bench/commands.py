"""`arts bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from arts_plugin.cli_options import given, settings_options
from arts_plugin.terminal import echo
from arts_plugin.training.sources import Source, source_options

if TYPE_CHECKING:
    from arts_plugin.bench.methods import Method
    from arts_plugin.settings import Settings

_OWN = (
    "trace",
    "strategy",
    "budget_trajectories",
    "budget_tokens",
    "budget_seconds",
    "budget_nodes",
    "fork_probability",
)


@click.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False),
    help="Folder of the comparison; started again, it goes on.",
)
@click.option(
    "--traces", default=16, show_default=True, type=click.IntRange(2), help="N, independent samples a question."
)
@click.option(
    "--search",
    "searches",
    multiple=True,
    default=("arts",),
    show_default=True,
    help="strategy[,setting=value,...] that may spend the tokens of the N samples; repeatable.",
)
@click.option(
    "--only_compare",
    "--only-compare",
    is_flag=True,
    help="Generate nothing: compare what is in --out. Needs neither questions nor a model.",
)
@source_options(split="test")
@settings_options(without=_OWN)
def bench(
    source: Source, out: str, traces: int, searches: tuple[str, ...], only_compare: bool, **settings: Any
) -> None:
    """Greedy, N samples (majority, best of N, weighted vote) and tree searches, at equal cost on the same questions.

    A search may spend on each question the tokens that the N samples spent on it. Every method has a run folder in
    --out, which `arts report`, `arts view` and `arts compare` read.
    """
    from arts_plugin.bench.methods import methods
    from arts_plugin.bench.page import text, write
    from arts_plugin.bench.result import compare_methods
    from arts_plugin.plugins import plugins
    from arts_plugin.settings import Settings

    mine = Settings().with_(given(settings))
    wanted = methods(searches, traces, mine, plugins())
    if not only_compare:
        _generate(wanted, mine, source, Path(out))
    result = compare_methods(wanted, Path(out))
    page = write(result, Path(out))
    echo(text(result))
    echo(f"written to {page}")


def _generate(wanted: Sequence[Method], settings: Settings, source: Source, out: Path) -> None:
    """Run what is missing, with a bar for each method."""
    from tqdm import tqdm

    from arts_plugin.bench.run import run_methods

    grader, problems_for = source.open()
    bar: Any = None
    shown = ""
    for step in run_methods(wanted, settings, problems_for, grader, out):
        if step.method.name != shown:
            if bar is not None:
                bar.close()
            shown = step.method.name
            bar = tqdm(total=step.total, unit="question", desc=shown, smoothing=0.05)
        bar.update()
        bar.set_postfix_str(f"{step.progress.pass_rate:.1%} of traces right")
        for line in step.progress.failed:
            echo(f"  failed: {line}", err=True)
        step.progress.failed.clear()
    if bar is None:
        raise click.ClickException("there is no question to compare anything on")
    bar.close()


COMMANDS = (bench,)

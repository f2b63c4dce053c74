"""The `arts` command."""

from __future__ import annotations

import errno
import json
import logging
import sys
from typing import Any

import click

from arts_plugin import __version__
from arts_plugin.bench.commands import COMMANDS as BENCH_COMMANDS
from arts_plugin.cli_options import given, settings_options
from arts_plugin.errors import ArtsError
from arts_plugin.report.commands import COMMANDS as REPORT_COMMANDS
from arts_plugin.serve.commands import COMMANDS as SERVE_COMMANDS
from arts_plugin.terminal import echo, printable
from arts_plugin.training.commands import COMMANDS as TRAINING_COMMANDS


class _Command(click.Group):
    """Errors that we raise on purpose, and what the system says of disks and files, are for the user: no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ArtsError as error:
            raise click.ClickException(printable(str(error))) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # who read our output has gone, which click knows what to do about
                raise
            raise click.ClickException(printable(f"the system refuses: {error}")) from error


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="arts")
def main() -> None:
    """Amortized Reasoning Tree Search: decode with a tree of reasoning steps."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")


@main.command()
@click.argument("question")
@click.option("--json", "as_json", is_flag=True, help="Print the whole tree as one line of JSON.")
@click.option("--tree/--no-tree", "show_tree", default=True, help="Print the tree before the answer.")
@settings_options()
def solve(question: str, as_json: bool, show_tree: bool, **settings: Any) -> None:
    """Search for the answer to QUESTION (- reads it from standard input)."""
    from arts_plugin.api import Arts

    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise click.UsageError("the question is empty")
    with Arts(**given(settings)) as arts:
        if as_json:
            tree = arts.solve(text)
            click.echo(tree.to_json())
        else:
            tree = _solve_live(arts, text, show_tree)
    if tree.error:
        raise click.ClickException(printable(tree.error))


def _solve_live(arts: Any, question: str, show_tree: bool) -> Any:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from arts_plugin.display import full_view, live_view

    console, notes = Console(), Console(stderr=True)
    with notes.status("loading the model"):
        arts.backend  # noqa: B018 - loaded here, so that the status line says why one waits
    with Live(console=console, transient=True, refresh_per_second=8) as live:

        def show(event: Any) -> None:
            width, height = console.size
            live.update(live_view(event.tree, arts.settings, width, height))

        tree = arts.solve(question, on_event=show if console.is_terminal else None)
    if show_tree:
        console.print(full_view(tree, console.width))
    if tree.chosen is not None:
        console.print(Text(printable(tree.text.strip())), soft_wrap=True)
    chosen = None if tree.chosen is None else tree.trajectory(tree.chosen)
    cost = tree.cost
    notes.print(
        Text(
            f"{tree.n_finished} finished trajectories, {tree.n_proposals} proposals; {cost.decoded_tokens} tokens in "
            f"{cost.seconds:.1f} s; ended by {tree.ended_by}; chosen by {tree.select}"
            + ("" if chosen is None or chosen.finished else " (unfinished: no trajectory reached its end)"),
            style="dim",
        ),
        soft_wrap=True,
    )
    if tree.answer is not None:
        console.print(Text("answer: ", style="bold") + Text(printable(tree.answer), style="bold green"))
    return tree


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plugins(as_json: bool) -> None:
    """List plugins: name, version, what they provide, and where they come from; and the shipped verifiers."""
    from dataclasses import asdict

    from arts_plugin.checkpoint import shipped
    from arts_plugin.plugins import plugins as registry

    infos = registry().infos()
    if as_json:
        click.echo(json.dumps([asdict(info) for info in infos], indent=1))
        return
    for info in infos:
        echo(f"{info.name}  {info.version or '-'}  from {info.origin or 'an unknown distribution'}")
        for kind, name in info.provides:
            echo(f"    {kind:<10} {name}")
        observers = [hook for hook in info.hooks if not hook.startswith("arts_register")]
        echo(f"    {'hooks':<10} {', '.join(info.hooks) or 'none'}")
        if observers:
            echo(f"    {'observes':<10} {', '.join(observers)}")
        if info.problem:
            echo(f"    {'BROKEN':<10} {info.problem}")
    for name, card in shipped().items():
        echo(f"shipped verifier {name}: for {card.proposer.name}")


@main.command()
@click.option("--model", default=None, metavar="VALUE", help="The model to look for; default: the embedded one.")
@click.option("--no-speed", is_flag=True, help="Leave the speed test out.")
def doctor(model: str | None, no_speed: bool) -> None:
    """Say what is installed, which model is found, how fast it is, and what to do about what is missing."""
    from arts_plugin.doctor import checks

    worst = 0
    for check in checks(model, speed=not no_speed):
        echo(f"{check.mark}  {check.text}")
        if check.advice:
            echo(f"      {check.advice}")
        worst = max(worst, check.weight)
    sys.exit(1 if worst > 1 else 0)


for _command in (*TRAINING_COMMANDS, *REPORT_COMMANDS, *BENCH_COMMANDS, *SERVE_COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":
    main()

"""`arts report` and `arts view`."""

from __future__ import annotations

import click

from arts_plugin.terminal import echo


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.argument("others", nargs=-1, type=click.Path(exists=True, file_okay=False))
@click.option(
    "--against", type=click.Path(exists=True, file_okay=False), help="A run in which questions may be extinct."
)
@click.option("--out", type=click.Path(file_okay=False), help="Folder of the report; default: RUN/report.")
@click.option("--task", metavar="NAME", help="Of runs of several tasks, the one to report on.")
def report(run: str, others: tuple[str, ...], against: str | None, out: str | None, task: str | None) -> None:
    """What RUN was worth: a page, pictures, tables. OTHERS are put beside it at what they cost."""
    from arts_plugin.evaluation.table import markdown_table
    from arts_plugin.report.page import as_rows, write_report

    page, made = write_report(run, others, against, out, task)
    each = "each" if made["independent"] else "at most"
    echo(
        f"{made['questions']} questions, {made['traces']} trajectories {each}; percent right, 95 % bootstrap intervals"
    )
    echo(markdown_table(*as_rows(made)))
    echo(f"written to {page}")


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False))
@click.option("--out", type=click.Path(dir_okay=False), help="The page; default: RUN/view.html.")
@click.option("--limit", type=click.IntRange(1), help="Show the first so many trees.")
@click.option("--open/--no-open", "show", default=False, help="Open it in a browser.")
def view(run: str, out: str | None, limit: int | None, show: bool) -> None:
    """RUN's trees in one HTML file, which works offline and sends nothing anywhere."""
    from arts_plugin.report.view import write_view

    page, made = write_view(run, out, limit)
    echo(f"{len(made['trees'])} trees in {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if show:
        click.launch(str(page))


COMMANDS = (report, view)

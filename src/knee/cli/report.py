"""`knee report RUN`: a run as one HTML page beside its record; `--log DIR`: all runs of a folder as one log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knee.cli.terminal import lang_option, out_option, tell
from knee.errors import RecordError, UserError

if TYPE_CHECKING:
    from knee.lab.messages import Lang
    from knee.lab.runs import RunEntry

PAGE = "report.html"


@click.command()
@click.argument("run", required=False)
@click.option("--log", type=click.Path(path_type=Path), help="Instead: one Markdown log of all runs in this folder.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="The file to write.  [default: report.html in the run's folder; a log is printed]",
)
@out_option
@lang_option
def command(run: str | None, log: Path | None, output: Path | None, out: Path, lang: Lang) -> None:
    """Make the HTML report of RUN and print its path, or with --log the experiment log of all runs in a folder.

    RUN is a folder, the beginning of its name, an experiment's name, or "latest".
    """
    if (run is None) == (log is None):
        raise click.UsageError("give either RUN or --log DIR")
    if run is not None:
        _page(run, output, out, lang)
    elif log is not None:
        _log(log, output, lang)


def _page(run: str, output: Path | None, out: Path, lang: Lang) -> None:
    from knee.lab.rejudge import rejudged
    from knee.lab.report import to_html
    from knee.lab.report.files import replace_file
    from knee.lab.runs import find_run, read_run

    found = rejudged(read_run(find_run(out, run, tell)))
    for problem in found.problems:
        tell(f"{found.path.name}: {problem}")
    page = output or found.path / PAGE
    replace_file(page, to_html(found.record, found.requests, found.steps, lang))
    click.echo(page)


def _judged(entry: RunEntry) -> RunEntry:
    """An entry with the record that its rows give now, also where the run was killed before it had one."""
    from knee.lab.rejudge import rejudged
    from knee.lab.runs import read_run

    try:
        return replace(entry, record=rejudged(read_run(entry.path)).record)
    except RecordError as error:
        return replace(entry, record=None, problem=str(error))


def _log(folder: Path, output: Path | None, lang: Lang) -> None:
    from knee.lab.report import to_log
    from knee.lab.report.files import replace_file
    from knee.lab.runs import list_runs

    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: --log takes the folder where runs are kept")
    log = to_log([_judged(entry) for entry in list_runs(folder)], lang)
    if output is None:
        click.echo(log, nl=False)
    else:
        replace_file(output, log)
        click.echo(output)

"""`knee show RUN`: a record as a page in the terminal, as Markdown in a pipe, or as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from knee.cli.terminal import console, json_option, lang_option, out_option, print_json, tell

if TYPE_CHECKING:
    from knee.lab.messages import Lang


@click.command()
@click.argument("run")
@out_option
@json_option
@lang_option
def command(run: str, out: Path, as_json: bool, lang: Lang) -> None:
    """Show the record of RUN: a folder, the beginning of its name, an experiment's name, or "latest"."""
    from knee.lab.markdown import to_markdown
    from knee.lab.rejudge import rejudged
    from knee.lab.runs import find_run, read_run

    found = rejudged(read_run(find_run(out, run, tell)))
    for problem in found.problems:
        tell(f"{found.path.name}: {problem}")
    if as_json:
        print_json(found.record.model_dump(mode="json"))
        return
    page = to_markdown(found.record, lang)
    if not sys.stdout.isatty():
        click.echo(page, nl=False)
        return
    from rich.markdown import Markdown

    console().print(Markdown(page))

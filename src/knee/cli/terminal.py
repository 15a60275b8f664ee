"""Output: JSON for scripts, rich tables for people. Progress and warnings go to stderr, so stdout stays clean."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

if TYPE_CHECKING:
    from rich.console import Console

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else.")
lang_option = click.option(
    "--lang", type=click.Choice(["en", "zh"]), default="en", show_default=True, help="Language of tables and pages."
)
out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder where runs are kept.",
)

_PIPE_WIDTH = 100  # of pages, where there is neither a terminal nor COLUMNS
_NO_WIDTH = 100_000  # of lists there: folded names cannot be searched
_TRAILING = re.compile(r" +(?=\n|$)")


def print_json(document: Any) -> None:
    """One JSON document on stdout. ASCII only: what is not may be a control character of somebody's terminal."""
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def tell(message: str) -> None:
    """One line of progress or warning on stderr, with what could move the cursor made visible."""
    from knee.lab.visible import visible

    click.echo(visible(message), err=True)


class _Trimmed:
    """A text file whose lines do not end in spaces, which rich fills tables with."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(_TRAILING.sub("", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def console(pipe_width: int = _PIPE_WIDTH) -> Console:
    """Where pages and tables are printed. In a pipe they are as wide as COLUMNS says, else `pipe_width`."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else pipe_width
    return Console(width=width, file=cast(IO[str], _Trimmed(sys.stdout)))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table of texts from anywhere: nothing in them is markup, and control characters are made visible."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from knee.lab.visible import visible

    table = Table(title=title, box=SIMPLE, show_header=any(header), title_justify="left")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console(_NO_WIDTH).print(table)

"""`knee list`: the runs that are kept in a folder, newest first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knee.cli.terminal import json_option, lang_option, out_option, print_json, print_table

if TYPE_CHECKING:
    from knee.lab.messages import Lang
    from knee.lab.runs import RunEntry


@click.command()
@out_option
@json_option
@lang_option
def command(out: Path, as_json: bool, lang: Lang) -> None:
    """List the runs in a folder, newest first."""
    from knee.lab.messages import text
    from knee.lab.runs import list_runs

    entries = list_runs(out)
    if as_json:
        print_json([_as_json(entry) for entry in entries])
    elif not entries:
        click.echo(text(lang, "list.empty", out=out))
    else:
        header = [text(lang, f"list.{name}") for name in ("run", "kind", "name", "model", "status")]
        print_table(header, [_row(entry, lang) for entry in entries])


def _as_json(entry: RunEntry) -> dict[str, Any]:
    record = entry.record
    shown = record.model_dump(mode="json", include={"kind", "name", "created_at", "status", "model"}) if record else {}
    return {"run": entry.path.name, "path": str(entry.path), "problem": entry.problem, **shown}


def _row(entry: RunEntry, lang: Lang) -> list[str]:
    from knee.lab.messages import text

    record = entry.record
    if record is None:
        return [entry.path.name, "", "", "", text(lang, "list.unreadable", reason=entry.problem)]
    model = f"{record.model.name} @ {record.model.dtype}"
    return [entry.path.name, record.kind, record.name, model, text(lang, f"status.{record.status}")]

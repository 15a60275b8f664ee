"""`knee reproduce RUN`: the experiment of a run again, from its record alone, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knee.cli.terminal import json_option, lang_option, out_option, print_json, tell

if TYPE_CHECKING:
    from knee.lab.messages import Lang
    from knee.lab.records import Record
    from knee.lab.reproduce import Again, Prepared, Reproduction


@click.command()
@click.argument("run")
@click.option("--repeats", type=int, help="Trials of each cell of a sweep.  [default: as many as the run had]")
@click.option("--anyway", is_flag=True, help="Even if the model's files, or the prompts' tokens, are not the run's.")
@out_option
@json_option
@lang_option
def command(run: str, repeats: int | None, anyway: bool, out: Path, as_json: bool, lang: Lang) -> None:
    """Run the experiment of RUN again and compare.

    All that is needed stands in the record of RUN; a file of prompts or a trace that its command named may be gone. The
    exit code is 1 if the tokens are not identical although the model's files are the same.
    """
    from knee.cli.compare import read
    from knee.lab.reproduce import prepare, reproduction

    before = read(out, run)
    with _again(before.record, repeats, anyway, out, as_json, lang) as again:
        path = _perform(prepare(before.record, again), lang)
    after = read(out, str(path))
    found = reproduction(before.record, after.record)
    if as_json:
        print_json(found.model_dump(mode="json") | {"runs": [str(before.path), str(path)]})
    else:
        _print(found, before, after, lang)
    if found.failed:
        raise click.exceptions.Exit(1)


@contextmanager
def _again(record: Record, repeats: int | None, anyway: bool, out: Path, as_json: bool, lang: Lang) -> Iterator[Again]:
    """How to run it, with progress on the terminal while it does."""
    from knee.cli.display import progress_bar, sweep_progress
    from knee.lab.experiment import Setting
    from knee.lab.reproduce import Again

    name = f"{record.name}-reproduced"
    options = {"name": name, "out": str(out), "json": as_json, "lang": lang}
    setting = Setting(name=name, out=out, lang=lang, command=["knee", *sys.argv[1:]], options=options)
    if record.kind == "sweep":
        with sweep_progress(lang) as watch:
            yield Again(setting, repeats, anyway, tell=watch)
    else:
        with progress_bar() as progress:
            yield Again(setting, repeats, anyway, progress=progress)


def _perform(prepared: Prepared, lang: Lang) -> Path:
    """Measure into a new folder, and say where that is."""
    from knee.lab.experiment import perform
    from knee.lab.messages import text

    folders: list[Path] = []
    try:
        perform(prepared.record, prepared.setting, prepared.measure, folders.append, prepared.begin)
    except KeyboardInterrupt:
        for folder in folders:
            tell(text(lang, "run.interrupted", path=folder))
        raise
    [path] = folders
    tell(text(lang, "run.kept", path=path))
    return path


def _print(found: Reproduction, before: Any, after: Any, lang: Lang) -> None:
    from knee.cli.compare import cells_of, print_comparison
    from knee.lab.messages import text

    other = ""
    if found.tokens == "differ" and not found.failed:
        other = "_work" if found.same_model else "_model"
    head = [text(lang, f"reproduce.tokens_{found.tokens}{other}")]
    if any(where := found.comparison.tokens_differ_in):
        head.append(text(lang, "reproduce.where", cells=cells_of(found.comparison, where, lang)))
    within = "within" if found.intervals else "no_intervals"
    head.append(text(lang, f"reproduce.{within}", within=found.within, of=found.intervals))
    print_comparison(found.comparison, (before, after), text(lang, "reproduce.title"), head, lang, again=True)

"""`knee claims RUN`: what experiment logs usually conclude, tested on what this run measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from knee.cli.terminal import console, json_option, lang_option, out_option, print_json, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knee.lab.messages import Lang
    from knee.lab.sweep_records import Claim

_STYLES = {"supported": "green", "refuted": "red", "cannot_tell": "yellow", "not_measured": "dim"}


@click.command()
@click.argument("run")
@out_option
@json_option
@lang_option
def command(run: str, out: Path, as_json: bool, lang: Lang) -> None:
    """Test what logs usually conclude on RUN: a folder, its name or its beginning, or "latest"."""
    from knee.lab.judgement.claims import claims
    from knee.lab.rejudge import rejudged
    from knee.lab.runs import find_run, read_run

    found = rejudged(read_run(find_run(out, run, tell)))
    for problem in found.problems:
        tell(f"{found.path.name}: {problem}")
    tested = found.record.claims or claims(found.record, found.requests, found.steps)
    if as_json:
        print_json([claim.model_dump(mode="json") for claim in tested])
    else:
        _print(tested, lang)


def _print(tested: Sequence[Claim], lang: Lang) -> None:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    from knee.cli.display import wrapped
    from knee.lab.messages import text, translated
    from knee.lab.visible import visible

    page = console()
    if not tested:
        page.print(Text(text(lang, "claims.none")))
        return
    verdicts = {verdict: text(lang, f"claims.{verdict}") for verdict in _STYLES}
    longest = max(Text(word).cell_len for word in verdicts.values())
    width = page.width - longest - 6
    grid = Table.grid(padding=(0, 2))
    measured = [claim for claim in tested if claim.verdict != "not_measured"]
    for claim in measured:
        statement, sentence = (visible(translated(lang, words)) for words in (claim.statement, claim.sentence))
        grid.add_row(Text(verdicts[claim.verdict], _STYLES[claim.verdict]), wrapped(statement, width))
        said = wrapped(sentence, width)
        said.stylize("dim")
        grid.add_row("", said)
        grid.add_row("", "")
    page.print(Padding(Text(text(lang, "claims.title"), "bold"), (1, 2)))
    page.print(Padding(grid, (0, 2), expand=False))
    page.print(Padding(Text(text(lang, "claims.about"), "dim"), (0, 2, 1, 2)))
    _print_the_rest([claim for claim in tested if claim not in measured], lang)


def _print_the_rest(claims: Sequence[Claim], lang: Lang) -> None:
    """What another command would have to measure, one short line each."""
    from rich.padding import Padding
    from rich.text import Text

    from knee.cli.display import wrapped
    from knee.lab.messages import text, translated
    from knee.lab.visible import visible

    if not claims:
        return
    page = console()
    page.print(Padding(Text(text(lang, "claims.not_measured"), "bold"), (0, 2)))
    for claim in claims:
        line = f"{translated(lang, claim.statement)} {translated(lang, claim.sentence)}"
        said = wrapped(visible(line), page.width - 6)
        said.stylize("dim")
        page.print(Padding(said, (0, 2, 0, 4)))
    page.print()

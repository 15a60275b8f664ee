"""`knee compare A B`: two runs, metric by metric, and what else about them differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knee.cli.terminal import console, json_option, lang_option, out_option, print_json, tell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from knee.lab.compare import Change, Difference, RunComparison
    from knee.lab.messages import Lang
    from knee.lab.runs import Run
    from knee.lab.sweep_records import Effect

    Group = tuple[str | None, list[Change]]  # a cell's name, and its metrics

Say = Callable[..., str]

_STYLES = {"better": "green", "worse": "red", "cannot_tell": "dim"}
_MANY = 3  # cells without a difference; more of them are counted, not shown
_LARGEST = 9.995  # a change; beyond, nobody needs the number
_YES_NO = {True: "answer.yes", False: "answer.no"}


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--anyway", is_flag=True, help="Even if the two did not do the same work.")
@out_option
@json_option
@lang_option
def command(a: str, b: str, anyway: bool, out: Path, as_json: bool, lang: Lang) -> None:
    """Compare two runs, metric by metric.

    A and B are folders, the beginnings of their names, experiments' names, or "latest". B is better or worse only where
    luck cannot explain it.
    """
    from knee.lab.compare import compare
    from knee.lab.messages import text

    one, other = read(out, a), read(out, b)
    found = compare(one.record, other.record, anyway)
    if as_json:
        print_json(found.model_dump(mode="json") | {"runs": [str(one.path), str(other.path)]})
        return
    head = [_tokens(found, lang), *(_unequal(found, lang))]
    print_comparison(found, (one, other), text(lang, "compare.title"), head, lang)


def read(out: Path, ref: str) -> Run:
    """A run, judged as it would be now; what is torn in it is told on stderr."""
    from knee.lab.rejudge import rejudged
    from knee.lab.runs import find_run, read_run

    found = rejudged(read_run(find_run(out, ref, tell)))
    for problem in found.problems:
        tell(f"{found.path.name}: {problem}")
    return found


def _tokens(found: RunComparison, lang: Lang) -> str:
    from knee.lab.messages import text

    if found.tokens == "differ" and any(found.tokens_differ_in):
        return text(lang, "compare.tokens_differ_in", cells=cells_of(found, found.tokens_differ_in, lang))
    return text(lang, f"compare.tokens_{found.tokens}")


def _unequal(found: RunComparison, lang: Lang) -> list[str]:
    from knee.lab.messages import text

    keys = ", ".join(one.key for one in found.unequal)
    return [text(lang, "compare.unequal", keys=keys)] if keys else []


def cells_of(found: RunComparison, cells: Iterable[str], lang: Lang) -> str:
    """Names of cells in a row."""
    return "; ".join(_cell(found.kind, cell, lang) for cell in cells)


def _cell(kind: str, cell: str, lang: Lang) -> str:
    from knee.lab.messages import text

    if kind != "kvcache":
        return cell
    tokens, _, switch = cell.partition(" / ")
    return text(lang, "compare.kvcache_cell", tokens=tokens, switch=text(lang, f"switch.{switch}"))


# --- the page ----------------------------------------------------------------------------------------------------


def print_comparison(
    found: RunComparison, runs: tuple[Run, Run], title: str, head: Sequence[str], lang: Lang, again: bool = False
) -> None:
    """Title, what matters most in sentences, both runs, the table, what else differs, and the sum of it in one line.

    `again` is for a run and its repetition: the table then says whether the run's intervals hold.
    """
    from rich.text import Text

    from knee.cli.display import _dim, _indented, _sentences
    from knee.lab.messages import text
    from knee.lab.visible import visible

    say, page = partial(text, lang), console()
    page.print(Text.assemble("\n", (title, "bold")))
    for sentence in head:
        _sentences([sentence], page)
    page.print(_indented(_runs(runs, say)))
    _print_changes(found, say, page, lang, again)
    if found.changes:
        _dim(say("compare.one_process" if found.one_process else "compare.about"), page)
    alone = [say(f"compare.only_{run}", cells=cells_of(found, cells, lang)) for run, cells in _sides(found.unmatched)]
    _sentences(alone, page)
    _print_differences(found, say, page, again)
    _sentences(_warnings(found, say, lang), page)
    page.print(_indented(Text(visible(_summary(found, say)), "bold")))
    page.print()


def _sides(pair: tuple[list[Any], list[Any]]) -> list[tuple[str, list[Any]]]:
    return [(run, values) for run, values in zip("ab", pair, strict=True) if values]


def _runs(runs: tuple[Run, Run], say: Say) -> Table:
    from rich.table import Table
    from rich.text import Text

    from knee.lab.visible import visible

    grid = Table.grid(padding=(0, 2))
    for name, run in zip("AB", runs, strict=True):
        model = run.record.model
        line = say("compare.run", run=run.path.name, model=model.name, dtype=model.dtype, device=model.device)
        grid.add_row(Text(name, "bold"), Text(visible(line)))
    return grid


def _summary(found: RunComparison, say: Say) -> str:
    if not found.changes:
        return say("compare.nothing")
    better, worse, rest = (found.count(verdict) for verdict in ("better", "worse", "cannot_tell"))
    return say("compare.summary", better=better, worse=worse, rest=rest)


def _warnings(found: RunComparison, say: Say, lang: Lang) -> list[str]:
    from knee.lab.messages import translated

    return [
        say(f"compare.warned_{run}", message=translated(lang, warning.message))
        for run, warnings in _sides(found.warnings)
        for warning in warnings
    ]


# --- what became of the metrics ----------------------------------------------------------------------------------


def _print_changes(found: RunComparison, say: Say, page: Console, lang: Lang, again: bool) -> None:
    from knee.cli.display import _dim, _indented

    groups = [(cell, list(rows)) for cell, rows in groupby(found.changes, key=lambda change: change.cell)]
    quiet = [(cell, rows) for cell, rows in groups if all(row.effect.verdict == "cannot_tell" for row in rows)]
    folded = quiet if len(quiet) > _MANY else []
    shown = [group for group in groups if group not in folded]
    if shown:
        page.print(_indented(_table(found.kind, shown, say, lang, again)))
    if folded:
        _dim(_folded(found, folded, say, lang), page)


def _folded(found: RunComparison, groups: Sequence[Group], say: Say, lang: Lang) -> str:
    """Cells without a difference, counted, with how far their changes go."""
    effects = [row.effect for _, rows in groups for row in rows]
    changes = [effect.change for effect in effects if effect.change is not None]
    low, high = (f"{_share(value, 1)} %" for value in (min(changes, default=0.0), max(changes, default=0.0)))
    cells = cells_of(found, [cell or "" for cell, _ in groups], lang)
    return say("compare.folded", count=len(groups), low=low, high=high, cells=cells)


def _table(kind: str, groups: Sequence[Group], say: Say, lang: Lang, again: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from knee.lab.visible import visible

    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim", border_style="dim"
    )
    names = ["metric", "a", "b", "change", *(["within"] if again else []), "verdict"]
    for name in names:
        left = name in ("metric", "verdict")
        header = say(f"compare.column.{name}")
        table.add_column(header, justify="left" if left else "right", no_wrap=True, vertical="bottom")
    for cell, rows in groups:
        if cell is not None:
            table.add_row(Text(visible(_cell(kind, cell, lang)), "bold"))
        for row in rows:
            table.add_row(*_row(row, say, again))
    return table


def _row(row: Change, say: Say, again: bool) -> list[Any]:
    from rich.text import Text

    from knee.cli.display import NOTHING, number

    effect, largest = row.effect, max(row.a.value, row.b.value)
    decimals = 0 if largest >= 1000 else 1 if largest >= 10 else 2 if largest >= 1 else 3
    within = NOTHING if row.within is None else say(_YES_NO[row.within])
    return [
        f"  {say(f'compare.metric.{row.metric}')}" if row.cell is not None else say(f"compare.metric.{row.metric}"),
        number(row.a.value, decimals),
        number(row.b.value, decimals),
        _change(effect),
        *([within] if again else []),
        Text(_verdict(effect, say), _STYLES[effect.verdict]),
    ]


def _verdict(effect: Effect, say: Say) -> str:
    if effect.change is not None and effect.low is None:
        return say("compare.too_few", n=effect.n)
    return say(f"compare.{effect.verdict}")


def _change(effect: Effect) -> str:
    """+2.5 % [+1.1, +3.9]: with a decimal where all of it is small or an end would look like 0."""
    if effect.change is None:
        return "—"
    ends = [end for end in (effect.low, effect.high) if end is not None]
    sizes = [abs(value) for value in (effect.change, *ends)]
    decimals = 1 if max(sizes) < 0.1 or min(sizes) < 0.005 else 0
    change, *limits = (_share(value, decimals) for value in [effect.change, *ends])
    return f"{change} %" + (f" [{', '.join(limits)}]" if limits else "")


def _share(value: float, decimals: int) -> str:
    return ">+999" if value > _LARGEST else f"{value * 100:+.{decimals}f}"


# --- what else differs -------------------------------------------------------------------------------------------


def _print_differences(found: RunComparison, say: Say, page: Console, again: bool) -> None:
    from rich.text import Text

    from knee.cli.display import _indented

    if not found.differences:
        nothing = say("reproduce.no_changes") if again else say("compare.no_differences")
        page.print(_indented(Text(nothing)))
        return
    title = say("reproduce.environment") if again else say("compare.differences")
    page.print(_indented(Text(title, "bold")))
    page.print(_indented(_differences(found.differences)))


def _differences(differences: Sequence[Difference]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from knee.lab.visible import visible

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim", border_style="dim")
    for name in ("", "A", "B"):
        table.add_column(name, overflow="fold")
    for one in differences:
        table.add_row(*(Text(visible(words)) for words in (one.key, _plain(one.a), _plain(one.b))))
    return table


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "—"
    if isinstance(value, dict):
        return ", ".join(_plain(item) for item in value.values())
    return "—" if value is None else str(value)

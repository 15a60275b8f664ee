"""What a person sees of a run: calm tables, one a kind of experiment, and the progress of the long ones.

Numbers stand right-aligned under headers that name their unit, with about three digits that mean something. Reads
records only, so the same table can be printed of an old one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from knee.cli.terminal import console
from knee.lab.markdown import gpu_facts, in_turn
from knee.lab.messages import Lang, text, translated
from knee.lab.progress import Progress, Status, Tell, ignore
from knee.lab.records import (
    BaselineMetrics,
    InspectMetrics,
    InspectStep,
    KvCacheCell,
    KvCacheMetrics,
    Record,
)
from knee.lab.sweep_records import GpuUse, SweepCell, SweepMetrics, Tradeoff
from knee.lab.visible import visible

NOTHING = "—"
_ANSWER_NAME = 18  # characters of "Within your limits"
_GAP, _MARGIN, _SHRUNK = 2, 4, 16  # characters: between columns, beside tables, at least in one that shrinks

Say = Callable[..., str]


def print_record(record: Record, lang: Lang) -> None:
    """A finished run: heading, table, what follows from it."""
    say, out = partial(text, lang), console()
    model = record.model
    heading = say("run.heading", model=model.name, dtype=model.dtype, device=model.device)
    out.print(Text.assemble("\n", (say(f"{record.kind}.title"), "bold"), f" · {visible(heading)}"))
    match record.metrics:
        case BaselineMetrics() as metrics:
            _baseline(metrics, say, out)
        case InspectMetrics() as metrics:
            _inspect(metrics, say, out)
        case KvCacheMetrics() as metrics:
            _kvcache(metrics, say, out)
        case SweepMetrics() as metrics:
            _sweep(metrics, say, out)
    swept = record.metrics if isinstance(record.metrics, SweepMetrics) else None
    findings = [*swept.findings, *swept.left_out] if swept else []
    _sentences([translated(lang, sentence) for sentence in [*findings, *record.notes]], out)
    if swept:
        _answer(swept, lang, out)
    out.print()


@contextmanager
def progress_bar(guess: bool = True) -> Iterator[Progress]:
    """Progress on stderr where that is a terminal. It moves between trials only: drawing would disturb them.

    `guess` shows the time left, as far as the bar alone can tell.
    """
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield ignore
        return
    columns = (
        TextColumn("[dim]{task.completed}/{task.total}"),
        BarColumn(24),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    left = (TextColumn("[dim]<"), TimeRemainingColumn()) if guess else ()
    with Bar(*columns, *left, console=screen, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", visible=False)

        def show(number: int, total: int, label: str) -> None:
            bar.update(task, completed=number, total=total, description=label, visible=True, refresh=True)

        yield show


@contextmanager
def sweep_progress(lang: Lang) -> Iterator[Tell]:
    """Progress of a sweep: which trial runs, what was best so far, and the time left."""
    with progress_bar(guess=False) as show:

        def tell(status: Status) -> None:
            label = status.label
            if status.best is not None:
                label = text(
                    lang,
                    "progress.best",
                    label=label,
                    best=status.best,
                    throughput=status.throughput,
                    latency=status.latency_ms,
                )
            if status.seconds_left is not None:
                minutes, seconds = divmod(round(status.seconds_left), 60)
                label = text(lang, "progress.left", label=label, minutes=f"{minutes}:{seconds:02d}")
            show(status.number, status.total, label)

        yield tell


# --- numbers and tables ------------------------------------------------------------------------------------------


def number(value: float | None, decimals: int = 2) -> str:
    """1,432.10, or a dash where there is none."""
    return NOTHING if value is None else f"{value:,.{decimals}f}"


def percent(share: float | None) -> str:
    """A change: +103 %; a dash where nothing was completed."""
    return NOTHING if share is None else f"{share * 100:+.0f} %"


@dataclass(frozen=True)
class _Column:
    """A column: its header's message ("" for none), what it shows of a row, how it looks.

    Numbers are shown with as many decimals as suit the largest one of the column, so that they can be compared.
    Where the terminal is narrow, columns with a `rank` are left out, the highest first.
    """

    key: str
    show: Callable[[Any], str | float | None]
    style: str = ""
    left: bool = False
    rank: int = 0
    shrinks: bool = False

    def cells(self, rows: Sequence[Any]) -> list[str]:
        """The column's texts."""
        values = [self.show(row) for row in rows]
        largest = max((abs(value) for value in values if isinstance(value, float)), default=0.0)
        decimals = 0 if largest >= 1000 else 1 if largest >= 10 else 2 if largest >= 1 else 3
        return [value if isinstance(value, str) else number(value, decimals) for value in values]

    def header(self, say: Say) -> str:
        """Its name, in one line or more."""
        return say(f"table.{self.key}") if self.key else ""

    def width(self, rows: Sequence[Any], say: Say) -> int:
        """Characters of room that it needs, with the gap to the next one."""
        if self.shrinks:
            return _GAP + _SHRUNK
        return _GAP + max(map(cell_len, [*self.header(say).split("\n"), *self.cells(rows)]))


def _fitting(columns: Sequence[_Column], rows: Sequence[Any], say: Say, room: int) -> list[_Column]:
    """The columns without those that there is no room for."""
    shown = list(columns)
    while sum(column.width(rows, say) for column in shown) > room and any(column.rank for column in shown):
        shown.remove(max(shown, key=lambda column: column.rank))
    return shown


def _print_table(rows: Sequence[Any], columns: Sequence[_Column], say: Say, out: Console, about: str) -> None:
    shown = _fitting(columns, rows, say, out.width - _MARGIN)
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="dim",
        border_style="dim",
    )
    for column in shown:
        table.add_column(
            column.header(say),
            justify="left" if column.left else "right",
            style=column.style,
            no_wrap=not column.shrinks,  # rich takes room from the columns that may wrap, before all others
            vertical="bottom",
        )
    for row in zip(*(column.cells(rows) for column in shown), strict=True):
        table.add_row(*(Text(visible(cell), no_wrap=True, overflow="ellipsis") for cell in row))
    out.print(_indented(table))
    hidden = len(columns) - len(shown)
    _dim(about, out)
    if hidden:
        _dim(say("table.hidden", count=hidden), out)


def _dim(words: str, out: Console) -> None:
    caption = wrapped(words, out.width - _MARGIN)
    caption.stylize("dim")
    out.print(_indented(caption))


def _indented(what: RenderableType) -> Padding:
    return Padding(what, (1, 2, 0, 2), expand=False)


def _sentences(sentences: Sequence[str], out: Console) -> None:
    if not sentences:
        return
    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row("·", wrapped(visible(_UNIT.sub("\u00a0", sentence)), out.width - _MARGIN - 2))
    out.print(_indented(grid))


_UNIT = re.compile(r"(?<=\d) (?=%|ms\b)| (?=/ )|(?<= /) ")  # spaces at which no line should end
_PIECE = re.compile(r"[^ \u2e80-\uffef]+ *| +|[\u2e80-\uffef] *")  # a word, or one character where there are no spaces


def wrapped(words: str, width: int) -> Text:
    """Lines of at most `width` cells; rich alone would break Chinese at its few spaces only."""
    lines = [""]
    for piece in _PIECE.findall(words):
        if lines[-1] and cell_len(lines[-1]) + cell_len(piece.rstrip()) > width:
            lines.append("")
        lines[-1] += piece
    return Text("\n".join(line.rstrip() for line in lines))


def _shape(shape: Sequence[int] | None) -> str:
    return NOTHING if shape is None else f"({', '.join(map(str, shape))})"


# --- baseline ----------------------------------------------------------------------------------------------------


def _baseline(metrics: BaselineMetrics, say: Say, out: Console) -> None:
    rows = [
        (say("table.load_model"), metrics.load_model_ms, None),
        (say("table.load_tokenizer"), metrics.load_tokenizer_ms, None),
        (say("table.tokenize"), metrics.tokenize_ms, None),
        (say("table.cold"), metrics.prefill_cold_ms, metrics.prefill_cold_ms / metrics.prompt_tokens),
        (say("table.warm"), metrics.prefill_ms, metrics.prefill_ms_per_token),
        (say("table.loop", steps=metrics.decode_steps), metrics.decode_loop_ms, metrics.decode_ms_per_step),
        (say("table.total"), metrics.total_generate_ms, None),
    ]
    columns = (
        _Column("", lambda row: row[0], left=True),
        _Column("ms", lambda row: number(row[1]), "bold"),
        _Column("each", lambda row: "" if row[2] is None else number(row[2])),
    )
    _print_table(rows, columns, say, out, say("table.baseline_about", runs=len(metrics.prefill_runs_ms)))
    speed = say("table.speed", speed=number(metrics.output_tokens_per_s))
    more = say(
        "table.baseline_more",
        prompt=metrics.prompt_tokens,
        output=metrics.output_tokens,
        shape=_shape(metrics.kv_cache_shape),
    )
    out.print(_indented(Text.assemble((speed, "bold"), f" · {more}")))
    if seen := [f"{name} {value}" for name, value in gpu_facts(metrics.gpu, say) if value != NOTHING]:
        out.print(_indented(wrapped(" · ".join(seen), out.width - _MARGIN)))
    output = ", ".join(map(str, metrics.token_ids)) if metrics.text is None else f"“{visible(metrics.text)}”"
    out.print(_indented(Text(output, style="italic")))


# --- inspect -----------------------------------------------------------------------------------------------------


def _inspect(metrics: InspectMetrics, say: Say, out: Console) -> None:
    off = metrics.kv_cache_off
    prefill = metrics.prefill
    line = say(
        "table.inspect_prefill",
        ms=number(prefill.ms),
        ms_off=number(off.prefill.ms),
        logits=_shape(prefill.logits_shape),
        layers=prefill.kv_layers,
        kv=_shape(prefill.kv_shape),
    )
    out.print(_indented(Text(line)))
    columns = (
        _Column("step", lambda row: str(row[0].step)),
        _Column("kv_len", lambda row: str(row[0].kv_len)),
        _Column("ms", lambda row: row[0].ms, "bold"),
        _Column("ms_off", lambda row: row[1].ms),
        _Column("token", lambda row: _token(row[0].token_id, row[0].token), "bold", left=True),
        _Column("top", lambda row: _candidates(row[0]), "dim", left=True, shrinks=True),
    )
    rows = list(zip(metrics.steps, off.steps, strict=True))
    _print_table(rows, columns, say, out, say("table.inspect_about"))
    if metrics.matches_generate and off.same_tokens:
        out.print(_indented(Text(say("table.same_yes"))))


def _candidates(step: InspectStep) -> str:
    return " · ".join(f"{_short(top.token or str(top.token_id))} {math.exp(top.logprob):.0%}" for top in step.top)


def _token(token_id: int, token: str | None) -> str:
    return str(token_id) if token is None else f"{token_id} “{_short(token)}”"


def _short(token: str) -> str:
    return token if len(token) <= 12 else f"{token[:11]}…"


def print_logprobs(rows: Sequence[dict[str, Any]], lang: Lang) -> None:
    """Each token with its log probability and its rivals, on stderr."""
    out = Console(stderr=True)
    table = Table(box=SIMPLE_HEAD, show_edge=False, header_style="dim", border_style="dim")
    table.add_column(text(lang, "generate.token"), style="bold")
    table.add_column(text(lang, "generate.logprob"), justify="right")
    table.add_column(text(lang, "generate.others"), style="dim", no_wrap=True)
    for row in rows:
        rivals = "  ".join(f"{_token(top['token_id'], top['token'])} {top['logprob']:.2f}" for top in row["top"])
        logprob = NOTHING if row["logprob"] is None else f"{row['logprob']:.2f}"
        table.add_row(Text(visible(_token(row["token_id"], row["token"]))), logprob, Text(visible(rivals)))
    out.print(_indented(table))


# --- kvcache -----------------------------------------------------------------------------------------------------


def _kvcache(metrics: KvCacheMetrics, say: Say, out: Console) -> None:
    def decode_step(cell: KvCacheCell, index: int) -> float | None:
        steps = cell.token_ms[1:]
        return steps[index] if steps else None

    columns = (
        _Column("prompt", lambda cell: str(cell.prompt_length)),
        _Column("cache", lambda cell: say(f"switch.{cell.kv_cache}"), left=True),
        _Column("prefill", lambda cell: cell.prefill_ms),
        _Column("first", lambda cell: decode_step(cell, 0), rank=1),
        _Column("last", lambda cell: decode_step(cell, -1), rank=1),
        _Column("step_ms", lambda cell: cell.decode_ms_per_step, "bold"),
        _Column("total_ms", lambda cell: cell.total_ms),
        _Column("memory", lambda cell: cell.kv_bytes / 2**20 if cell.kv_cache == "on" else None),
    )
    _print_table(metrics.cells, columns, say, out, say("table.kvcache_about"))


# --- sweep -------------------------------------------------------------------------------------------------------


def _sweep(metrics: SweepMetrics, say: Say, out: Console) -> None:
    goodput = any(cell.goodput is not None for cell in metrics.cells)
    gpu = any(cell.gpu is not None for cell in metrics.cells)
    columns = (*_SWEEP, *(_GPU if gpu else ()), *((_Column("goodput", lambda cell: cell.goodput),) if goodput else ()))
    _print_table(metrics.cells, columns, say, out, say("table.sweep_about"))
    if len(metrics.tradeoff) > 1:
        _print_table(metrics.tradeoff, _TRADEOFF, say, out, say("table.tradeoff_about"))


def _answer(metrics: SweepMetrics, lang: Lang, out: Console) -> None:
    """What to run: last on the screen, because that is where people look."""
    say = partial(text, lang)
    grid = Table.grid(padding=(0, 2))
    width = out.width - _MARGIN - _ANSWER_NAME - 2
    for given in in_turn(metrics.recommendations) if metrics.recommendations else []:
        name = Text(say(f"answer.{given.scenario}"), style="bold")
        grid.add_row(name, wrapped(visible(translated(lang, given.sentence)), width))
        if given.limits_how and given.cell is not None:
            how = wrapped(visible(translated(lang, given.limits_how)), width)
            how.stylize("dim")
            grid.add_row("", how)
    if metrics.knee is not None:
        knee = wrapped(visible(translated(lang, metrics.knee.sentence)), width)
        grid.add_row(Text(say("answer.knee"), style="bold"), knee)
    if grid.row_count:
        out.print(_indented(grid))


def _wait(of: SweepCell | Tradeoff) -> str:
    return NOTHING if of.max_wait_ms is None else f"{of.max_wait_ms:g}"


def _gpu_percent(use: GpuUse | None) -> str:
    return NOTHING if use is None or use.utilization is None else f"{use.utilization * 100:.0f}"


_SETTING = (
    _Column("policy", lambda cell: cell.policy, left=True),
    _Column("batch", lambda cell: str(cell.max_batch_size)),
    _Column("wait", _wait),
)
_SWEEP = (
    *_SETTING,
    _Column("total_s", lambda cell: f"{cell.duration_s:.3f}"),
    _Column("tokens_per_s", lambda cell: cell.output_throughput, "bold"),
    _Column("service_mean", lambda cell: cell.service_ms.mean),
    _Column("service_p95", lambda cell: cell.service_ms.p95),
    _Column("queue", lambda cell: cell.queue_ms.mean, rank=1),
    _Column("ttft", lambda cell: cell.ttft_ms.mean, rank=3),
    _Column("tpot", lambda cell: cell.tpot_ms.mean, rank=5),
    _Column("e2el", lambda cell: cell.e2el_ms.mean, "bold"),
    _Column("e2el_p95", lambda cell: cell.e2el_ms.p95, rank=2),
    _Column("slots", lambda cell: f"{cell.slot_utilization * 100:.0f}", rank=4),
)
_GPU = (
    _Column("gpu", lambda cell: _gpu_percent(cell.gpu), rank=6),
    _Column("joules", lambda cell: cell.gpu and cell.gpu.joules_per_token, rank=4),
)
_TRADEOFF = (
    *_SETTING,
    _Column("throughput_change", lambda row: percent(row.throughput_change), "bold"),
    _Column("service_change", lambda row: percent(row.service_change)),
    _Column("e2el_change", lambda row: percent(row.e2el_change), "bold"),
    _Column("efficiency", lambda row: NOTHING if row.efficiency is None else f"{row.efficiency:.1f}x"),
)

"""What a person sees of a run: calm tables, one a kind of experiment, and the progress of the long ones.

Numbers stand right-aligned under headers that name their unit, with about three digits that mean something. Reads
records only, so the same table can be printed of an old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from knee.cli.terminal import console
from knee.lab.markdown import visible
from knee.lab.messages import Lang, text, translated
from knee.lab.records import (
    BaselineMetrics,
    InspectMetrics,
    InspectStep,
    KvCacheCell,
    KvCacheMetrics,
    Record,
    SweepCell,
    SweepMetrics,
    Tradeoff,
)
from knee.lab.trial import Progress, ignore

NOTHING = "—"
_WIDE = 96  # columns from which on a table shows all it has

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
            _sentences([translated(lang, finding) for finding in metrics.findings], out)
    _sentences([translated(lang, note) for note in record.notes], out)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Progress on stderr where that is a terminal. It moves between trials only: drawing would disturb them."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield ignore
        return
    columns = (
        TextColumn("[dim]{task.completed}/{task.total}"),
        BarColumn(24),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TextColumn("[dim]<"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=screen, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(number: int, total: int, label: str) -> None:
            bar.update(task, completed=number, total=total, description=label, refresh=True)

        yield show


# --- numbers and tables ------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """About three digits that mean something: 0.123, 4.52, 40.7, 434, 12,345."""
    if value is None:
        return NOTHING
    size = abs(value)
    digits = 0 if size >= 100 or value == 0 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """A change: +103 %."""
    return f"{share * 100:+.0f} %"


@dataclass(frozen=True)
class _Column:
    """A column: its header's message, what it shows of a row, how it looks."""

    key: str
    show: Callable[[Any], str]
    style: str = ""
    justify: Any = "right"
    wide_only: bool = False


def _print_table(rows: Sequence[Any], columns: Sequence[_Column], say: Say, out: Console, about: str) -> None:
    shown = [column for column in columns if out.width >= _WIDE or not column.wide_only]
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False, padding=(0, 1), border_style="dim")
    for column in shown:
        table.add_column(
            say(f"table.{column.key}"), justify=column.justify, style=column.style, no_wrap=True, vertical="bottom"
        )
    for row in rows:
        table.add_row(*(Text(visible(column.show(row))) for column in shown))
    out.print(Padding(table, (0, 0, 0, 2)))
    out.print(Padding(Text(about, style="dim"), (0, 2, 0, 2)))


def _sentences(sentences: Sequence[str], out: Console) -> None:
    for sentence in sentences:
        grid = Table.grid(padding=(0, 1))
        grid.add_row("  ·", Text(visible(sentence)))
        out.print(grid)


def _shape(shape: Sequence[int] | None) -> str:
    return NOTHING if shape is None else f"({', '.join(map(str, shape))})"


def _quoted(words: str) -> str:
    return f"“{visible(words)}”"


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
        _Column("what", lambda row: row[0], justify="left"),
        _Column("ms", lambda row: number(row[1]), "bold"),
        _Column("each", lambda row: "" if row[2] is None else number(row[2])),
    )
    _print_table(rows, columns, say, out, say("table.baseline_about", runs=len(metrics.prefill_runs_ms)))
    speed = say("table.speed", speed=number(metrics.output_tokens_per_s))
    tokens = f" · {metrics.prompt_tokens} → {metrics.output_tokens} tokens · "
    shape = say("table.kv_shape", shape=_shape(metrics.kv_cache_shape))
    out.print(Text.assemble("\n  ", (speed, "bold"), tokens, shape))
    output = ", ".join(map(str, metrics.token_ids)) if metrics.text is None else _quoted(metrics.text)
    out.print(Padding(Text(output, style="italic"), (0, 2, 1, 2)))


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
    out.print(Padding(Text(line), (1, 2, 0, 2)))
    candidates = 5 if out.width >= _WIDE else 3
    columns = (
        _Column("step", lambda row: str(row[0].step)),
        _Column("kv_len", lambda row: str(row[0].kv_len)),
        _Column("ms", lambda row: number(row[0].ms), "bold"),
        _Column("ms_off", lambda row: number(row[1].ms)),
        _Column("token", lambda row: _token(row[0].token_id, row[0].token), "bold", "left"),
        _Column("top", lambda row: _candidates(row[0], candidates), "dim", "left"),
    )
    rows = list(zip(metrics.steps, off.steps, strict=True))
    _print_table(rows, columns, say, out, say("table.inspect_about"))
    if metrics.matches_generate and off.same_tokens:
        _sentences([say("table.same_yes")], out)


def _candidates(step: InspectStep, count: int) -> str:
    named = [f"{_short(top.token or str(top.token_id))} {math.exp(top.logprob):.0%}" for top in step.top[:count]]
    return "  ".join(named)


def _token(token_id: int, token: str | None) -> str:
    return str(token_id) if token is None else f"{token_id} “{_short(token)}”"


def _short(token: str) -> str:
    return token if len(token) <= 12 else f"{token[:11]}…"


def print_logprobs(rows: Sequence[dict[str, Any]], lang: Lang) -> None:
    """Each token with its log probability and its rivals, on stderr."""
    out = Console(stderr=True)
    table = Table(box=SIMPLE_HEAD, header_style="dim", pad_edge=False, border_style="dim")
    table.add_column(text(lang, "generate.token"), style="bold")
    table.add_column(text(lang, "generate.logprob"), justify="right")
    table.add_column(text(lang, "generate.others"), style="dim")
    for row in rows:
        rivals = "  ".join(f"{_token(top['token_id'], top['token'])} {top['logprob']:.2f}" for top in row["top"])
        logprob = NOTHING if row["logprob"] is None else f"{row['logprob']:.2f}"
        table.add_row(Text(visible(_token(row["token_id"], row["token"]))), logprob, Text(visible(rivals)))
    out.print(table)


# --- kvcache -----------------------------------------------------------------------------------------------------


def _kvcache(metrics: KvCacheMetrics, say: Say, out: Console) -> None:
    def decode_step(cell: KvCacheCell, index: int) -> str:
        steps = cell.token_ms[1:]
        return number(steps[index] if steps else None)

    columns = (
        _Column("prompt", lambda cell: str(cell.prompt_length)),
        _Column("cache", lambda cell: say(f"switch.{cell.kv_cache}"), justify="left"),
        _Column("prefill", lambda cell: number(cell.prefill_ms)),
        _Column("first", lambda cell: decode_step(cell, 0)),
        _Column("last", lambda cell: decode_step(cell, -1)),
        _Column("step_ms", lambda cell: number(cell.decode_ms_per_step), "bold"),
        _Column("total_ms", lambda cell: number(cell.total_ms)),
        _Column("memory", lambda cell: number(cell.kv_bytes / 2**20) if cell.kv_cache == "on" else NOTHING),
    )
    _print_table(metrics.cells, columns, say, out, say("table.kvcache_about"))


# --- sweep -------------------------------------------------------------------------------------------------------


def _sweep(metrics: SweepMetrics, say: Say, out: Console) -> None:
    _print_table(metrics.cells, _SWEEP, say, out, say("table.sweep_about"))
    if len(metrics.tradeoff) > 1:
        _print_table(metrics.tradeoff, _TRADEOFF, say, out, say("table.tradeoff_about"))
    out.print()


def _wait(of: SweepCell | Tradeoff) -> str:
    return NOTHING if of.max_wait_ms is None else f"{of.max_wait_ms:g}"


_SETTING = (
    _Column("policy", lambda cell: cell.policy, justify="left"),
    _Column("batch", lambda cell: str(cell.max_batch_size)),
    _Column("wait", _wait),
)
_SWEEP = (
    *_SETTING,
    _Column("total_s", lambda cell: f"{cell.duration_s:.3f}"),
    _Column("tokens_per_s", lambda cell: number(cell.output_throughput), "bold"),
    _Column("service_mean", lambda cell: number(cell.service_ms.mean)),
    _Column("service_p95", lambda cell: number(cell.service_ms.p95)),
    _Column("queue", lambda cell: number(cell.queue_ms.mean)),
    _Column("ttft", lambda cell: number(cell.ttft_ms.mean)),
    _Column("tpot", lambda cell: number(cell.tpot_ms.mean), wide_only=True),
    _Column("e2el", lambda cell: number(cell.e2el_ms.mean), "bold"),
    _Column("e2el_p95", lambda cell: number(cell.e2el_ms.p95)),
    _Column("slots", lambda cell: f"{cell.slot_utilization * 100:.0f}", wide_only=True),
)
_TRADEOFF = (
    *_SETTING,
    _Column("throughput_change", lambda row: percent(row.throughput_change), "bold"),
    _Column("service_change", lambda row: percent(row.service_change)),
    _Column("e2el_change", lambda row: percent(row.e2el_change), "bold"),
    _Column("efficiency", lambda row: NOTHING if row.efficiency is None else f"{row.efficiency:.1f}x"),
)

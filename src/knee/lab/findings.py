"""What the numbers of a sweep say, in sentences. Pure functions over what was measured.

A difference is claimed only where the ranges of the repeats do not overlap; otherwise the answer is that one cannot
tell. That is a crude test and an honest one: with few repeats a finer one would promise more than it can keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean

from knee.lab.messages import text
from knee.lab.metrics import COMPLETED, batch_sizes, by_repeat, change, e2el_ms
from knee.lab.records import RequestRow, StepRow, SweepCell

Range = tuple[float, float]

# Of 70 orders in which 4 and 4 equal repeats can fall, 2 have ranges apart: a false claim in 35. With 3 it is 1 in 10.
ENOUGH_REPEATS = 4


@dataclass(frozen=True)
class Measured:
    """A cell with the rows it was made from. `label` names it for people: `dynamic (8 / 10 ms)`."""

    label: str
    cell: SweepCell
    requests: Sequence[RequestRow]
    steps: Sequence[StepRow]

    @property
    def throughputs(self) -> Range:
        """Lowest and highest tokens/s of the repeats."""
        values = [r.output_tokens / r.duration_s for r in self.cell.repeats if r.duration_s]
        return min(values, default=0.0), max(values, default=0.0)

    @property
    def latencies(self) -> Range:
        """Lowest and highest mean latency from arrival of the repeats, in ms."""
        done = by_repeat(row for row in self.requests if row.finish_reason in COMPLETED)
        means = [fmean(e2el_ms(row) or 0.0 for row in rows) for rows in done.values()]
        return min(means, default=0.0), max(means, default=0.0)

    @property
    def always_full(self) -> bool:
        """Whether every batch but a trial's last was full when it started."""
        return all(
            size >= self.cell.max_batch_size
            for repeat, rows in by_repeat(self.requests).items()
            for size in batch_sizes(rows, [step for step in self.steps if step.repeat == repeat])[:-1]
        )


def findings(measured: Sequence[Measured]) -> list[str]:
    """What batching did, what the windows did, which cell is best for what; English, in a record's words."""
    able = [one for one in measured if one.cell.e2el_ms.mean is not None]
    sentences = [*_about_windows(able), *_about_batching(able)]
    if len(able) > 1:
        sentences += _about_the_best(able)
        repeats = min(one.repeats for one in _settings(able))
        if repeats < ENOUGH_REPEATS:
            sentences.append(text("en", "finding.too_few_repeats", repeats=repeats, enough=ENOUGH_REPEATS))
    return sentences


def overlap(one: Range, other: Range) -> bool:
    """Whether two ranges share a value; of single values it is not known, and they count as apart."""
    return one[0] <= other[1] and other[0] <= one[1]


# --- batching ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Size:
    """A policy at one batch size: its cell with the shortest window, and with it those whose window cannot matter.

    Such cells differ in nothing, so that their repeats are repeats of one setting.
    """

    cells: Sequence[Measured]

    @classmethod
    def of(cls, cells: Sequence[Measured]) -> _Size:
        shortest = min(cells, key=lambda one: one.cell.max_wait_ms or 0.0)
        return cls(cells if all(one.always_full for one in cells) else [shortest])

    @property
    def first(self) -> Measured:
        return self.cells[0]

    @property
    def repeats(self) -> int:
        return sum(len(one.cell.repeats) for one in self.cells)

    @property
    def throughputs(self) -> Range:
        return _hull([one.throughputs for one in self.cells])

    @property
    def latencies(self) -> Range:
        return _hull([one.latencies for one in self.cells])

    @property
    def throughput(self) -> float:
        return fmean(one.cell.output_throughput for one in self.cells)

    @property
    def latency(self) -> float:
        return fmean(one.cell.e2el_ms.mean or 0.0 for one in self.cells)

    @property
    def label(self) -> str:
        cell = self.first.cell
        return self.first.label if len(self.cells) == 1 else f"{cell.policy} ({cell.max_batch_size})"


def _hull(ranges: Sequence[Range]) -> Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _about_batching(measured: Sequence[Measured]) -> list[str]:
    """For each policy: its smallest batch against the one with the highest throughput."""
    sentences = []
    for _, group in groupby(measured, key=lambda one: one.cell.policy):
        members = sorted(group, key=lambda one: one.cell.max_batch_size)
        sizes = [_Size.of(list(cells)) for _, cells in groupby(members, key=lambda one: one.cell.max_batch_size)]
        if len(sizes) > 1:
            sentences.append(_batching(sizes[0], max(sizes[1:], key=lambda one: one.throughput)))
    return sentences


def _batching(base: _Size, best: _Size) -> str:
    before, after = base.first.cell, best.first.cell
    throughput = change(before.output_throughput, after.output_throughput) or 0.0
    latency = change(before.e2el_ms.mean, after.e2el_ms.mean) or 0.0
    repeats = min(base.repeats, best.repeats)
    return text(
        "en",
        f"finding.batching_{_verdict(base, best, repeats, throughput, latency)}",
        best=best.first.label,
        base=base.first.label,
        repeats=repeats,
        throughput=_percent(throughput),
        service=_percent(change(before.service_ms.mean, after.service_ms.mean)),
        latency=_percent(latency),
    )


def _verdict(base: _Size, best: _Size, repeats: int, throughput: float, latency: float) -> str:
    if repeats < ENOUGH_REPEATS:
        return "too_few"
    same_latency = overlap(base.latencies, best.latencies)
    if overlap(base.throughputs, best.throughputs):
        return "cannot_tell" if same_latency else "changes_latency"
    if throughput <= 0:
        return "no_gain"
    if same_latency:
        return "gains_throughput"
    return "wins_both" if latency < 0 else "trades"


# --- wait windows ------------------------------------------------------------------------------------------------


def _about_windows(measured: Sequence[Measured]) -> list[str]:
    """For each batch size of dynamic batching: every window against the shortest."""
    windowed = [one for one in measured if one.cell.max_wait_ms is not None]
    sentences, pointless = [], []
    for size in dict.fromkeys(one.cell.max_batch_size for one in windowed):
        members = [one for one in windowed if one.cell.max_batch_size == size]
        base = min(members, key=lambda one: one.cell.max_wait_ms or 0.0)
        others = [one for one in members if one is not base]
        if others and all(one.always_full for one in members):
            pointless.append(str(size))
        else:
            sentences += [_window(base, other) for other in others]
    if pointless:
        sentences.append(text("en", "finding.window_cannot_matter", sizes=", ".join(pointless)))
    return sentences


def _window(base: Measured, other: Measured) -> str:
    repeats = min(len(base.cell.repeats), len(other.cell.repeats))
    if repeats < ENOUGH_REPEATS:
        verdict = "too_few"
    else:
        verdict = "cannot_tell" if overlap(base.latencies, other.latencies) else "matters"
    return text(
        "en",
        f"finding.window_{verdict}",
        repeats=repeats,
        other=other.label,
        base=base.label,
        other_range=_span(other.latencies),
        base_range=_span(base.latencies),
        latency=_percent(change(base.cell.e2el_ms.mean, other.cell.e2el_ms.mean)),
        throughput=_percent(change(base.cell.output_throughput, other.cell.output_throughput)),
    )


# --- the best ----------------------------------------------------------------------------------------------------


def _about_the_best(measured: Sequence[Measured]) -> list[str]:
    settings = _settings(measured)
    fastest = min(settings, key=lambda one: one.latency)
    busiest = max(settings, key=lambda one: one.throughput)
    return [
        _best("latency", fastest, settings, lambda one: one.latencies, f"{fastest.latency:.1f}"),
        _best("throughput", busiest, settings, lambda one: one.throughputs, f"{busiest.throughput:.1f}"),
    ]


def _best(what: str, best: _Size, settings: Sequence[_Size], ranges: Callable[[_Size], Range], value: str) -> str:
    rivals = [one.label for one in settings if one is not best and overlap(ranges(best), ranges(one))]
    repeats = min(one.repeats for one in settings)
    verdict = "_too_few" if repeats < ENOUGH_REPEATS else "_tied" if rivals else ""
    values = {"cell": best.label, "value": value, "rivals": ", ".join(rivals), "repeats": repeats}
    return text("en", f"finding.best_{what}{verdict}", **values)


def _settings(measured: Sequence[Measured]) -> list[_Size]:
    """Every cell for itself, those that differ in nothing but a window that cannot matter as one."""
    settings: list[_Size] = []
    for key in dict.fromkeys((one.cell.policy, one.cell.max_batch_size) for one in measured):
        cells = [one for one in measured if (one.cell.policy, one.cell.max_batch_size) == key]
        same = all(one.always_full for one in cells)
        settings += [_Size(cells)] if same else [_Size([cell]) for cell in cells]
    return settings


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{share * 100:+.0f} %"


def _span(values: Range) -> str:
    return f"{values[0]:.1f}–{values[1]:.1f} ms"

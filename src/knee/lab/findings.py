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
    sentences = [*_about_batching(able), *_about_windows(able)]
    if len(able) > 1:
        sentences += _about_the_best(able)
        repeats = min(len(one.cell.repeats) for one in able)
        if repeats < ENOUGH_REPEATS:
            sentences.append(text("en", "finding.too_few_repeats", repeats=repeats, enough=ENOUGH_REPEATS))
    return sentences


def overlap(one: Range, other: Range) -> bool:
    """Whether two ranges share a value; of single values it is not known, and they count as apart."""
    return one[0] <= other[1] and other[0] <= one[1]


# --- batching ----------------------------------------------------------------------------------------------------


def _about_batching(measured: Sequence[Measured]) -> list[str]:
    """For each policy: its smallest batch against the one with the highest throughput, at the shortest window."""
    sentences = []
    for _, group in groupby(measured, key=lambda one: one.cell.policy):
        members = list(group)
        shortest = members[0].cell.max_wait_ms
        sizes = [one for one in members if one.cell.max_wait_ms == shortest]
        base = min(sizes, key=lambda one: one.cell.max_batch_size)
        others = [one for one in sizes if one is not base]
        if others:
            sentences.append(_batching(base, max(others, key=lambda one: one.cell.output_throughput)))
    return sentences


def _batching(base: Measured, best: Measured) -> str:
    throughput = change(base.cell.output_throughput, best.cell.output_throughput) or 0.0
    latency = change(base.cell.e2el_ms.mean, best.cell.e2el_ms.mean) or 0.0
    if overlap(base.throughputs, best.throughputs):
        verdict = "cannot_tell" if overlap(base.latencies, best.latencies) else "changes_latency"
    elif throughput <= 0:
        verdict = "no_gain"
    elif overlap(base.latencies, best.latencies):
        verdict = "gains_throughput"
    else:
        verdict = "wins_both" if latency < 0 else "trades"
    return text(
        "en",
        f"finding.batching_{verdict}",
        best=best.label,
        base=base.label,
        throughput=_percent(throughput),
        service=_percent(change(base.cell.service_ms.mean, best.cell.service_ms.mean)),
        latency=_percent(latency),
    )


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
    fastest = min(measured, key=lambda one: one.cell.e2el_ms.mean or 0.0)
    busiest = max(measured, key=lambda one: one.cell.output_throughput)
    return [
        _best("latency", fastest, measured, lambda one: one.latencies, f"{fastest.cell.e2el_ms.mean:.1f}"),
        _best("throughput", busiest, measured, lambda one: one.throughputs, f"{busiest.cell.output_throughput:.1f}"),
    ]


def _best(
    what: str, best: Measured, measured: Sequence[Measured], ranges: Callable[[Measured], Range], value: str
) -> str:
    rivals = [one.label for one in measured if one is not best and overlap(ranges(best), ranges(one))]
    verdict = f"finding.best_{what}_tied" if rivals else f"finding.best_{what}"
    return text("en", verdict, cell=best.label, value=value, rivals=", ".join(rivals))


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{share * 100:+.0f} %"


def _span(values: Range) -> str:
    return f"{values[0]:.1f}–{values[1]:.1f} ms"

"""What the page and its figures ask of a sweep's cells: their names, their numbers, and which to look at first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from knee.lab.metrics import COMPLETED
from knee.lab.records import RequestRow
from knee.lab.sweep_records import Interval, Recommendation, Recommendations, SweepCell, SweepMetrics

SCENARIOS = ("chat", "api", "offline", "slo")


def name_of(cell: SweepCell) -> str:
    """As people call it: `dynamic (8 / 10 ms)`."""
    if cell.label:
        return cell.label
    window = "" if cell.max_wait_ms is None else f" / {cell.max_wait_ms:g} ms"
    return f"{cell.policy} ({cell.max_batch_size}{window})"


def numbered(cells: Sequence[SweepCell]) -> dict[int, SweepCell]:
    """Each cell by its number in the rows; where records give none, by its place in the list."""
    told = {cell.cell: cell for cell in cells}
    return told if len(told) == len(cells) else dict(enumerate(cells))


def names(metrics: SweepMetrics, numbers: Sequence[int]) -> list[str]:
    """What these cells are called; a number that no cell has stays a number."""
    cells = numbered(metrics.cells)
    return [name_of(cells[number]) if number in cells else f"#{number}" for number in numbers]


def measured(cell: SweepCell, metric: str) -> Interval | None:
    """A metric of `COMPARED` with its interval; from an old record without one, and None where nothing is known."""
    if metric in cell.intervals:
        return cell.intervals[metric]
    summary = getattr(cell, metric, None)
    value = summary if summary is None or isinstance(summary, (int, float)) else summary.mean
    return None if value is None else Interval(value=value, low=None, high=None, n=len(cell.repeats))


def recommended(recommendations: Recommendations | None) -> list[Recommendation]:
    """The answers that there are."""
    if recommendations is None:
        return []
    found = [getattr(recommendations, scenario) for scenario in SCENARIOS]
    return [one for one in found if one is not None]


def highlights(metrics: SweepMetrics) -> dict[int, list[str]]:
    """The cells to look at first, and why: "knee", a scenario's name, or "base", batch 1."""
    reasons: dict[int, list[str]] = defaultdict(list)
    if metrics.knee is not None:
        reasons[metrics.knee.cell].append("knee")
    for one in recommended(metrics.recommendations):
        if one.cell is not None:
            reasons[one.cell].append(one.scenario)
    cells = numbered(metrics.cells)
    alone = [number for number, cell in cells.items() if cell.max_batch_size == 1]
    for number in (alone or list(cells))[:1]:
        reasons[number].append("base")
    return {number: why for number, why in reasons.items() if number in cells}


def completed(requests: Sequence[RequestRow], cell: int) -> list[RequestRow]:
    """A cell's requests that ran to their end, in trials that count."""
    return [row for row in requests if row.cell == cell and not row.void and row.finish_reason in COMPLETED]

"""How the latencies of each cell's requests spread, drawn as boxes: all cells on one scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from matplotlib.axes import Axes

from knee.lab.metrics import e2el_ms, ttft_ms
from knee.lab.records import RequestRow
from knee.lab.report.cells import completed, name_of, numbered
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Look, Picture
from knee.lab.statistics import percentile
from knee.lab.sweep_records import SweepMetrics

_ROW, _LEFT, _GAP = 19.0, 176.0, 18.0
_MEASURES = (("e2el", e2el_ms), ("ttft", ttft_ms))
_MEAN = Look(canvas.INK, "D", "none")


def draw(metrics: SweepMetrics, requests: Sequence[RequestRow], say: Callable[..., str]) -> Picture | None:
    """None where no request ran to its end."""
    cells = numbered(metrics.cells)
    rows = {number: completed(requests, number) for number in cells}
    shown = [number for number in cells if rows[number]]
    if not shown:
        return None
    figure = canvas.sheet(canvas.WIDE, _ROW * len(shown) + 74)
    wide = (canvas.WIDE - _LEFT - _GAP - 14) / 2
    for place, (name, latency) in enumerate(_MEASURES):
        axes = canvas.panel(figure, _LEFT + place * (wide + _GAP), canvas.BOTTOM, wide, _ROW * len(shown))
        for y, cell in enumerate(shown):
            values = sorted(value for row in rows[cell] if (value := latency(row)) is not None)
            if values:
                _box(axes, y, values)
        axes.set(ylim=(len(shown) - 0.5, -0.5), xlabel=say(f"report.axis.{name}"), title=say(f"report.short.{name}"))
        labels = ["" if place else canvas.words(name_of(cells[number]), 26) for number in shown]
        axes.set_yticks(range(len(shown)), labels)
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(left=0)
        canvas.plain_numbers(axes)
    svg = canvas.finish(figure, "boxes", say("report.boxes.label"))
    keys = [
        canvas.area_key("boxes-half", canvas.SOFT_BLUE, say("report.boxes.half")),
        canvas.tick_key("boxes-median", say("report.boxes.median")),
        canvas.line_key("boxes-mean", _MEAN, say("report.boxes.mean")),
        canvas.line_key("boxes-whisker", Look(canvas.FAINT), say("report.boxes.whisker")),
    ]
    return Picture("boxes", svg, say("report.boxes.label"), say("report.boxes.caption"), keys)


def _box(axes: Axes, y: float, values: Sequence[float]) -> None:
    low, first, middle, third, high = (percentile(values, part) for part in (5, 25, 50, 75, 95))
    axes.plot([low, high], [y, y], color=canvas.FAINT, linewidth=1.2)
    axes.barh(
        y, third - first, left=first, height=0.62, facecolor=canvas.SOFT_BLUE, edgecolor=canvas.BLUE, linewidth=0.9
    )
    axes.plot([middle, middle], [y - 0.31, y + 0.31], color=canvas.INK, linewidth=1.8)
    axes.plot([fmean(values)], [y], _MEAN.marker, color=_MEAN.color, markersize=3.5)

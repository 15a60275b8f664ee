"""Batch size against wait window, in two panels of numbers: throughput and latency; the other policies stand beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from knee.lab.report.cells import measured, numbered
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Picture
from knee.lab.report.figures.series import Line, lines
from knee.lab.report.numbers import number
from knee.lab.sweep_records import COMPARED, SweepCell, SweepMetrics

_PANELS = ("output_throughput", "e2el_ms")
_MOST_BESIDE = 6  # columns that still fit when the panels stand side by side
_ROW = 30.0
_FAINTEST, _STRONGEST = 0.05, 0.55


def draw(metrics: SweepMetrics, say: Callable[..., str]) -> Picture | None:
    """Both panels; None without at least two batch sizes and two windows to compare."""
    cells = list(numbered(metrics.cells).values())
    windows = {cell.max_wait_ms for cell in cells if cell.max_wait_ms is not None}
    sizes = sorted({cell.max_batch_size for cell in cells})
    if len(windows) < 2 or len(sizes) < 2:
        return None
    columns = sorted(lines(cells), key=lambda line: line[1] is None)
    beside = len(columns) <= _MOST_BESIDE
    height = 60 + _ROW * len(sizes)
    figure = canvas.sheet(canvas.WIDE, height if beside else 2 * height)
    for place, metric in enumerate(_PANELS):
        half = canvas.WIDE / 2
        x, y = (place * half, 0.0) if beside else (0.0, (1 - place) * height)
        room = half if beside else canvas.WIDE
        axes = canvas.panel(figure, x + 46, y + 8, room - 56, height - 60)
        _panel(axes, cells, columns, sizes, metric)
        _frame(axes, metrics, columns, sizes)
        axes.set_title(say(f"report.heatmap.{metric}"), pad=36)
        axes.set_ylabel(say("report.axis.batch"))
    svg = canvas.finish(figure, "heatmap", say("report.heatmap.label"))
    return Picture("heatmap", svg, say("report.heatmap.label"), say("report.heatmap.caption"))


def _panel(axes: Axes, cells: Sequence[SweepCell], columns: Sequence[Line], sizes: Sequence[int], metric: str) -> None:
    values = {}
    for cell in cells:
        found = measured(cell, metric)
        if found is not None:
            values[(cell.policy, cell.max_wait_ms), cell.max_batch_size] = found.value
    for x, column in enumerate(columns):
        for y, size in enumerate(sizes):
            value = values.get((column, size))
            strength = 0.0 if value is None else _strength(value, list(values.values()), COMPARED[metric])
            axes.add_patch(
                Rectangle((x, y), 1, 1, facecolor=canvas.HEAT, alpha=strength, edgecolor="none", linewidth=0)
            )
            axes.text(x + 0.5, y + 0.5, number(value), ha="center", va="center", fontsize=canvas.SMALL)
    axes.set(xlim=(0, len(columns)), ylim=(len(sizes), 0), xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([y + 0.5 for y in range(len(sizes))], [str(size) for size in sizes])
    axes.xaxis.tick_top()
    axes.set_xticks([x + 0.5 for x in range(len(columns))], [_heading(column) for column in columns])


def _frame(axes: Axes, metrics: SweepMetrics, columns: Sequence[Line], sizes: Sequence[int]) -> None:
    """Around the knee."""
    knee = metrics.knee and numbered(metrics.cells).get(metrics.knee.cell)
    if knee:
        x, y = columns.index((knee.policy, knee.max_wait_ms)), sizes.index(knee.max_batch_size)
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=canvas.INK, linewidth=1.6, zorder=3))


def _heading(column: Line) -> str:
    policy, wait = column
    return canvas.words(policy, 12) + ("" if wait is None else f"\n{wait:g} ms")


def _strength(value: float, values: Sequence[float], more_is_better: bool) -> float:
    """The better, the stronger."""
    low, high = min(values), max(values)
    share = (value - low) / (high - low) if high > low else 0.5
    return _FAINTEST + (_STRONGEST - _FAINTEST) * (share if more_is_better else 1 - share)

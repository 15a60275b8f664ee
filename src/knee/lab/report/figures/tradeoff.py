"""Throughput against latency: every cell a point, every policy a line through its batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from knee.lab.report.cells import measured, numbered
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Key, Look, Picture
from knee.lab.report.figures.series import line_name, lines, looks
from knee.lab.sweep_records import Interval, SweepMetrics

_WIDTH, _HEIGHT = canvas.WIDE, 430.0
_MUCH = 4.0  # cells are many and close together: here a logarithmic axis helps earlier
_RING, _TIED_RING = 17.0, 14.0
_CHAR, _LINE = 6.8, 12.0  # size of a digit, in pixels
_PAPER = {"facecolor": canvas.PAPER, "edgecolor": "none", "alpha": 0.7, "pad": 0.8}
_AWAY = ((11, 0), (-11, 0), (0, 13), (0, -13), (9, 10), (-9, 10), (9, -10), (-9, -10))


@dataclass(frozen=True, slots=True)
class _Point:
    number: int
    batch: int
    latency: Interval
    throughput: Interval


def draw(metrics: SweepMetrics, say: Callable[..., str]) -> Picture | None:
    """The trade-off; None where no cell has both a latency and a throughput."""
    points = {point.number: point for point in map(_point(metrics), numbered(metrics.cells)) if point is not None}
    if not points:
        return None
    figure = canvas.sheet(_WIDTH, _HEIGHT)
    axes = canvas.plot(figure)
    styles = looks(metrics.cells)
    for line, numbers in lines(metrics.cells).items():
        _line(axes, [points[number] for number in numbers if number in points], styles[line])
    drawn = list(points.values())
    xs, ys = (_reach([getattr(point, name) for point in drawn]) for name in ("latency", "throughput"))
    canvas.set_scales(axes, xs, ys, _MUCH)
    canvas.name_axes(axes, say("report.axis.e2el"), say("report.axis.throughput"), say("report.axis.log"))
    _rings(axes, metrics, points)
    _labels(axes, drawn)
    axes.set_title(say("report.tradeoff.better"), color=canvas.FAINT, fontsize=canvas.SMALL)
    svg = canvas.finish(figure, "tradeoff", say("report.tradeoff.label"))
    keys = [canvas.line_key(f"tradeoff-key{place}", styles[line], line_name(line)) for place, line in enumerate(styles)]
    return Picture(
        "tradeoff",
        svg,
        say("report.tradeoff.label"),
        say("report.tradeoff.caption"),
        [*keys, *_ring_keys(metrics, say)],
    )


def _point(metrics: SweepMetrics) -> Callable[[int], _Point | None]:
    cells = numbered(metrics.cells)

    def make(number: int) -> _Point | None:
        latency, throughput = (measured(cells[number], name) for name in ("e2el_ms", "output_throughput"))
        if latency is None or throughput is None:
            return None
        return _Point(number, cells[number].max_batch_size, latency, throughput)

    return make


def _line(axes: Axes, points: Sequence[_Point], look: Look) -> None:
    xs, ys = [point.latency.value for point in points], [point.throughput.value for point in points]
    axes.errorbar(
        xs,
        ys,
        xerr=_arms([point.latency for point in points]),
        yerr=_arms([point.throughput for point in points]),
        color=look.color,
        marker=look.marker,
        linestyle=look.dash,
        elinewidth=1.0,
        capsize=2.5,
    )


def _reach(values: Sequence[Interval]) -> list[float]:
    """Everything that has to be on the paper."""
    return [end for value in values for end in (value.value, value.low, value.high) if end is not None]


def _arms(values: Sequence[Interval]) -> list[list[float]]:
    """How far error bars reach down and up; nowhere without an interval."""
    down = [0.0 if value.low is None else max(0.0, value.value - value.low) for value in values]
    up = [0.0 if value.high is None else max(0.0, value.high - value.value) for value in values]
    return [down, up]


def _rings(axes: Axes, metrics: SweepMetrics, points: dict[int, _Point]) -> None:
    """Around the knee, and dotted ones around what cannot be told from it."""
    if metrics.knee is None:
        return
    for dash, size, numbers in (("-", _RING, [metrics.knee.cell]), (":", _TIED_RING, metrics.knee.tied)):
        ringed = [points[number] for number in numbers if number in points]
        axes.scatter(
            [point.latency.value for point in ringed],
            [point.throughput.value for point in ringed],
            s=size**2,
            facecolors="none",
            edgecolors=canvas.INK,
            linewidths=1.4,
            linestyles=dash,
            zorder=4,
        )


def _ring_keys(metrics: SweepMetrics, say: Callable[..., str]) -> list[Key]:
    if metrics.knee is None:
        return []
    keys = [canvas.ring_key("tradeoff-knee", "-", say("report.knee"))]
    return keys + ([canvas.ring_key("tradeoff-tied", ":", say("report.tradeoff.tied"))] if metrics.knee.tied else [])


def _labels(axes: Axes, points: Sequence[_Point]) -> None:
    """The batch size beside its point, where there is room; where one of that size stands close by, that is enough."""
    places = {point.number: axes.transData.transform((point.latency.value, point.throughput.value)) for point in points}
    taken = [_Box(x, y, 12, 12) for x, y in places.values()]
    written: list[tuple[int, _Box]] = []
    for point in points:
        x, y = places[point.number]
        width = _CHAR * len(str(point.batch))
        if any(batch == point.batch and box.near(x, y, 30) for batch, box in written):
            continue
        free = (box for away in _AWAY if not any((box := _beside(x, y, away, width)).meets(other) for other in taken))
        if spot := next(free, None):
            middle: dict[str, Any] = {"ha": "center", "va": "center", "bbox": _PAPER}
            axes.annotate(str(point.batch), (spot.x, spot.y), xycoords="figure pixels", **middle)
            taken.append(spot)
            written.append((point.batch, spot))


def _beside(x: float, y: float, away: tuple[float, float], width: float) -> _Box:
    """A label's box in this direction from a point."""
    side = (away[0] > 0) - (away[0] < 0)
    return _Box(x + away[0] + side * width / 2, y + away[1], width, _LINE)


@dataclass(frozen=True, slots=True)
class _Box:
    """A rectangle around a middle, in pixels."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        return (
            abs(self.x - other.x) < (self.width + other.width) / 2
            and abs(self.y - other.y) < (self.height + other.height) / 2
        )

    def near(self, x: float, y: float, distance: float) -> bool:
        return abs(self.x - x) < distance and abs(self.y - y) < distance

"""One request: the cold prefill beside the warm ones, and every decode step."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from matplotlib.axes import Axes

from knee.lab.records import BaselineMetrics
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Look, Picture
from knee.lab.report.numbers import number

_HEIGHT, _BARS = 280.0, 250.0
_STEP = Look(canvas.BLUE, "o", "-")
_MEDIAN = Look(canvas.INK, "", (0, (5, 2)))


def draw(metrics: BaselineMetrics, say: Callable[..., str]) -> Picture:
    """Both panels."""
    figure = canvas.sheet(canvas.WIDE, _HEIGHT)
    _prefill(canvas.panel(figure, 60, canvas.BOTTOM, _BARS - 20, _HEIGHT - 74), metrics, say)
    left = _BARS + 110
    _decode(canvas.panel(figure, left, canvas.BOTTOM, canvas.WIDE - left - 14, _HEIGHT - 74), metrics, say)
    svg = canvas.finish(figure, "baseline", say("report.baseline.label"))
    keys = [
        canvas.line_key("baseline-run", Look(canvas.INK, "o", "none"), say("report.baseline.run")),
        canvas.line_key("baseline-step", _STEP, say("report.baseline.step")),
        canvas.line_key("baseline-median", _MEDIAN, say("report.baseline.median")),
    ]
    return Picture("baseline", svg, say("report.baseline.label"), say("report.baseline.caption"), keys)


def _prefill(axes: Axes, metrics: BaselineMetrics, say: Callable[..., str]) -> None:
    runs = metrics.prefill_runs_ms
    values = [metrics.prefill_cold_ms, metrics.prefill_ms]
    tops = [metrics.prefill_cold_ms, max([metrics.prefill_ms, *runs])]
    faces = [(canvas.SOFT_ORANGE, canvas.ORANGE, "//"), (canvas.SOFT_BLUE, canvas.BLUE, None)]
    for place, (value, (face, edge, hatch)) in enumerate(zip(values, faces, strict=True)):
        axes.bar(place, value, width=0.6, color=face, edgecolor=edge, hatch=hatch)
        axes.annotate(
            number(value), (place, tops[place]), (0, 6), textcoords="offset points", ha="center", fontsize=canvas.SMALL
        )
    axes.plot([1 + 0.2 * _spread(place, len(runs)) for place in range(len(runs))], runs, "o", color=canvas.INK, ms=4)
    axes.set_xticks([0, 1], [say("report.baseline.cold"), say("report.baseline.warm")])
    axes.set(xlim=(-0.6, 1.6), ylim=(0, max(tops) * 1.15 or 1.0), ylabel=say("report.axis.prefill_ms"))
    axes.set_title(say("report.baseline.prefill"))
    axes.grid(visible=False, axis="x")


def _spread(place: int, count: int) -> float:
    """Side by side, from -1 to 1."""
    return 2 * place / (count - 1) - 1 if count > 1 else 0.0


def _decode(axes: Axes, metrics: BaselineMetrics, say: Callable[..., str]) -> None:
    steps = metrics.decode_step_ms
    axes.plot(range(1, len(steps) + 1), steps, color=_STEP.color, marker=_STEP.marker, linewidth=0.8, markersize=4.5)
    if steps:
        axes.axhline(median(steps), color=_MEDIAN.color, linestyle=_MEDIAN.dash, linewidth=1.2)
    axes.set(xlim=(0, len(steps) + 1), ylim=(0, max(steps, default=1.0) * 1.2 or 1.0))
    axes.set(xlabel=say("report.axis.step"), ylabel=say("report.axis.step_ms"))
    axes.set_title(say("report.baseline.decode"))
    canvas.whole_numbers(axes.xaxis)

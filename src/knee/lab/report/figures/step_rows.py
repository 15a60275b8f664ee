"""The time of a decode step against its rows, with the roofline drawn in: what a step of this size takes at least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Look, Picture
from knee.lab.report.numbers import number
from knee.lab.sweep_records import StepTime, SweepMetrics

_HEIGHT = 330.0
_MEASURED = Look(canvas.BLUE, "o", "-")
# What a step takes at least: (field of StepTime, how it is drawn).
_ROOFS = {
    "memory_ms": Look(canvas.GREEN, "", (0, (6, 2))),
    "arithmetic_ms": Look(canvas.ORANGE, "", (0, (1.2, 1.5))),
}


def draw(metrics: SweepMetrics, say: Callable[..., str]) -> Picture | None:
    """None where no decode steps were timed."""
    times = sorted(metrics.step_times, key=lambda time: time.decode_rows)
    if not times:
        return None
    figure = canvas.sheet(canvas.WIDE, _HEIGHT)
    axes = canvas.plot(figure)
    roofs = [name for name in _ROOFS if any(getattr(time, name) is not None for time in times)]
    if roofs:
        floors = [time.floor_ms or 0.0 for time in times]
        axes.fill_between([time.decode_rows for time in times], floors, facecolor=canvas.SOFT_GREY, linewidth=0)
    for name in roofs:
        known = [(time.decode_rows, getattr(time, name)) for time in times if getattr(time, name) is not None]
        look = _ROOFS[name]
        axes.plot([x for x, _ in known], [y for _, y in known], color=look.color, linestyle=look.dash)
    _measured(axes, times)
    axes.set(xlim=(0, max(time.decode_rows for time in times) * 1.05), xlabel=say("report.axis.decode_rows"))
    axes.set(ylim=(0, _highest(times) * 1.1 or 1.0), ylabel=say("report.axis.step_ms"))
    axes.set_title(say("report.step_rows.title"))
    crossing = metrics.knee.roofline_batch if metrics.knee else None
    caption = say("report.step_rows.caption") if roofs else say("report.step_rows.caption_plain")
    if crossing is not None and roofs:
        inside = crossing <= max(time.decode_rows for time in times)
        if inside:
            _mark(axes, crossing, say)
        caption += " " + say(f"report.step_rows.{'inside' if inside else 'outside'}", rows=number(crossing))
    svg = canvas.finish(figure, "step_rows", say("report.step_rows.label"))
    keys = [canvas.line_key("step_rows-key", _MEASURED, say("report.step_rows.measured"))]
    keys += [canvas.area_key("step_rows-floor", canvas.SOFT_GREY, say("report.step_rows.floor"))] if roofs else []
    keys += [canvas.line_key(f"step_rows-{name}", _ROOFS[name], say(f"report.step_rows.{name}")) for name in roofs]
    return Picture("step_rows", svg, say("report.step_rows.label"), caption, keys)


def _measured(axes: Axes, times: Sequence[StepTime]) -> None:
    arms = [
        [max(0.0, time.ms - time.quartiles[0]) for time in times],
        [max(0.0, time.quartiles[1] - time.ms) for time in times],
    ]
    rows, medians = [time.decode_rows for time in times], [time.ms for time in times]
    look = _MEASURED
    axes.errorbar(
        rows, medians, yerr=arms, color=look.color, marker=look.marker, linestyle=look.dash, elinewidth=1, capsize=2.5
    )


def _highest(times: Sequence[StepTime]) -> float:
    return max(max(time.quartiles[1], time.floor_ms or 0.0) for time in times)


def _mark(axes: Axes, crossing: float, say: Callable[..., str]) -> None:
    axes.axvline(crossing, color=canvas.FAINT, linestyle=(0, (2, 3)), linewidth=1.2)
    right = crossing > axes.get_xlim()[1] * 0.6
    axes.annotate(
        say("report.step_rows.crossing", rows=number(crossing)),
        (crossing, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-6 if right else 6, 4),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=canvas.SMALL,
    )

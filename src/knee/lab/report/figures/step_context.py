"""The time of a decode step against how long its requests were: what attention over the KV cache adds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from matplotlib.axes import Axes

from knee.lab.costs import floor_of
from knee.lab.judgement.explain import decode_steps
from knee.lab.records import RequestRow, StepRow
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Look, Picture
from knee.lab.sweep_records import SweepMetrics

_HEIGHT = 300.0
_BINS = 14
_FEWEST = 3  # steps in a bin
_MOST_LINES = 6
_LOOKS = tuple(
    Look(color, marker, dash)
    for color, marker, dash in (
        (BLUE, "o", "-"),
        (ORANGE, "s", (0, (5, 2))),
        (GREEN, "D", (0, (1.2, 1.5))),
        (PURPLE, "^", (0, (5, 1.5, 1.2, 1.5))),
        (RED, "v", (0, (8, 2))),
        (SKY, "P", (0, (3, 1))),
    )
)

_FLOOR = Look(GREY, "", (0, (2, 2)))

Point = tuple[float, float]  # context, ms


def draw(
    metrics: SweepMetrics, requests: Sequence[RequestRow], steps: Sequence[StepRow], say: Callable[..., str]
) -> Picture | None:
    """None where no context was recorded (KV cache off), or too few steps."""
    lines = _lines(requests, steps)
    if not lines:
        return None
    figure = canvas.sheet(canvas.WIDE, _HEIGHT)
    axes = canvas.plot(figure)
    for look, points in zip(_LOOKS, lines.values(), strict=False):
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=look.color,
            marker=look.marker,
            linestyle=look.dash,
            markersize=5,
        )
    floors = _draw_floors(axes, metrics, lines)
    every = [point for points in lines.values() for point in points]
    margin = 0.03 * (max(x for x, _ in every) - min(x for x, _ in every) or 1.0)
    axes.set(
        xlim=(min(x for x, _ in every) - margin, max(x for x, _ in every) + margin), xlabel=say("report.axis.context")
    )
    axes.set(ylim=(0, max(y for _, y in every) * 1.1 or 1.0), ylabel=say("report.axis.step_ms"))
    axes.set_title(say("report.step_context.title"))
    svg = canvas.finish(figure, "step_context", say("report.step_context.label"))
    keys = [
        canvas.line_key(f"step_context-key{rows}", look, say("report.step_context.rows", rows=rows))
        for look, rows in zip(_LOOKS, lines, strict=False)
    ]
    if floors:
        keys.append(canvas.line_key("step_context-floor", _FLOOR, say("report.step_context.floor")))
    return Picture("step_context", svg, say("report.step_context.label"), say("report.step_context.caption"), keys)


def _draw_floors(axes: Axes, metrics: SweepMetrics, lines: Mapping[int, Sequence[Point]]) -> bool:
    """What such steps take at least, one thin line for each number of rows; whether there was anything to draw."""
    if metrics.costs is None or metrics.limits is None:
        return False
    for rows, points in lines.items():
        ends = [points[0][0], points[-1][0]]
        floors = [
            floor_of(metrics.costs, metrics.limits, tokens=rows, outputs=rows, pairs=rows * x, context=rows * x)
            for x in ends
        ]
        axes.plot(
            ends, [floor.seconds * 1e3 for floor in floors], color=_FLOOR.color, linestyle=_FLOOR.dash, linewidth=1
        )
    return True


def _lines(requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> dict[int, list[Point]]:
    """Number of decode rows -> medians over bins of the context, for the rows that ran most."""
    groups: dict[int, list[Point]] = defaultdict(list)
    for rows_of_trial, steps_of_trial in _trials(requests, steps).values():
        for step in decode_steps(rows_of_trial, steps_of_trial):
            if step.context and step.settled:
                groups[step.rows].append((step.context / step.rows, step.ms))
    most = sorted(groups, key=lambda rows: (-len(groups[rows]), rows))[:_MOST_LINES]
    lines = {rows: _binned(groups[rows]) for rows in sorted(most)}
    return {rows: points for rows, points in lines.items() if len(points) > 1}


def _trials(
    requests: Sequence[RequestRow], steps: Sequence[StepRow]
) -> dict[tuple[int, int], tuple[list[RequestRow], list[StepRow]]]:
    """The rows of each trial that counts."""
    trials: dict[tuple[int, int], tuple[list[RequestRow], list[StepRow]]] = defaultdict(lambda: ([], []))
    for row in requests:
        if not row.void:
            trials[row.cell, row.repeat][0].append(row)
    for step in steps:
        if not step.void:
            trials[step.cell, step.repeat][1].append(step)
    return trials


def _binned(points: Sequence[Point]) -> list[Point]:
    low, high = min(x for x, _ in points), max(x for x, _ in points)
    bins: dict[int, list[Point]] = defaultdict(list)
    for x, y in points:
        bins[min(int((x - low) / (high - low) * _BINS), _BINS - 1) if high > low else 0].append((x, y))
    return [
        (median(x for x, _ in bins[place]), median(y for _, y in bins[place]))
        for place in sorted(bins)
        if len(bins[place]) >= _FEWEST
    ]

"""The share of requests that were done within a time, for the cells to look at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from knee.lab.metrics import e2el_ms, ttft_ms
from knee.lab.records import RequestRow
from knee.lab.report.cells import completed, highlights, name_of, numbered
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, Look, Picture
from knee.lab.sweep_records import SweepMetrics

_HEIGHT, _LEFT, _GAP = 290.0, 60.0, 34.0
_MEASURES = (("e2el", e2el_ms), ("ttft", ttft_ms))
_LOOKS = (
    Look(BLUE, "o", "-"),
    Look(ORANGE, "s", (0, (5, 2))),
    Look(GREEN, "D", (0, (1.2, 1.5))),
    Look(PURPLE, "^", (0, (5, 1.5, 1.2, 1.5))),
    Look(GREY, "X", (0, (8, 2))),
    Look(SKY, "P", (0, (3, 1))),
)


def draw(metrics: SweepMetrics, requests: Sequence[RequestRow], say: Callable[..., str]) -> Picture | None:
    """None where none of these cells has a request that ran to its end."""
    cells = numbered(metrics.cells)
    rows = {number: completed(requests, number) for number in highlights(metrics)}
    shown = [number for number in rows if rows[number]][: len(_LOOKS)]
    if not shown:
        return None
    figure = canvas.sheet(canvas.WIDE, _HEIGHT)
    wide = (canvas.WIDE - _LEFT - _GAP - 14) / 2
    for place, (name, latency) in enumerate(_MEASURES):
        axes = canvas.panel(figure, _LEFT + place * (wide + _GAP), canvas.BOTTOM, wide, _HEIGHT - 70)
        for look, cell in zip(_LOOKS, shown, strict=False):
            values = sorted(value for row in rows[cell] if (value := latency(row)) is not None)
            shares = [(rank + 1) / len(values) * 100 for rank in range(len(values))]
            axes.plot(
                [values[0], *values],
                [0.0, *shares],
                drawstyle="steps-post",
                color=look.color,
                linestyle=look.dash,
                marker=look.marker,
                markersize=5,
                markevery=0.2,
            )
        axes.set(ylim=(0, 102), xlabel=say(f"report.axis.{name}"), title=say(f"report.short.{name}"))
        axes.set_xlim(left=0)
        canvas.plain_numbers(axes)
        if not place:
            axes.set_ylabel(say("report.axis.share_of_requests"))
    svg = canvas.finish(figure, "ecdf", say("report.ecdf.label"))
    keys = [
        canvas.line_key(f"ecdf-key{cell}", look, name_of(cells[cell]))
        for look, cell in zip(_LOOKS, shown, strict=False)
    ]
    return Picture("ecdf", svg, say("report.ecdf.label"), say("report.ecdf.caption"), keys)

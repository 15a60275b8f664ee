"""The decode steps taken by hand, with the KV cache and without it, against the tokens that they look back on."""

from __future__ import annotations

from collections.abc import Callable

from knee.lab.records import InspectMetrics
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Look, Picture

_HEIGHT = 300.0
_LOOKS = {"on": Look(canvas.BLUE, "o", "-"), "off": Look(canvas.ORANGE, "s", (0, (5, 2)))}


def draw(metrics: InspectMetrics, say: Callable[..., str]) -> Picture | None:
    """None where there was no decode step."""
    if not metrics.steps:
        return None
    # Without a cache there is no KV length; the step of the same number looks back on as many tokens.
    lengths = {step.step: step.kv_len or step.step for step in metrics.steps}
    figure = canvas.sheet(canvas.WIDE, _HEIGHT)
    axes = canvas.plot(figure)
    drawn = {"on": metrics.steps, "off": [step for step in metrics.kv_cache_off.steps if step.step in lengths]}
    for switch, steps in drawn.items():
        look = _LOOKS[switch]
        axes.plot(
            [lengths[step.step] for step in steps],
            [step.ms for step in steps],
            color=look.color,
            marker=look.marker,
            linestyle=look.dash,
        )
    xs, ys = list(lengths.values()), [step.ms for steps in drawn.values() for step in steps]
    canvas.set_scales(axes, xs, ys)
    axes.set_xlim(min(xs) - 0.5, max(xs) + 0.5)
    canvas.whole_numbers(axes.xaxis)
    canvas.name_axes(axes, say("report.axis.kv_length"), say("report.axis.step_ms"), say("report.axis.log"))
    svg = canvas.finish(figure, "inspect", say("report.inspect.label"))
    keys = [
        canvas.line_key(f"inspect-{switch}", look, say(f"report.kvcache.{switch}")) for switch, look in _LOOKS.items()
    ]
    return Picture("inspect", svg, say("report.inspect.label"), say("report.inspect.caption"), keys)

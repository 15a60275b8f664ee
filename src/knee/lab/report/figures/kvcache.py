"""Every decode step with the KV cache on and off against the length of the context; the price in memory beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes

from knee.lab.records import KvCacheCell, KvCacheMetrics
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Look, Picture

_HEIGHT, _MEMORY = 330.0, 190.0
_LOOKS = {"on": Look(canvas.BLUE, "o", "-"), "off": Look(canvas.ORANGE, "s", (0, (5, 2)))}


def draw(metrics: KvCacheMetrics, say: Callable[..., str]) -> Picture | None:
    """None where no decode step was measured."""
    if not any(_steps(cell) for cell in metrics.cells):
        return None
    figure = canvas.sheet(canvas.WIDE, _HEIGHT)
    axes = canvas.panel(figure, 60, canvas.BOTTOM, canvas.WIDE - 60 - _MEMORY - 70, _HEIGHT - 70)
    _times(axes, metrics.cells)
    canvas.name_axes(axes, say("report.axis.context"), say("report.axis.token_ms"), say("report.axis.log"))
    axes.set_title(say("report.kvcache.times"))
    if metrics.pays_from_tokens is not None:
        _crossing(axes, metrics.pays_from_tokens, say)
    _memory(canvas.panel(figure, canvas.WIDE - _MEMORY - 8, canvas.BOTTOM, _MEMORY, _HEIGHT - 70), metrics.cells, say)
    svg = canvas.finish(figure, "kvcache", say("report.kvcache.label"))
    keys = [
        canvas.line_key(f"kvcache-{switch}", look, say(f"report.kvcache.{switch}")) for switch, look in _LOOKS.items()
    ]
    return Picture("kvcache", svg, say("report.kvcache.label"), say("report.kvcache.caption"), keys)


def _steps(cell: KvCacheCell) -> list[tuple[float, float]]:
    """Context before the step's own token is stored, and its time; the first token is the prefill's."""
    return [(cell.prompt_length + place, ms) for place, ms in enumerate(cell.token_ms[1:], start=1)]


def _times(axes: Axes, cells: Sequence[KvCacheCell]) -> None:
    for cell in cells:
        look, steps = _LOOKS[cell.kv_cache], _steps(cell)
        axes.plot(
            [x for x, _ in steps],
            [y for _, y in steps],
            color=look.color,
            linestyle=look.dash,
            marker=look.marker,
            markersize=4.5,
            markevery=max(1, len(steps) // 8),
        )
    every = [step for cell in cells for step in _steps(cell)]
    canvas.set_scales(axes, [x for x, _ in every], [y for _, y in every])


def _crossing(axes: Axes, tokens: int, say: Callable[..., str]) -> None:
    low, high = axes.get_xlim()
    axes.axvline(tokens, color=canvas.INK, linestyle=(0, (2, 3)), linewidth=1.2)
    spot = axes.transAxes.inverted().transform(axes.transData.transform((min(max(tokens, low), high), 1.0)))[0]
    right = spot > 0.55
    axes.annotate(
        say("report.kvcache.crossing", tokens=tokens),
        (spot, 1.0),
        xycoords="axes fraction",
        xytext=(-6 if right else 6, -4),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top",
        fontsize=canvas.SMALL,
    )


def _memory(axes: Axes, cells: Sequence[KvCacheCell], say: Callable[..., str]) -> None:
    on = sorted((cell for cell in cells if cell.kv_cache == "on"), key=lambda cell: cell.prompt_length)
    sizes = [cell.kv_bytes / 2**20 for cell in on]
    axes.bar(range(len(on)), sizes, width=0.6, color=canvas.SOFT_BLUE, edgecolor=canvas.BLUE)
    for place, size in enumerate(sizes):
        axes.annotate(
            f"{size:.3g}", (place, size), (0, 3), textcoords="offset points", ha="center", fontsize=canvas.SMALL
        )
    axes.set_xticks(range(len(on)), [str(cell.prompt_length) for cell in on])
    axes.set(xlabel=say("report.axis.prompt_tokens"), title=say("report.kvcache.memory"))
    axes.set_ylim(0, max(sizes, default=1.0) * 1.15 or 1.0)
    axes.grid(visible=False, axis="x")

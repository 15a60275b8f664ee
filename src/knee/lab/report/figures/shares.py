"""Where the time of each cell went, from the first arrival to the last token."""

from __future__ import annotations

from collections.abc import Callable

from knee.lab.report.cells import name_of
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Picture
from knee.lab.sweep_records import Shares, SweepMetrics

_ROW, _LEFT = 21.0, 176.0
_SEEN = 0.001  # of the time: less is no line on the screen
_WRITTEN = 0.07  # smaller parts have no number of their own
# Part of `Shares` -> face, hatch. `decode` stands for the first two where there is no floor.
_PARTS: dict[str, tuple[str, str | None]] = {
    "floor": (canvas.SOFT_GREEN, None),
    "over_floor": (canvas.SOFT_BLUE, "//"),
    "decode": (canvas.SOFT_GREEN, None),
    "prefill": (canvas.SOFT_ORANGE, None),
    "host": (canvas.SOFT_PURPLE, "\\\\"),
    "held_back": (canvas.SOFT_RED, "xx"),
    "idle": (canvas.SOFT_GREY, None),
}


def draw(metrics: SweepMetrics, say: Callable[..., str]) -> Picture | None:
    """None where no cell has been explained."""
    bars = [(name_of(cell), cell.explanation.shares) for cell in metrics.cells if cell.explanation is not None]
    if not bars:
        return None
    figure = canvas.sheet(canvas.WIDE, _ROW * len(bars) + 50)
    axes = canvas.plot(figure, left=_LEFT, top=4, bottom=canvas.BOTTOM)
    for place, (_, shares) in enumerate(bars):
        begin = 0.0
        for part, share in parts(shares).items():
            face, hatch = _PARTS[part]
            axes.barh(
                place, share, left=begin, height=0.8, color=face, hatch=hatch, edgecolor=canvas.FAINT, linewidth=0.6
            )
            if share >= _WRITTEN:
                paper = {"facecolor": face, "edgecolor": "none", "pad": 0.8}
                axes.text(
                    begin + share / 2,
                    place,
                    f"{share * 100:.0f}",
                    ha="center",
                    va="center",
                    fontsize=canvas.SMALL,
                    bbox=paper,
                )
            begin += share
    axes.set_yticks(range(len(bars)), [canvas.words(name, 26) for name, _ in bars])
    axes.set(ylim=(len(bars) - 0.5, -0.5), xlim=(0, 1), xlabel=say("report.axis.share"))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100"])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False)
    used = [part for part in _PARTS if any(parts(shares).get(part, 0.0) >= _SEEN for _, shares in bars)]
    keys = [
        canvas.area_key(f"shares-{part}", _PARTS[part][0], say(f"report.shares.{part}"), hatch=_PARTS[part][1])
        for part in used
    ]
    svg = canvas.finish(figure, "shares", say("report.shares.label"))
    return Picture("shares", svg, say("report.shares.label"), say("report.shares.caption"), keys)


def parts(shares: Shares) -> dict[str, float]:
    """The parts in the order in which they are drawn; they make 1."""
    decode = (
        {"decode": shares.decode}
        if shares.floor is None or shares.over_floor is None
        else {"floor": shares.floor, "over_floor": shares.over_floor}
    )
    rest = ("prefill", "host", "held_back", "idle")
    return {**decode, **{name: getattr(shares, name) for name in rest}}

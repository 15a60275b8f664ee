"""An effect as a line of text holds it: a point and its interval against no change, on one scale for all of them."""

from __future__ import annotations

from math import log

from markupsafe import Markup
from matplotlib.lines import Line2D

from knee.lab.report.figures import canvas
from knee.lab.sweep_records import Effect

_WIDTH, _HEIGHT = 150.0, 16.0
_END = log(2.0)  # half at the left, double at the right; what is beyond is an arrow
_LEFT, _RIGHT = 0.04, 0.96
_COLORS = {"better": canvas.BLUE, "worse": canvas.ORANGE, "cannot_tell": canvas.GREY}


def draw(effect: Effect, name: str) -> Markup | None:
    """The words beside it say the same; None where there is no number."""
    if effect.change is None:
        return None
    figure = canvas.sheet(_WIDTH, _HEIGHT)
    color = _COLORS[effect.verdict]
    figure.add_artist(Line2D([0.02, 0.98], [0.5, 0.5], color=canvas.GRID, linewidth=1.2))
    figure.add_artist(Line2D([0.5, 0.5], [0.05, 0.95], color=canvas.INK, linewidth=1.2))
    place = _place(effect.change)
    if _LEFT < place < _RIGHT:
        if effect.low is not None and effect.high is not None:
            ends = [_place(effect.low), _place(effect.high)]
            figure.add_artist(Line2D(ends, [0.5, 0.5], color=color, linewidth=8.0, solid_capstyle="butt"))
        figure.add_artist(Line2D([place, place], [0.2, 0.8], color=color, linewidth=2.5))
    else:
        marker = ">" if place >= _RIGHT else "<"
        figure.add_artist(Line2D([place], [0.5], color=color, marker=marker, markersize=8.0))
    return canvas.aside(figure, name)


def _place(change: float) -> float:
    """From 0 to 1, in ratios: half and double are as far from the middle."""
    ratio = log(1 + change) if change > -1 else -_END
    return _LEFT + (_RIGHT - _LEFT) * (min(max(ratio / _END, -1.0), 1.0) + 1) / 2

"""What all figures share: paper, colours, legends, and how a drawing becomes a picture on the page.

Colours are stand-ins that `svg.py` replaces by the page's CSS variables, so they are right on light and on dark paper.
The hues are those of Okabe and Ito (2008), which colour-blind people can tell apart; a marker, a dash or a hatch
always says the same as the colour. A unit of a figure is a pixel of the page at its full width.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from knee.lab.report.figures.svg import page_svg
from knee.lab.visible import visible

INK = "#0a0b01"
FAINT = "#0a0b02"  # axes and their numbers
GRID = "#0a0b03"
PAPER = "#0a0b04"
HEAT = "#0a0b05"
ALARM = "#0a0b06"
# Lines and points.
BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY = (f"#0a0c0{digit}" for digit in range(7))
# Areas with words on them: the same hues, pale on light paper and deep on dark.
SOFT_BLUE, SOFT_ORANGE, SOFT_GREEN, SOFT_PURPLE, SOFT_RED, SOFT_SKY, SOFT_GREY = (f"#0a0d0{d}" for d in range(7))

_HUES = ("blue", "orange", "green", "purple", "red", "sky", "grey")
_THEME = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    HEAT: "var(--heat)",
    ALARM: "var(--alarm)",
    **{f"#0a0c0{digit}": f"var(--{hue})" for digit, hue in enumerate(_HUES)},
    **{f"#0a0d0{digit}": f"var(--soft-{hue})" for digit, hue in enumerate(_HUES)},
}

WIDE = 880.0  # the page's column
FONT = 12.0
SMALL = 11.0
BOTTOM = 48.0  # room for an axis, its numbers and its name
_MUCH = 12.0  # times the smallest value: more is too much for a linear axis

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "knee",
    "text.parse_math": False,  # names come from anywhere, and "$" is only a "$"
    "font.size": FONT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT,
    "axes.titlesize": FONT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.linewidth": 1.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 1.0,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 4.0,
    "ytick.major.size": 4.0,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.dpi": 72.0,
    "hatch.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@dataclass(frozen=True, slots=True)
class Key:
    """A line of a legend: what it looks like, and what it is."""

    swatch: Markup
    words: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure for the page. `name` is its anchor, `label` says what it is, `caption` what to look for in it."""

    name: str
    svg: Markup
    label: str
    caption: str
    keys: Sequence[Key] = ()
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True, slots=True)
class Look:
    """How a line is drawn: never by colour alone."""

    color: str
    marker: str = ""
    dash: Any = "-"  # as matplotlib has it


@contextmanager
def drawing() -> Iterator[None]:
    """Where figures are made and turned to SVG: the same on every machine, whatever its matplotlib is set to."""
    from matplotlib import style

    with style.context(["default", _STYLE]), warnings.catch_warnings():
        # The page's fonts draw the words, and they have the glyphs that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def sheet(width: float, height: float) -> Figure:
    """An empty figure; sizes in pixels."""
    return Figure(figsize=(width / 72, height / 72))


def plot(figure: Figure, left: float = 60.0, right: float = 14.0, top: float = 24.0, bottom: float = BOTTOM) -> Axes:
    """Axes with these margins, in pixels: fixed ones, since only the browser knows how wide its words are."""
    width, height = figure.get_size_inches() * 72
    return panel(figure, left, bottom, width - left - right, height - top - bottom)


def panel(figure: Figure, left: float, bottom: float, wide: float, high: float) -> Axes:
    """Axes at this place, in pixels."""
    width, height = figure.get_size_inches() * 72
    return figure.add_axes((left / width, bottom / height, wide / width, high / height))


def finish(figure: Figure, name: str, label: str) -> Markup:
    """The figure as an element of the page."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=_NO_METADATA)
    return page_svg(out.getvalue(), name, visible(label), _THEME)


def words(text: str, longest: int = 34) -> str:
    """Words from anywhere, fit to stand in a figure."""
    shown = visible(text)
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def line_key(name: str, look: Look, label: str) -> Key:
    """The legend's line for a line with markers. `name` is unique on the page."""
    figure = sheet(34, 14)
    style = {"color": look.color, "marker": look.marker or "None", "linestyle": look.dash}
    figure.add_artist(Line2D([0.06, 0.5, 0.94], [0.5] * 3, markevery=[1], **style))
    return Key(aside(figure, name), label)


def area_key(name: str, face: str, label: str, hatch: str | None = None, height: float = 10.0) -> Key:
    """The legend's line for an area."""
    figure = sheet(34, 14)
    low = (14 - height) / 28
    figure.add_artist(
        Rectangle((0.06, low), 0.88, height / 14, facecolor=face, edgecolor=FAINT, hatch=hatch, linewidth=0.8)
    )
    return Key(aside(figure, name), label)


def tick_key(name: str, label: str) -> Key:
    """The legend's line for an upright tick."""
    figure = sheet(34, 14)
    figure.add_artist(Line2D([0.5, 0.5], [0.05, 0.95], color=INK, linewidth=1.4))
    return Key(aside(figure, name), label)


def ring_key(name: str, dash: str, label: str) -> Key:
    """The legend's line for a ring around a point."""
    figure = sheet(34, 14)
    figure.add_artist(Ellipse((0.5, 0.5), 12 / 34, 12 / 14, fill=False, edgecolor=INK, linewidth=1.4, linestyle=dash))
    return Key(aside(figure, name), label)


def aside(figure: Figure, name: str) -> Markup:
    """A small drawing beside words that say it all, so that nobody has to hear it too."""
    label = 'role="img" aria-label=""'
    return Markup(finish(figure, name, "").replace(label, 'aria-hidden="true"'))


def set_scales(axes: Axes, xs: Sequence[float], ys: Sequence[float], much: float = _MUCH) -> None:
    """Both axes from 0, or logarithmic where that would squeeze the small values together."""
    for values, axis, scale, limit in (
        (xs, axes.xaxis, axes.set_xscale, axes.set_xlim),
        (ys, axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        low, high = min(values, default=0.0), max(values, default=0.0)
        if low > 0 and high / low > much:
            scale("log")
            limit(low / 1.3, high * 1.3)
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
        else:
            limit(0.0, high * 1.1 or 1.0)
    plain_numbers(axes)


def name_axes(axes: Axes, x: str, y: str, logarithmic: str) -> None:
    """What the axes show, and `logarithmic` behind it where that is what they are."""
    axes.set_xlabel(x + (logarithmic if axes.get_xscale() == "log" else ""))
    axes.set_ylabel(y + (logarithmic if axes.get_yscale() == "log" else ""))


def plain_numbers(axes: Axes) -> None:
    """Written out, with commas between thousands."""
    for axis in (axes.xaxis, axes.yaxis):
        if not isinstance(axis.get_major_locator(), FixedLocator):  # words stay words
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def whole_numbers(axis: Axis) -> None:
    """For what comes in pieces: no half steps."""
    axis.set_major_locator(MaxNLocator(nbins=10, integer=True))

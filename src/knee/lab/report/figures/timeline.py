"""The requests of one trial as bars over time, so that batches can be seen to form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from knee.lab.metrics import COMPLETED
from knee.lab.records import RequestRow
from knee.lab.report.figures import canvas
from knee.lab.report.figures.canvas import Key, Picture
from knee.lab.report.numbers import number

MOST = 48  # requests in one panel
_WIDTH, _ROW = 350.0, 6.0
# What a request was doing: colour, and the height of its bar.
_STATES = {
    "queued": (canvas.GREY, 0.22),
    "prefill": (canvas.ORANGE, 0.92),
    "decode": (canvas.SKY, 0.6),
}

Bar = tuple[float, float, int]  # begin, end, row


def draw(rows: Sequence[RequestRow], name: str, title: str, end: float, say: Callable[..., str]) -> Picture:
    """One panel: the requests of one trial on an axis that reaches to `end`, in seconds."""
    shown = sorted(rows, key=lambda row: (row.scheduled_at, row.request))[:MOST]
    height = max(60.0, _ROW * len(shown)) + 42
    figure = canvas.sheet(_WIDTH, height)
    axes = canvas.plot(figure, left=10, right=8, top=4, bottom=38)
    for state, (color, thick) in _STATES.items():
        bars = [bar for place, row in enumerate(shown) for bar in _bars(row, place, state)]
        _draw_bars(axes, bars, color, thick)
    _draw_bars(axes, [(row.scheduled_at, row.scheduled_at, place) for place, row in enumerate(shown)], canvas.INK, 0.9)
    failed = [(row.finished_at or row.sent_at, place) for place, row in enumerate(shown) if _failed(row)]
    axes.plot([x for x, _ in failed], [y for _, y in failed], "x", color=canvas.ALARM, markersize=5)
    axes.set(xlim=(0, end or 1.0), ylim=(max(len(shown), 1) - 0.4, -0.6), yticks=[], xlabel=say("report.axis.seconds"))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    label = say("report.timeline.label", cell=title)
    left_out = len(rows) - len(shown)
    more = say("report.timeline.more", shown=len(shown), left_out=left_out) if left_out else ""
    caption = say("report.timeline.panel", cell=title, end=number(_end(rows)), more=more)
    return Picture(name, canvas.finish(figure, name, label), label, caption)


def keys(say: Callable[..., str]) -> list[Key]:
    """The legend that all panels share."""
    bars = [
        canvas.area_key(f"timeline-key-{state}", color, say(f"report.timeline.{state}"), height=10 * thick)
        for state, (color, thick) in _STATES.items()
    ]
    return [canvas.tick_key("timeline-key-due", say("report.timeline.due")), *bars]


def last_moment(trials: Iterable[Sequence[RequestRow]]) -> float:
    """Where the axis ends that all panels share."""
    return max((_end(rows) for rows in trials), default=1.0)


def _end(rows: Sequence[RequestRow]) -> float:
    return max((moment for row in rows for moment in (row.finished_at, *row.token_times) if moment), default=0.0)


def _failed(row: RequestRow) -> bool:
    return row.finish_reason not in COMPLETED


def _bars(row: RequestRow, place: int, state: str) -> list[Bar]:
    done = row.token_times[-1] if row.token_times else row.finished_at
    begins, ends = {
        "queued": (row.scheduled_at, row.prefill_start if row.prefill_start is not None else row.finished_at),
        "prefill": (row.prefill_start, row.first_token_at if row.first_token_at is not None else row.finished_at),
        "decode": (row.first_token_at, done),
    }[state]
    return [] if begins is None or ends is None or ends <= begins else [(begins, ends, place)]


def _draw_bars(axes: Axes, bars: Sequence[Bar], color: str, thick: float) -> None:
    """All bars of one kind as one shape: a page may hold thousands."""
    if not bars:
        return
    corners = [corner for begin, end, place in bars for corner in _corners(begin, end, place, thick / 2)]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(bars)
    edge = color if bars[0][0] == bars[0][1] else "none"  # a moment has no area
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=color, edgecolor=edge, linewidth=1.4))


def _corners(begin: float, end: float, place: int, half: float) -> list[tuple[float, float]]:
    return [
        (begin, place - half),
        (end, place - half),
        (end, place + half),
        (begin, place + half),
        (begin, place - half),
    ]

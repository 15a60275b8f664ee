"""Numbers as people read them: three digits, thousands apart, a true minus, and a dash for what is not there."""

from __future__ import annotations

from knee.lab.sweep_records import Effect, Interval

NOTHING = "—"
_UNIT = "\u00a0%"  # stays on the line of its number


def number(value: float | None) -> str:
    """Three digits that count, none that do not."""
    if value is None:
        return NOTHING
    size = abs(value)
    if size >= 100:
        shown = f"{value:,.0f}"
    elif size >= 10:
        shown = f"{value:.1f}"
    elif size >= 1:
        shown = f"{value:.2f}"
    else:
        shown = f"{value:.3g}"
    return shown.replace("-", "−") if "e" not in shown else shown


def whole(value: float | None) -> str:
    """A count."""
    return NOTHING if value is None else f"{value:,.0f}"


def percent(fraction: float | None) -> str:
    """0.12 is 12 %."""
    return NOTHING if fraction is None else f"{fraction * 100:.0f}{_UNIT}"


def change(value: float | None) -> str:
    """A relative change with its sign: 0.12 is +12 %."""
    if value is None:
        return NOTHING
    places = 0 if abs(value) >= 0.0995 else 1
    return f"{value * 100:+.{places}f}".replace("-", "−") + _UNIT


def interval(value: Interval | None) -> str:
    """A median with its interval, where there is one."""
    if value is None:
        return NOTHING
    return f"{number(value.value)}{between(value)}"


def between(value: Interval) -> str:
    """The interval alone, with a space before it; nothing where there is none."""
    return "" if value.low is None or value.high is None else f" [{number(value.low)}, {number(value.high)}]"


def effect(value: Effect | None) -> str:
    """A change with its interval."""
    if value is None:
        return NOTHING
    if value.low is None or value.high is None:
        return change(value.change)
    return f"{change(value.change)} [{change(value.low).removesuffix(_UNIT)},\u00a0{change(value.high)}]"

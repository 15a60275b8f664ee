"""Numbers as people read them."""

from __future__ import annotations

import pytest

from knee.lab.report.numbers import change, effect, interval, number, percent, whole
from knee.lab.sweep_records import Effect, Interval


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "—"), (0.0, "0"), (1234.5, "1,234"), (333.84, "334"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.0123")],
)
def test_three_digits_count(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_a_minus_is_a_minus() -> None:
    assert number(-12.34) == "−12.3"
    assert change(-0.5) == "−50\u00a0%"


def test_changes_have_signs_and_small_ones_a_decimal() -> None:
    assert [change(value) for value in (1.03, 0.0123, 0.0, None)] == ["+103\u00a0%", "+1.2\u00a0%", "+0.0\u00a0%", "—"]


def test_intervals_stand_in_brackets_where_there_are_some() -> None:
    assert interval(Interval(value=10, low=9, high=11.5, n=5)) == "10.0 [9.00, 11.5]"
    assert interval(Interval(value=10, low=None, high=None, n=1)) == "10.0"
    assert interval(None) == "—"
    full = Effect(verdict="better", change=0.98, low=0.91, high=1.05, n=5)
    assert effect(full) == "+98\u00a0% [+91,\u00a0+105\u00a0%]"
    assert effect(full.model_copy(update={"low": None, "high": None})) == "+98\u00a0%"
    assert effect(None) == "—"


def test_counts_and_shares() -> None:
    assert whole(1234567) == "1,234,567"
    assert percent(0.123) == "12\u00a0%"
    assert percent(None) == "—"

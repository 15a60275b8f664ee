"""What an experiment tells of itself while it runs: between its parts only, because to draw would disturb them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int, str], None]
"""Told before each part of an experiment: its number from 0, how many there are, and what it is."""


def ignore(_number: int, _total: int, _label: str) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True)
class Status:
    """A sweep before a trial: which one it is, what was best so far, and the seconds still to go."""

    number: int
    total: int
    label: str
    seconds_left: float | None
    best: str | None
    throughput: float | None
    latency_ms: float | None


Tell = Callable[[Status], None]


def nobody(_status: Status) -> None:
    """Progress of a sweep that nobody watches."""

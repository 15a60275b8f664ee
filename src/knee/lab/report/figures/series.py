"""A sweep's lines: a policy with a window, through its batch sizes. Colour: the policy; marker and dash: the window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from knee.lab.report.cells import numbered
from knee.lab.report.figures.canvas import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Look
from knee.lab.sweep_records import SweepCell

Line = tuple[str, float | None]  # policy, window

_COLORS = {"single": GREY, "static": ORANGE, "dynamic": BLUE, "continuous": GREEN}
_MORE_COLORS = (PURPLE, RED, SKY)
_MARKERS = {"single": "X", "static": "s", "dynamic": "o", "continuous": "D"}
_WINDOW_MARKERS = ("o", "^", "v", "<", ">", "p", "h")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.2, 1.5)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2)))


def lines(cells: Sequence[SweepCell]) -> dict[Line, list[int]]:
    """The numbers of each line's cells, by batch size."""
    found: dict[Line, list[int]] = {}
    by_number = numbered(cells)
    for number, cell in sorted(by_number.items(), key=lambda item: item[1].max_batch_size):
        found.setdefault((cell.policy, cell.max_wait_ms), []).append(number)
    return dict(sorted(found.items(), key=lambda item: min(item[1])))


def looks(cells: Sequence[SweepCell]) -> dict[Line, Look]:
    """How each line is drawn; no two alike."""
    found: dict[Line, Look] = {}
    others = iter(_MORE_COLORS * len(cells))
    colors: dict[str, str] = {}
    for policy, wait in lines(cells):
        color = colors.setdefault(policy, _COLORS.get(policy) or next(others))
        place = sum(before == policy for before, _ in found)
        marker = _MARKERS.get(policy, "P") if wait is None else _WINDOW_MARKERS[place % len(_WINDOW_MARKERS)]
        found[policy, wait] = Look(color, marker, _DASHES[place % len(_DASHES)])
    return found


def line_name(line: Line) -> str:
    """As a legend has it."""
    policy, wait = line
    return policy if wait is None else f"{policy}, {wait:g} ms"

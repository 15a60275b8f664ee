"""A sweep within a time: which cells and how many repeats fit, and when to stop.

Planned twice. Before the first trial from an estimate (loading, the workload's span, the work that one request alone
takes): where not even `MIN_REPEATS` rounds of all cells fit, cells are left out, those first whose neighbours tell most
of what they would. Then before every round from what trials really took: a round that would not end in time is not
begun.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from knee.errors import UserError
from knee.lab.messages import MESSAGES, text
from knee.lab.plan import CellSpec, SweepSpec, rehearsal
from knee.lab.statistics import MIN_REPEATS
from knee.lab.workload import Workload

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_AROUND_S = 4.0  # before the first trial and after the last: the machine's limits, the judgement
_LEAST_CELLS = 2
_RIDERS = 8  # rows that ride along with a step, in an estimate of a batch's speed


def parse_budget(words: str) -> float:
    """Seconds of `90s`, `3m`, `1.5h` or a bare number of seconds. Raises `UserError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", words.strip())
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"the budget is {words!r}: give a time above 0, like 90s, 3m or 1.5h")
    return seconds


@dataclass(slots=True)
class Budget:
    """The time that a sweep may take, and what its trials took so far. `seconds` None is no limit."""

    seconds: float | None
    estimates: dict[int, float]  # of each cell's trial, in seconds
    now: Callable[[], float] = time.monotonic
    started: float | None = None  # when the command began, if that is not now
    _started: float = field(init=False)
    _taken: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = self.now() if self.started is None else self.started

    @classmethod
    def unlimited(cls, spec: SweepSpec) -> Budget:
        """No limit; the time left is guessed from the trials."""
        return cls(None, dict.fromkeys(range(len(spec.cells)), 0.0))

    def took(self, cell: int, seconds: float) -> None:
        """Learn from a trial."""
        self._taken.setdefault(cell, []).append(seconds)

    def allows(self, todo: Sequence[tuple[int, int]]) -> bool:
        """Whether so many trials would end in time."""
        if self.seconds is None:
            return True
        needed = sum(self._expected(cell) for cell, _ in todo) + _AROUND_S / 2
        return self.now() - self._started + needed <= self.seconds

    def seconds_left(self, cell: int, trials: int) -> float | None:
        """A guess of how long so many trials take, of which a `cell`'s is the next; None before the first one ended."""
        if not self._taken:
            return None
        known = [fmean(times) for times in self._taken.values()]
        return self._expected(cell) + (trials - 1) * fmean(known)

    def left_out(self, rounds: Sequence[Sequence[tuple[int, int]]], spec: SweepSpec) -> list[str]:
        """What the record says about rounds that there was no time for."""
        done = spec.repeats - len(rounds)
        return [text("en", "note.budget_rounds", done=done, planned=spec.repeats, budget=_span(self.seconds or 0.0))]

    def _expected(self, cell: int) -> float:
        if cell in self._taken:
            return fmean(self._taken[cell])
        return self.estimates[cell] * self._correction()

    def _correction(self) -> float:
        """By how much trials took longer than estimated, so far."""
        pairs = [(fmean(times), self.estimates[cell]) for cell, times in self._taken.items() if self.estimates[cell]]
        return sum(taken for taken, _ in pairs) / sum(guess for _, guess in pairs) if pairs else 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """What an estimate needs to know of a machine: seconds to start and load a process, and of a token, alone.

    `rehearses`: the device learns shapes, so that trials are rehearsed.
    """

    start: float
    prefill: float
    decode: float
    rehearses: bool = False


def estimate(cell: CellSpec, workload: Workload, pace: Pace) -> float:
    """Seconds of one trial, roughly."""
    together = min(cell.max_batch_size, workload.requests)
    warm_up = sum(workload.prompt_tokens[:together]) * pace.prefill + 12 * pace.decode
    rehearsed = _run(cell, rehearsal(workload, cell.max_batch_size), pace) if pace.rehearses else 0.0
    return pace.start + warm_up + rehearsed + _run(cell, workload, pace)


def _run(cell: CellSpec, workload: Workload, pace: Pace) -> float:
    """Of a workload, from its first request to its last token."""
    riders = min(cell.max_batch_size, workload.requests, _RIDERS)
    tokens = list(map(workload.tokens, range(workload.requests)))
    work = sum(workload.prompt_tokens) * pace.prefill + sum(tokens) * pace.decode / riders
    last = max(tokens) * pace.decode * 1.5
    return max(work, workload.span + last) + (cell.max_wait_ms or 0.0) / 1e3


def plan_within(
    spec: SweepSpec,
    seconds: float,
    pace: Pace,
    now: Callable[[], float] = time.monotonic,
    started: float | None = None,
) -> tuple[SweepSpec, Budget, list[str]]:
    """The cells and repeats that fit, the budget to run them under, and what was left out, in sentences.

    Raises `UserError` where not even two cells fit (or one, if there is no more).
    """
    kept = list(spec.cells)
    guesses = {cell: estimate(cell, spec.workload, pace) for cell in kept}
    repeats = min(spec.repeats, MIN_REPEATS)
    least = min(_LEAST_CELLS, len(kept))
    while _total(kept, guesses, repeats) > seconds and len(kept) > least:
        kept.remove(_least_missed(kept))
    if _total(kept, guesses, repeats) > seconds:
        needed = _total(kept, guesses, repeats)
        raise UserError(
            f"a budget of {_span(seconds)} is too short: even {len(kept)} of the {len(spec.cells)} cells with "
            f"{repeats} repeats take about {_span(needed)}; give more time, fewer --repeats or fewer --requests"
        )
    fitting = int((seconds - _AROUND_S) / sum(guesses[cell] for cell in kept))
    planned = replace(spec, cells=tuple(kept), repeats=max(repeats, min(spec.repeats, fitting)))
    budget = Budget(seconds, {number: guesses[cell] for number, cell in enumerate(kept)}, now, started)
    return planned, budget, _said(spec, planned, seconds)


def lasting(left_out: Sequence[str]) -> list[str]:
    """What a run that is taken up still leaves out: its cells, not the repeats that it had no time for."""
    ended = MESSAGES["note.budget_rounds"][0].partition("{")[0]
    return [sentence for sentence in left_out if not sentence.startswith(ended)]


def _total(cells: Sequence[CellSpec], guesses: dict[CellSpec, float], repeats: int) -> float:
    return _AROUND_S + repeats * sum(guesses[cell] for cell in cells)


def _least_missed(cells: Sequence[CellSpec]) -> CellSpec:
    """The next cell to do without: windows between the shortest and the longest first, then all but the shortest,
    then sizes between their neighbours, from the policy with the most cells; the smallest and the largest size of a
    policy go last, and then a policy goes whole: two sizes of one tell more than one size of two.
    """

    def missed(cell: CellSpec) -> tuple[int, int, bool, int]:
        family = [other for other in cells if other.policy == cell.policy]
        windows = sorted({other.max_wait_ms or 0.0 for other in family if other.max_batch_size == cell.max_batch_size})
        sizes = sorted({other.max_batch_size for other in family})
        window_inside = len(windows) > 1 and (cell.max_wait_ms or 0.0) not in (windows[0], windows[-1])
        extra_window = len(windows) > 1 and (cell.max_wait_ms or 0.0) != windows[0]
        size_inside = cell.max_batch_size not in (sizes[0], sizes[-1])
        alone = len(family) == 1
        rank = 0 if window_inside else 1 if extra_window else 2 if size_inside else 3 if alone else 4
        place = sizes.index(cell.max_batch_size)  # of the windows, those of small batches say least
        return rank, -len(family), not extra_window, place if extra_window else int(place % 2 == 0)

    return min(cells, key=missed)


def _said(asked: SweepSpec, planned: SweepSpec, seconds: float) -> list[str]:
    sentences = []
    gone = [str(cell) for cell in asked.cells if cell not in planned.cells]
    if gone:
        count = len(gone)
        sentences.append(text("en", "note.budget_cells", count=count, cells=", ".join(gone), budget=_span(seconds)))
    if planned.repeats < asked.repeats:
        sentences.append(
            text("en", "note.budget_repeats", done=planned.repeats, planned=asked.repeats, budget=_span(seconds))
        )
    return sentences


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"

"""The rows of a sweep, put in order: cell by cell, repeat by repeat, without those that count nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from knee.lab.records import RequestRow, StepRow
from knee.lab.spec import CellSetting, RunSpec


@dataclass(frozen=True)
class CellRows:
    """A cell of a sweep with what was measured of it; keys are repeats, of which no trial was void or cut off."""

    number: int
    setting: CellSetting
    requests: dict[int, list[RequestRow]]
    steps: dict[int, list[StepRow]]

    @property
    def label(self) -> str:
        """As people call it: `dynamic (8 / 10 ms)`."""
        return str(self.setting)

    @property
    def all_requests(self) -> list[RequestRow]:
        """Of all repeats."""
        return [row for rows in self.requests.values() for row in rows]

    @property
    def all_steps(self) -> list[StepRow]:
        """Of all repeats."""
        return [row for rows in self.steps.values() for row in rows]


def in_order(spec: RunSpec, requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> list[CellRows]:
    """Every cell that has at least one whole trial, in the order of their numbers."""
    whole = {(trial.cell, trial.repeat) for trial in spec.trials if not trial.void}
    by_trial: dict[tuple[int, int], list[RequestRow]] = defaultdict(list)
    steps_of: dict[tuple[int, int], list[StepRow]] = defaultdict(list)
    for row in requests:
        if not row.void:
            by_trial[row.cell, row.repeat].append(row)
    for step in steps:
        if not step.void:
            steps_of[step.cell, step.repeat].append(step)
    cells = []
    for number, setting in enumerate(spec.cells):
        repeats = sorted(repeat for cell, repeat in whole if cell == number and by_trial[cell, repeat])
        if repeats:
            requests_of = {repeat: by_trial[number, repeat] for repeat in repeats}
            cells.append(CellRows(number, setting, requests_of, {r: steps_of[number, r] for r in repeats}))
    return cells

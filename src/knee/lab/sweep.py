"""The sweep: batch policies at several sizes and wait windows on one workload, every trial in a fresh process.

This conducts: trial after trial in the planned order, each one's rows and circumstances kept as soon as they are there.
What the numbers say is `judgement/`'s business, and is asked between rounds only: it takes time, and a trial must
not. A trial whose load generator was late is void; it is measured once more at the end of its round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from knee.engine.engine import Engine
from knee.errors import KneeError, UserError
from knee.lab.budget import Budget
from knee.lab.costs import best_of, cost_model, device_widths, measure_limits
from knee.lab.experiment import Sink, check_requests
from knee.lab.plan import CellSpec, SweepSpec
from knee.lab.progress import Status, Tell, nobody
from knee.lab.records import BatchPolicy, utc_now
from knee.lab.rows import request_rows, step_rows, trial_row
from knee.lab.slo import Slo
from knee.lab.spec import CellSetting
from knee.lab.sweep_records import CostModel, Limits, TrialRow
from knee.lab.trial import Trial
from knee.lab.worker import Runner
from knee.llm import LLM
from knee.machine import default_threads

_HOPELESS = 3  # failed trials, with none that worked


def policies_of(cells: Sequence[CellSpec]) -> BatchPolicy:
    """All of them in one line of a record: the names, the largest batch, the longest window."""
    windows = [cell.max_wait_ms for cell in cells if cell.max_wait_ms is not None]
    return BatchPolicy(
        name=", ".join(dict.fromkeys(cell.policy for cell in cells)),
        max_batch_size=max(cell.max_batch_size for cell in cells),
        max_wait_ms=max(windows, default=None),
    )


def check(llm: LLM, spec: SweepSpec) -> None:
    """Raise `RequestError` or `OutOfMemory` for a sweep that cannot run, before anything does."""
    check_requests(_engine(llm, spec), spec.workload, spec.params)


def _engine(llm: LLM, spec: SweepSpec) -> Engine:
    policy = spec.largest.make(spec.token_budget)
    longest = spec.workload.longest
    return llm.engine(policy, longest=longest, kv_cache=spec.kv_cache, block_size=spec.block_size, overlap=spec.overlap)


def costs_of(llm: LLM) -> CostModel:
    """What a step of this model on this device has to do and to move."""
    return cost_model(llm.program, device_widths(llm))


def beginning(llm: LLM, spec: SweepSpec, slo: str | None) -> dict[str, Any]:
    """What a run's spec knows before the first trial: cells, limits of the user's own, the model's costs."""
    return {"cells": settings_of(spec), "slo": parse_limits(slo), "costs": costs_of(llm)}


def roofs_of(llm: LLM) -> Roofs:
    """The machine's limits for this model's type of weights; keeps no hold of the model."""
    return roofs(llm.device.dtype, llm.device.threads or default_threads(), llm.device.name)


Roofs = Callable[[], Limits | None]


def roofs(dtype: str, threads: int, device: str) -> Roofs:
    """What the machine can do, to be measured before the first trial and after the last."""
    return lambda: measure_limits(dtype, threads, device)


def no_roofs() -> None:
    """For a device that is no machine."""
    return


@dataclass(slots=True)
class _Conduct:
    """A sweep under way. `medians` are tokens/s and mean latency of the cells so far, for progress alone."""

    spec: SweepSpec
    sink: Sink
    runner: Runner
    tell: Tell
    budget: Budget
    seen: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def trial(self, cell: int, repeat: int, number: int, total: int) -> bool:
        """Run one and keep it; whether it counts."""
        self.tell(self._status(cell, number, total))
        started_at, started = utc_now(), time.monotonic()
        try:
            found = self.runner(self.spec.job(cell, repeat))
        except UserError:
            raise
        except KneeError as error:
            self._failed(cell, repeat, started_at, time.monotonic() - started, error)
            return False
        trial = found.trial
        self.sink.add_requests(request_rows(trial))
        self.sink.add_steps(step_rows(trial))
        if found.interrupted:
            raise KeyboardInterrupt
        seconds = time.monotonic() - started
        self.sink.add_trial(trial_row(found, started_at, seconds))
        self.budget.took(cell, seconds)
        self._remember(trial)
        if found.stop:
            raise KeyboardInterrupt
        return not trial.void

    def _failed(self, cell: int, repeat: int, started_at: str, seconds: float, error: KneeError) -> None:
        """Keep that a trial failed, and go on: other cells may work. Where none has so far, they will not either."""
        row = TrialRow(cell=cell, repeat=repeat, started_at=started_at, seconds=seconds, void=True, errors=[str(error)])
        self.sink.add_trial(row)
        trials = self.sink.spec.trials
        if all(trial.void for trial in trials) and len(trials) >= min(_HOPELESS, len(self.spec.cells)):
            raise error

    def _remember(self, trial: Trial) -> None:
        ends = [request.token_times[-1] for request in trial.requests if request.token_times]
        tokens = sum(len(request.output) for request in trial.requests)
        if ends and max(ends) > trial.origin and not trial.void:
            throughput = tokens / (max(ends) - trial.origin)
            self.seen.setdefault(trial.cell, []).append((throughput, trial.mean_latency))

    def _status(self, cell: int, number: int, total: int) -> Status:
        left = self.budget.seconds_left(cell, total - number)
        label = str(self.spec.cells[cell])
        if not self.seen:
            return Status(number, total, label, left, None, None, None)
        # Power, requests over latency, which is what the knee is about; the requests are the same in all cells.
        medians = {c: (median(t for t, _ in all_), median(ms for _, ms in all_)) for c, all_ in self.seen.items()}
        best = max(medians, key=lambda c: medians[c][0] / medians[c][1] if medians[c][1] else 0.0)
        throughput, latency = medians[best]
        return Status(number, total, label, left, str(self.spec.cells[best]), throughput, latency * 1e3)


def run(
    spec: SweepSpec,
    sink: Sink,
    runner: Runner,
    *,
    budget: Budget | None = None,
    left_out: Sequence[str] = (),
    tell: Tell = nobody,
    measure_roofs: Roofs = no_roofs,
) -> None:
    """Measure all cells, but for the trials that `sink` holds already.

    Every trial goes to `sink` when it is over; of one that is cut off, the rows. With a `budget` the sweep ends when
    its time is up; `sink.spec.left_out` says what it had no time for, `left_out` from the start included. Raises
    `KneeError` if no request of a trial came to its end.
    """
    budget = budget or Budget.unlimited(spec)
    conduct = _Conduct(spec, sink, runner, tell, budget)
    before = measure_roofs()
    sink.change(
        cells=settings_of(spec),
        repeats=spec.repeats,
        seed=spec.seed,
        limits=_best(sink.spec.limits, before),
        left_out=list(left_out),
    )
    there = {(trial.cell, trial.repeat) for trial in sink.spec.trials if not trial.void}
    rounds = _rounds(spec, there)
    number, total = 0, sum(map(len, rounds))
    for place, todo in enumerate(rounds):
        if (place or there) and not budget.allows(todo):
            sink.change(left_out=[*sink.spec.left_out, *budget.left_out(rounds[place:], spec)])
            break
        void = []
        for cell, repeat in todo:
            if not conduct.trial(cell, repeat, number, total):
                void.append((cell, repeat))
            number += 1
        for cell, repeat in void:
            conduct.trial(cell, repeat, number, total)
        sink.judge()
    sink.change(limits=_best(sink.spec.limits, measure_roofs()))


def settings_of(spec: SweepSpec) -> list[CellSetting]:
    """The cells as a run keeps them."""
    return [
        CellSetting(policy=cell.policy, max_batch_size=cell.max_batch_size, max_wait_ms=cell.max_wait_ms)
        for cell in spec.cells
    ]


def _rounds(spec: SweepSpec, there: set[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """What is still to do, round by round."""
    todo = [trial for trial in spec.trials() if trial not in there]
    repeats = dict.fromkeys(repeat for _, repeat in todo)
    return [[trial for trial in todo if trial[1] == repeat] for repeat in repeats]


def _best(one: Limits | None, other: Limits | None) -> Limits | None:
    return best_of(one, other) if one and other else one or other


def parse_limits(text: str | None) -> dict[str, float] | None:
    """The limits of `--slo`, by the name of the latency."""
    return None if text is None else dict(Slo.parse(text).limits)

"""One trial: an engine, a workload, real time, one thread. Measures and writes nothing down until it is over.

A `Trial` fills while it runs, so whatever ends it (the last token, Ctrl-C, a fault), what was measured is in it.
Requests are submitted when they are due; one that comes due during a step is submitted after it, and its latency
still counts from when it was due, so a slow engine cannot hide its queue (coordinated omission).
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from knee.engine.engine import Engine
from knee.engine.types import FinishReason, Request, SamplingParams, StepResult, StepStats
from knee.errors import KneeError
from knee.lab.records import RequestRow, StepRow
from knee.lab.workload import Workload


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from: `now` in seconds, monotonic; `sleep` for a number of seconds. Tests bring their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = time.sleep


REAL_TIME = Clock()

Progress = Callable[[int, int, str], None]
"""Told before each part of an experiment: its number from 0, how many there are, and what it is."""


def ignore(_number: int, _total: int, _label: str) -> None:
    """Progress that nobody watches."""


@dataclass(slots=True)
class Trial:
    """What was measured: requests in the order of the workload, steps in the order they ran.

    `origin` is the trial's start on the engine's clock; rows count seconds from it. `errors` are the device's.
    """

    cell: int = 0
    repeat: int = 0
    origin: float = 0.0
    requests: list[Request] = field(default_factory=list)
    steps: list[StepStats] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def request_rows(self) -> list[RequestRow]:
        """A row for every request that was submitted; one that an interrupt cut off counts as aborted."""
        return [self._request_row(index, request) for index, request in enumerate(self.requests)]

    def step_rows(self) -> list[StepRow]:
        """A row for every step."""
        return [self._step_row(index, stats) for index, stats in enumerate(self.steps)]

    def _since(self, at: float | None) -> float | None:
        return None if at is None else at - self.origin

    def _request_row(self, index: int, request: Request) -> RequestRow:
        return RequestRow(
            cell=self.cell,
            repeat=self.repeat,
            request=index,
            scheduled_at=request.scheduled_at - self.origin,
            sent_at=request.sent_at - self.origin,
            prefill_start=self._since(request.prefill_start),
            first_token_at=self._since(request.first_token_at),
            finished_at=self._since(request.finished_at),
            prompt_tokens=len(request.prompt),
            output_tokens=len(request.output),
            finish_reason=(request.finish_reason or FinishReason.ABORTED).value,
            token_ids_sha256=hash_tokens(request.output),
            token_times=[at - self.origin for at in request.token_times],
        )

    def _step_row(self, index: int, stats: StepStats) -> StepRow:
        return StepRow(
            cell=self.cell,
            repeat=self.repeat,
            step=index,
            started_at=stats.started_at - self.origin,
            ms=stats.duration * 1e3,
            prefill_tokens=stats.prefill_tokens,
            decode_rows=stats.decode_rows,
            kv_tokens=stats.kv_tokens,
            waiting=stats.waiting,
            host_ms=stats.host_time * 1e3,
            batch_size=stats.batch_size,
        )


def hash_tokens(token_ids: list[int]) -> str:
    """sha256 of the ids, written in decimal with commas."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


def run_trial(
    engine: Engine,
    workload: Workload,
    params: SamplingParams,
    trial: Trial,
    sleep: Callable[[float], None] = time.sleep,
) -> Trial:
    """Run a workload on an idle engine and fill `trial`, which is also returned.

    Request i samples with the seed `params.seed + i`. A fault of the device ends the requests of that step and is
    kept in `trial.errors`; the others go on. Raises `KneeError` if the policy leaves requests waiting for ever.
    """
    trial.origin = engine.clock()
    due = deque(enumerate(trial.origin + at for at in workload.times))
    engine.more_expected = True
    while due or engine.has_work:
        _submit_due(engine, workload, params, trial, due)
        result = _step(engine, trial)
        if result is None:
            continue
        if result.stats is not None:
            trial.steps.append(result.stats)
        else:
            _wait(engine, due, result.wake_at, sleep)
    return trial


Due = deque[tuple[int, float]]
"""Requests still to come: number in the workload, and when on the engine's clock."""


def _submit_due(engine: Engine, workload: Workload, params: SamplingParams, trial: Trial, due: Due) -> None:
    now = engine.clock()
    while due and due[0][1] <= now:
        index, at = due.popleft()
        own = replace(params, seed=params.seed + index, max_new_tokens=workload.max_new_tokens)
        trial.requests.append(engine.submit(workload.prompt(index).ids, own, scheduled_at=at))
    engine.more_expected = bool(due)


def _step(engine: Engine, trial: Trial) -> StepResult | None:
    """One step; None after a fault that ended its requests. Any other error goes on its way."""
    before = len(engine.waiting) + len(engine.running)
    try:
        return engine.step()
    except KneeError as error:
        if len(engine.waiting) + len(engine.running) == before:
            raise
        trial.errors.append(str(error))
        return None


def _wait(engine: Engine, due: Due, wake_at: float | None, sleep: Callable[[float], None]) -> None:
    """Sleep until something can change: the next arrival or the policy's deadline, whichever is first."""
    moments = [due[0][1]] if due else []
    if wake_at is not None:
        moments.append(wake_at)
    if not moments:
        raise KneeError(f"policy {engine.policy.name} left {len(engine.waiting)} requests waiting for ever")
    sleep(max(0.0, min(moments) - engine.clock()))

"""One trial: an engine, a workload, real time, one thread. Measures and writes nothing down until it is over.

A `Trial` fills while it runs, so whatever ends it (the last token, Ctrl-C, a fault), what was measured is in it.
Requests are submitted when they are due; one that comes due during a step is submitted after it, and its latency
still counts from when it was due, so a slow engine cannot hide its queue (coordinated omission).

The load generator is this loop and no thread of its own: on a machine whose cores are all busy with the model such a
thread would be late itself, and would take time from the engine. A request that comes due during a step could not be
served before the step's end by anybody; it is there when the engine looks. What the generator adds is the time from
then, or from when the request was due on an idle engine, to its submission: `delays`, and a trial in which that is
not negligible is void.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from knee.collector import collector_paused
from knee.engine.engine import Engine
from knee.engine.types import Request, SamplingParams, StepResult, StepStats
from knee.errors import KneeError
from knee.lab.workload import Workload

_SPIN_S = 0.001
LATE_S = 0.001
LATE_SHARE = 0.01


def sleep_precisely(seconds: float) -> None:
    """Sleep, and look at the clock instead for the last millisecond: a system wakes its sleepers when it pleases."""
    until = time.perf_counter() + seconds
    if seconds > _SPIN_S:
        time.sleep(seconds - _SPIN_S)
    while time.perf_counter() < until:
        pass


@dataclass(frozen=True, slots=True)
class Clock:
    """Where time comes from: `now` in seconds, monotonic; `sleep` for a number of seconds. Tests bring their own."""

    now: Callable[[], float] = time.perf_counter
    sleep: Callable[[float], None] = sleep_precisely


REAL_TIME = Clock()


@dataclass(slots=True)
class Trial:
    """What was measured: requests in the order of the workload, steps in the order they ran.

    `origin` is the trial's start on the engine's clock. `delays` are the load generator's own, in seconds, one a
    request. `errors` are the device's. Plain data, so that it can come from another process.
    """

    cell: int = 0
    repeat: int = 0
    origin: float = 0.0
    requests: list[Request] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    steps: list[StepStats] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    void: bool = False

    @property
    def client_delay(self) -> float:
        """99th percentile of the generator's delays, by rank: the largest of fewer than 100."""
        ordered = sorted(self.delays)
        return ordered[ceil(0.99 * len(ordered)) - 1] if ordered else 0.0

    @property
    def mean_latency(self) -> float:
        """Seconds from when a request was due to its last token."""
        ends = [request.token_times[-1] - request.scheduled_at for request in self.requests if request.token_times]
        return sum(ends) / len(ends) if ends else 0.0

    @property
    def late(self) -> bool:
        """Whether the generator's delay is over 1 ms, or over 1 % of the latency: it measured itself, too."""
        return self.client_delay > min(LATE_S, LATE_SHARE * self.mean_latency)


def run_trial(
    engine: Engine,
    workload: Workload,
    params: SamplingParams,
    trial: Trial,
    sleep: Callable[[float], None] = sleep_precisely,
) -> Trial:
    """Run a workload on an idle engine and fill `trial`, which is also returned.

    Request i samples with the seed `params.seed + i`. A fault of the device ends the requests of that step and is
    kept in `trial.errors`; the others go on. Raises `KneeError` if the policy leaves requests waiting for ever.
    """
    client = _Client(workload)
    engine.more_expected = True
    trial.origin = client.start(engine.clock())
    with collector_paused():
        while client.due or engine.has_work:
            client.submit_due(engine, params, trial)
            result = _step(engine, trial)
            if result is None:
                client.engine_free(engine, [engine.clock()] * client.unanswered(engine))
            elif result.stats is not None:
                trial.steps.append(result.stats)
                client.engine_free(engine, [event.at for event in result.events if event.finish_reason is not None])
            else:
                _wait(engine, client.due, result.wake_at, sleep)
    return trial


Due = deque[tuple[int, float]]
"""Requests whose time is known: number in the workload, and when on the engine's clock."""


class _Client:
    """Who sends the requests. In a closed loop an answer makes the next request due at once."""

    def __init__(self, workload: Workload) -> None:
        users = workload.arrival.users or 0
        times = workload.times
        self._at_first: Sequence[float] = (0.0,) * min(users, workload.requests) if times is None else times
        self.due: Due = deque()
        self._workload = workload
        self._next = len(self._at_first)
        self._free_since = 0.0

    def start(self, origin: float) -> float:
        """The trial begins now."""
        self._free_since = origin
        self.due.extend((index, origin + at) for index, at in enumerate(self._at_first))
        return origin

    def submit_due(self, engine: Engine, params: SamplingParams, trial: Trial) -> None:
        """Give the engine all that is due by now."""
        due = self.due
        if due and due[0][1] <= (now := engine.clock()):
            while due and due[0][1] <= now:
                index, at = due.popleft()
                own = replace(params, seed=params.seed + index, max_new_tokens=self._workload.tokens(index))
                trial.delays.append(max(0.0, now - max(at, self._free_since)))
                trial.requests.append(engine.submit(self._workload.prompt(index).ids, own, scheduled_at=at))
        # In a closed loop nobody comes before somebody is answered: where nothing runs, waiting for company is in vain.
        engine.more_expected = bool(due) or (self._next < self._workload.requests and bool(engine.running))

    def unanswered(self, engine: Engine) -> int:
        """Users of a closed loop who wait for nothing any more: their requests failed."""
        return (self._workload.arrival.users or 0) - len(engine.waiting) - len(engine.running) - len(self.due)

    def engine_free(self, engine: Engine, ends: Sequence[float]) -> None:
        """A step is over, and in it these answers came to their end."""
        self._free_since = engine.clock()
        if self._workload.times is None:
            for at in ends[: self._workload.requests - self._next]:
                self.due.append((self._next, at))
                self._next += 1


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

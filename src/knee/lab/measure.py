"""One trial on a loaded model, from the cold start to the last token, with what the machine was like meanwhile.

First a warm-up at the batch size that will be measured, whose steps are kept; on a device that prepares itself for
every shape of step, a rehearsal; then the workload's typical request alone on the idle engine, which is what limits for
latencies are scaled to; then the trial itself. Around it a pulse, a fixed piece of arithmetic whose time tells a
machine that was slowed down (heat, a limit on power, a neighbour). Plain data comes out, so that the same code runs in
this process and in a fresh one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from knee.engine.engine import Engine
from knee.engine.policies import make_policy
from knee.engine.types import FinishReason, StepStats
from knee.errors import KneeError
from knee.lab.arrivals import Arrival
from knee.lab.gpu import GpuMonitor, GpuSeen
from knee.lab.load import Load
from knee.lab.plan import Job, rehearsal
from knee.lab.trial import REAL_TIME, Clock, Trial, run_trial
from knee.llm import LLM

WARM_TOKENS = 4
SOLO_TOKENS = 8
_PULSE_SIZE, _PULSE_SUMS, _PULSES = 4096, 4000, 4
_TRACED = 15
_COLD_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class SoloTimes:
    """The typical request alone: its lengths, seconds to its first token, and from one token to the next."""

    prompt_tokens: int
    tokens: int
    ttft: float
    tpot: float | None


@dataclass(slots=True)
class Measured:
    """A trial with its circumstances, times in seconds.

    `device_warnings` are the device's own. `interrupted`: it was cut off by Ctrl-C. `stop`: Ctrl-C came, and it was
    whole all the same.
    """

    trial: Trial
    load: float | None = None
    warm_up: list[StepStats] = field(default_factory=list)
    solo: SoloTimes | None = None
    pulses: tuple[float, float] | None = None
    other_load: float | None = None
    frequency_mhz: float | None = None
    temperature_c: float | None = None
    swap_gib: float | None = None
    clock_gap: float = 0.0
    trace: float | None = None
    gpu: GpuSeen | None = None
    device_warnings: tuple[str, ...] = ()
    interrupted: bool = False
    stop: bool = False


def nothing() -> None:
    """What `measure` does when a trial has ended, unless told otherwise."""


def measure(llm: LLM, job: Job, clock: Clock = REAL_TIME, ended: Callable[[], None] = nothing) -> Measured:
    """Run one trial. An interrupt during it gives what was measured until then; `ended` is called once it is whole.

    Raises `KneeError` if no request came to its end.
    """
    engine = _engine(llm, job, clock)
    found = Measured(Trial(job.number, job.repeat))
    found.warm_up = _warm_up(engine, job, clock)
    if llm.device.learns_shapes:
        _rehearse(engine, job, clock)
    found.solo = _alone(engine, job, clock)
    engine.policy = job.cell.make(job.token_budget)
    gpu = GpuMonitor(llm.device.name)
    before, load, gap = pulse(), Load(), time.time() - time.monotonic()
    gpu.start()
    try:
        run_trial(engine, job.workload, job.params, found.trial, clock.sleep)
        ended()
        found.trial.void = found.trial.late
    except KeyboardInterrupt:
        found.interrupted = True
    finally:
        found.gpu = gpu.stop()
    seen = load.stop()
    found.clock_gap = time.time() - time.monotonic() - gap
    found.other_load, found.frequency_mhz = seen.other_load, seen.frequency_mhz
    found.temperature_c, found.swap_gib = seen.temperature_c, seen.swapped_gib
    found.pulses, found.trace = (before, pulse()), trace_seconds()
    found.device_warnings = tuple(llm.device.warnings)
    if not found.interrupted:
        _check(engine, found.trial, job)
    return found


def measure_alone(llm: LLM, job: Job, clock: Clock = REAL_TIME) -> SoloTimes | None:
    """The workload's typical request alone on a warm engine; None if it failed."""
    engine = _engine(llm, job, clock)
    _warm_up(engine, job, clock)
    if llm.device.learns_shapes:
        _alone(engine, job, clock)
    return _alone(engine, job, clock)


def _engine(llm: LLM, job: Job, clock: Clock) -> Engine:
    engine = llm.engine(
        job.cell.make(job.token_budget),
        longest=job.workload.longest,
        kv_cache=job.kv_cache,
        block_size=job.block_size,
        overlap=job.overlap,
    )
    engine.clock = clock.now
    return engine


def _check(engine: Engine, trial: Trial, job: Job) -> None:
    engine.kv.check_integrity([])
    if trial.errors and not any(request.token_times for request in trial.requests):
        raise KneeError(f"{job.cell}: every request failed; the first error: {trial.errors[0]}")


def _warm_up(engine: Engine, job: Job, clock: Clock) -> list[StepStats]:
    """A few tokens at the batch size that is measured, all prompts at once."""
    size = job.cell.max_batch_size
    engine.policy = make_policy("continuous", size, max_batched_tokens=job.token_budget)
    tokens = min(WARM_TOKENS, job.workload.max_new_tokens)
    requests = min(size, job.workload.requests)
    warm_up = replace(job.workload, requests=requests, arrival=Arrival(), max_new_tokens=tokens, new_tokens=None)
    return run_trial(engine, warm_up, job.params, Trial(), clock.sleep).steps


def _alone(engine: Engine, job: Job, clock: Clock) -> SoloTimes | None:
    """The typical request with nobody else there, for a few tokens; None if it failed."""
    engine.policy = make_policy("single", max_batched_tokens=job.token_budget)
    which = job.workload.typical
    prompt, wanted = job.workload.prompt(which), job.workload.tokens(which)
    tokens = min(SOLO_TOKENS, wanted)
    alone = replace(
        job.workload, prompts=(prompt,), requests=1, arrival=Arrival(), max_new_tokens=tokens, new_tokens=None
    )
    [request] = run_trial(engine, alone, job.params, Trial(), clock.sleep).requests
    times = request.token_times
    if request.finish_reason is FinishReason.ERROR:
        return None
    ttft = times[0] - request.scheduled_at
    tpot = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None
    return SoloTimes(len(prompt.ids), wanted, ttft, tpot)


def _rehearse(engine: Engine, job: Job, clock: Clock) -> None:
    """The request alone, and the beginning of the trial, so that few shapes of steps are new to the device after it."""
    _alone(engine, job, clock)
    engine.policy = job.cell.make(job.token_budget)
    workload = rehearsal(job.workload, job.cell.max_batch_size)
    run_trial(engine, workload, job.params, Trial(), clock.sleep)


def pulse() -> float:
    """Seconds that a fixed piece of arithmetic takes on one core, in its first caches: the fastest of some goes."""
    numbers, out = np.full(_PULSE_SIZE, 0.5, np.float32), np.empty(_PULSE_SIZE, np.float32)
    return min(_add_up(numbers, out) for _ in range(_PULSES))


def _add_up(numbers: NDArray[np.float32], out: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    for _ in range(_PULSE_SUMS):
        np.add(numbers, numbers, out)
    return time.perf_counter() - started


def trace_seconds() -> float:
    """What it takes to record one step: two looks at the clock, its report, a place in a list. The median of some.

    Before each the caches are filled with something else, as a step fills them with weights.
    """
    weights, kept = np.ones(_COLD_BYTES // 4, np.float32), list[StepStats]()
    return median(_record_once(weights, kept) for _ in range(_TRACED))


def _record_once(weights: NDArray[np.float32], kept: list[StepStats]) -> float:
    clock = time.perf_counter
    weights.sum()
    started = clock()
    before = clock()
    kept.append(
        StepStats(
            started_at=started,
            device_time=before - started,
            prefill_tokens=sum([]),
            decode_rows=1,
            kv_tokens=sum([length + 1 for length in (1, 2, 3)]),
            waiting=0,
            batch_size=1,
            preempted=0,
            duration=clock() - started,
        )
    )
    return clock() - started

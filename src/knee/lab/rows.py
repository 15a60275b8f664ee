"""From what a trial left behind to what a run keeps: the lines of the JSONL files, and the trial's own entry."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from knee.engine.types import FinishReason, Request, StepStats
from knee.lab.gpu import GpuSeen
from knee.lab.measure import Measured, SoloTimes
from knee.lab.records import RequestRow, StepRow
from knee.lab.sweep_records import GpuUse, Solo, TrialRow, WarmStep
from knee.lab.trial import Trial

_MOST_ERRORS = 10


def request_rows(trial: Trial) -> list[RequestRow]:
    """A row for every request that was submitted; one that an interrupt cut off counts as aborted."""
    return [_request_row(trial, index, request) for index, request in enumerate(trial.requests)]


def step_rows(trial: Trial) -> list[StepRow]:
    """A row for every step."""
    return [_step_row(trial, index, stats) for index, stats in enumerate(trial.steps)]


def trial_row(measured: Measured, started_at: str, seconds: float) -> TrialRow:
    """What is kept of a trial beside its rows."""
    trial, solo, trace = measured.trial, measured.solo, measured.trace
    return TrialRow(
        cell=trial.cell,
        repeat=trial.repeat,
        started_at=started_at,
        seconds=seconds,
        load_ms=None if measured.load is None else measured.load * 1e3,
        warm_up=[_warm_step(stats) for stats in measured.warm_up],
        solo=None if solo is None else _solo(solo),
        client_delay_ms=trial.client_delay * 1e3,
        void=trial.void,
        pulse_ms=None if measured.pulses is None else (measured.pulses[0] * 1e3, measured.pulses[1] * 1e3),
        other_load=measured.other_load,
        frequency_mhz=measured.frequency_mhz,
        temperature_c=measured.temperature_c,
        swap_gib=measured.swap_gib,
        clock_gap_s=measured.clock_gap,
        trace_us=None if trace is None else trace * 1e6,
        gpu=gpu_use(measured.gpu, trial),
        device_warnings=list(measured.device_warnings),
        errors=trial.errors[:_MOST_ERRORS],
    )


def gpu_use(seen: GpuSeen | None, trial: Trial) -> GpuUse | None:
    """What the GPU did in a trial, and what each token given to a request took of its energy."""
    if seen is None:
        return None
    tokens = sum(len(request.output) for request in trial.requests)
    energy = seen.energy_j
    return GpuUse(
        seconds=seen.seconds,
        utilization=seen.utilization,
        memory_gib=seen.memory_gib,
        power_w=seen.power_w,
        energy_j=energy,
        joules_per_token=None if energy is None or not tokens else energy / tokens,
        clock_mhz=seen.clock_mhz,
        temperature_c=seen.temperature_c,
        throttled=seen.throttled,
        missing=list(seen.missing),
    )


def _warm_step(stats: StepStats) -> WarmStep:
    return WarmStep(ms=stats.duration * 1e3, prefill_tokens=stats.prefill_tokens, decode_rows=stats.decode_rows)


def _solo(times: SoloTimes) -> Solo:
    """The whole request follows from the pace of its first tokens."""
    rest = (times.tokens - 1) * (times.tpot or 0.0)
    return Solo(
        prompt_tokens=times.prompt_tokens,
        tokens=times.tokens,
        ttft_ms=times.ttft * 1e3,
        tpot_ms=None if times.tpot is None else times.tpot * 1e3,
        e2el_ms=(times.ttft + rest) * 1e3,
    )


def hash_tokens(token_ids: Sequence[int]) -> str:
    """sha256 of the ids, written in decimal with commas."""
    return hashlib.sha256(",".join(map(str, token_ids)).encode()).hexdigest()


def _since(trial: Trial, at: float | None) -> float | None:
    return None if at is None else at - trial.origin


def _request_row(trial: Trial, index: int, request: Request) -> RequestRow:
    return RequestRow(
        cell=trial.cell,
        repeat=trial.repeat,
        request=index,
        scheduled_at=request.scheduled_at - trial.origin,
        sent_at=request.sent_at - trial.origin,
        prefill_start=_since(trial, request.prefill_start),
        first_token_at=_since(trial, request.first_token_at),
        finished_at=_since(trial, request.finished_at),
        prompt_tokens=len(request.prompt),
        output_tokens=len(request.output),
        finish_reason=(request.finish_reason or FinishReason.ABORTED).value,
        token_ids_sha256=hash_tokens(request.output),
        token_times=[at - trial.origin for at in request.token_times],
        client_delay_ms=trial.delays[index] * 1e3,
        void=trial.void,
    )


def _step_row(trial: Trial, index: int, stats: StepStats) -> StepRow:
    return StepRow(
        cell=trial.cell,
        repeat=trial.repeat,
        step=index,
        started_at=stats.started_at - trial.origin,
        ms=stats.duration * 1e3,
        prefill_tokens=stats.prefill_tokens,
        decode_rows=stats.decode_rows,
        kv_tokens=stats.kv_tokens,
        waiting=stats.waiting,
        host_ms=stats.host_time * 1e3,
        batch_size=stats.batch_size,
        void=trial.void,
    )

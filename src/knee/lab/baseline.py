"""Baseline: one request, and where its time goes: loading, tokenizing, prefill, decode loop.

The first forward pass after loading pays for page faults, thread pools and caches that every later one finds ready,
so it is a number of its own (cold) and never mixed with the warm ones. In order: the cold run, on a device that learns
shapes a rehearsal, the warm prefills, then the run whose decode loop is reported.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

from knee.engine.engine import Engine
from knee.engine.policies import make_policy
from knee.engine.types import Request, SamplingParams
from knee.errors import KneeError, UserError
from knee.lab.environment import has_nvidia_smi
from knee.lab.experiment import Outcome, Sink, check_requests
from knee.lab.gpu import GpuMonitor
from knee.lab.judgement.doubts import fell_back
from knee.lab.messages import text
from knee.lab.records import BaselineMetrics
from knee.lab.rows import gpu_use, request_rows, step_rows
from knee.lab.sweep_records import GpuUse
from knee.lab.trial import REAL_TIME, Clock, Trial, run_trial
from knee.lab.workload import Workload
from knee.llm import DEFAULT_BLOCK_SIZE, LLM

MIN_WARM_PREFILLS = 5
_COLD_TOKENS = 2  # one prefill and one decode step: enough to warm both up
_COLD_IS_MUCH = 1.5


@dataclass(frozen=True, slots=True)
class BaselineSpec:
    """What to measure. `tokenize_ms` is None where the prompt was given as token ids."""

    workload: Workload
    params: SamplingParams = field(default_factory=SamplingParams)
    tokenize_ms: float | None = None
    warm_prefills: int = MIN_WARM_PREFILLS
    kv_cache: bool = True
    block_size: int = DEFAULT_BLOCK_SIZE
    overlap: bool = True  # where the device can

    def __post_init__(self) -> None:
        if self.warm_prefills < MIN_WARM_PREFILLS:
            raise UserError(
                f"the number of warm prefills is {self.warm_prefills}: it must be at least {MIN_WARM_PREFILLS}"
            )


def check(llm: LLM, spec: BaselineSpec) -> None:
    """Raise `RequestError` or `OutOfMemory` for a request that cannot run, before anything does."""
    check_requests(_engine(llm, spec), spec.workload, spec.params)


def run(llm: LLM, spec: BaselineSpec, sink: Sink, clock: Clock = REAL_TIME) -> Outcome:
    """Measure one request on a freshly loaded model. Raises `KneeError` if the device fails on it."""
    engine = _engine(llm, spec)
    engine.clock = clock.now
    cold = _generate(engine, spec, _COLD_TOKENS, clock)
    if llm.device.learns_shapes:
        _generate(engine, spec, spec.workload.max_new_tokens, clock)
    warm = [_prefill_ms(_generate(engine, spec, 1, clock)) for _ in range(spec.warm_prefills)]
    trial, gpu = Trial(), GpuMonitor(llm.device.name)
    gpu.start()
    try:
        request = _generate(engine, spec, spec.workload.max_new_tokens, clock, trial)
    finally:
        seen = gpu.stop()
        sink.add_requests(request_rows(trial))
        sink.add_steps(step_rows(trial))
    use = gpu_use(seen, trial)
    busy, reasons = _busy(llm, use)
    metrics = _metrics(llm, spec, _prefill_ms(cold), warm, request).model_copy(
        update={"gpu_utilization": busy, "gpu": use}
    )
    return Outcome(metrics, fell_back(llm.device.warnings), [*_cold_start(metrics), *reasons])


def _busy(llm: LLM, use: GpuUse | None) -> tuple[float | None, list[str]]:
    """How busy the GPU was in the mean over the run, and what is to be said about it."""
    if use is not None:
        return use.utilization, list(use.missing)
    if has_nvidia_smi():
        return None, [text("en", "note.ran_on_cpu", device=llm.device.name)]
    return None, [text("en", "note.no_gpu")]


def _engine(llm: LLM, spec: BaselineSpec) -> Engine:
    longest = spec.workload.longest
    policy = make_policy("single", max_batched_tokens=llm.device.token_budget_default)
    return llm.engine(policy, longest=longest, kv_cache=spec.kv_cache, block_size=spec.block_size, overlap=spec.overlap)


def _generate(engine: Engine, spec: BaselineSpec, new_tokens: int, clock: Clock, trial: Trial | None = None) -> Request:
    workload = replace(spec.workload, max_new_tokens=min(new_tokens, spec.workload.max_new_tokens))
    done = run_trial(engine, workload, spec.params, trial or Trial(), clock.sleep)
    if done.errors:
        raise KneeError(done.errors[0])
    return done.requests[0]


def _prefill_ms(request: Request) -> float:
    assert request.prefill_start is not None
    return (request.token_times[0] - request.prefill_start) * 1e3


def _metrics(llm: LLM, spec: BaselineSpec, cold_ms: float, warm_ms: list[float], request: Request) -> BaselineMetrics:
    prompt_tokens, output_tokens = len(request.prompt), len(request.output)
    steps = [(later - earlier) * 1e3 for earlier, later in pairwise(request.token_times)]
    prefill, loop = median(warm_ms), sum(steps)
    kv_shape = [1, llm.program.kv_heads, prompt_tokens + output_tokens - 1, llm.program.head_dim]
    return BaselineMetrics(
        load_model_ms=llm.load_times.model_ms,
        load_tokenizer_ms=llm.load_times.tokenizer_ms,
        tokenize_ms=spec.tokenize_ms,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        prefill_cold_ms=cold_ms,
        prefill_ms=prefill,
        prefill_ms_per_token=prefill / prompt_tokens,
        decode_loop_ms=loop,
        decode_steps=len(steps),
        decode_ms_per_step=loop / len(steps) if steps else None,
        total_generate_ms=prefill + loop,
        output_tokens_per_s=output_tokens / (prefill + loop) * 1e3,
        gpu_utilization=None,  # not the request's to say
        kv_cache_shape=kv_shape if spec.kv_cache else None,
        text=request.text if llm.tokenizer else None,
        token_ids=request.output,
        prefill_runs_ms=warm_ms,
        decode_step_ms=steps,
    )


def _cold_start(metrics: BaselineMetrics) -> list[str]:
    ratio = metrics.prefill_cold_ms / metrics.prefill_ms
    return [text("en", "note.cold_prefill", ratio=f"{ratio:.1f}")] if ratio >= _COLD_IS_MUCH else []

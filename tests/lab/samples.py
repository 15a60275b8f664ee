"""Records to test with: one of each kind, small, and with nothing in them measured."""

from __future__ import annotations

from typing import Any, Literal

from knee.lab.records import (
    BaselineMetrics,
    BatchPolicy,
    Gpu,
    Hardware,
    InspectKvOff,
    InspectMetrics,
    InspectPrefill,
    InspectStep,
    KvCacheCell,
    KvCacheMetrics,
    ModelInfo,
    Record,
    RequestRow,
    Software,
    StepRow,
    TopCandidate,
    Workload,
)
from knee.lab.spec import RunSpec
from knee.lab.sweep_records import (
    Interval,
    Knee,
    Recommendation,
    Recommendations,
    RepeatTotals,
    Summary,
    SweepCell,
    SweepMetrics,
    Tradeoff,
)

BASELINE = BaselineMetrics(
    load_model_ms=98_300.0,
    load_tokenizer_ms=12.5,
    tokenize_ms=2.51,
    prompt_tokens=13,
    output_tokens=10,
    prefill_cold_ms=434.26,
    prefill_ms=92.0,
    prefill_ms_per_token=7.08,
    decode_loop_ms=40.7,
    decode_steps=9,
    decode_ms_per_step=4.52,
    total_generate_ms=132.7,
    output_tokens_per_s=75.4,
    gpu_utilization=None,
    kv_cache_shape=[1, 12, 22, 64],
    text=" The GPU is a very powerful GPU, and it",
    token_ids=[383, 11362],
    prefill_runs_ms=[91.0, 92.0, 93.0],
    decode_step_ms=[4.5] * 9,
)

_STEP = InspectStep(
    step=1,
    ms=4.03,
    kv_len=14,
    token_id=383,
    token=" The",
    top=[TopCandidate(token_id=383, token=" The", logprob=-0.5), TopCandidate(token_id=9, token="|", logprob=-2.0)],
)
_PREFILL = InspectPrefill(
    ms=92.0,
    logits_shape=[1, 13, 50257],
    kv_layers=6,
    kv_shape=[1, 12, 13, 64],
    token_id=383,
    token=" The",
    top=[TopCandidate(token_id=383, token=" The", logprob=-0.5)],
)

INSPECT = InspectMetrics(
    prefill=_PREFILL,
    steps=[_STEP],
    matches_generate=True,
    text=" The",
    kv_cache_off=InspectKvOff(prefill=_PREFILL.model_copy(update={"kv_shape": None}), steps=[_STEP], same_tokens=True),
)

KVCACHE = KvCacheMetrics(
    cells=[
        KvCacheCell(
            prompt_length=length,
            kv_cache=switch,
            prefill_ms=20.0,
            token_ms=[20.0, 4.25, 4.75],
            decode_ms_per_step=4.5,
            total_ms=29.0,
            kv_bytes=2**20 if switch == "on" else 0,
            token_ids_sha256="0" * 64,
        )
        for length in (10, 200)
        for switch in ("on", "off")
    ],
    pays_from_tokens=200,
    kv_bytes_per_token=23_040,
    same_tokens=True,
)


def summary(mean: float | None) -> Summary:
    """A distribution where everything is the mean."""
    return Summary(mean=mean, p50=mean, p90=mean, p95=mean, p99=mean)


def interval(value: float) -> Interval:
    """Of five repeats that lie close together."""
    return Interval(value=value, low=value * 0.98, high=value * 1.02, n=5)


def sweep_cell(batch: int) -> SweepCell:
    """A cell of a sweep, with a different number in each latency."""
    return SweepCell(
        cell=0 if batch == 1 else 1,
        label=f"dynamic ({batch} / 10 ms)",
        policy="dynamic",
        max_batch_size=batch,
        max_wait_ms=10.0,
        repeats=[RepeatTotals(repeat=0, duration_s=2.509, output_tokens=512)],
        duration_s=2.509,
        output_tokens=512,
        output_throughput=204.0,
        request_throughput=6.4,
        queue_ms=summary(1176.25),
        service_ms=summary(156.75),
        ttft_ms=summary(1180.0),
        tpot_ms=summary(5.0),
        itl_ms=summary(5.5),
        e2el_ms=summary(1333.0),
        slot_utilization=0.5,
        mean_batch_size=float(batch),
        tokens_sha256="0" * 64,
        intervals={"output_throughput": interval(204.0), "e2el_ms": interval(1333.0), "power": interval(4.81)},
    )


def recommendation(scenario: Literal["chat", "api", "offline", "slo"]) -> Recommendation:
    """A clear answer: the larger batch."""
    return Recommendation(
        scenario=scenario,
        objective="goodput",
        limits={"e2el": 600.0},
        limits_how="The limits given with --slo.",
        verdict="clear",
        cell=1,
        label="dynamic (4 / 10 ms)",
        tied=[],
        value=interval(6.4),
        within=0.9,
        against=None,
        sentence=f"For {scenario}: dynamic (4 / 10 ms).",
        commands={"knee": "knee sweep --policies dynamic --batch-sizes 4", "Triton Inference Server": "a {\n  b: 1\n}"},
    )


def no_recommendation(scenario: Literal["chat", "api", "offline", "slo"]) -> Recommendation:
    """Three repeats are too few."""
    clear = recommendation(scenario)
    nothing = {"verdict": "cannot_tell", "cell": None, "label": None, "value": None, "within": None, "commands": {}}
    return clear.model_copy(update=nothing | {"sentence": "Too few <repeats> to tell."})


SWEEP = SweepMetrics(
    cells=[sweep_cell(1), sweep_cell(4)],
    tradeoff=[
        Tradeoff(
            cell=1,
            policy="dynamic",
            max_batch_size=4,
            max_wait_ms=10.0,
            throughput_change=1.03,
            service_change=1.02,
            e2el_change=-0.4,
            efficiency=1.01,
        )
    ],
    same_tokens=True,
    findings=["Batch 4 beats <batch 1>."],
    knee=Knee(
        cell=1,
        label="dynamic (4 / 10 ms)",
        tied=[],
        power=interval(4.81),
        found_batches=[4],
        roofline_batch=8.0,
        sentence="The knee is *dynamic* (4 / 10 ms).",
    ),
    recommendations=Recommendations(
        chat=recommendation("chat"), api=recommendation("api"), offline=no_recommendation("offline")
    ),
    left_out=["There was no time for <batch 8>."],
)

METRICS = {metrics.kind: metrics for metrics in (BASELINE, INSPECT, KVCACHE, SWEEP)}


def record(kind: str = "baseline", *, done: bool = True, **changes: Any) -> Record:
    """A valid record of a kind, with some of its fields changed."""
    fields: dict[str, Any] = {
        "kind": kind,
        "name": f"first {kind}",
        "created_at": "2025-01-31T12:34:56+00:00",
        "status": "done" if done else "running",
        "command": ["knee", kind],
        "hardware": Hardware(
            cpu="AMD EPYC 9R14",
            cores=2,
            isa=["avx2", "avx512_bf16"],
            memory_gib=15.5,
            gpus=[Gpu(name="NVIDIA H100", memory_gib=79.6, driver="550.54.15")],
        ),
        "software": Software(
            knee="0.1.0",
            git_commit="0123456789abcdef",
            git_dirty=True,
            python="3.11.9",
            packages={"numpy": "2.0.0"},
            platform="Linux-6.1-x86_64",
        ),
        "model": ModelInfo(
            name="distilgpt2",
            source="/models/distilgpt2",
            sha256="0" * 64,
            architecture="gpt2",
            parameters=81_912_576,
            dtype="float32",
            device="cpu",
        ),
        "workload": Workload(
            requests=1,
            prompt_tokens=[13],
            max_new_tokens=10,
            arrival="burst",
            seed=0,
            sha256="0" * 64,
            prompts=["Q: Explain why batching improves GPU utilization.\nA:"],
        ),
        "batch_policy": BatchPolicy(name="single", max_batch_size=1, max_wait_ms=None),
        "kv_cache": "on",
        "metrics": METRICS[kind] if done else None,
    }
    return Record(**{**fields, **changes})


def run_spec(made: Record) -> RunSpec:
    """The spec of a run that found what the record says, however it found it."""
    asked = made.model_copy(update={"status": "running", "metrics": None, "warnings": [], "notes": [], "claims": []})
    return RunSpec(
        draft=asked, observed=made.metrics, observed_warnings=list(made.warnings), observed_notes=list(made.notes)
    )


def request_row(request: int = 0) -> RequestRow:
    """A request that went well."""
    return RequestRow(
        cell=0,
        repeat=0,
        request=request,
        scheduled_at=0.0,
        sent_at=0.001,
        prefill_start=0.002,
        first_token_at=0.1,
        finished_at=0.2,
        prompt_tokens=13,
        output_tokens=2,
        finish_reason="length",
        token_ids_sha256="0" * 64,
        token_times=[0.1, 0.2],
    )


def step_row(step: int = 0) -> StepRow:
    """A decode step of one request."""
    return StepRow(
        cell=0,
        repeat=0,
        step=step,
        started_at=0.1,
        ms=4.5,
        prefill_tokens=0,
        decode_rows=1,
        kv_tokens=14,
        waiting=0,
        host_ms=0.2,
        batch_size=1,
    )

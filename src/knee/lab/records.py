"""What a run leaves on disk, as types: `record.json`, and the lines of `requests.jsonl` and `steps.jsonl`.

This is the contract with scripts outside knee: names do not change without a new `SCHEMA_VERSION` and a reader for
the old one. Checked on write and on read. Milliseconds where a name ends in `_ms`, seconds from the trial's start in
the lines of the JSONL files. Empty is null, never 0. Who writes these files, and when, is `runs.py`'s business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

# 1: the first.
SCHEMA_VERSION = 1

Kind = Literal["baseline", "inspect", "kvcache", "sweep"]
Status = Literal["running", "done", "interrupted", "failed"]
OnOff = Literal["on", "off"]


class _Model(BaseModel):
    """Strict about numbers (no NaN, no infinity), lenient about fields a later knee may add."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


# --- the circumstances -------------------------------------------------------------------------------------------


class Gpu(_Model):
    name: str
    memory_gib: float
    driver: str


class Hardware(_Model):
    cpu: str
    cores: int
    isa: list[str]
    memory_gib: float
    gpus: list[Gpu] = []


class Software(_Model):
    knee: str
    git_commit: str | None
    git_dirty: bool | None
    python: str
    packages: dict[str, str]
    platform: str


class ModelInfo(_Model):
    name: str
    source: str
    sha256: str
    architecture: str
    parameters: int
    dtype: str
    device: str
    threads: int | None = None


class Workload(_Model):
    requests: int
    prompt_tokens: list[int]
    max_new_tokens: int
    arrival: str
    seed: int
    sha256: str
    prompts: list[str] | list[list[int]]  # texts, or token ids where no text was given


class BatchPolicy(_Model):
    name: str
    max_batch_size: int
    max_wait_ms: float | None


class Warning_(_Model):
    code: str
    message: str


# --- metrics, one shape a kind -----------------------------------------------------------------------------------


class BaselineMetrics(_Model):
    kind: Literal["baseline"] = "baseline"
    load_model_ms: float
    load_tokenizer_ms: float
    tokenize_ms: float | None
    prompt_tokens: int
    output_tokens: int
    prefill_cold_ms: float
    prefill_ms: float
    prefill_ms_per_token: float
    decode_loop_ms: float
    decode_steps: int
    decode_ms_per_step: float | None
    total_generate_ms: float
    output_tokens_per_s: float
    gpu_utilization: float | None
    kv_cache_shape: list[int] | None
    text: str | None
    token_ids: list[int]
    prefill_runs_ms: list[float]  # every warm prefill
    decode_step_ms: list[float]  # every decode step of the reported run


class TopCandidate(_Model):
    token_id: int
    token: str | None
    logprob: float


class InspectStep(_Model):
    step: int
    ms: float
    kv_len: int
    token_id: int
    token: str | None
    top: list[TopCandidate]


class InspectPrefill(_Model):
    ms: float
    logits_shape: list[int]
    kv_layers: int
    kv_shape: list[int] | None


class InspectKvOff(_Model):
    prefill: InspectPrefill
    steps: list[InspectStep]
    same_tokens: bool


class InspectMetrics(_Model):
    kind: Literal["inspect"] = "inspect"
    prefill: InspectPrefill
    steps: list[InspectStep]
    matches_generate: bool
    text: str | None
    kv_cache_off: InspectKvOff


class KvCacheCell(_Model):
    prompt_length: int
    kv_cache: OnOff
    prefill_ms: float
    token_ms: list[float]
    decode_ms_per_step: float | None
    total_ms: float
    kv_bytes: int
    token_ids_sha256: str


class KvCacheMetrics(_Model):
    kind: Literal["kvcache"] = "kvcache"
    cells: list[KvCacheCell]
    pays_from_tokens: int | None
    kv_bytes_per_token: int
    same_tokens: bool


class Summary(_Model):
    """A distribution in milliseconds; null where there are no values."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class RepeatTotals(_Model):
    repeat: int
    duration_s: float
    output_tokens: int


class SweepCell(_Model):
    policy: str
    max_batch_size: int
    max_wait_ms: float | None
    repeats: list[RepeatTotals]
    duration_s: float  # median over the repeats
    output_tokens: int
    output_throughput: float
    request_throughput: float
    queue_ms: Summary
    service_ms: Summary
    ttft_ms: Summary
    tpot_ms: Summary
    itl_ms: Summary
    e2el_ms: Summary
    slot_utilization: float
    mean_batch_size: float
    tokens_sha256: str
    failed: int = 0


class Tradeoff(_Model):
    """A cell against the first one: +1.03 is 103 % more."""

    cell: int
    policy: str
    max_batch_size: int
    max_wait_ms: float | None
    throughput_change: float
    service_change: float
    e2el_change: float
    efficiency: float | None


class SweepMetrics(_Model):
    kind: Literal["sweep"] = "sweep"
    cells: list[SweepCell]
    tradeoff: list[Tradeoff]
    same_tokens: bool
    findings: list[str]  # what follows from the numbers, in words
    knee: Any = None
    recommendations: Any = None


Metrics = Annotated[
    BaselineMetrics | InspectMetrics | KvCacheMetrics | SweepMetrics, Field(discriminator="kind")
]


class Record(_Model):
    """`record.json`: one experiment, everything needed to read it and to run it again."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    name: str
    created_at: str
    status: Status
    command: list[str]
    hardware: Hardware
    software: Software
    model: ModelInfo
    workload: Workload
    batch_policy: BatchPolicy
    kv_cache: OnOff
    metrics: Metrics | None  # null while the run is going on
    warnings: list[Warning_] = []
    notes: list[str] = []
    options: dict[str, Any] = {}  # every option of the command, by its name


# --- the lines ---------------------------------------------------------------------------------------------------


class RequestRow(_Model):
    """One request of a sweep: `cell` counts from 0 in the order of `metrics.cells`."""

    cell: int
    repeat: int
    request: int
    scheduled_at: float
    sent_at: float
    prefill_start: float | None
    first_token_at: float | None
    finished_at: float | None
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    token_ids_sha256: str
    token_times: list[float] = []


class StepRow(_Model):
    """One engine step of a sweep."""

    cell: int
    repeat: int
    step: int
    started_at: float
    ms: float
    prefill_tokens: int
    decode_rows: int
    kv_tokens: int
    waiting: int
    host_ms: float
    batch_size: int

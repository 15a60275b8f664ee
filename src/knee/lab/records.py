"""What a run leaves on disk, as types: `record.json`, and the lines of `requests.jsonl` and `steps.jsonl`.

This is the contract with scripts outside knee: names do not change without a new `SCHEMA_VERSION` and a reader for
the old one. Checked on write and on read. Milliseconds where a name ends in `_ms`, seconds from the trial's start in
the lines of the JSONL files. Empty is null, never 0. Who writes these files, and when, is `runs.py`'s business.

Words inside a record (warnings, notes, findings) are English; `messages.translated` gives them in another language.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from knee.lab.schema import Fraction, Json, Model, Text, UtcTime
from knee.lab.sweep_records import Claim, GpuUse, SweepMetrics

# 1: the first.
SCHEMA_VERSION = 1

Kind = Literal["baseline", "inspect", "kvcache", "sweep"]
Status = Literal["running", "done", "interrupted", "failed"]
OnOff = Literal["on", "off"]


def utc_now() -> str:
    """The present moment as a record keeps it: ISO 8601, UTC, whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- the circumstances -------------------------------------------------------------------------------------------


class Gpu(Model):
    """One GPU as its driver describes it."""

    name: Text
    memory_gib: float
    driver: Text


class Hardware(Model):
    """The machine, as far as this process may use it.

    `cores` and `memory_gib` are what a container or an affinity mask leaves, not what the host has. `isa` lists the
    vector extensions that matter to inference, for example `avx512_bf16` or `i8mm`.
    """

    cpu: Text
    cores: PositiveInt
    isa: list[str]
    memory_gib: NonNegativeFloat
    gpus: list[Gpu] = []


class Software(Model):
    """What ran. `git_commit` and `git_dirty` are null where knee was installed from a package."""

    knee: str
    git_commit: str | None
    git_dirty: bool | None
    python: str
    packages: dict[str, str]
    platform: Text


class ModelInfo(Model):
    """The model that ran. `sha256` is over the weights' files, `dtype` the weights' type on the device.

    `isa` is the instruction set of the device's kernels; null, as with `threads`: its libraries' choice.
    """

    name: Text
    source: Text
    sha256: str
    architecture: Text
    parameters: NonNegativeInt
    dtype: str
    device: str
    threads: PositiveInt | None = None
    isa: Text | None = None
    load_model_ms: NonNegativeFloat | None = None
    load_tokenizer_ms: NonNegativeFloat | None = None


class Workload(Model):
    """The requests of an experiment. `prompt_tokens` has one number a request; `sha256` is over prompts and options."""

    requests: NonNegativeInt
    prompt_tokens: list[NonNegativeInt]
    max_new_tokens: PositiveInt
    arrival: Text
    seed: int
    sha256: str
    prompts: list[Text] | list[list[int]]  # texts, or token ids where no text was given
    times: list[NonNegativeFloat] | None = None  # when each request is due; null where that depends on the others' ends
    new_tokens: list[PositiveInt] | None = None  # of each request, where they differ


class BatchPolicy(Model):
    """How requests were put together. `max_wait_ms` is null for a policy that has no window."""

    name: Text
    max_batch_size: PositiveInt
    max_wait_ms: NonNegativeFloat | None


class Warning_(Model):  # noqa: N801 (`Warning` is Python's)
    """Something that makes the numbers less trustworthy. `code` is of a closed set, `message` and `advice` for people.

    `cells` are the numbers of the cells that it is about; empty: all of them.
    """

    code: str
    message: Text
    advice: Text | None = None
    cells: list[NonNegativeInt] = []


# --- metrics, one shape a kind -----------------------------------------------------------------------------------


class BaselineMetrics(Model):
    """One request. `prefill_cold_ms` is the first forward pass after loading, `prefill_ms` the median of the warm ones.

    `decode_loop_ms` is the sum over `decode_steps` steps; `total_generate_ms` is warm prefill and decode loop;
    `output_tokens_per_s` counts the tokens given to the request. `gpu_utilization` is a fraction, null where there
    is no GPU (the reason is in the record's notes); `gpu` has the rest of what its sensors said, from the prefill of
    the reported run to its last token, where the model ran on one. `kv_cache_shape` is that of the contiguous
    equivalent: batch, KV heads, tokens, head dimension; null with the KV cache off.
    """

    kind: Literal["baseline"] = "baseline"
    load_model_ms: NonNegativeFloat
    load_tokenizer_ms: NonNegativeFloat
    tokenize_ms: NonNegativeFloat | None  # null where token ids were given
    prompt_tokens: PositiveInt
    output_tokens: NonNegativeInt
    prefill_cold_ms: NonNegativeFloat
    prefill_ms: NonNegativeFloat
    prefill_ms_per_token: NonNegativeFloat
    decode_loop_ms: NonNegativeFloat
    decode_steps: NonNegativeInt
    decode_ms_per_step: NonNegativeFloat | None  # null for a one-token output
    total_generate_ms: NonNegativeFloat
    output_tokens_per_s: NonNegativeFloat
    gpu_utilization: Fraction | None
    kv_cache_shape: list[int] | None
    text: Text | None  # null without a tokenizer
    token_ids: list[int]
    prefill_runs_ms: list[float]  # every warm prefill
    decode_step_ms: list[float]  # every decode step of the reported run
    gpu: GpuUse | None = None


class TopCandidate(Model):
    """One of the likeliest next tokens, with its natural-log probability. `token` is null without a tokenizer."""

    token_id: NonNegativeInt
    token: Text | None
    logprob: float


class InspectStep(Model):
    """One decode step: one token in, one out. `kv_len` counts the tokens in the KV cache after the step."""

    step: NonNegativeInt
    ms: NonNegativeFloat
    kv_len: NonNegativeInt
    token_id: NonNegativeInt
    token: Text | None
    top: list[TopCandidate]


class InspectPrefill(Model):
    """The step over the whole prompt, and the first token, which the logits of its last position choose.

    `kv_shape` is one layer's: batch, KV heads, tokens, head dimension.
    """

    ms: NonNegativeFloat
    logits_shape: list[int]
    kv_layers: NonNegativeInt
    kv_shape: list[int] | None
    token_id: NonNegativeInt
    token: Text | None
    top: list[TopCandidate]


class InspectKvOff(Model):
    """The same steps with the whole prefix recomputed each time."""

    prefill: InspectPrefill
    steps: list[InspectStep]
    same_tokens: bool


class InspectMetrics(Model):
    """Prefill and decode taken apart. `matches_generate` says whether the usual way gave the same tokens."""

    kind: Literal["inspect"] = "inspect"
    prefill: InspectPrefill
    steps: list[InspectStep]
    matches_generate: bool
    text: Text | None
    kv_cache_off: InspectKvOff


class KvCacheCell(Model):
    """One prompt length with the KV cache on or off. `token_ms` has one value an output token, the prefill's first."""

    prompt_length: PositiveInt
    kv_cache: OnOff
    prefill_ms: NonNegativeFloat
    token_ms: list[float]
    decode_ms_per_step: NonNegativeFloat | None
    total_ms: NonNegativeFloat
    kv_bytes: NonNegativeInt  # that the finished request's keys and values take
    token_ids_sha256: str


class KvCacheMetrics(Model):
    """When the KV cache pays: a decode step is faster with it from a context of `pays_from_tokens` on (null: never)."""

    kind: Literal["kvcache"] = "kvcache"
    cells: list[KvCacheCell]
    pays_from_tokens: NonNegativeInt | None
    kv_bytes_per_token: NonNegativeInt
    same_tokens: bool


Metrics = Annotated[BaselineMetrics | InspectMetrics | KvCacheMetrics | SweepMetrics, Field(discriminator="kind")]


class Record(Model):
    """`record.json`: one experiment, everything needed to read it and to run it again."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    name: Text
    created_at: UtcTime = Field(default_factory=utc_now)
    status: Status
    command: list[Text]
    hardware: Hardware
    software: Software
    model: ModelInfo
    workload: Workload
    batch_policy: BatchPolicy
    kv_cache: OnOff
    metrics: Metrics | None  # null while the run is going on, and where it ended before there were any
    warnings: list[Warning_] = []
    notes: list[Text] = []
    options: dict[str, Json] = {}  # every option of the command, by its name
    claims: list[Claim] = []  # what such logs usually conclude, tested on this run

    @model_validator(mode="after")
    def _metrics_fit(self) -> Record:
        if self.metrics is None and self.status == "done":
            raise ValueError("a run that is done has metrics")
        if self.metrics is not None and self.metrics.kind != self.kind:
            raise ValueError(f"a {self.kind} record holds metrics of a {self.metrics.kind}")
        return self


# --- the lines ---------------------------------------------------------------------------------------------------


class RequestRow(Model):
    """One request of a sweep: `cell` counts from 0 in the order of `metrics.cells`.

    `scheduled_at` is when it was due, `sent_at` when the engine got it; the rest is null for what never happened.
    `token_times` has the moment of each output token. `client_delay_ms` is how late the load generator was with it: the
    time that it could have been sent earlier, the engine's own steps not counted. `void`: it belongs to a trial whose
    generator was late, which counts nowhere.
    """

    cell: NonNegativeInt
    repeat: NonNegativeInt
    request: NonNegativeInt
    scheduled_at: float
    sent_at: float
    prefill_start: float | None
    first_token_at: float | None
    finished_at: float | None
    prompt_tokens: NonNegativeInt
    output_tokens: NonNegativeInt
    finish_reason: str
    token_ids_sha256: str
    token_times: list[float] = []
    client_delay_ms: NonNegativeFloat | None = None
    void: bool = False


class StepRow(Model):
    """One engine step of a sweep. `ms` is the whole step, `host_ms` the part that was not the device's.

    `kv_tokens` are in the KV cache after the step, `waiting` requests in the queue, `batch_size` requests hold a slot.
    """

    cell: NonNegativeInt
    repeat: NonNegativeInt
    step: NonNegativeInt
    started_at: float
    ms: float
    prefill_tokens: NonNegativeInt
    decode_rows: NonNegativeInt
    kv_tokens: NonNegativeInt
    waiting: NonNegativeInt
    host_ms: float
    batch_size: NonNegativeInt
    void: bool = False  # as in the requests' rows

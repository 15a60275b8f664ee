"""The part of a record that a sweep fills: cells, what their times were made of, and what follows from them.

Types only; the numbers come from `metrics.py` and `judgement/`. An interval is a 95 % one wherever it stands, and its
ends are null where there are too few repeats for one. Changes are relative: 0.12 is 12 % more.
"""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from knee.lab.schema import Fraction, Model, Text, UtcTime

Verdict = Literal["better", "worse", "cannot_tell"]

# What is compared between cells and between runs: name in `SweepCell.intervals` -> whether more of it is better.
COMPARED: dict[str, bool] = {
    "output_throughput": True,
    "request_throughput": True,
    "e2el_ms": False,
    "ttft_ms": False,
    "tpot_ms": False,
    "queue_ms": False,
    "service_ms": False,
    "power": True,
    "goodput": True,
}


class Interval(Model):
    """The median of the repeats with its interval, from `n` of them."""

    value: float
    low: float | None
    high: float | None
    n: NonNegativeInt


class Effect(Model):
    """One thing against another: the relative change with its interval, from `n` pairs of repeats "
    "(or the smaller group)."""

    verdict: Verdict
    change: float | None
    low: float | None
    high: float | None
    n: NonNegativeInt


# --- what was measured -------------------------------------------------------------------------------------------


class Summary(Model):
    """A distribution in milliseconds; null where there are no values, and percentiles where there are too few."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None


class RepeatTotals(Model):
    """One trial of a cell: its wall time, the tokens that were given to requests in it, and its value of each metric.

    `values` has the keys of `COMPARED`: latencies are means over the trial's requests. `outlier` names the metrics in
    which this repeat stands apart from the others; it counts all the same.
    """

    repeat: NonNegativeInt
    duration_s: NonNegativeFloat
    output_tokens: NonNegativeInt
    values: dict[str, float | None] = {}
    outlier: list[str] = []


class WarmStep(Model):
    """A step of a trial's warm-up, in the order they ran."""

    ms: NonNegativeFloat
    prefill_tokens: NonNegativeInt
    decode_rows: NonNegativeInt


class Solo(Model):
    """One request alone on an idle engine: what the limits for chat and API are scaled to.

    `tokens` and `prompt_tokens` are those of the workload's typical request; `e2el_ms` is that of such a request.
    """

    prompt_tokens: PositiveInt
    tokens: PositiveInt
    ttft_ms: NonNegativeFloat
    tpot_ms: NonNegativeFloat | None
    e2el_ms: NonNegativeFloat


class GpuUse(Model):
    """What the GPU did while requests ran, by its own sensors (NVML): the whole card, whoever else used it.

    `utilization` is the mean share of the time in which anything ran, `power_w` and `clock_mhz` are means, `memory_gib`
    and `temperature_c` the highest seen; `joules_per_token` is `energy_j` over the tokens given to requests.
    `throttled` has the share of the time in which the clock was held down, by the reason for it. `missing` says why
    something is null. Of a cell: the median over its trials, of memory and temperature the highest.
    """

    seconds: NonNegativeFloat
    utilization: Fraction | None = None
    memory_gib: NonNegativeFloat | None = None
    power_w: NonNegativeFloat | None = None
    energy_j: NonNegativeFloat | None = None
    joules_per_token: NonNegativeFloat | None = None
    clock_mhz: NonNegativeFloat | None = None
    temperature_c: float | None = None
    throttled: dict[str, Fraction] = {}
    missing: list[Text] = []


class TrialRow(Model):
    """What is known of one trial beside its rows: when it ran, how it began, and what the machine was like meanwhile.

    `pulse_ms` is the time of a fixed piece of arithmetic, before and after; `other_load` in cores, of other processes
    and of a virtual machine's neighbours; `swap_gib` what was swapped in and out; `client_delay_ms` the 99th
    percentile of the load generator's delay. What this system does not tell is null. `gpu` is null where the model ran
    on no GPU. `device_warnings` are the device's own, of what did not go as intended.
    """

    cell: NonNegativeInt
    repeat: NonNegativeInt
    started_at: UtcTime
    seconds: NonNegativeFloat  # the whole of it: start of the process, loading, warm-up, requests
    load_ms: NonNegativeFloat | None = None
    warm_up: list[WarmStep] = []
    solo: Solo | None = None
    client_delay_ms: NonNegativeFloat | None = None
    void: bool = False
    pulse_ms: tuple[float, float] | None = None
    other_load: NonNegativeFloat | None = None
    frequency_mhz: NonNegativeFloat | None = None
    temperature_c: float | None = None
    swap_gib: NonNegativeFloat | None = None
    clock_gap_s: float = 0.0
    trace_us: NonNegativeFloat | None = None  # what recording one step took
    gpu: GpuUse | None = None
    device_warnings: list[Text] = []
    errors: list[Text] = []


# --- why: floors and what came on top -----------------------------------------------------------------------------


class Limits(Model):
    """What the machine was measured to do in this run: the two roofs of the roofline. `how` names the kernels."""

    read_gb_s: NonNegativeFloat
    gflop_s: NonNegativeFloat
    dtype: str
    how: Text


class CostModel(Model):
    """What a step costs, from the Program: every part is linear in what the step runs.

    A step runs `tokens` rows, wants `outputs` logits, looks at `pairs` of query and key, and reads the keys and
    values of `context` tokens. FLOPs and bytes for each of them; `weight_bytes` once a step.
    """

    flops_per_token: NonNegativeFloat
    flops_per_output: NonNegativeFloat
    flops_per_pair: NonNegativeFloat
    weight_bytes: NonNegativeFloat
    weight_bytes_per_token: NonNegativeFloat
    kv_bytes_per_token: NonNegativeFloat
    kv_bytes_per_context: NonNegativeFloat


class StepTime(Model):
    """Decode steps (no prefill in them) with this many rows, of all cells: the median, and the middle half.

    `context` is the mean of their requests' lengths; `floor_ms` what such a step takes at least, on the `bound` roof.
    """

    decode_rows: PositiveInt
    steps: PositiveInt
    context: NonNegativeFloat
    ms: NonNegativeFloat
    quartiles: tuple[float, float]
    floor_ms: NonNegativeFloat | None = None
    memory_ms: NonNegativeFloat | None = None
    arithmetic_ms: NonNegativeFloat | None = None
    bound: Literal["memory", "arithmetic"] | None = None


class Shares(Model):
    """Where a cell's time went, from the first arrival to the last token; the parts make 1.

    `floor`: what its decode steps take at least. `over_floor`: what they took beyond it on the device. `prefill`:
    steps in which a prompt ran. `host`: the engine's own work around the device. `held_back`: nothing ran while
    somebody waited (a window, or a batch that was not full). `idle`: nothing ran and nobody waited.
    """

    floor: Fraction | None
    over_floor: Fraction | None
    decode: Fraction  # the two above together, where there is no floor
    prefill: Fraction
    host: Fraction
    held_back: Fraction
    idle: Fraction


class CellExplanation(Model):
    """What a cell's time was made of.

    `near_floor` is the decode steps' floor over what they took on the device. `empty_slots` is the share of the batch's
    slots without a request while steps ran. `interference` is by how much a decode row's token took longer, on average,
    because prompts ran in the same step: in ms a token.
    """

    shares: Shares
    decode_rows: NonNegativeFloat | None  # mean of the pure decode steps
    decode_ms: NonNegativeFloat | None  # median of them
    floor_ms: NonNegativeFloat | None
    bound: Literal["memory", "arithmetic"] | None
    near_floor: NonNegativeFloat | None
    empty_slots: Fraction
    interference_ms: float | None


# --- a cell, and cells against each other -------------------------------------------------------------------------


class SweepCell(Model):
    """One batch policy on the workload. Latencies count from the scheduled arrival, except `service_ms`.

    `output_throughput` is tokens given to requests a second, `request_throughput` requests a second.
    `slot_utilization` is the share of the batch's slots that held a request, `mean_batch_size` their number, both
    averaged over the time that steps took. `failed` counts requests that did not run to their end; `requests.jsonl`
    has them too. `cell` is its number in the JSONL files; of a run cut off, cells that were not reached are missing.
    `intervals` has the median over repeats of each metric in `COMPARED`, latencies being means over a trial's requests;
    `power` is requests/s over seconds of latency (Kleinrock 1979). Where the model ran on a GPU, `gpu` says what that
    did, and `intervals` has `joules_per_token`, if all repeats have it.
    """

    cell: NonNegativeInt = 0
    label: Text = ""
    policy: Text
    max_batch_size: PositiveInt
    max_wait_ms: NonNegativeFloat | None
    repeats: list[RepeatTotals]
    duration_s: NonNegativeFloat  # median over the repeats
    output_tokens: NonNegativeInt
    output_throughput: NonNegativeFloat
    request_throughput: NonNegativeFloat
    queue_ms: Summary
    service_ms: Summary
    ttft_ms: Summary
    tpot_ms: Summary
    itl_ms: Summary
    e2el_ms: Summary
    slot_utilization: NonNegativeFloat
    mean_batch_size: NonNegativeFloat
    tokens_sha256: str
    goodput: NonNegativeFloat | None = None  # requests/s within every limit of --slo; null where there is none
    failed: NonNegativeInt = 0
    window_idle: bool = False  # its wait window could not matter: every batch was full, or the last, when it started
    intervals: dict[str, Interval] = {}
    explanation: CellExplanation | None = None
    gpu: GpuUse | None = None


class Tradeoff(Model):
    """A cell against the first one: +1.03 is 103 % more. `efficiency` is `throughput_change` / `service_change`,
    null where no service time was paid. A change is null where nothing was completed. `effects` has the same with
    intervals, pair by pair within the rounds, for the metrics of `COMPARED`.
    """

    cell: NonNegativeInt
    policy: Text
    max_batch_size: PositiveInt
    max_wait_ms: NonNegativeFloat | None
    throughput_change: float | None
    service_change: float | None
    e2el_change: float | None
    efficiency: float | None
    effects: dict[str, Effect] = {}


# --- the answer --------------------------------------------------------------------------------------------------


class Knee(Model):
    """Where power (requests/s over latency) is highest, and the cells that cannot be told from it.

    `roofline_batch` is where arithmetic overtakes the read of the weights, by the Program's costs and the measured
    limits; `found_batches` the batch sizes of `cell` and `tied`.
    """

    cell: NonNegativeInt
    label: Text
    tied: list[NonNegativeInt]
    power: Interval
    found_batches: list[PositiveInt]
    roofline_batch: NonNegativeFloat | None
    sentence: Text


class Against(Model):
    """What a recommended cell gives and costs against the same policy at batch 1, or the nearest thing measured."""

    cell: NonNegativeInt
    label: Text
    effects: dict[str, Effect]


class Recommendation(Model):
    """An answer for one kind of use. `verdict` "tied": `cell` is the simplest of those that cannot be told from the
    best.

    "cannot_tell": there is no answer, and `sentence` says why. `limits` are in ms, null where throughput alone decides;
    `limits_how` says where they come from. `value` is the objective: requests/s within the limits, or tokens/s.
    `within` is the share of requests within the limits. `commands` has what to paste, by the name of the system.
    """

    scenario: Literal["chat", "api", "offline", "slo"]
    objective: Literal["goodput", "output_throughput"]
    limits: dict[str, float] | None
    limits_how: Text | None
    verdict: Literal["clear", "tied", "cannot_tell"]
    cell: NonNegativeInt | None
    label: Text | None
    tied: list[NonNegativeInt]
    value: Interval | None
    within: Fraction | None
    against: Against | None
    sentence: Text
    commands: dict[str, Text]


class Recommendations(Model):
    """For live chat, for an API service, for offline work; `slo` where the user gave limits."""

    chat: Recommendation
    api: Recommendation
    offline: Recommendation
    slo: Recommendation | None = None


class Claim(Model):
    """What experiment logs usually conclude, tested here. `sentence` holds the numbers; `effect` the one that decides.

    "not_measured": this run cannot say, and the sentence names one that can.
    """

    code: str
    statement: Text
    verdict: Literal["supported", "refuted", "cannot_tell", "not_measured"]
    effect: Effect | None
    sentence: Text


class Overhead(Model):
    """What recording cost: microseconds a step, and as a share of the median decode step."""

    us_per_step: NonNegativeFloat
    share: NonNegativeFloat
    step_ms: NonNegativeFloat


class SweepMetrics(Model):
    """Batch policies compared. `same_tokens` says whether every cell gave the very same tokens, as it must."""

    kind: Literal["sweep"] = "sweep"
    cells: list[SweepCell]
    tradeoff: list[Tradeoff]
    same_tokens: bool
    findings: list[Text]  # the explanation: what follows from the numbers, in words
    knee: Knee | None = None
    recommendations: Recommendations | None = None
    step_times: list[StepTime] = []
    limits: Limits | None = None
    costs: CostModel | None = None
    solo: Solo | None = None  # medians over all trials
    overhead: Overhead | None = None
    left_out: list[Text] = []  # what a budget had no room for
    trials: list[TrialRow] = []

"""From rows to numbers: latencies, distributions, throughput, trade-offs. Pure functions, the same on an old record.

The definitions, once for all. All latencies count from the *scheduled* arrival, so a queue cannot hide:

- ttft: first token − scheduled arrival
- e2el: last token − scheduled arrival
- tpot: (e2el − ttft) / (output tokens − 1), one value a request, none for a one-token output
- itl: the raw gaps between a request's tokens, pooled over requests
- queue: start of the prefill − scheduled arrival
- service: last token − start of the prefill, the request's own work

Only requests that ran to their end have latencies; failed ones are counted, and the tokens they got count as given.
Knows rows, not engines. Empty is None, never 0.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import compress, pairwise
from statistics import fmean, median, median_low
from typing import TYPE_CHECKING

from knee.lab.records import RequestRow, StepRow
from knee.lab.statistics import compare_paired, enough_for, median_interval, outliers, percentile
from knee.lab.sweep_records import (
    COMPARED,
    Effect,
    GpuUse,
    Interval,
    RepeatTotals,
    Summary,
    SweepCell,
    Tradeoff,
    TrialRow,
)

if TYPE_CHECKING:
    from knee.lab.judgement.measured import CellRows
    from knee.lab.slo import Slo

_NOTICEABLE = 0.03  # of service time: a ratio to less is noise over nothing
COMPLETED = frozenset({"length", "eos", "stop"})


# --- one request -------------------------------------------------------------------------------------------------


def ttft_ms(row: RequestRow) -> float | None:
    """First token − scheduled arrival."""
    return _ms(row.scheduled_at, row.first_token_at)


def e2el_ms(row: RequestRow) -> float | None:
    """Last token − scheduled arrival."""
    return _ms(row.scheduled_at, _last_token_at(row))


def tpot_ms(row: RequestRow) -> float | None:
    """Mean time from one output token to the next; None for fewer than two tokens."""
    if row.output_tokens < 2:
        return None
    whole = _ms(row.first_token_at, _last_token_at(row))
    return None if whole is None else whole / (row.output_tokens - 1)


def itl_ms(row: RequestRow) -> list[float]:
    """The gaps between tokens, in order."""
    return [(later - earlier) * 1e3 for earlier, later in pairwise(row.token_times)]


def queue_ms(row: RequestRow) -> float | None:
    """Start of the prefill − scheduled arrival."""
    return _ms(row.scheduled_at, row.prefill_start)


def service_ms(row: RequestRow) -> float | None:
    """Last token − start of the prefill."""
    return _ms(row.prefill_start, _last_token_at(row))


def _last_token_at(row: RequestRow) -> float | None:
    return row.token_times[-1] if row.token_times else row.finished_at


def _ms(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else (end - start) * 1e3


# --- distributions -----------------------------------------------------------------------------------------------


def summarize(values: Iterable[float | None]) -> Summary:
    """Mean and percentiles of the values that are there; a percentile is None where too few values lie beyond it."""
    ordered = sorted(value for value in values if value is not None)

    def at(percent: float) -> float | None:
        return percentile(ordered, percent) if enough_for(percent, len(ordered)) else None

    return Summary(mean=fmean(ordered) if ordered else None, p50=at(50), p90=at(90), p95=at(95), p99=at(99))


# --- one trial ---------------------------------------------------------------------------------------------------


def trial_totals(repeat: int, rows: Sequence[RequestRow], slo: Slo | None = None) -> RepeatTotals:
    """Duration from the first scheduled arrival to the last token, the tokens given to requests, and each metric."""
    ends = [row.token_times[-1] for row in rows if row.token_times]
    start = min(row.scheduled_at for row in rows)
    duration = max(ends, default=start) - start
    tokens = sum(row.output_tokens for row in rows)
    completed = [row for row in rows if row.finish_reason in COMPLETED]
    latencies = {"queue_ms": queue_ms, "service_ms": service_ms, "ttft_ms": ttft_ms, "tpot_ms": tpot_ms}
    values = {name: mean_of(map(latency, completed)) for name, latency in latencies.items()}
    latency, rate = mean_of(map(e2el_ms, completed)), len(completed) / duration if duration else None
    values |= {
        "output_throughput": tokens / duration if duration else None,
        "request_throughput": rate,
        "e2el_ms": latency,
        "power": rate / latency * 1e3 if rate and latency else None,
        "goodput": sum(map(slo.met_by, rows)) / duration if slo and duration else None,
    }
    return RepeatTotals(repeat=repeat, duration_s=duration, output_tokens=tokens, values=values)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are there."""
    there = [value for value in values if value is not None]
    return fmean(there) if there else None


def mean_batch_size(steps: Sequence[StepRow]) -> float:
    """Requests that ran in a step, averaged over the time that steps took."""
    busy = sum(step.ms for step in steps)
    return sum(step.batch_size * step.ms for step in steps) / busy if busy else 0.0


def slot_utilization(steps: Sequence[StepRow], max_batch_size: int) -> float:
    """Share of the slots that held a request, averaged over the time that steps took."""
    return mean_batch_size(steps) / max_batch_size


def batch_sizes(requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> list[int]:
    """How many requests joined together, each time any did; for one trial without preemptions."""
    ends = sorted(row.finished_at for row in requests if row.finished_at is not None)
    joined, running, ended = [], 0, 0
    for step in steps:
        while ended < len(ends) and ends[ended] <= step.started_at:
            ended, running = ended + 1, running - 1
        if step.batch_size > running:
            joined.append(step.batch_size - running)
        running = step.batch_size
    return joined


# --- one cell: a policy at one setting, all repeats ---------------------------------------------------------------


def summarize_cell(cell: CellRows, slo: Slo | None, seed: int = 0) -> SweepCell:
    """All repeats of a cell: medians of totals, latencies pooled over the requests, intervals over the repeats."""
    requests, steps, setting = cell.all_requests, cell.all_steps, cell.setting
    repeats = labelled([trial_totals(number, rows, slo) for number, rows in cell.requests.items()])
    duration = median(repeat.duration_s for repeat in repeats)
    tokens = median_low([repeat.output_tokens for repeat in repeats])
    completed = [row for row in requests if row.finish_reason in COMPLETED]

    def summary(latency: Callable[[RequestRow], float | None]) -> Summary:
        return summarize(latency(row) for row in completed)

    goodputs = [repeat.values["goodput"] for repeat in repeats]
    return SweepCell(
        cell=cell.number,
        label=cell.label,
        policy=setting.policy,
        max_batch_size=setting.max_batch_size,
        max_wait_ms=setting.max_wait_ms,
        repeats=repeats,
        duration_s=duration,
        output_tokens=tokens,
        output_throughput=tokens / duration if duration else 0.0,
        request_throughput=len(completed) / len(repeats) / duration if duration else 0.0,
        queue_ms=summary(queue_ms),
        service_ms=summary(service_ms),
        ttft_ms=summary(ttft_ms),
        tpot_ms=summary(tpot_ms),
        itl_ms=summarize(gap for row in completed for gap in itl_ms(row)),
        e2el_ms=summary(e2el_ms),
        slot_utilization=slot_utilization(steps, setting.max_batch_size),
        mean_batch_size=mean_batch_size(steps),
        tokens_sha256=cell_hash(requests),
        goodput=fmean(value or 0.0 for value in goodputs) if slo else None,
        failed=len(requests) - len(completed),
        window_idle=setting.max_wait_ms is not None and always_full(cell),
        intervals=intervals(repeats, seed),
    )


def always_full(cell: CellRows) -> bool:
    """Whether every batch but a trial's last was full when it started."""
    return all(
        size >= cell.setting.max_batch_size
        for repeat, rows in cell.requests.items()
        for size in batch_sizes(rows, cell.steps[repeat])[:-1]
    )


def intervals(repeats: Sequence[RepeatTotals], seed: int) -> dict[str, Interval]:
    """The median over repeats of each metric that all of them have, with its interval."""
    found = {}
    for name in COMPARED:
        values = [value for repeat in repeats if (value := repeat.values.get(name)) is not None]
        if len(values) == len(repeats):
            found[name] = interval_of(values, seed)
    return found


def gpu_of(trials: Sequence[TrialRow]) -> GpuUse | None:
    """What the GPU did in a cell's trials: medians, and the highest of memory and temperature."""
    uses = [trial.gpu for trial in trials if trial.gpu is not None]
    if not uses:
        return None
    medians = ("utilization", "power_w", "energy_j", "joules_per_token", "clock_mhz")
    there = {
        name: [value for use in uses if (value := getattr(use, name)) is not None]
        for name in (*medians, "memory_gib", "temperature_c")
    }
    shares = {why: [use.throttled.get(why, 0.0) for use in uses] for use in uses for why in use.throttled}
    return GpuUse(
        seconds=median(use.seconds for use in uses),
        **{name: (median if name in medians else max)(values) for name, values in there.items() if values},
        throttled={why: median(values) for why, values in shares.items()},
        missing=list(dict.fromkeys(sentence for use in uses for sentence in use.missing)),
    )


def joules_per_token(trials: Sequence[TrialRow], seed: int = 0) -> dict[str, Interval]:
    """The energy of a token with its interval over a cell's trials, if all of them have it."""
    uses = [trial.gpu for trial in trials if trial.gpu is not None]
    values = [use.joules_per_token for use in uses if use.joules_per_token is not None]
    return {"joules_per_token": interval_of(values, seed)} if values and len(values) == len(trials) else {}


def interval_of(values: Sequence[float], seed: int) -> Interval:
    """The median of repeats with its interval. Nothing here can be below 0, and so no end of an interval is."""
    found = median_interval(values, seed)
    return Interval(**asdict(found) | {"low": None if found.low is None else max(0.0, found.low)})


def labelled(repeats: list[RepeatTotals]) -> list[RepeatTotals]:
    """The same, each with the names of the metrics in which it stands apart."""
    names: list[list[str]] = [[] for _ in repeats]
    for metric in COMPARED:
        values = [repeat.values.get(metric) for repeat in repeats]
        if None not in values:
            apart = outliers([value for value in values if value is not None])
            for number in compress(range(len(repeats)), apart):
                names[number].append(metric)
    return [
        repeat.model_copy(update={"outlier": found}) if found else repeat
        for repeat, found in zip(repeats, names, strict=True)
    ]


def by_repeat(requests: Iterable[RequestRow]) -> dict[int, list[RequestRow]]:
    """The rows of each repeat."""
    repeats: dict[int, list[RequestRow]] = defaultdict(list)
    for row in requests:
        repeats[row.repeat].append(row)
    return dict(repeats)


def cell_hash(requests: Sequence[RequestRow]) -> str:
    """One hash over the tokens of all requests of the first repeat, in order."""
    first = min((row.repeat for row in requests), default=0)
    rows = sorted((row for row in requests if row.repeat == first), key=lambda row: row.request)
    return hashlib.sha256("".join(row.token_ids_sha256 for row in rows).encode()).hexdigest()


def requests_that_differ(requests: Iterable[RequestRow]) -> list[int]:
    """Requests that did not get the same tokens in all cells and repeats; failed ones do not count."""
    hashes: dict[int, set[str]] = defaultdict(set)
    for row in requests:
        if row.finish_reason in COMPLETED:
            hashes[row.request].add(row.token_ids_sha256)
    return sorted(request for request, found in hashes.items() if len(found) > 1)


# --- cells against each other -------------------------------------------------------------------------------------


def tradeoff(cells: Sequence[SweepCell]) -> list[Tradeoff]:
    """Every cell against the first."""
    return [_against(cells[0], cell) for cell in cells]


def _against(first: SweepCell, cell: SweepCell) -> Tradeoff:
    throughput = change(first.output_throughput, cell.output_throughput)
    service = change(first.service_ms.mean, cell.service_ms.mean)
    return Tradeoff(
        cell=cell.cell,
        policy=cell.policy,
        max_batch_size=cell.max_batch_size,
        max_wait_ms=cell.max_wait_ms,
        throughput_change=throughput,
        service_change=service,
        e2el_change=change(first.e2el_ms.mean, cell.e2el_ms.mean),
        efficiency=throughput / service if throughput is not None and service and service > _NOTICEABLE else None,
        effects={} if cell is first else effects(first, cell),
    )


def effects(base: SweepCell, cell: SweepCell, metrics: Iterable[str] = COMPARED) -> dict[str, Effect]:
    """A cell against another, round by round, in each metric that both have."""
    found = {name: effect(base, cell, name) for name in metrics}
    return {name: one for name, one in found.items() if one.n}


def effect(base: SweepCell, cell: SweepCell, metric: str) -> Effect:
    """A cell against another in one metric, paired within the rounds."""
    one, other = by_round(base, metric), by_round(cell, metric)
    return Effect(**asdict(compare_paired(one, other, higher_is_better=COMPARED[metric])))


def by_round(cell: SweepCell, metric: str) -> dict[int, float]:
    """The metric of each repeat that has one above 0."""
    values = {repeat.repeat: repeat.values.get(metric) for repeat in cell.repeats}
    return {repeat: value for repeat, value in values.items() if value}


def change(before: float | None, after: float | None) -> float | None:
    """Relative change: 1.03 is 103 % more. None where there is nothing to compare."""
    return after / before - 1 if before and after is not None else None

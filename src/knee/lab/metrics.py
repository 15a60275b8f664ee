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
from itertools import pairwise
from statistics import fmean, median, median_low

from knee.lab.records import RepeatTotals, RequestRow, StepRow, Summary, SweepCell, Tradeoff

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


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Percentile of sorted values, linear between neighbours (NumPy's default, type 7 of Hyndman & Fan 1996)."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarize(values: Iterable[float | None]) -> Summary:
    """Mean and percentiles of the values that are there; all None if none is."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return Summary(mean=None, p50=None, p90=None, p95=None, p99=None)
    return Summary(
        mean=fmean(ordered),
        p50=percentile(ordered, 50),
        p90=percentile(ordered, 90),
        p95=percentile(ordered, 95),
        p99=percentile(ordered, 99),
    )


# --- one trial ---------------------------------------------------------------------------------------------------


def trial_totals(repeat: int, rows: Sequence[RequestRow]) -> RepeatTotals:
    """Duration from the first scheduled arrival to the last token, and the tokens given to requests."""
    ends = [row.token_times[-1] for row in rows if row.token_times]
    start = min(row.scheduled_at for row in rows)
    return RepeatTotals(
        repeat=repeat,
        duration_s=max(ends, default=start) - start,
        output_tokens=sum(row.output_tokens for row in rows),
    )


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


def summarize_cell(
    policy: str,
    max_batch_size: int,
    max_wait_ms: float | None,
    requests: Sequence[RequestRow],
    steps: Sequence[StepRow],
) -> SweepCell:
    """All repeats of a cell in one row: medians of totals, latencies pooled over the requests of all repeats."""
    repeats = [trial_totals(number, rows) for number, rows in sorted(by_repeat(requests).items())]
    duration = median(repeat.duration_s for repeat in repeats)
    tokens = median_low([repeat.output_tokens for repeat in repeats])
    completed = [row for row in requests if row.finish_reason in COMPLETED]

    def summary(latency: Callable[[RequestRow], float | None]) -> Summary:
        return summarize(latency(row) for row in completed)

    return SweepCell(
        cell=requests[0].cell,
        policy=policy,
        max_batch_size=max_batch_size,
        max_wait_ms=max_wait_ms,
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
        slot_utilization=slot_utilization(steps, max_batch_size),
        mean_batch_size=mean_batch_size(steps),
        tokens_sha256=cell_hash(requests),
        failed=len(requests) - len(completed),
    )


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
        efficiency=throughput / service if throughput is not None and service and service > 0 else None,
    )


def change(before: float | None, after: float | None) -> float | None:
    """Relative change: 1.03 is 103 % more. None where there is nothing to compare."""
    return after / before - 1 if before and after is not None else None

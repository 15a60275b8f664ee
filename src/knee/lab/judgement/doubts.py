"""What makes a sweep's numbers less trustworthy: a closed set, each with advice that depends on what was done already.

Codes: tokens_differ, requests_failed, late_client, few_samples, noisy, drifting, throttled, other_load, swap, cold,
saturated, clock_gap, device_fallback. (coarse_timer, threads and what `knee doctor` finds come from a look around,
`experiment.py`.)
Each function answers one question, and gives nothing where there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import expm1, log
from statistics import fmean, median

from knee.lab.judgement.knee_point import names
from knee.lab.judgement.measured import CellRows
from knee.lab.messages import text
from knee.lab.metrics import COMPLETED
from knee.lab.records import StepRow, Warning_
from knee.lab.spec import RunSpec
from knee.lab.statistics import MIN_REPEATS, enough_for, trend
from knee.lab.sweep_records import Interval, SweepCell, TrialRow

NOISY = 0.10  # half of an interval's width, over its median
DRIFT, DRIFT_P = 0.05, 0.01
SLOWER = 1.10  # a pulse over the fastest one
SLOW_TRIALS = 0.2
HOT_C = 90.0
LOAD_SHARE, LOAD_CORES = 0.05, 0.1
SWAP_GIB = 0.01
GAP_S = 1.0
COLD = 1.5  # the first steps over the later ones
BACKLOG, LEAST_BACKLOG = 0.25, 3  # of the requests, still waiting when the last one comes
SPARE = 0.05  # of a cell's time with nothing running: it was not the engine that was too slow
_MANY_REPEATS = 10
_MOST_SENTENCES = 4
_PERCENTILES = (99.0, 95.0, 90.0)


@dataclass(frozen=True)
class Evidence:
    """All that the questions are asked of."""

    spec: RunSpec
    rows: Sequence[CellRows]
    cells: Sequence[SweepCell]
    differing: Sequence[int]

    @property
    def trials(self) -> list[TrialRow]:
        """Those that count, in the order in which they ran."""
        return [trial for trial in self.spec.trials if not trial.void]


Question = Callable[[Evidence], Warning_ | None]


def doubts(
    spec: RunSpec, rows: Sequence[CellRows], cells: Sequence[SweepCell], differing: Sequence[int]
) -> list[Warning_]:
    """All warnings, the worst first."""
    evidence = Evidence(spec, rows, cells, differing)
    return [found for question in QUESTIONS if (found := question(evidence)) is not None]


def _doubt(code: str, advice: str, about: Sequence[int] = (), key: str | None = None, **values: object) -> Warning_:
    return Warning_(
        code=code,
        message=text("en", f"warning.{key or code}", **values),
        advice=text("en", f"advice.{advice}", **values),
        cells=list(about),
    )


# --- the work ----------------------------------------------------------------------------------------------------


def tokens_differ(given: Evidence) -> Warning_ | None:
    """A defect: the cells did not do the same work."""
    if not given.differing:
        return None
    count, of = len(given.differing), given.spec.draft.workload.requests
    return _doubt("tokens_differ", "tokens_differ", count=count, of=of, first=given.differing[0])


def requests_failed(given: Evidence) -> Warning_ | None:
    """Requests that the device failed on."""
    failed = sum(cell.failed for cell in given.cells)
    if not failed:
        return None
    errors = [error for trial in given.spec.trials for error in trial.errors]
    cells = [cell.cell for cell in given.cells if cell.failed]
    return _doubt("requests_failed", "requests_failed", cells, count=failed, error=errors[0] if errors else "?")


def trials_failed(given: Evidence) -> Warning_ | None:
    """Trials that ended with an error instead of rows."""
    failed = [trial for trial in given.spec.trials if trial.void and trial.errors]
    if not failed:
        return None
    cells = sorted({trial.cell for trial in failed})
    return _doubt(
        "requests_failed", "requests_failed", cells, "trials_failed", count=len(failed), error=failed[0].errors[0]
    )


def late_client(given: Evidence) -> Warning_ | None:
    """The load generator measured itself in some trials, which are void."""
    void = [trial for trial in given.spec.trials if trial.void and not trial.errors]
    if not void:
        return None
    whole = {(trial.cell, trial.repeat) for trial in given.trials}
    missing = sorted({trial.cell for trial in void if (trial.cell, trial.repeat) not in whole})
    worst = max(trial.client_delay_ms or 0.0 for trial in void)
    advice = "late_client_missing" if missing else "late_client_repeated"
    return _doubt("late_client", advice, missing, count=len(void), of=len(given.spec.trials), worst=f"{worst:.2f}")


def saturated(given: Evidence) -> Warning_ | None:
    """Requests came faster than a cell could serve them: its latency is that of a growing queue."""
    if given.spec.draft.workload.times is None or len(set(given.spec.draft.workload.times)) < 2:
        return None  # a closed loop cannot be overrun, and a burst is nothing but a queue
    spare = {cell.cell: _spare(cell) for cell in given.cells}
    full = [
        one
        for one in given.rows
        if _backlog(one) >= max(LEAST_BACKLOG, BACKLOG * _requests(one)) and spare[one.number] <= SPARE
    ]
    if not full:
        return None
    numbers = [one.number for one in full]
    best = max((cell.request_throughput for cell in given.cells if cell.cell in numbers), default=0.0)
    advice = "saturated_all" if len(full) == len(given.rows) else "saturated_some"
    return _doubt(
        "saturated",
        advice,
        numbers,
        cells=names([one.label for one in full]),
        arrival=given.spec.draft.workload.arrival,
        best=f"{best:.1f}",
    )


def _spare(cell: SweepCell) -> float:
    """The share of the time in which nothing ran: who waits then waits for company, not for an engine."""
    return 0.0 if cell.explanation is None else cell.explanation.shares.held_back + cell.explanation.shares.idle


def _requests(rows: CellRows) -> int:
    return max(map(len, rows.requests.values()))


def _backlog(rows: CellRows) -> float:
    """Requests without a prefill when the last one comes, in the median repeat."""
    waiting = []
    for requests in rows.requests.values():
        last = max(row.scheduled_at for row in requests)
        waiting.append(sum(row.prefill_start is None or row.prefill_start > last for row in requests) - 1)
    return median(waiting)


# --- the numbers -------------------------------------------------------------------------------------------------


def few_repeats(given: Evidence) -> Warning_ | None:
    """Fewer repeats than an interval takes."""
    few = [cell for cell in given.cells if len(cell.repeats) < MIN_REPEATS]
    if not few:
        return None
    least = min(len(cell.repeats) for cell in few)
    options = given.spec.draft.options
    asked = given.spec.repeats >= MIN_REPEATS
    advice = "few_repeats_lost" if asked and given.spec.status in ("done", "failed") else "few_repeats"
    if given.spec.status == "interrupted" and "reproduce" not in given.spec.draft.command[1:2]:  # which has no --resume
        advice = "few_repeats_interrupted"
    elif options.get("budget"):
        advice = "few_repeats_budget"
    cells = [cell.cell for cell in few] if len(few) < len(given.cells) else []
    return _doubt("few_samples", advice, cells, "few_repeats", least=least, enough=MIN_REPEATS, count=len(few))


def few_for_percentiles(given: Evidence) -> Warning_ | None:
    """Percentiles that are null, because too few requests lie beyond them."""
    counts = [sum(row.finish_reason in COMPLETED for row in one.all_requests) for one in given.rows]
    if not counts:
        return None
    count = min(counts)
    missing = [percent for percent in _PERCENTILES if not enough_for(percent, count)]
    if not missing:
        return None
    needed = {99.0: 300, 95.0: 60, 90.0: 30}[missing[0]]
    requests, repeats = given.spec.draft.workload.requests, max(len(cell.repeats) for cell in given.cells)
    fixed = given.spec.draft.workload.arrival.startswith("trace")
    advice = "few_percentiles_trace" if fixed else "few_percentiles"
    return _doubt(
        "few_samples",
        advice,
        (),
        "few_percentiles",
        missing=", ".join(f"p{percent:g}" for percent in reversed(missing)),
        count=count,
        requests=-(-needed // repeats),
        repeats=-(-needed // requests),
        needed=needed,
    )


def noisy(given: Evidence) -> Warning_ | None:
    """Cells whose intervals are too wide to tell small differences."""
    widths = {cell.cell: _width(cell) for cell in given.cells}
    wide = [cell for cell in given.cells if widths[cell.cell] > NOISY]
    if not wide:
        return None
    worst = max(wide, key=lambda cell: widths[cell.cell])
    repeats = max(len(cell.repeats) for cell in given.cells)
    advice = "noisy_requests" if repeats >= _MANY_REPEATS else "noisy_repeats"
    if given.spec.status == "interrupted" or given.spec.draft.options.get("budget"):
        advice = "noisy_requests"  # that more repeats were planned is said elsewhere
    if other_load(given) is not None or throttled(given) is not None:
        advice = "noisy_machine"
    return _doubt(
        "noisy",
        advice,
        [cell.cell for cell in wide],
        cells=names([cell.label for cell in wide]),
        worst=worst.label,
        percent=f"{widths[worst.cell] * 100:.0f}",
        repeats=_MANY_REPEATS,
        now=repeats,
        narrower=f"{(1 - (repeats / _MANY_REPEATS) ** 0.5) * 100:.0f}",
    )


def _width(cell: SweepCell) -> float:
    return max(
        (_half(cell.intervals[name]) for name in ("output_throughput", "e2el_ms") if name in cell.intervals),
        default=0.0,
    )


def _half(interval: Interval) -> float:
    if interval.low is None or interval.high is None or not interval.value:
        return 0.0
    return (interval.high - interval.low) / 2 / interval.value


def drifting(given: Evidence) -> Warning_ | None:
    """All cells got slower, or faster, as the run went on."""
    levels = {cell.cell: cell.intervals["service_ms"].value for cell in given.cells if "service_ms" in cell.intervals}
    values = {
        (cell.cell, repeat.repeat): repeat.values.get("service_ms") for cell in given.cells for repeat in cell.repeats
    }
    relative = [
        log(value / levels[trial.cell])
        for trial in given.trials
        if (value := values.get((trial.cell, trial.repeat))) and levels.get(trial.cell)
    ]
    found = trend(relative)
    if found is None or found.p_value >= DRIFT_P or abs(found.change) < DRIFT:
        return None
    direction = "slower" if found.change > 0 else "faster"
    return _doubt("drifting", "drifting", (), f"drifting_{direction}", percent=f"{abs(expm1(found.change)) * 100:.0f}")


# --- the device ----------------------------------------------------------------------------------------------------


def device_fallback(given: Evidence) -> Warning_ | None:
    """The device did something in another way than it should."""
    trials = [trial for trial in given.spec.trials if trial.device_warnings]
    cells = sorted({trial.cell for trial in trials})
    found = fell_back([one for trial in trials for one in trial.device_warnings], cells)
    return found[0] if found else None


def fell_back(sentences: Sequence[str], cells: Sequence[int] = ()) -> list[Warning_]:
    """The warning of a device, in its own words; none where it had nothing to say."""
    said = list(dict.fromkeys(sentence.rstrip(".") for sentence in sentences))
    more = [f"and {len(said) - _MOST_SENTENCES} more"] if len(said) > _MOST_SENTENCES else []
    what = "; ".join([*said[:_MOST_SENTENCES], *more])
    return [_doubt("device_fallback", "device_fallback", cells, what=what)] if said else []


# --- the machine -------------------------------------------------------------------------------------------------


def throttled(given: Evidence) -> Warning_ | None:
    """A fixed piece of arithmetic took longer than it can, or the processor or the GPU was hot or clocked down."""
    if (gpu := _throttled_gpu(given)) is not None:
        return gpu
    pulses = [trial.pulse_ms for trial in given.trials if trial.pulse_ms is not None]
    temperatures = [trial.temperature_c for trial in given.trials if trial.temperature_c is not None]
    hottest = max(temperatures, default=None)
    if hottest is not None and hottest >= HOT_C:
        return _doubt("throttled", "throttled_hot", (), "throttled_hot", celsius=f"{hottest:.0f}")
    if not pulses:
        return None
    fastest = min(min(pair) for pair in pulses)
    slow = sum(max(pair) > SLOWER * fastest for pair in pulses)
    if slow < SLOW_TRIALS * len(pulses):
        return None
    # A clock is read between trials, on cores at rest: alone it says little.
    frequencies = [trial.frequency_mhz for trial in given.trials if trial.frequency_mhz]
    if frequencies and median(frequencies) * SLOWER < max(frequencies):
        share = 1 - median(frequencies) / max(frequencies)
        return _doubt("throttled", "throttled_hot", (), "throttled_clock", percent=f"{share * 100:.0f}")
    advice = "throttled_load" if other_load(given) is not None else "throttled"
    worst = max(max(pair) for pair in pulses) / fastest
    return _doubt("throttled", advice, (), count=slow, of=len(pulses), worst=f"{(worst - 1) * 100:.0f}")


def _throttled_gpu(given: Evidence) -> Warning_ | None:
    uses = [trial.gpu for trial in given.trials if trial.gpu is not None]
    slow = [use for use in uses if max(use.throttled.values(), default=0.0) > SLOW_TRIALS]
    if not slow or len(slow) < SLOW_TRIALS * len(uses):
        return None
    reasons = ", ".join(sorted({why.replace("_", " ") for use in slow for why in use.throttled}))
    return _doubt("throttled", "throttled_gpu", (), "throttled_gpu", count=len(slow), of=len(uses), reasons=reasons)


def other_load(given: Evidence) -> Warning_ | None:
    """Something else kept the cores busy."""
    loads = [trial.other_load for trial in given.trials if trial.other_load is not None]
    limit = max(LOAD_CORES, LOAD_SHARE * given.spec.draft.hardware.cores)
    if not loads or fmean(loads) <= limit:
        return None
    return _doubt("other_load", "other_load", cores=f"{fmean(loads):.2f}", worst=f"{max(loads):.2f}")


def clock_gap(given: Evidence) -> Warning_ | None:
    """The wall clock and the monotonic one parted during a trial."""
    gap = sum(abs(trial.clock_gap_s) for trial in given.spec.trials)
    return _doubt("clock_gap", "clock_gap", seconds=f"{gap:.1f}") if gap > GAP_S else None


def swap(given: Evidence) -> Warning_ | None:
    """Memory was short."""
    used = [trial.swap_gib for trial in given.trials if trial.swap_gib is not None]
    if not used or max(used) <= SWAP_GIB:
        return None
    return _doubt("swap", "swap", gib=f"{max(used):.1f}")


def cold(given: Evidence) -> Warning_ | None:
    """Trials whose first decode steps took much longer than later ones of the same size: the warm-up was too short."""
    ratios = [ratio for one in given.rows for steps in one.steps.values() if (ratio := _first_steps(steps)) is not None]
    chilly = [ratio for ratio in ratios if ratio > COLD]
    if len(chilly) <= len(ratios) / 2:
        return None
    return _doubt("cold", "cold", count=len(chilly), of=len(ratios), ratio=f"{median(chilly):.1f}")


def _first_steps(steps: Sequence[StepRow]) -> float | None:
    decodes = [step for step in steps if not step.prefill_tokens and step.decode_rows]
    same = [step.ms for step in decodes if step.decode_rows == decodes[0].decode_rows]
    usual = median(same[3:]) if len(same) >= 9 else 0.0
    return median(same[:3]) / usual if usual else None


QUESTIONS: tuple[Question, ...] = (
    tokens_differ,
    requests_failed,
    trials_failed,
    late_client,
    device_fallback,
    few_repeats,
    noisy,
    drifting,
    throttled,
    other_load,
    swap,
    clock_gap,
    cold,
    saturated,
    few_for_percentiles,
)

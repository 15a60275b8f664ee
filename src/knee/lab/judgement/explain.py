"""Why a sweep's numbers are what they are: where the time went, how near the floor steps come, and what follows.

Rows and the measured limits in, numbers and sentences out. A sentence says what was measured and, beside it, what the
roofline expects; where the two contradict each other it says that, and makes up no reason.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from statistics import fmean, median

from knee.lab.costs import floor_of, roofline_batch
from knee.lab.judgement.measured import CellRows
from knee.lab.messages import text
from knee.lab.metrics import slot_utilization
from knee.lab.records import RequestRow, StepRow
from knee.lab.speed import Floor
from knee.lab.statistics import percentile
from knee.lab.sweep_records import CellExplanation, CostModel, Knee, Limits, Shares, StepTime, SweepCell

LEAST_STEPS = 5  # of one size, for a median that means something
UNSETTLED = 2  # steps at the start of a trial, which find caches and threads cold
_CONTRADICTS = 0.1  # the step took so much more or less than the roofline expects
_MOST_PAIRS, _MOST_SENTENCES = 3, 10
_LITTLE = 0.01  # a share not worth a sentence
_BOUNDS: Mapping[tuple[object, object], str] = {
    ("memory", "memory"): "memory",
    ("memory", "arithmetic"): "crossing",
    ("arithmetic", "arithmetic"): "arithmetic",
}

Roofs = tuple[CostModel, Limits]
Span = tuple[float, float]


def _roofs(costs: CostModel | None, limits: Limits | None) -> Roofs | None:
    return (costs, limits) if costs and limits and limits.read_gb_s and limits.gflop_s else None


# --- decode steps ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A step without prefill, `number` in its trial.

    `context` counts the tokens whose keys and values it read, all its rows together; None where nothing is cached.
    """

    number: int
    rows: int
    context: int | None
    ms: float
    device_ms: float

    @property
    def settled(self) -> bool:
        """Whether caches and threads had time to warm up."""
        return self.number >= UNSETTLED


def decode_steps(requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> list[DecodeStep]:
    """Those of one trial, in the order they ran."""
    ordered = sorted(steps, key=lambda step: step.started_at)
    cached = any(step.kv_tokens for step in ordered)
    left = _left_in(requests, ordered)
    return [
        DecodeStep(
            number,
            step.decode_rows,
            step.kv_tokens + left.get(number, 0) if cached else None,
            step.ms,
            step.ms - _host_ms(step),
        )
        for number, step in enumerate(ordered)
        if _only_decodes(step)
    ]


def _left_in(requests: Iterable[RequestRow], ordered: Sequence[StepRow]) -> Mapping[int, int]:
    """The cached tokens of requests that ended in a step: its row counts what is there after they have gone."""
    starts = [step.started_at for step in ordered]
    left: Counter[int] = Counter()
    for row in requests:
        if row.finished_at is None or not row.output_tokens:
            continue
        number = bisect_right(starts, row.finished_at) - 1
        if number >= 0 and row.finished_at <= _end(ordered[number]) + 1e-6:
            left[number] += row.prompt_tokens + row.output_tokens - 1
    return left


def _only_decodes(step: StepRow) -> bool:
    return step.decode_rows > 0 and not step.prefill_tokens


def _end(step: StepRow) -> float:
    return step.started_at + step.ms / 1e3


def _host_ms(step: StepRow) -> float:
    return min(max(0.0, step.host_ms), step.ms)


def _floor(roofs: Roofs, rows: int, context: float) -> Floor:
    """A decode step runs a token a row and wants its logits; each row's query meets the row's whole context."""
    return floor_of(*roofs, tokens=rows, outputs=rows, pairs=context, context=context)


# --- one cell ----------------------------------------------------------------------------------------------------


def explain_cell(cell: CellRows, costs: CostModel | None, limits: Limits | None) -> CellExplanation:
    """What the time of a cell was made of, all its repeats together."""
    decoded = [step for number, rows in cell.requests.items() for step in decode_steps(rows, cell.steps[number])]
    floors = _floors(decoded, _roofs(costs, limits))
    took, least = sum(step.device_ms for step in decoded), 1e3 * sum(floor.seconds for floor in floors)
    near = least / took if floors and took else None
    bounds = Counter(floor.bound for floor in floors)
    steps = cell.all_steps
    return CellExplanation(
        shares=_shares([_parts(rows, cell.steps[number]) for number, rows in cell.requests.items()], near),
        decode_rows=fmean(step.rows for step in decoded) if decoded else None,
        decode_ms=median(step.ms for step in decoded) if decoded else None,
        floor_ms=1e3 * median(floor.seconds for floor in floors) if floors else None,
        bound=bounds.most_common(1)[0][0] if bounds else None,
        near_floor=near,
        empty_slots=_fraction(1 - slot_utilization(steps, cell.setting.max_batch_size)) if steps else 0.0,
        interference_ms=_interference(steps),
    )


def _floors(decoded: Sequence[DecodeStep], roofs: Roofs | None) -> list[Floor]:
    """Of every step, or none where that of one is not known."""
    if roofs is None or any(step.context is None for step in decoded):
        return []
    return [_floor(roofs, step.rows, step.context or 0) for step in decoded]


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a trial's time went to, in milliseconds."""

    decode: float
    prefill: float
    host: float
    held_back: float
    idle: float

    @property
    def all(self) -> float:
        return self.decode + self.prefill + self.host + self.held_back + self.idle


def _parts(requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> _Parts:
    """From the first scheduled arrival to the last token."""
    start = min(row.scheduled_at for row in requests)
    end = max((row.token_times[-1] for row in requests if row.token_times), default=start)
    ran = sorted((step for step in steps if start <= step.started_at < end), key=lambda step: step.started_at)
    gaps = _gaps(ran, start, end)
    held_back = _overlap(gaps, _union(_waiting(row, end) for row in requests))
    after = max(0.0, _end(ran[-1]) - end) * 1e3 if ran else 0.0  # what the host still did with the last token
    return _Parts(
        decode=sum(step.ms - _host_ms(step) for step in ran if _only_decodes(step)),
        prefill=sum(step.ms - _host_ms(step) for step in ran if not _only_decodes(step)),
        host=max(0.0, sum(map(_host_ms, ran)) - after),
        held_back=held_back * 1e3,
        idle=max(0.0, sum(stop - begin for begin, stop in gaps) - held_back) * 1e3,
    )


def _waiting(row: RequestRow, end: float) -> Span:
    """From when a request was due until its prefill began, if it did."""
    started = end if row.prefill_start is None else row.prefill_start
    return row.scheduled_at, max(row.scheduled_at, min(started, end))


def _gaps(ran: Sequence[StepRow], start: float, end: float) -> list[Span]:
    """When no step ran."""
    edges = [(start, start), *((step.started_at, _end(step)) for step in ran), (end, end)]
    return [(before[1], after[0]) for before, after in pairwise(edges) if after[0] > before[1]]


def _union(spans: Iterable[Span]) -> list[Span]:
    """The same moments in spans that do not meet, in order."""
    joined: list[Span] = []
    for begin, stop in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], stop))
        else:
            joined.append((begin, stop))
    return joined


def _overlap(some: Sequence[Span], others: Sequence[Span]) -> float:
    """How long both last at once; each in order and without overlaps of its own."""
    shared, i, j = 0.0, 0, 0
    while i < len(some) and j < len(others):
        shared += max(0.0, min(some[i][1], others[j][1]) - max(some[i][0], others[j][0]))
        if some[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
    return shared


def _shares(trials: Sequence[_Parts], near_floor: float | None) -> Shares:
    """Parts of 1; where no time passed, it passed idly. A floor that was not kept to counts as what the steps took."""
    whole = sum(parts.all for parts in trials)
    if not whole:
        return Shares(floor=None, over_floor=None, decode=0, prefill=0, host=0, held_back=0, idle=1)
    decode = _fraction(sum(parts.decode for parts in trials) / whole)
    floor = None if near_floor is None else decode * min(1.0, near_floor)
    return Shares(
        floor=floor,
        over_floor=None if floor is None else decode - floor,
        decode=decode,
        prefill=_fraction(sum(parts.prefill for parts in trials) / whole),
        host=_fraction(sum(parts.host for parts in trials) / whole),
        held_back=_fraction(sum(parts.held_back for parts in trials) / whole),
        idle=_fraction(sum(parts.idle for parts in trials) / whole),
    )


def _fraction(value: float) -> float:
    return min(1.0, max(0.0, value))


def _interference(steps: Sequence[StepRow]) -> float | None:
    """What prompts in the same step added to a decode row's token, in ms, over all decode rows."""
    rows = sum(step.decode_rows for step in steps)
    mixed = [step for step in steps if step.decode_rows and step.prefill_tokens]
    by_rows: dict[int, list[float]] = defaultdict(list)
    for step in steps:
        if _only_decodes(step):
            by_rows[step.decode_rows].append(step.ms)
    if not rows or (mixed and not by_rows):
        return None
    pure = {size: median(times) for size, times in by_rows.items()}
    added = (step.decode_rows * (step.ms - _nearest(pure, step.decode_rows)) for step in mixed)
    return sum(added) / rows


def _nearest(by_size: Mapping[int, float], size: int) -> float:
    return by_size[min(by_size, key=lambda other: (abs(other - size), other))]


# --- steps of all cells ------------------------------------------------------------------------------------------


def step_times(cells: Sequence[CellRows], costs: CostModel | None, limits: Limits | None) -> list[StepTime]:
    """How long a decode step took, by its number of rows."""
    by_rows: dict[int, list[DecodeStep]] = defaultdict(list)
    for cell in cells:
        for number, requests in cell.requests.items():
            for step in decode_steps(requests, cell.steps[number]):
                if step.settled:
                    by_rows[step.rows].append(step)
    roofs = _roofs(costs, limits)
    return [_step_time(rows, steps, roofs) for rows, steps in sorted(by_rows.items()) if len(steps) >= LEAST_STEPS]


def _step_time(rows: int, steps: Sequence[DecodeStep], roofs: Roofs | None) -> StepTime:
    ordered = sorted(step.ms for step in steps)
    contexts = [step.context for step in steps if step.context is not None]
    context = fmean(contexts) if contexts else 0.0
    floor = _floor(roofs, rows, context) if roofs and len(contexts) == len(steps) else None
    return StepTime(
        decode_rows=rows,
        steps=len(steps),
        context=context / rows,
        ms=median(ordered),
        quartiles=(percentile(ordered, 25), percentile(ordered, 75)),
        floor_ms=None if floor is None else floor.seconds * 1e3,
        memory_ms=None if floor is None else floor.memory_s * 1e3,
        arithmetic_ms=None if floor is None else floor.arithmetic_s * 1e3,
        bound=None if floor is None else floor.bound,
    )


# --- in words ----------------------------------------------------------------------------------------------------


def explanation(
    cells: Sequence[SweepCell],
    times: Sequence[StepTime],
    costs: CostModel | None,
    limits: Limits | None,
    knee: Knee | None,
) -> list[str]:
    """What follows from the numbers, the most important first; English, in a record's words."""
    crossing = _crossing(times, _roofs(costs, limits), knee)
    told = _told(cells, knee)
    sentences = [
        *(_growth(before, after) for before, after in _steps_up(cells, times, knee, crossing)),
        *_about_the_knee(cells, times, _roofs(costs, limits), knee, crossing),
        *(sentence for cell in told for sentence in _nearness(cell)),
        *(_where_time_went(cell) for cell in told),
        *_idle_windows(cells),
        *(sentence for cell in told for sentence in _losses(cell)),
    ]
    return sentences[:_MOST_SENTENCES]


def _told(cells: Sequence[SweepCell], knee: Knee | None) -> list[SweepCell]:
    """The cell of the knee, and one at batch 1, of the same policy if there is one, to compare with."""
    at_knee = [cell for cell in cells if knee is not None and cell.cell == knee.cell]
    ones = [cell for cell in cells if cell.max_batch_size == 1]
    same = [cell for cell in ones if at_knee and cell.policy == at_knee[0].policy]
    alone = (same or ones)[:1]
    return list({cell.cell: cell for cell in (*at_knee, *alone) if cell.explanation is not None}.values())


# --- from one size to the next


def _steps_up(
    cells: Sequence[SweepCell], times: Sequence[StepTime], knee: Knee | None, crossing: float | None
) -> list[tuple[StepTime, StepTime]]:
    """Neighbours among the batch sizes of the cells, or among powers of two; of many, those around the knee."""
    by_rows = {time.decode_rows: time for time in times}
    sizes = sorted({cell.max_batch_size for cell in cells} & by_rows.keys())
    if len(sizes) < 2:
        sizes = [rows for rows in sorted(by_rows) if rows & (rows - 1) == 0]
    middle = crossing or (max(knee.found_batches) if knee else 1)
    pairs = sorted(pairwise(sizes), key=lambda pair: abs(log2(pair[0] * pair[1]) / 2 - log2(max(middle, 1.0))))
    return [(by_rows[one], by_rows[other]) for one, other in sorted(pairs[:_MOST_PAIRS])]


def _growth(before: StepTime, after: StepTime) -> str:
    """From one size to a larger one: what a step took more, and what the roofline expects."""
    change = after.ms / before.ms - 1 if before.ms else 0.0
    values = {
        "a": before.decode_rows,
        "b": after.decode_rows,
        "times": f"{after.decode_rows / before.decode_rows:.3g}",
        "before": in_ms(before.ms),
        "after": in_ms(after.ms),
        "change": _change(change),
    }
    if not before.floor_ms or not after.floor_ms:
        return text("en", "finding.step_measured", **values)
    growth = after.floor_ms / before.floor_ms
    expected_ms, (low, high) = before.ms * growth, after.quartiles
    contradicted = not low <= expected_ms <= high and abs(after.ms - expected_ms) > _CONTRADICTS * expected_ms
    kind = "contradicts" if contradicted else _BOUNDS.get((before.bound, after.bound), "measured")
    over = {"over_a": in_ms(before.ms - before.floor_ms), "over_b": in_ms(after.ms - after.floor_ms)}
    return text("en", f"finding.step_{kind}", expected=_change(growth - 1), **values, **over)


# --- the roofline's knee and the found one


def _crossing(times: Sequence[StepTime], roofs: Roofs | None, knee: Knee | None) -> float | None:
    if knee is not None and knee.roofline_batch is not None:
        return knee.roofline_batch
    return roofline_batch(*roofs, fmean(time.context for time in times)) if roofs and times else None


def _about_the_knee(
    cells: Sequence[SweepCell],
    times: Sequence[StepTime],
    roofs: Roofs | None,
    knee: Knee | None,
    crossing: float | None,
) -> list[str]:
    if roofs is None or not times:
        return []
    if crossing is None:
        context = fmean(time.context for time in times)
        return [text("en", "finding.roofline_never", context=f"{context:.0f}")]
    batch = f"{crossing:.1f}"
    if knee is None:
        return [text("en", "finding.roofline_alone", batch=batch)]
    found = ", ".join(map(str, knee.found_batches))
    ran = {cell.cell: round(_rows_that_ran(cell)) for cell in cells}
    at_knee = [ran[number] for number in (knee.cell, *knee.tied) if number in ran]
    kind = _meeting(at_knee or knee.found_batches, max(ran.values()), crossing)
    if max(knee.found_batches) >= _ANYWHERE * min(knee.found_batches):
        kind = "anywhere"
    return [text("en", f"finding.roofline_{kind}", batch=batch, found=found)]


_ANYWHERE = 4  # times the smallest batch that ties for the knee: such a knee meets any roof


def _rows_that_ran(cell: SweepCell) -> float:
    """Rows of a usual decode step: a batch that arrivals never filled met no other roof than a smaller one."""
    why = cell.explanation
    return cell.max_batch_size if why is None or not why.decode_rows else why.decode_rows


def _meeting(found: Sequence[int], largest: int, crossing: float) -> str:
    """How the knee that was found lies to the roofline's: within a factor of 2 they agree."""
    if max(found) == largest and largest < crossing:
        return "open"  # nothing larger was measured
    if max(found) * 2 < crossing:
        return "later"
    return "earlier" if min(found) > crossing * 2 else "agrees"


# --- the floor, and the rest of the time


def _nearness(cell: SweepCell) -> list[str]:
    why = cell.explanation
    if why is None or why.near_floor is None or why.decode_ms is None or why.floor_ms is None:
        return []
    kind = "beyond" if why.near_floor > 1 else f"{why.bound}"
    values = {
        "cell": cell.label,
        "ms": in_ms(why.decode_ms),
        "floor": in_ms(why.floor_ms),
        "near": _share(why.near_floor),
    }
    return [text("en", f"finding.near_{kind}", **values)]


def _where_time_went(cell: SweepCell) -> str:
    assert cell.explanation is not None
    shares = cell.explanation.shares
    values = {
        "cell": cell.label,
        "prefill": _share(shares.prefill),
        "host": _share(shares.host),
        "held_back": _share(shares.held_back),
        "idle": _share(shares.idle),
    }
    if shares.floor is None or shares.over_floor is None:
        return text("en", "finding.time_measured", decode=_share(shares.decode), **values)
    return text("en", "finding.time", floor=_share(shares.floor), over=_share(shares.over_floor), **values)


def _idle_windows(cells: Sequence[SweepCell]) -> list[str]:
    """Batch sizes at which no window could matter, though one was asked for."""
    sizes: dict[int, list[SweepCell]] = defaultdict(list)
    for cell in cells:
        if cell.max_wait_ms is not None:
            sizes[cell.max_batch_size].append(cell)
    idle = [
        str(size)
        for size, same in sorted(sizes.items())
        if all(cell.window_idle for cell in same) and any(cell.max_wait_ms for cell in same)
    ]
    return [text("en", "finding.window_idle", sizes=", ".join(idle))] if idle else []


def _losses(cell: SweepCell) -> list[str]:
    """Slots that stayed empty, and decode rows that waited for prompts."""
    why, sentences = cell.explanation, []
    if why is None or why.decode_rows is None or not why.decode_ms:
        return []
    if why.empty_slots >= _LITTLE:
        values = {"empty": _share(why.empty_slots), "rows": f"{why.decode_rows:.1f}"}
        sentences.append(text("en", "finding.empty_slots", cell=cell.label, **values))
    if why.interference_ms is not None and why.interference_ms >= _LITTLE * why.decode_ms:
        values = {"added": in_ms(why.interference_ms), "ms": in_ms(why.decode_ms)}
        sentences.append(text("en", "finding.interference", cell=cell.label, **values))
    return sentences


# --- numbers in a sentence


def in_ms(value: float) -> str:
    """Milliseconds with the digits that mean something."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:.0f}"


def _share(value: float) -> str:
    return f"{value * 100:.0f} %"


def _change(value: float) -> str:
    return f"{value * 100:+.0f} %"

"""What experiment logs usually conclude, tested on this run: supported, refuted, cannot tell or not measured.

Each claim is a question of its own below, asked of every record; one that the run holds no measurement for names the
command that makes it. What decides is an interval, never a single number. Trials of a sweep are processes of their own,
and are compared within their rounds; the steps of one process are not repeats of it, and the sentence says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from knee.lab.judgement.explain import DecodeStep, decode_steps, in_ms
from knee.lab.kv_steps import StepPair, step_pairs
from knee.lab.messages import text
from knee.lab.metrics import by_round, effect
from knee.lab.records import BaselineMetrics, InspectMetrics, KvCacheMetrics, Record, RequestRow, StepRow
from knee.lab.spec import CellSetting
from knee.lab.statistics import Comparison, compare_paired, compare_unpaired, median_interval
from knee.lab.sweep_records import Claim, Effect, SweepCell, SweepMetrics

Outcome = Literal["supported", "refuted", "cannot_tell", "not_measured"]
Trial = tuple[list[RequestRow], list[StepRow]]
Points = Sequence[tuple[float, float]]  # context of a decode step, and its time in ms

_SAME = 0.05  # a change within this, whole interval, counts as none
_WIDE = 5.0  # times the shortest context: the longest one that says something about "any length"
_PARTS = 9  # that the steps of one process are dealt into, each with steps of every length
_LEAST_STEPS = 8  # of one trial, for a line through them
_NEAR = 9  # steps that stand for a context
_WINDOW = 10.0  # ms, the log's


@dataclass(frozen=True)
class _Case:
    """A record with its rows."""

    record: Record
    requests: Sequence[RequestRow]
    steps: Sequence[StepRow]

    @property
    def cells(self) -> list[SweepCell]:
        """Of a sweep, else none."""
        metrics = self.record.metrics
        return metrics.cells if isinstance(metrics, SweepMetrics) else []

    def trials(self) -> list[Trial]:
        """The rows of each trial that counts."""
        found: dict[tuple[int, int], Trial] = {
            (cell.cell, repeat.repeat): ([], []) for cell in self.cells for repeat in cell.repeats
        }
        for row in self.requests:
            if (row.cell, row.repeat) in found and not row.void:
                found[row.cell, row.repeat][0].append(row)
        for step in self.steps:
            if (step.cell, step.repeat) in found and not step.void:
                found[step.cell, step.repeat][1].append(step)
        return list(found.values())


def claims(record: Record, requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> list[Claim]:
    """Every claim, in a fixed order; none for a run without metrics."""
    case = _Case(record, requests, steps)
    return [] if record.metrics is None else [claim for question in _QUESTIONS for claim in question(case)]


def _claim(code: str, verdict: Outcome, effect: Effect | None, sentence: str, **values: object) -> Claim:
    """`values` are the statement's, which is the general one without any."""
    statement = text("en", f"claim.{code}_at" if values else f"claim.{code}", **values)
    return Claim(code=code, statement=statement, verdict=verdict, effect=effect, sentence=sentence)


def _not_measured(code: str, command: str) -> Claim:
    return _claim(code, "not_measured", None, text("en", "claim.not_measured", command=command))


# --- prefill and decode ------------------------------------------------------------------------------------------


def _prefill_costs_more(case: _Case) -> list[Claim]:
    code, metrics = "prefill_costs_more", case.record.metrics
    if isinstance(metrics, BaselineMetrics):
        return [_prefill_of_baseline(code, metrics)]
    found = _solo_costs(metrics) if isinstance(metrics, SweepMetrics) else []
    kind = "solo" if found else "steps"
    found = found or [pair for trial in case.trials() if (pair := _step_costs(*trial))]
    if not found:
        return [_not_measured(code, "knee baseline")]
    tokens, steps = ({number: pair[side] for number, pair in enumerate(found)} for side in (0, 1))
    compared = compare_paired(steps, tokens, higher_is_better=False)
    sentence = text(
        "en",
        f"claim.prefill_costs_more.{kind}",
        token=in_ms(median(tokens.values())),
        step=in_ms(median(steps.values())),
        change=_change(compared),
        n=compared.n,
    )
    return [_claim(code, _costs_more(compared), _effect(compared), sentence)]


def _prefill_of_baseline(code: str, metrics: BaselineMetrics) -> Claim:
    tokens = [ms / metrics.prompt_tokens for ms in metrics.prefill_runs_ms]
    if not tokens or not metrics.decode_step_ms:
        return _not_measured(code, "knee baseline --max-new-tokens 10")
    compared = compare_unpaired(metrics.decode_step_ms, tokens, higher_is_better=False)
    sentence = text(
        "en",
        "claim.prefill_costs_more.baseline",
        token=in_ms(median(tokens)),
        step=in_ms(median(metrics.decode_step_ms)),
        change=_change(compared),
        cold=in_ms(metrics.prefill_cold_ms / metrics.prompt_tokens),
    )
    return _claim(code, _costs_more(compared), _effect(compared), sentence)


def _costs_more(compared: Comparison) -> Outcome:
    outcomes: Mapping[str, Outcome] = {"worse": "supported", "better": "refuted", "cannot_tell": "cannot_tell"}
    return outcomes[compared.verdict]


def _solo_costs(metrics: SweepMetrics) -> list[tuple[float, float]]:
    """Of the request alone in each trial: ms a prompt token, and ms a decode step."""
    alone = [trial.solo for trial in metrics.trials if trial.solo is not None and not trial.void]
    return [(solo.ttft_ms / solo.prompt_tokens, solo.tpot_ms) for solo in alone if solo.ttft_ms and solo.tpot_ms]


def _step_costs(requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> tuple[float, float] | None:
    """Of the warm steps of a trial: ms a prompt token, where no decode ran beside it if there are such steps; and ms a
    decode step of one row."""
    warm = sorted((step for step in steps if step.prefill_tokens), key=lambda step: step.started_at)[1:]
    prefills = [step for step in warm if not step.decode_rows] or warm
    alone = [step.ms for step in decode_steps(requests, steps) if step.rows == 1]
    if not prefills or not alone:
        return None
    token, step = median(step.ms / step.prefill_tokens for step in prefills), median(alone)
    return (token, step) if token > 0 and step > 0 else None


def _cold_is_steady(case: _Case) -> list[Claim]:
    code, metrics = "cold_is_steady", case.record.metrics
    if isinstance(metrics, BaselineMetrics) and metrics.prefill_runs_ms:
        found = _one_against(metrics.prefill_cold_ms, metrics.prefill_runs_ms)
        values = {"cold": in_ms(metrics.prefill_cold_ms), "warm": in_ms(median(metrics.prefill_runs_ms))}
        sentence = text("en", "claim.cold_is_steady.baseline", change=_change(found), n=found.n, **values)
        return [_claim(code, _is_none(found), found, sentence)]
    if not isinstance(metrics, SweepMetrics) or not any(trial.warm_up for trial in metrics.trials):
        return [_not_measured(code, "knee baseline")]
    first, later = _first_and_later(metrics)
    if not first:
        return [_claim(code, "not_measured", None, text("en", "claim.no_same_shape", command="knee baseline"))]
    compared = compare_paired(later, first, higher_is_better=False)
    sentence = text(
        "en",
        "claim.cold_is_steady.sweep",
        cold=in_ms(median(first.values())),
        warm=in_ms(median(later.values())),
        change=_change(compared),
        n=compared.n,
    )
    return [_claim(code, _is_none(compared), _effect(compared), sentence)]


def _one_against(one: float, many: Sequence[float]) -> Effect:
    """A single value against the median of several: at the least and at the most, against any of them."""
    found = median_interval(many)
    if found.low is None or found.high is None or min(many) <= 0:
        change = one / found.value - 1 if found.value > 0 else None
        return Effect(verdict="cannot_tell", change=change, low=None, high=None, n=found.n)
    low, high = one / max(found.high, *many) - 1, one / min(found.low, *many) - 1
    return _signed(one / found.value - 1, low, high, found.n)


def _first_and_later(metrics: SweepMetrics) -> tuple[dict[int, float], dict[int, float]]:
    """The first step of each warm-up, and the median of the later ones that ran as many tokens and rows."""
    first, later = {}, {}
    for number, trial in enumerate(metrics.trials):
        if trial.void or not trial.warm_up:
            continue
        cold, *rest = trial.warm_up
        shape = (cold.prefill_tokens, cold.decode_rows)
        if same := [step.ms for step in rest if (step.prefill_tokens, step.decode_rows) == shape]:
            first[number], later[number] = cold.ms, median(same)
    return first, later


# --- the length of the KV cache ----------------------------------------------------------------------------------


def _decode_independent_of_kv(case: _Case) -> list[Claim]:
    code = "decode_independent_of_kv"
    claim = _over_trials(code, case) if case.cells else _over_one_process(code, _points(case.record))
    return [claim or _not_measured(code, "knee kvcache")]


def _points(record: Record) -> Points:
    """Context and time of every decode step of a single run, with the KV cache on."""
    match record.metrics:
        case KvCacheMetrics(cells=cells):
            on = [cell for cell in cells if cell.kv_cache == "on"]
            return [(cell.prompt_length + n, ms) for cell in on for n, ms in enumerate(cell.token_ms) if n > 0]
        case InspectMetrics(steps=steps):
            return [(step.kv_len, step.ms) for step in steps]
        case BaselineMetrics() as metrics if record.kv_cache == "on":
            return [(metrics.prompt_tokens + n, ms) for n, ms in enumerate(metrics.decode_step_ms, start=1)]
    return []


def _over_one_process(code: str, points: Points) -> Claim | None:
    """The steps are dealt into parts like cards, each of which spans all contexts: an estimate from every part."""
    if len(points) < 3 * _PARTS:
        return None
    low, high = min(context for context, _ in points), max(context for context, _ in points)
    changes = [_change_over(points[part::_PARTS], low, high) for part in range(_PARTS)]
    found = _median_effect([change for change in changes if change is not None])
    if found is None:
        return None
    values = {"low": f"{low:.0f}", "high": f"{high:.0f}", "steps": len(points), "change": _change(found)}
    verdict = _over_a_range(_is_none(found), low, high)
    return _claim(code, verdict, found, text("en", "claim.decode_independent_of_kv.single", **values))


def _over_trials(code: str, case: _Case) -> Claim | None:
    """An estimate from every trial, and of the sizes of a step that one which speaks against the claim the most."""
    changes: dict[int, list[float]] = defaultdict(list)
    contexts: dict[int, list[float]] = defaultdict(list)
    for trial in case.trials():
        for rows, points in _by_rows(decode_steps(*trial)).items():
            low, high = min(context for context, _ in points), max(context for context, _ in points)
            if len(points) >= _LEAST_STEPS and (change := _change_over(points, low, high)) is not None:
                changes[rows].append(change)
                contexts[rows] += [low, high]
    found = {rows: one for rows, values in changes.items() if (one := _median_effect(values))}
    if not found:
        return None
    sure = {rows: one for rows, one in found.items() if one.low is not None} or found
    rows = max(sure, key=lambda rows: (_AGAINST[_is_none(sure[rows])], sure[rows].n, abs(sure[rows].change or 0.0)))
    sentence = text(
        "en",
        "claim.decode_independent_of_kv.sweep",
        low=f"{min(contexts[rows]):.0f}",
        high=f"{max(contexts[rows]):.0f}",
        rows=rows,
        change=_change(found[rows]),
        n=found[rows].n,
    )
    verdict = _over_a_range(_is_none(found[rows]), min(contexts[rows]), max(contexts[rows]))
    return _claim(code, verdict, found[rows], sentence)


def _over_a_range(verdict: Outcome, low: float, high: float) -> Outcome:
    """That nothing changes is not shown by contexts that hardly differ."""
    return "cannot_tell" if verdict == "supported" and high < _WIDE * low else verdict


_AGAINST: Mapping[Outcome, int] = {"supported": 0, "cannot_tell": 1, "refuted": 2}


def _by_rows(steps: Sequence[DecodeStep]) -> Mapping[int, list[tuple[float, float]]]:
    """Context of a row and time of the step, of settled steps by their number of rows."""
    points: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for step in steps:
        if step.settled and step.context is not None:
            points[step.rows].append((step.context / step.rows, step.ms))
    return points


def _change_over(points: Points, low: float, high: float) -> float | None:
    """Relative change of a least-squares line from one context to another; None where the points give no line."""
    centre, level = fmean(context for context, _ in points), fmean(ms for _, ms in points)
    spread = sum((context - centre) ** 2 for context, _ in points)
    if not spread or low == high:
        return None
    slope = sum((context - centre) * (ms - level) for context, ms in points) / spread
    start = level + slope * (low - centre)
    return slope * (high - low) / start if start > 0 else None


def _median_effect(changes: Sequence[float]) -> Effect | None:
    if not changes:
        return None
    found = median_interval(changes)
    if found.low is None or found.high is None:
        return Effect(verdict="cannot_tell", change=found.value, low=None, high=None, n=found.n)
    return _signed(found.value, found.low, found.high, found.n)


def _kv_cache_pays_from(case: _Case) -> list[Claim]:
    code, metrics = "kv_cache_pays_from", case.record.metrics
    pairs = step_pairs(metrics.cells) if isinstance(metrics, KvCacheMetrics) else []
    if not isinstance(metrics, KvCacheMetrics) or not pairs:
        return [_not_measured(code, "knee kvcache")]
    pays, far = metrics.pays_from_tokens, pairs[-_NEAR:]
    near = far if pays is None else [pair for pair in pairs if pair.context >= pays][:_NEAR]
    found, last = (_on_against_off(some) for some in (near, far))
    sentence = text(
        "en",
        "claim.kv_cache_pays_from.pairs",
        near=near[0].context,
        on=in_ms(median(pair.on_ms for pair in near)),
        off=in_ms(median(pair.off_ms for pair in near)),
        change=_change(found),
        far=far[-1].context,
        far_on=in_ms(median(pair.on_ms for pair in far)),
        far_off=in_ms(median(pair.off_ms for pair in far)),
    )
    verdict: Outcome = "cannot_tell"
    if found.verdict == "worse":
        verdict = "refuted"
    elif found.verdict == "better" and last.verdict != "worse" and pays is not None:
        verdict = "supported"
    return [_claim(code, verdict, _effect(found), sentence, **({} if pays is None else {"tokens": pays}))]


def _on_against_off(pairs: Sequence[StepPair]) -> Comparison:
    off, on = (dict(enumerate(times)) for times in ([pair.off_ms for pair in pairs], [pair.on_ms for pair in pairs]))
    return compare_paired(off, on, higher_is_better=False)


# --- batch sizes -------------------------------------------------------------------------------------------------


def _by_policy(cells: Sequence[SweepCell]) -> dict[str, dict[int, SweepCell]]:
    """For each policy its batch sizes in order, each with the shortest window."""
    found: dict[str, dict[int, SweepCell]] = defaultdict(dict)
    for cell in sorted(cells, key=lambda cell: (cell.max_batch_size, cell.max_wait_ms or 0.0)):
        found[cell.policy].setdefault(cell.max_batch_size, cell)
    return found


def _batch8_faster_than_4(case: _Case) -> list[Claim]:
    code, command = "batch8_faster_than_4", "knee sweep --batch-sizes 4,8"
    found = []
    for policy, sizes in _by_policy(case.cells).items():
        if 4 in sizes and 8 in sizes and sizes[4].max_wait_ms == sizes[8].max_wait_ms:
            latency, service = (effect(sizes[4], sizes[8], name) for name in ("e2el_ms", "service_ms"))
            opposite = {latency.verdict, service.verdict} == {"better", "worse"}
            sentence = text(
                "en",
                f"claim.batch8_faster_than_4.{'opposite' if opposite else 'same'}",
                a=_label(sizes[4]),
                b=_label(sizes[8]),
                latency=_change(latency),
                service=_change(service),
                n=latency.n,
            )
            found.append(_decided(code, _faster(latency), latency, sentence, command, policy=policy))
    return found or [_not_measured(code, command)]


def _faster(latency: Effect) -> Outcome:
    outcomes: Mapping[str, Outcome] = {"better": "supported", "worse": "refuted", "cannot_tell": "cannot_tell"}
    return outcomes[latency.verdict]


def _batching_trades_latency(case: _Case) -> list[Claim]:
    code, command = "batching_trades_latency", "knee sweep --batch-sizes 1,8"
    by_policy = _by_policy(case.cells)
    single = by_policy.get("single", {}).get(1)
    found = []
    for policy, sizes in by_policy.items():
        one, largest = sizes.get(1, single), sizes[max(sizes)]
        if one is None or largest.max_batch_size == 1:
            continue
        throughput, latency, service = (effect(one, largest, m) for m in ("output_throughput", "e2el_ms", "service_ms"))
        values = {"throughput": _change(throughput), "latency": _change(latency), "service": _change(service)}
        labels = {"a": _label(one), "b": _label(largest)}
        sentence = text("en", "claim.batching_trades_latency.cells", n=latency.n, **labels, **values)
        bought_nothing = throughput.verdict == "worse" and latency.verdict != "better"
        decides = throughput if bought_nothing else latency
        found.append(_decided(code, _trade(throughput, latency), decides, sentence, command, policy=policy))
    return found or [_not_measured(code, command)]


def _trade(throughput: Effect, latency: Effect) -> Outcome:
    """A trade gains the one and pays with the other; there is none where nothing is paid, or nothing is gained."""
    if latency.verdict == "better" or throughput.verdict == "worse":
        return "refuted"
    return "supported" if (throughput.verdict, latency.verdict) == ("better", "worse") else "cannot_tell"


def _throughput_grows_with_batch(case: _Case) -> list[Claim]:
    code, command = "throughput_grows_with_batch", "knee sweep --batch-sizes 1,4,8"
    found = [
        _growth(code, policy, list(sizes.values()), command)
        for policy, sizes in _by_policy(case.cells).items()
        if len(sizes) > 1
    ]
    return found or [_not_measured(code, command)]


def _growth(code: str, policy: str, cells: Sequence[SweepCell], command: str) -> Claim:
    """Every size against the next smaller one: what speaks against the claim decides, or else the whole range."""
    pairs = list(pairwise(cells))
    steps = [effect(*pair, "output_throughput") for pair in pairs]
    lost = [number for number, step in enumerate(steps) if step.verdict == "worse"]
    unsure = [number for number, step in enumerate(steps) if step.verdict == "cannot_tell"]
    verdict: Outcome = "refuted" if lost else "cannot_tell" if unsure else "supported"
    against = next(iter(lost or unsure), None)
    small, large = (cells[0], cells[-1]) if against is None else pairs[against]
    decides = effect(small, large, "output_throughput")
    sentence = text(
        "en",
        f"claim.throughput_grows_with_batch.{verdict}",
        a=small.max_batch_size,
        b=large.max_batch_size,
        change=_change(decides),
        n=decides.n,
        steps=", ".join(
            f"{one.max_batch_size}→{other.max_batch_size} {_percent(step.change)}"
            for (one, other), step in zip(pairs, steps, strict=True)
        ),
    )
    return _decided(code, verdict, decides, sentence, command, policy=policy)


# --- wait windows ------------------------------------------------------------------------------------------------


def _windows(case: _Case) -> list[Claim]:
    """The longer window against the shorter one at each batch size, asked both ways."""
    by_size: dict[int, dict[float, SweepCell]] = defaultdict(dict)
    for cell in case.cells:
        if cell.max_wait_ms is not None:
            by_size[cell.max_batch_size][cell.max_wait_ms] = cell
    found, idle = list[Claim](), defaultdict[tuple[float, float], list[int]](list)
    for size, windows in sorted(by_size.items()):
        short = min(windows)
        long = _WINDOW if _WINDOW in windows and short < _WINDOW else max(windows)
        if short == long:
            continue
        if windows[short].window_idle and windows[long].window_idle:
            idle[short, long].append(size)
        else:
            found += _window(size, windows[short], windows[long])
    found += [claim for pair, sizes in idle.items() for claim in _idle_windows(*pair, sizes)]
    codes, command = ("window_helps", "window_hurts"), "knee sweep --policies dynamic --wait-ms 0,10"
    return found or [_not_measured(code, command) for code in codes]


def _idle_windows(short: float, long: float, sizes: Sequence[int]) -> list[Claim]:
    """Of all batch sizes at once at which there was nothing to wait for."""
    pair: dict[str, object] = {"window": f"{long:g}", "without": f"{short:g}", "size": ", ".join(map(str, sizes))}
    sentence = text("en", "claim.window_idle", **pair)
    return [_claim(code, "refuted", None, sentence, **pair) for code in ("window_helps", "window_hurts")]


def _window(size: int, short: SweepCell, long: SweepCell) -> list[Claim]:
    window, without = f"{long.max_wait_ms:g}", f"{short.max_wait_ms:g}"
    pair: dict[str, object] = {"window": window, "size": size, "without": without}
    latency, throughput = effect(short, long, "e2el_ms"), effect(short, long, "output_throughput")
    sentence = text(
        "en",
        "claim.window_cells",
        a=_label(short),
        b=_label(long),
        latency=_change(latency),
        throughput=_change(throughput),
        n=latency.n,
    )
    helps = _faster(latency)
    opposite: Mapping[Outcome, Outcome] = {"supported": "refuted", "refuted": "supported"}
    command = f"knee sweep --policies dynamic --wait-ms {without},{window}"
    return [
        _decided("window_helps", helps, latency, sentence, command, **pair),
        _decided("window_hurts", opposite.get(helps, helps), latency, sentence, command, **pair),
    ]


# --- what is counted ---------------------------------------------------------------------------------------------


def _padding_free(case: _Case) -> list[Claim]:
    code, metrics = "padding_free", case.record.metrics
    if not isinstance(metrics, SweepMetrics) or len(metrics.cells) < 2:
        return [_not_measured(code, "knee sweep --batch-sizes 1,8")]
    values = {"cells": len(metrics.cells), "requests": case.record.workload.requests}
    if not metrics.same_tokens:
        return [_claim(code, "refuted", None, text("en", "claim.padding_free.differ", **values))]
    tokens = ", ".join(str(count) for count in sorted({cell.output_tokens for cell in metrics.cells}))
    return [_claim(code, "supported", None, text("en", "claim.padding_free.same", tokens=tokens, **values))]


def _latency_is_service(case: _Case) -> list[Claim]:
    """In the cell where the two differ the most: if they agree there, they agree everywhere."""
    code, command = "latency_is_service", "knee sweep"
    ratios = {
        number: cell.e2el_ms.mean / cell.service_ms.mean
        for number, cell in enumerate(case.cells)
        if cell.e2el_ms.mean is not None and cell.service_ms.mean
    }
    if not ratios:
        return [_not_measured(code, command)]
    cell = case.cells[max(ratios, key=lambda number: ratios[number])]
    compared = compare_paired(by_round(cell, "service_ms"), by_round(cell, "e2el_ms"), higher_is_better=False)
    sentence = text(
        "en",
        "claim.latency_is_service.cell",
        cell=_label(cell),
        latency=in_ms(cell.e2el_ms.mean or 0.0),
        service=in_ms(cell.service_ms.mean or 0.0),
        change=_change(compared),
        n=compared.n,
    )
    return [_decided(code, _is_none(compared), _effect(compared), sentence, command)]


def _gpu_gains_more(case: _Case) -> list[Claim]:
    device = case.record.model.device
    sentence = text("en", f"claim.gpu_gains_more.{'gpu' if device == 'cuda' else 'cpu'}", device=device)
    return [_claim("gpu_gains_more", "not_measured", None, sentence)]


_QUESTIONS: Sequence[Callable[[_Case], list[Claim]]] = (
    _latency_is_service,
    _batching_trades_latency,
    _throughput_grows_with_batch,
    _batch8_faster_than_4,
    _windows,
    _prefill_costs_more,
    _cold_is_steady,
    _decode_independent_of_kv,
    _kv_cache_pays_from,
    _padding_free,
    _gpu_gains_more,
)


# --- from effects to verdicts and words --------------------------------------------------------------------------


def _effect(compared: Comparison) -> Effect:
    return Effect(**asdict(compared))


def _signed(change: float, low: float, high: float, n: int) -> Effect:
    """An effect on a time, of which less is better."""
    verdict: Literal["better", "worse", "cannot_tell"] = "worse" if low > 0 else "better" if high < 0 else "cannot_tell"
    return Effect(verdict=verdict, change=change, low=low, high=high, n=n)


def _is_none(found: Effect | Comparison) -> Outcome:
    """Whether a change is as good as none: the whole interval says it, or the whole interval denies it."""
    if found.low is None or found.high is None:
        return "cannot_tell"
    if found.low > _SAME or found.high < -_SAME:
        return "refuted"
    return "supported" if found.low >= -_SAME and found.high <= _SAME else "cannot_tell"


def _decided(code: str, verdict: Outcome, found: Effect, sentence: str, command: str, **values: object) -> Claim:
    """A claim about cells; not measured where an old record has kept no values of its repeats."""
    if not found.n or found.change is None:
        return _claim(code, "not_measured", None, text("en", "claim.no_values", command=command), **values)
    return _claim(code, verdict, found, sentence, **values)


def _label(cell: SweepCell) -> str:
    setting = CellSetting(policy=cell.policy, max_batch_size=cell.max_batch_size, max_wait_ms=cell.max_wait_ms)
    return cell.label or str(setting)


def _change(found: Effect | Comparison) -> str:
    """A change with its interval, with as many digits as suit the largest of them."""
    if found.change is None or found.low is None or found.high is None:
        return _percent(found.change)
    places = _places(found.change, found.low, found.high)
    return f"{found.change * 100:+.{places}f} % [{found.low * 100:+.{places}f}, {found.high * 100:+.{places}f}]"


def _percent(change: float | None) -> str:
    return "—" if change is None else f"{change * 100:+.{_places(change)}f} %"


def _places(*changes: float) -> int:
    return 0 if max(map(abs, changes)) >= 0.0995 else 1

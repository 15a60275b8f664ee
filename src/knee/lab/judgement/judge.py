"""The judgement of a run: raw rows and their circumstances in, the finished record out.

Reads as the list of questions: what did each cell do, did all do the same work, why did it take so long, where is the
knee, what should one run, what about the numbers is doubtful, and what of the usual claims holds here. Pure, and seeded
where it draws: the same files give the same record, byte for byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from knee.lab.judgement.claims import claims
from knee.lab.judgement.doubts import doubts
from knee.lab.judgement.explain import explain_cell, explanation, step_times
from knee.lab.judgement.knee_point import find_knee
from knee.lab.judgement.measured import CellRows, in_order
from knee.lab.judgement.recommend import Candidate, recommend
from knee.lab.metrics import gpu_of, joules_per_token, requests_that_differ, summarize_cell, tradeoff
from knee.lab.records import Record, RequestRow, StepRow
from knee.lab.slo import Slo
from knee.lab.spec import RunSpec
from knee.lab.sweep_records import Overhead, Solo, StepTime, SweepCell, SweepMetrics, TrialRow


def judge(spec: RunSpec, requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> Record:
    """The record of a run, as far as it got. Without a whole trial it has no metrics."""
    record = spec.draft.model_copy(update={"status": spec.status})
    if spec.observed is not None:
        record = _observed(record, spec)
    elif spec.trials:
        record = _swept(record, spec, requests, steps)
    if record.metrics is None:
        return record
    return record.model_copy(update={"claims": claims(record, requests, steps)})


def _observed(record: Record, spec: RunSpec) -> Record:
    return record.model_copy(
        update={
            "metrics": spec.observed,
            "warnings": [*record.warnings, *spec.observed_warnings],
            "notes": [*record.notes, *spec.observed_notes],
        }
    )


def _swept(record: Record, spec: RunSpec, requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> Record:
    rows = in_order(spec, requests, steps)
    cells = [_cell(one, spec) for one in rows]
    solo, differing = solo_of(spec.trials), requests_that_differ(row for one in rows for row in one.all_requests)
    times = step_times(rows, spec.costs, spec.limits)
    found = find_knee(cells, spec.costs, spec.limits, times)
    candidates = [Candidate(one, cell) for one, cell in zip(rows, cells, strict=True)]
    metrics = SweepMetrics(
        cells=cells,
        tradeoff=tradeoff(cells) if cells else [],
        same_tokens=not differing,
        findings=explanation(cells, times, spec.costs, spec.limits, found),
        knee=found,
        recommendations=recommend(candidates, record, solo, spec.slo) if cells else None,
        step_times=times,
        limits=spec.limits,
        costs=spec.costs,
        solo=solo,
        overhead=_overhead(spec.trials, times),
        left_out=spec.left_out,
        trials=spec.trials,
    )
    found_doubts = doubts(spec, rows, cells, differing)
    codes = {one.code for one in found_doubts}
    earlier = [one for one in record.warnings if one.code not in codes]  # what a look at the start said less well
    unseen = [sentence for cell in cells if cell.gpu is not None for sentence in cell.gpu.missing]
    notes = list(dict.fromkeys([*record.notes, *unseen]))
    return record.model_copy(update={"metrics": metrics, "warnings": [*found_doubts, *earlier], "notes": notes})


def _cell(rows: CellRows, spec: RunSpec) -> SweepCell:
    found = summarize_cell(rows, Slo(spec.slo) if spec.slo else None, spec.seed)
    trials = [one for one in spec.trials if one.cell == rows.number and one.repeat in rows.requests and not one.void]
    return found.model_copy(
        update={
            "explanation": explain_cell(rows, spec.costs, spec.limits),
            "gpu": gpu_of(trials),
            "intervals": found.intervals | joules_per_token(trials, spec.seed),
        }
    )


def solo_of(trials: Sequence[TrialRow]) -> Solo | None:
    """One request alone: the median over all trials, each of which ran it once."""
    solos = [trial.solo for trial in trials if trial.solo is not None and not trial.void]
    if not solos:
        return None
    paces = [solo.tpot_ms for solo in solos if solo.tpot_ms is not None]
    return Solo(
        prompt_tokens=solos[0].prompt_tokens,
        tokens=solos[0].tokens,
        ttft_ms=median(solo.ttft_ms for solo in solos),
        tpot_ms=median(paces) if paces else None,
        e2el_ms=median(solo.e2el_ms for solo in solos),
    )


def _overhead(trials: Sequence[TrialRow], times: Sequence[StepTime]) -> Overhead | None:
    costs = [trial.trace_us for trial in trials if trial.trace_us is not None]
    shortest = min((time.ms for time in times), default=0.0)
    if not costs or not shortest:
        return None
    return Overhead(us_per_step=median(costs), share=median(costs) / 1e3 / shortest, step_ms=shortest)

"""Two runs against each other: did they do the same work, what of it became better or worse, what else is different.

Pure: two records in, a `RunComparison` out. What must be equal (model, workload, lengths, KV cache, tokens) is checked
first, because times of different work say nothing about anything else. Everything that may differ, and is then perhaps
the reason, is listed with both values.

Repeats of a sweep ran in processes of their own, so a sweep's cells are compared without pairs (Welch). The three
smaller experiments measured within one process: their decode steps are compared step by step, since step k has the same
context in both runs. The luck of the process (where its memory lay) is in none of their intervals, so a verdict stands
only where the whole interval is beyond 5 %; `one_process` says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, Literal, Protocol

from knee.errors import UserError
from knee.lab.records import BaselineMetrics, InspectMetrics, KvCacheMetrics, Record, Warning_
from knee.lab.schema import Json, Model, Text
from knee.lab.statistics import Comparison, compare_paired, compare_unpaired, median_interval
from knee.lab.sweep_records import COMPARED, Effect, Interval, SweepCell, SweepMetrics

ALPHA = 0.05
PROCESS_LUCK = 0.05  # what a process of its own may add or take, beside the noise between its steps
TOKENS = "tokens"

# Options that say where a run goes or how it is shown, and those whose content the workload's hash covers.
_ELSEWHERE = ("out", "lang", "json", "name", "resume")
_IN_THE_WORKLOAD = ("prompt", "prompt_ids", "prompts_file", "requests", "arrival", "max_new_tokens")


class Difference(Model):
    """Something that is not the same in both records, by its place in them; null where one has nothing there."""

    key: str
    a: Json
    b: Json


class Change(Model):
    """One metric, B against A. `cell` is null where a run has no cells.

    `a` and `b` are medians; they have an interval where what they were taken over is repeats, and there are enough.
    `effect` has the change of the geometric mean, and its interval at `confidence`, which Holm's procedure chose.
    `within` says whether B's median lies in A's interval; of two equal runs it does so five times in six.
    """

    cell: Text | None
    metric: str
    a: Interval
    b: Interval
    within: bool | None
    effect: Effect
    confidence: float | None


class RunComparison(Model):
    """B against A. `tokens` says whether they gave the same tokens, "unknown" where there are none to compare.

    `unequal` is what had to be equal and is not, and was compared anyway; `differences` is what else is not the same.
    `unmatched` has cells that one run has alone, `warnings` what one run alone was warned of: A's first, then B's.
    """

    kind: str
    tokens: Literal["same", "differ", "unknown"]
    tokens_differ_in: list[Text]
    unequal: list[Difference]
    unmatched: tuple[list[Text], list[Text]]
    changes: list[Change]
    one_process: bool
    differences: list[Difference]
    warnings: tuple[list[Warning_], list[Warning_]]

    def count(self, verdict: str) -> int:
        """Metrics with this verdict."""
        return sum(change.effect.verdict == verdict for change in self.changes)


def compare(a: Record, b: Record, anyway: bool = False) -> RunComparison:
    """B against A, metric by metric.

    All verdicts together have one error: two runs that differ in nothing but luck are called different in any metric
    by at most 5 % of calls (`holm`). Raises `UserError` for a run without metrics, and, unless `anyway`, for runs
    that did not do the same work; it names the keys that differ.
    """
    parts = _parts(a, "the first run"), _parts(b, "the second run")
    differing = _tokens_differ_in(*parts)
    unequal = [*_unequal(a, b), *([Difference(key=TOKENS, a=None, b=None)] if differing else [])]
    if unequal and not anyway:
        raise UserError(
            f"these runs did not do the same work ({', '.join(one.key for one in unequal)} differ): compare runs of "
            "one workload on one model, or add --anyway"
        )
    changes = _changes(*parts, goodput=a.options.get("slo") == b.options.get("slo"))
    return RunComparison(
        kind=a.kind,
        tokens="differ" if differing else "same" if any(_matched(*parts)) else "unknown",
        tokens_differ_in=differing,
        unequal=unequal,
        unmatched=(_alone(*parts), _alone(*parts[::-1])),
        changes=[_doubted(change) if a.kind != "sweep" else change for change in changes],
        one_process=a.kind != "sweep",
        differences=_differences(a, b),
        warnings=(_warnings_alone(a, b), _warnings_alone(b, a)),
    )


# --- what is compared --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Values:
    """A metric as a run measured it.

    `repeats` have no order that matters, `steps` are keyed by their number and compared step by step, and one value
    alone is a single repeat. `centre` is the median, with its interval where there is one.
    """

    centre: Interval
    higher_is_better: bool
    repeats: Sequence[float] = ()
    steps: Mapping[int, float] | None = None

    def test(self, other: Values) -> Test:
        """The other against this one, at a confidence that is still to be chosen."""
        if self.steps is not None and other.steps is not None:
            return partial(compare_paired, self.steps, other.steps, higher_is_better=self.higher_is_better)
        return partial(compare_unpaired, self.repeats, other.repeats, higher_is_better=self.higher_is_better)


@dataclass(frozen=True)
class Part:
    """A cell of a run, or all of a run that has none: its metrics, and what tells its tokens from others."""

    metrics: Mapping[str, Values]
    tokens: object


Parts = Mapping[str | None, Part]
"""By the cell's label; the only key is None where there are no cells."""


def _parts(record: Record, which: str) -> Parts:
    match record.metrics:
        case BaselineMetrics() as metrics:
            return {None: _baseline(metrics)}
        case InspectMetrics() as metrics:
            return {None: _inspect(metrics)}
        case KvCacheMetrics() as metrics:
            return {
                f"{cell.prompt_length} / {cell.kv_cache}": Part(
                    {"decode_step_ms": _steps(cell.token_ms[1:])} if cell.token_ms[1:] else {}, cell.token_ids_sha256
                )
                for cell in metrics.cells
            }
        case SweepMetrics() as metrics:
            return {_label(cell): Part(dict(_of_cell(cell)), cell.tokens_sha256) for cell in metrics.cells}
    raise UserError(f"{which} ({record.name}) has no metrics: it ended before there were any")


def _baseline(metrics: BaselineMetrics) -> Part:
    found = {
        "prefill_ms": _repeats(metrics.prefill_runs_ms),
        "prefill_cold_ms": _repeats([metrics.prefill_cold_ms]),
        "decode_step_ms": _steps(metrics.decode_step_ms),
    }
    return Part({name: values for name, values in found.items() if values.centre.n}, metrics.token_ids)


def _inspect(metrics: InspectMetrics) -> Part:
    off = metrics.kv_cache_off
    found = {
        "decode_step_ms": _steps([step.ms for step in metrics.steps]),
        "decode_step_off_ms": _steps([step.ms for step in off.steps]),
    }
    tokens = [[one.prefill.token_id, *(step.token_id for step in one.steps)] for one in (metrics, off)]
    return Part({name: values for name, values in found.items() if values.centre.n}, tokens)


def _of_cell(cell: SweepCell) -> Iterator[tuple[str, Values]]:
    for name, higher_is_better in COMPARED.items():
        values = [value for repeat in cell.repeats if (value := repeat.values.get(name)) is not None]
        if values:
            centre = cell.intervals.get(name) or _centre(values)
            yield name, Values(centre, higher_is_better, repeats=values)


def _label(cell: SweepCell) -> str:
    window = "" if cell.max_wait_ms is None else f" / {cell.max_wait_ms:g} ms"
    return f"{cell.policy} ({cell.max_batch_size}{window})"


def _repeats(times: Sequence[float]) -> Values:
    centre = Interval(**asdict(median_interval(times))) if times else _centre(times)
    return Values(centre, higher_is_better=False, repeats=times)


def _steps(times: Sequence[float]) -> Values:
    return Values(_centre(times), higher_is_better=False, steps=dict(enumerate(times)))


def _centre(values: Sequence[float]) -> Interval:
    return Interval(value=median(values) if values else 0.0, low=None, high=None, n=len(values))


def _matched(a: Parts, b: Parts) -> Iterator[tuple[str | None, Part]]:
    return ((cell, part) for cell, part in a.items() if cell in b)


def _alone(a: Parts, b: Parts) -> list[str]:
    return [cell for cell in a if cell is not None and cell not in b]


def _tokens_differ_in(a: Parts, b: Parts) -> list[str]:
    """Cells in both runs whose tokens are not the same; "" where there are no cells."""
    return [cell or "" for cell, part in _matched(a, b) if part.tokens != b[cell].tokens]


# --- verdicts ----------------------------------------------------------------------------------------------------


class Test(Protocol):
    """A comparison whose confidence is still to be chosen."""

    def __call__(self, *, confidence: float) -> Comparison:
        """Compare at this confidence."""


def _changes(a: Parts, b: Parts, goodput: bool) -> list[Change]:
    """Every metric that both have; goodput only where it counts the same limits."""
    pairs = [
        (cell, name, values, b[cell].metrics[name])
        for cell, part in _matched(a, b)
        for name, values in part.metrics.items()
        if name in b[cell].metrics and (goodput or name != "goodput")
    ]
    judged = holm([one.test(other) for _, _, one, other in pairs])
    return [
        Change(
            cell=cell,
            metric=name,
            a=one.centre,
            b=other.centre,
            within=_within(other.centre.value, one.centre),
            effect=effect,
            confidence=confidence,
        )
        for (cell, name, one, other), (effect, confidence) in zip(pairs, judged, strict=True)
    ]


def _doubted(change: Change) -> Change:
    """A verdict from within one process a run: it stands only if the luck of a process cannot be all of it."""
    effect = change.effect
    if effect.low is None or effect.high is None or effect.low > PROCESS_LUCK or effect.high < -PROCESS_LUCK:
        return change
    return change.model_copy(update={"effect": effect.model_copy(update={"verdict": "cannot_tell"})})


def _within(value: float, interval: Interval) -> bool | None:
    if interval.low is None or interval.high is None:
        return None
    return interval.low <= value <= interval.high


def holm(tests: Sequence[Test], alpha: float = ALPHA) -> list[tuple[Effect, float | None]]:
    """A verdict for each test, with the confidence of its interval if it has one; together they err by `alpha` at most.

    Holm's step-down procedure (Scand. J. Statist. 6, 1979), said in confidence levels instead of p-values: a p-value
    is below α/m exactly where the interval at confidence 1 - α/m excludes zero. With m tests open, each is asked at 1 -
    α/m; those that tell a difference are settled, and the rest are asked again at the level for as many as are left,
    until nothing more is told. It holds however the tests depend on each other. Tests that have no interval, because
    there are too few values, can tell nothing and do not count.
    """
    found = [_settled(test, 1 - alpha / len(tests)) for test in tests]
    open_ = [number for number, (effect, _) in enumerate(found) if effect.low is not None]
    asked = len(tests)
    while open_:
        if len(open_) < asked:
            asked = len(open_)
            for number in open_:
                found[number] = _settled(tests[number], 1 - alpha / asked)
        left = [number for number in open_ if found[number][0].verdict == "cannot_tell"]
        if len(left) == len(open_):
            break
        open_ = left
    return found


def _settled(test: Test, confidence: float) -> tuple[Effect, float | None]:
    one = test(confidence=confidence)
    return Effect(**asdict(one)), None if one.low is None else confidence


# --- what must be equal, and what else differs -------------------------------------------------------------------


def _unequal(a: Record, b: Record) -> list[Difference]:
    return _differing(_work(a), _work(b))


def _work(record: Record) -> dict[str, Any]:
    """What two runs must share for their times to be comparable; tokens come from the cells."""
    work = record.workload
    return {
        "kind": record.kind,
        "model.sha256": record.model.sha256,
        "workload.sha256": work.sha256,
        "workload.prompt_tokens": work.prompt_tokens,
        "workload.max_new_tokens": work.max_new_tokens,
        "workload.new_tokens": work.new_tokens,
        "kv_cache": record.kv_cache,
    }


def _differences(a: Record, b: Record) -> list[Difference]:
    covered = _ELSEWHERE + (_IN_THE_WORKLOAD if a.workload.sha256 == b.workload.sha256 else ())
    return _differing(_circumstances(a, covered), _circumstances(b, covered))


def _circumstances(record: Record, covered: Sequence[str]) -> dict[str, Any]:
    """All that may be different between two runs, by its place in the record."""
    model = record.model.model_dump(mode="json", include={"name", "architecture", "dtype", "device", "threads", "isa"})
    options = {name: value for name, value in record.options.items() if name not in covered}
    return dict(
        [
            *_flat("hardware", record.hardware.model_dump(mode="json")),
            *_flat("software", record.software.model_dump(mode="json")),
            *_flat("model", model),
            *_flat("options", options),
            ("status", record.status),
        ]
    )


def _flat(prefix: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(f"{prefix}.{name}", inner)
        else:
            yield f"{prefix}.{name}", inner


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    keys = dict.fromkeys([*a, *b])
    return [Difference(key=key, a=a.get(key), b=b.get(key)) for key in keys if a.get(key) != b.get(key)]


def _warnings_alone(a: Record, b: Record) -> list[Warning_]:
    """Of A, those of a kind that B has none of."""
    others = {warning.code for warning in b.warnings}
    return [warning for warning in a.warnings if warning.code not in others]

"""Two runs are told apart only by more than luck, and never without saying whether they did the same work."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.errors import UserError
from knee.lab.compare import Change, RunComparison, compare, holm
from knee.lab.records import Record, Warning_
from knee.lab.statistics import Comparison
from knee.lab.sweep_records import COMPARED, Interval, RepeatTotals, SweepCell
from tests.lab.samples import BASELINE, INSPECT, KVCACHE, SWEEP, record, sweep_cell

SIZES = (1, 2, 4, 8, 16, 32)
Draw = Callable[[int, str], float]  # a batch size and a metric -> a value


def cell(size: int, repeats: int, draw: Draw, metrics: Sequence[str] = tuple(COMPARED), **more: Any) -> SweepCell:
    totals = [
        RepeatTotals(repeat=n, duration_s=1.0, output_tokens=10, values={name: draw(size, name) for name in metrics})
        for n in range(repeats)
    ]
    changes = {"max_batch_size": size, "repeats": totals, "intervals": {}, **more}
    return sweep_cell(1).model_copy(update=changes)


def sweep(cells: Sequence[SweepCell], **changes: Any) -> Record:
    return record("sweep", metrics=SWEEP.model_copy(update={"cells": list(cells), "tradeoff": []}), **changes)


def noisy(seed: int, spread: float = 0.03, factors: Mapping[str, float] | None = None) -> Draw:
    generator = random.Random(seed)
    return lambda size, name: (factors or {}).get(name, 1.0) * 100 * size * generator.lognormvariate(0, spread)


def five_of_each(seed: int, metrics: Sequence[str] = tuple(COMPARED), **more: Any) -> Record:
    return sweep([cell(size, 5, noisy(seed, **more), metrics) for size in SIZES])


def only(found: RunComparison, metric: str) -> Change:
    [change] = [change for change in found.changes if change.metric == metric]
    return change


# --- luck --------------------------------------------------------------------------------------------------------


def test_two_equal_runs_are_called_different_in_any_metric_by_at_most_six_calls_in_a_hundred():
    calls, wrong = 300, 0
    metrics = ("output_throughput", "e2el_ms", "ttft_ms")
    for call in range(calls):
        found = compare(five_of_each(2 * call, metrics), five_of_each(2 * call + 1, metrics))
        assert len(found.changes) == 18
        wrong += found.count("cannot_tell") < 18
    assert wrong <= 0.06 * calls


def test_a_difference_well_above_the_noise_is_told_in_the_metric_s_own_direction():
    slower = {"output_throughput": 0.7, "e2el_ms": 1.4}
    found = compare(five_of_each(1), five_of_each(2, factors=slower))
    for change in found.changes:
        expected = "worse" if change.metric in slower else "cannot_tell"
        assert change.effect.verdict == expected
    assert (found.count("better"), found.count("worse")) == (0, 12)
    back = compare(five_of_each(2, factors=slower), five_of_each(1))
    assert (back.count("better"), back.count("worse")) == (12, 0)


def test_repeats_that_are_too_few_tell_nothing_and_make_the_others_no_weaker():
    cells = [[cell(1, 5, noisy(n)), cell(2, 2, noisy(n, factors=dict.fromkeys(COMPARED, 3.0)))] for n in (1, 2)]
    found = compare(sweep(cells[0]), sweep(cells[1]))
    for change in found.changes:
        few = change.cell == "dynamic (2 / 10 ms)"
        assert change.confidence == (None if few else pytest.approx(1 - 0.05 / 9))
        assert change.effect.n == (2 if few else 5)
        assert (change.effect.low is None) == few


def fake_test(p: float, confidence: float) -> Comparison:
    told = p <= 1 - confidence
    return Comparison("better" if told else "cannot_tell", 0.1, 0.05 if told else -0.1, 0.2, 5)


def holm_by_the_book(p_values: Sequence[float]) -> list[bool]:
    rejected = [False] * len(p_values)
    for place, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[number] > 0.05 / (len(p_values) - place):
            break
        rejected[number] = True
    return rejected


@given(
    st.lists(st.floats(1e-6, 0.2).filter(lambda p: all(abs(p * m - 0.05) > 1e-9 for m in range(1, 13))), max_size=12)
)
def test_confidence_levels_step_down_as_p_values_do(p_values: list[float]):
    found = holm([partial(fake_test, p) for p in p_values])
    assert [effect.verdict == "better" for effect, _ in found] == holm_by_the_book(p_values)


def test_an_interval_has_the_level_at_which_its_verdict_fell():
    found = holm([partial(fake_test, p) for p in (0.001, 0.02, 0.5)])
    assert [level for _, level in found] == pytest.approx([1 - 0.05 / 3, 1 - 0.05 / 2, 0.95])
    assert [effect.verdict for effect, _ in found] == ["better", "better", "cannot_tell"]


# --- the same work -----------------------------------------------------------------------------------------------


def changed(made: Record, part: str, **fields: Any) -> Record:
    return made.model_copy(update={part: getattr(made, part).model_copy(update=fields)})


@pytest.mark.parametrize(
    ("other", "keys"),
    [
        (changed(record(), "model", sha256="1" * 64), ["model.sha256"]),
        (changed(record(), "workload", sha256="1" * 64), ["workload.sha256"]),
        (changed(record(), "workload", prompt_tokens=[14]), ["workload.prompt_tokens"]),
        (changed(record(), "workload", max_new_tokens=11), ["workload.max_new_tokens"]),
        (changed(record(), "workload", new_tokens=[10]), ["workload.new_tokens"]),
        (record(kv_cache="off"), ["kv_cache"]),
        (record(metrics=BASELINE.model_copy(update={"token_ids": [7]})), ["tokens"]),
        (record("inspect"), ["kind", "tokens"]),
    ],
)
def test_different_work_is_refused_by_the_names_of_what_differs(other: Record, keys: list[str]):
    with pytest.raises(UserError, match=rf"\({', '.join(keys)} differ\).*--anyway"):
        compare(record(), other)
    found = compare(record(), other, anyway=True)
    assert [one.key for one in found.unequal] == keys


def test_hardware_dtype_threads_and_software_are_what_one_compares():
    other = changed(record(), "model", dtype="int8", threads=2, device="reference", isa="avx2")
    other = changed(changed(other, "hardware", cpu="Another", cores=4), "software", git_commit="f" * 40)
    other.options["block_size"], other.options["out"], other.options["prompt"] = 32, "elsewhere", ["…"]
    other.software.packages["numpy"] = "3.0.0"
    found = compare(record(), other)
    assert {one.key: (one.a, one.b) for one in found.differences} == {
        "hardware.cpu": ("AMD EPYC 9R14", "Another"),
        "hardware.cores": (2, 4),
        "software.git_commit": ("0123456789abcdef", "f" * 40),
        "software.packages.numpy": ("2.0.0", "3.0.0"),
        "model.dtype": ("float32", "int8"),
        "model.threads": (None, 2),
        "model.device": ("cpu", "reference"),
        "model.isa": (None, "avx2"),
        "options.block_size": (None, 32),
    }
    assert compare(record(), record()).differences == []


def test_cells_with_other_tokens_and_cells_without_a_partner_are_named():
    draw = noisy(1)
    a = sweep([cell(1, 3, draw), cell(2, 3, draw), cell(4, 3, draw)])
    b = sweep([cell(2, 3, draw, tokens_sha256="1" * 64), cell(4, 3, draw), cell(8, 3, draw, max_wait_ms=None)])
    found = compare(a, b, anyway=True)
    assert (found.tokens, found.tokens_differ_in) == ("differ", ["dynamic (2 / 10 ms)"])
    assert found.unmatched == (["dynamic (1 / 10 ms)"], ["dynamic (8)"])
    assert {change.cell for change in found.changes} == {"dynamic (2 / 10 ms)", "dynamic (4 / 10 ms)"}


def test_tokens_are_unknown_where_no_cell_is_in_both():
    found = compare(sweep([cell(1, 3, noisy(1))]), sweep([cell(2, 3, noisy(1))]))
    assert (found.tokens, found.changes) == ("unknown", [])


def test_a_run_without_metrics_cannot_be_compared():
    with pytest.raises(UserError, match=r"second run .* no metrics"):
        compare(record(), record(done=False))


def test_warnings_of_one_run_alone_are_kept_apart():
    noise, heat, swap = (Warning_(code=code, message=code) for code in ("noisy", "throttled", "swap"))
    found = compare(record(warnings=[noise, heat]), record(warnings=[noise, swap]))
    assert found.warnings == ([heat], [swap])


# --- metrics -----------------------------------------------------------------------------------------------------


def test_goodput_counts_only_where_the_limits_are_the_same():
    def of(slo: str) -> Record:
        return sweep([cell(1, 3, noisy(1), ["goodput", "power"])], options={"slo": slo})

    assert [change.metric for change in compare(of("ttft:1"), of("ttft:1")).changes] == ["power", "goodput"]
    assert [change.metric for change in compare(of("ttft:1"), of("ttft:2")).changes] == ["power"]


def test_one_cold_prefill_cannot_tell_anything():
    other = record(metrics=BASELINE.model_copy(update={"prefill_cold_ms": 2 * BASELINE.prefill_cold_ms}))
    cold = only(compare(record(), other), "prefill_cold_ms").effect
    assert (cold.verdict, cold.change, cold.low, cold.n) == ("cannot_tell", pytest.approx(1.0), None, 1)


def test_decode_steps_are_compared_at_the_same_context():
    growing = [10.0 + 5 * step for step in range(9)]
    slower = [ms * (1.1 + 0.002 * (step % 3)) for step, ms in enumerate(growing)]
    runs = [record(metrics=BASELINE.model_copy(update={"decode_step_ms": steps})) for steps in (growing, slower)]
    assert only(compare(*runs), "decode_step_ms").effect.verdict == "worse"


def test_every_kind_says_whether_one_process_measured_all_of_it():
    for kind, metrics in (("baseline", 3), ("inspect", 2), ("kvcache", 4), ("sweep", 0)):
        found = compare(record(kind), record(kind))
        assert (found.one_process, len(found.changes), found.tokens) == (kind != "sweep", metrics, "same")
        assert found.count("cannot_tell") == metrics


def test_kvcache_and_inspect_see_other_tokens_wherever_they_are():
    cells = [*KVCACHE.cells[:-1], KVCACHE.cells[-1].model_copy(update={"token_ids_sha256": "1" * 64})]
    found = compare(
        record("kvcache"), record(metrics=KVCACHE.model_copy(update={"cells": cells}), kind="kvcache"), True
    )
    assert found.tokens_differ_in == ["200 / off"]
    off = INSPECT.kv_cache_off.model_copy(update={"steps": [INSPECT.steps[0].model_copy(update={"token_id": 5})]})
    other = record("inspect", metrics=INSPECT.model_copy(update={"kv_cache_off": off}))
    assert compare(record("inspect"), other, anyway=True).tokens == "differ"


def test_a_median_is_within_the_other_run_s_interval_or_not_where_there_is_one():
    def of(value: float, interval: bool) -> Record:
        there = {"power": Interval(value=value, low=value - 1, high=value + 1, n=3)} if interval else {}
        return sweep([cell(1, 3, lambda _size, _name: value, ["power"], intervals=there)])

    within = [compare(of(10.0, there), of(b, True)).changes[0].within for b, there in ((10.9, 1), (11.1, 1), (10, 0))]
    assert within == [True, False, None]


def test_a_comparison_is_json_and_back():
    found = compare(five_of_each(1), five_of_each(2))
    assert RunComparison.model_validate_json(found.model_dump_json()) == found

"""Metrics are what the contract defines, to the digit, and no latency hides its queue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.lab import metrics
from knee.lab.judgement.measured import CellRows
from knee.lab.records import RequestRow, StepRow
from knee.lab.slo import Slo
from knee.lab.spec import CellSetting
from knee.lab.sweep_records import COMPARED, SweepCell


def request(
    number: int = 0,
    due: float = 0.0,
    start: float | None = 0.0,
    tokens: tuple[float, ...] = (0.1,),
    repeat: int = 0,
    reason: str = "length",
    hash: str = "same",
) -> RequestRow:
    return RequestRow(
        cell=0,
        repeat=repeat,
        request=number,
        scheduled_at=due,
        sent_at=due,
        prefill_start=start,
        first_token_at=tokens[0] if tokens else None,
        finished_at=tokens[-1] if tokens else None,
        prompt_tokens=4,
        output_tokens=len(tokens),
        finish_reason=reason,
        token_ids_sha256=hash,
        token_times=list(tokens),
    )


def step(number: int, started_at: float, ms: float, batch_size: int) -> StepRow:
    return StepRow(
        cell=0,
        repeat=0,
        step=number,
        started_at=started_at,
        ms=ms,
        prefill_tokens=0,
        decode_rows=batch_size,
        kv_tokens=0,
        waiting=0,
        host_ms=0.0,
        batch_size=batch_size,
    )


def cell_of(
    size: int, rows: list[RequestRow], slo: Slo | None = None, policy: str = "static", wait: float | None = None
) -> SweepCell:
    """Summarized, with one step a repeat."""
    repeats = metrics.by_repeat(rows)
    steps = {repeat: [step(0, 0.0, 5.0, size)] for repeat in repeats}
    setting = CellSetting(policy=policy, max_batch_size=size, max_wait_ms=wait)
    return metrics.summarize_cell(CellRows(0, setting, repeats, steps), slo)


# --- one request -------------------------------------------------------------------------------------------------


def test_latencies_count_from_when_the_request_was_due():
    row = request(due=1.0, start=3.0, tokens=(3.5, 3.6, 3.8))
    assert metrics.ttft_ms(row) == pytest.approx(2500)
    assert metrics.e2el_ms(row) == pytest.approx(2800)
    assert metrics.queue_ms(row) == pytest.approx(2000)
    assert metrics.service_ms(row) == pytest.approx(800)
    assert metrics.tpot_ms(row) == pytest.approx(150)
    assert metrics.itl_ms(row) == pytest.approx([100, 200])


def test_a_one_token_output_has_no_time_per_token():
    assert metrics.tpot_ms(request(tokens=(0.5,))) is None
    assert metrics.itl_ms(request(tokens=(0.5,))) == []


def test_what_never_happened_has_no_latency():
    row = request(start=None, tokens=(), reason="aborted")
    assert metrics.ttft_ms(row) is None
    assert metrics.e2el_ms(row) is None
    assert metrics.queue_ms(row) is None
    assert metrics.service_ms(row) is None


times = st.lists(st.floats(0, 1e3), min_size=2, max_size=20).map(sorted)


@given(times=times, due=st.floats(-1e3, 0))
def test_parts_of_a_latency_add_up(times, due):
    row = request(due=due, start=times[0], tokens=tuple(times[1:]))
    e2el = metrics.e2el_ms(row)
    assert metrics.queue_ms(row) + metrics.service_ms(row) == pytest.approx(e2el)
    assert metrics.ttft_ms(row) + sum(metrics.itl_ms(row)) == pytest.approx(e2el)
    if row.output_tokens > 1:
        tpot = metrics.tpot_ms(row)
        assert tpot * (row.output_tokens - 1) == pytest.approx(e2el - metrics.ttft_ms(row), abs=1e-6)


# --- distributions -----------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400))
def test_percentiles_are_linear_between_neighbours_as_in_numpy(values):
    found = metrics.summarize(values)
    for percent in (50, 90, 95, 99):
        if (value := getattr(found, f"p{percent}")) is not None:
            assert value == pytest.approx(np.percentile(values, percent), abs=1e-6)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)


@pytest.mark.parametrize(("percent", "needed"), [(50, 5), (90, 30), (95, 60), (99, 300)])
def test_a_percentile_is_named_only_where_there_are_enough_values_for_it(percent: int, needed: int):
    assert getattr(metrics.summarize([1.0] * needed), f"p{percent}") == 1.0
    assert getattr(metrics.summarize([*[1.0] * (needed - 1), None, None]), f"p{percent}") is None


def test_no_values_have_no_summary():
    for nothing in ([], [None, None]):
        assert set(metrics.summarize(nothing).model_dump().values()) == {None}


def test_values_that_are_not_there_do_not_count_as_zero():
    assert metrics.summarize([None, 4.0, None]).mean == 4.0


# --- trials and cells --------------------------------------------------------------------------------------------


def test_a_trial_lasts_from_the_first_arrival_to_the_last_token():
    rows = [request(0, due=0.5, tokens=(0.7, 1.0)), request(1, due=0.75, tokens=(1.5, 2.5))]
    totals = metrics.trial_totals(3, rows)
    assert (totals.repeat, totals.duration_s, totals.output_tokens) == (3, 2.0, 4)


def test_steps_weigh_as_long_as_they_take():
    steps = [step(0, 0.0, 30.0, 4), step(1, 0.03, 10.0, 2)]
    assert metrics.mean_batch_size(steps) == pytest.approx(3.5)
    assert metrics.slot_utilization(steps, 4) == pytest.approx(0.875)
    assert metrics.mean_batch_size([]) == 0.0


def test_a_batch_is_what_joined_together():
    rows = [request(n, tokens=(0.1, end)) for n, end in enumerate((0.2, 0.3, 0.5, 0.6, 0.6))]
    steps = [step(n, n / 10, 100.0, size) for n, size in enumerate((2, 2, 1, 3, 3, 2))]
    assert metrics.batch_sizes(rows, steps) == [2, 3]


def test_tokens_per_second_times_seconds_are_the_tokens_that_were_given():
    rows = [request(n, tokens=(1.0, 2.0 + repeat), repeat=repeat) for repeat in range(3) for n in range(4)]
    cell = cell_of(4, rows)
    assert cell.duration_s == 3.0
    assert cell.output_tokens == 8
    assert cell.output_throughput * cell.duration_s == pytest.approx(8)
    assert cell.request_throughput == pytest.approx(4 / 3)
    assert [repeat.duration_s for repeat in cell.repeats] == [2.0, 3.0, 4.0]


def test_a_failed_request_is_counted_and_has_no_latency():
    rows = [request(0, tokens=(1.0, 2.0)), request(1, tokens=(9.0,), reason="error")]
    cell = cell_of(2, rows)
    assert cell.failed == 1
    assert cell.e2el_ms.mean == 2000.0
    assert cell.output_tokens == 3


def test_a_repeat_has_a_value_of_each_metric_and_a_cell_an_interval_over_them():
    rows = [
        request(n, start=0.5, tokens=(1.0, 2.0 + repeat / 100), repeat=repeat) for repeat in range(5) for n in range(4)
    ]
    cell = cell_of(4, rows, Slo.parse("ttft:1000"))
    assert [set(repeat.values) for repeat in cell.repeats] == [set(COMPARED)] * 5
    first = cell.repeats[0].values
    assert (first["ttft_ms"], first["queue_ms"], first["service_ms"]) == (1000.0, 500.0, 1500.0)
    assert (first["e2el_ms"], first["tpot_ms"]) == (2000.0, 1000.0)
    assert (first["output_throughput"], first["request_throughput"], first["goodput"]) == (4.0, 2.0, 2.0)
    assert first["power"] == 1.0  # 2 requests/s over 2 s
    latency = cell.intervals["e2el_ms"]
    assert (latency.value, latency.n) == (2020.0, 5)
    assert latency.low is not None
    assert latency.high is not None
    assert 1990.0 < latency.low < 2020.0 < latency.high < 2050.0


def test_fewer_repeats_than_an_interval_takes_have_a_median_alone():
    interval = cell_of(1, [request(tokens=(1.0 + n,), repeat=n) for n in range(4)]).intervals["e2el_ms"]
    assert (interval.value, interval.low, interval.high, interval.n) == (2500.0, None, None, 4)


def test_a_metric_that_a_repeat_lacks_has_no_interval():
    cell = cell_of(1, [request(tokens=(1.0, 2.0)), request(tokens=(1.0,), repeat=1)])
    assert "tpot_ms" not in cell.intervals
    assert "goodput" not in cell.intervals
    assert "e2el_ms" in cell.intervals


def test_a_repeat_that_stands_apart_is_labelled_and_counts_all_the_same():
    times = [1.0, 1.01, 0.99, 1.02, 0.98, 9.0]
    cell = cell_of(1, [request(tokens=(time,), repeat=n) for n, time in enumerate(times)])
    assert [bool(repeat.outlier) for repeat in cell.repeats] == [False] * 5 + [True]
    assert "e2el_ms" in cell.repeats[5].outlier
    assert cell.intervals["e2el_ms"].n == 6


def test_goodput_counts_the_requests_within_the_limits_a_second():
    rows = [request(0, tokens=(0.1, 2.0)), request(1, tokens=(0.1, 2.0)), request(2, tokens=(0.9, 2.0))]
    rows.append(request(3, tokens=(0.1,), reason="error"))
    assert cell_of(4, rows, Slo.parse("ttft:500")).goodput == 1.0
    assert cell_of(4, rows, Slo.parse("ttft:1")).goodput == 0.0
    assert cell_of(4, rows).goodput is None


@pytest.mark.parametrize(("ends", "idle"), [((0.1, 0.1, 0.2), True), ((0.1, 0.2, 0.2), False)])
def test_a_window_is_idle_where_every_batch_but_the_last_was_full(ends: tuple[float, ...], idle: bool):
    rows = [request(n, tokens=(end,)) for n, end in enumerate(ends)]
    sizes = (2, 1) if idle else (1, 2)
    steps = {0: [step(n, n / 10, 100.0, size) for n, size in enumerate(sizes)]}
    for wait, expected in ((0.0, idle), (None, False)):
        setting = CellSetting(policy="dynamic", max_batch_size=2, max_wait_ms=wait)
        assert metrics.summarize_cell(CellRows(0, setting, {0: rows}, steps), None).window_idle is expected


def test_other_tokens_in_any_cell_or_repeat_are_found():
    rows = [request(n, repeat=repeat) for repeat in range(2) for n in range(3)]
    assert metrics.requests_that_differ(rows) == []
    assert metrics.requests_that_differ([*rows, request(1, repeat=2, hash="other")]) == [1]
    assert metrics.requests_that_differ([*rows, request(1, hash="cut", reason="error")]) == []


def test_the_hash_of_a_cell_follows_its_tokens_whatever_the_order_of_rows():
    rows = [request(n, hash=str(n)) for n in range(3)]
    assert metrics.cell_hash(rows) == metrics.cell_hash(rows[::-1])
    assert metrics.cell_hash(rows) != metrics.cell_hash([*rows[:2], request(2, hash="other")])


# --- trade-off ---------------------------------------------------------------------------------------------------


def cell_like_the_log(size: int, seconds: float, service: float):
    """A row of the log's third experiment: 16 requests in batches, each of which takes the service time."""
    rows = []
    for number in range(16):
        start = number // size * service
        end = seconds if number // size == 16 // size - 1 else start + service
        rows.append(request(number, start=end - service, tokens=(end - service, *[end] * 31)))
    return cell_of(size, rows)


def test_the_tradeoff_of_the_log_comes_out_as_it_states_it():
    one, four, eight = (
        cell_like_the_log(1, 512 / 204.0, 0.1567),
        cell_like_the_log(4, 512 / 414.4, 0.3172),
        cell_like_the_log(8, 512 / 856.9, 0.3067),
    )
    first, second, third = metrics.tradeoff([one, four, eight])
    assert (first.throughput_change, first.service_change, first.efficiency) == (0.0, 0.0, None)
    assert second.throughput_change == pytest.approx(1.03, abs=0.005)
    assert second.service_change == pytest.approx(1.02, abs=0.005)
    assert third.throughput_change == pytest.approx(3.20, abs=0.005)
    assert third.service_change == pytest.approx(0.96, abs=0.005)
    assert third.efficiency == pytest.approx(3.3, abs=0.05)


def test_a_cell_against_another_is_compared_round_by_round():
    slow = [request(tokens=(1.0 + n / 10,), repeat=n) for n in range(6)]
    fast = [request(tokens=((1.0 + n / 10) / 2,), repeat=n) for n in range(6)]
    first, second = metrics.tradeoff([cell_of(1, slow), cell_of(4, fast)])
    assert first.effects == {}
    latency = second.effects["e2el_ms"]
    assert (latency.verdict, latency.n) == ("better", 6)
    assert latency.change == pytest.approx(-0.5)
    assert second.effects["output_throughput"].change == pytest.approx(1.0)
    few = metrics.tradeoff([cell_of(1, slow[:1]), cell_of(4, fast[:1])])[1]
    assert few.effects["e2el_ms"].verdict == "cannot_tell"


def test_rounds_that_one_of_two_cells_lacks_are_compared_with_nothing():
    one = cell_of(1, [request(tokens=(1.0 + n / 10,), repeat=n) for n in (0, 1, 2, 3)])
    other = cell_of(4, [request(tokens=(1.0 + n / 10,), repeat=n) for n in (2, 3, 4, 5)])
    assert metrics.tradeoff([one, other])[1].effects["e2el_ms"].n == 2


def test_from_arrival_batching_wins_both_in_the_log():
    """What the log's own columns hide: all requests are there at the start, so most of a latency is queue."""
    one, eight = cell_like_the_log(1, 512 / 204.0, 0.1567), cell_like_the_log(8, 512 / 856.9, 0.3067)
    assert one.e2el_ms.mean == pytest.approx(1333, rel=0.01)
    assert eight.e2el_ms.mean == pytest.approx(460, rel=0.03)
    assert metrics.tradeoff([one, eight])[1].e2el_change < -0.6

"""Metrics are what the contract defines, to the digit, and no latency hides its queue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.lab import metrics
from knee.lab.records import RequestRow, StepRow


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


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_percentiles_are_linear_between_neighbours_as_in_numpy(values):
    found = metrics.summarize(values)
    for percent in (50, 90, 95, 99):
        assert getattr(found, f"p{percent}") == pytest.approx(np.percentile(values, percent), abs=1e-6)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)


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
    cell = metrics.summarize_cell("static", 4, None, rows, [step(0, 0.0, 5.0, 4)])
    assert cell.duration_s == 3.0
    assert cell.output_tokens == 8
    assert cell.output_throughput * cell.duration_s == pytest.approx(8)
    assert cell.request_throughput == pytest.approx(4 / 3)
    assert [repeat.duration_s for repeat in cell.repeats] == [2.0, 3.0, 4.0]


def test_a_failed_request_is_counted_and_has_no_latency():
    rows = [request(0, tokens=(1.0, 2.0)), request(1, tokens=(9.0,), reason="error")]
    cell = metrics.summarize_cell("static", 2, None, rows, [step(0, 0.0, 5.0, 2)])
    assert cell.failed == 1
    assert cell.e2el_ms.mean == 2000.0
    assert cell.output_tokens == 3


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
    return metrics.summarize_cell("static", size, 0.0, rows, [step(0, 0.0, 5.0, size)])


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


def test_from_arrival_batching_wins_both_in_the_log():
    """What the log's own columns hide: all requests are there at the start, so most of a latency is queue."""
    one, eight = cell_like_the_log(1, 512 / 204.0, 0.1567), cell_like_the_log(8, 512 / 856.9, 0.3067)
    assert one.e2el_ms.mean == pytest.approx(1333, rel=0.01)
    assert eight.e2el_ms.mean == pytest.approx(460, rel=0.03)
    assert metrics.tradeoff([one, eight])[1].e2el_change < -0.6

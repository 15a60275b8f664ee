"""Only the policy changes between cells; every cell gives the same tokens; a difference is claimed or "cannot tell"."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from knee.devices.base import Span
from knee.errors import KneeError, OutOfMemory, UserError
from knee.lab import records
from knee.lab.findings import overlap
from knee.lab.messages import translated
from knee.lab.records import SweepMetrics
from knee.lab.sweep import CellSpec, SweepSpec, make_cells, run
from knee.lab.workload import Arrival, Prompt, Workload
from tests.lab.fake_llm import FakeTime, Rows, make_llm

PROMPTS = tuple(Prompt(tuple(range(length))) for length in (4, 7, 5, 9))
Cost = Callable[[FakeTime, Sequence[Span]], None]


def weights_once(time: FakeTime, _batch: Sequence[Span]) -> None:
    """A decode step costs the read of the weights, rows ride along for free."""
    time.now += 0.010


def ask(requests: int = 16, arrival: str = "burst", tokens: int = 8) -> Workload:
    return Workload(PROMPTS, requests, tokens, Arrival.parse(arrival))


def spec(cells: Sequence[CellSpec], workload: Workload | None = None, **more: int) -> SweepSpec:
    return SweepSpec(workload or ask(), tuple(cells), **more)


def measure(given: SweepSpec, cost: Cost = weights_once) -> tuple[SweepMetrics, Rows]:
    time, rows = FakeTime(), Rows()
    found = run(make_llm(lambda batch: cost(time, batch)), given, rows, time.clock).metrics
    assert isinstance(found, SweepMetrics)
    return found, rows


STATIC = [CellSpec("static", size) for size in (1, 4, 8)]
DYNAMIC = make_cells(["dynamic"], [1, 4, 8], [0.0, 10.0])


# --- which cells -------------------------------------------------------------------------------------------------


def test_only_dynamic_has_windows_and_single_has_one_cell():
    cells = make_cells(["single", "static", "dynamic", "continuous"], [4, 8], [0.0, 10.0])
    assert [str(cell) for cell in cells] == [
        "single (1)",
        "static (4)",
        "static (8)",
        "dynamic (4 / 0 ms)",
        "dynamic (4 / 10 ms)",
        "dynamic (8 / 0 ms)",
        "dynamic (8 / 10 ms)",
        "continuous (4)",
        "continuous (8)",
    ]


def test_dynamic_without_a_window_asked_for_does_not_wait():
    assert make_cells(["dynamic"], [4], None) == (CellSpec("dynamic", 4, 0.0),)


@pytest.mark.parametrize(
    ("policies", "sizes", "waits", "message"),
    [
        ([], [1], None, "no policy"),
        (["static"], [], None, "no batch size"),
        (["dynamic"], [1], [], "no wait window"),
        (["static"], [4, 4], None, "batch size is given twice"),
        (["static"], [4], [10.0], "only policy dynamic has a wait window"),
    ],
)
def test_lists_that_make_no_sense_are_refused(policies, sizes, waits, message):
    with pytest.raises(UserError, match=message):
        make_cells(policies, sizes, waits)


@pytest.mark.parametrize(
    "cell",
    [
        CellSpec("static", 0),
        CellSpec("dynamic", 4, -1.0),
        CellSpec("dynamic", 4, float("nan")),
        CellSpec("dynamic", 4, float("inf")),
        CellSpec("magic", 4),
        CellSpec("static", 1000),
    ],
)
def test_bad_cells_are_refused_before_work(cell: CellSpec):
    with pytest.raises(UserError):
        spec([cell])


def test_no_repeats_are_refused():
    with pytest.raises(UserError, match="repeats is 0"):
        spec(STATIC, repeats=0)


def test_a_pool_that_does_not_fit_is_refused_before_work():
    llm = make_llm(positions=10**15)
    huge = Workload(PROMPTS, 1, 10**12)
    with pytest.raises(OutOfMemory):
        run(llm, spec(STATIC, huge), Rows())
    assert llm.device.steps == 0


# --- the order of trials -----------------------------------------------------------------------------------------


def test_repeats_run_round_by_round_in_an_order_that_the_seed_decides():
    trials = spec(STATIC, repeats=5).trials()
    rounds = [trials[i : i + 3] for i in range(0, 15, 3)]
    assert all({cell for cell, _ in one} == {0, 1, 2} for one in rounds)
    assert [{repeat for _, repeat in one} for one in rounds] == [{0}, {1}, {2}, {3}, {4}]
    assert len({tuple(cell for cell, _ in one) for one in rounds}) > 1
    assert spec(STATIC, repeats=5).trials() == trials
    assert spec(STATIC, repeats=5, seed=1).trials() != trials


def test_progress_is_told_of_every_trial_before_it_runs():
    told = []
    run(make_llm(), spec(STATIC, repeats=2), Rows(), progress=lambda *what: told.append(what))
    assert [number for number, _, _ in told] == list(range(6))
    assert {total for _, total, _ in told} == {6}
    assert {label for _, _, label in told} == {"static (1)", "static (4)", "static (8)"}


# --- what comes out ----------------------------------------------------------------------------------------------


def test_every_policy_gives_every_request_the_same_tokens():
    m, rows = measure(spec(make_cells(["single", "static", "dynamic", "continuous"], [3, 4], [0.0, 5.0]), repeats=2))
    assert m.same_tokens
    assert len({cell.tokens_sha256 for cell in m.cells}) == 1
    assert len(rows.requests) == 9 * 2 * 16


def test_with_the_cache_off_the_tokens_are_the_same():
    on, _ = measure(spec(STATIC))
    off, _ = measure(SweepSpec(ask(), tuple(STATIC), kv_cache=False))
    assert {c.tokens_sha256 for c in on.cells} == {c.tokens_sha256 for c in off.cells}


def test_the_numbers_of_a_cell_are_those_of_its_batches():
    m, _ = measure(spec(STATIC))
    one, _, eight = m.cells
    assert one.duration_s == pytest.approx(16 * 0.080)
    assert eight.duration_s == pytest.approx(2 * 0.080)
    assert eight.output_tokens == 128
    assert eight.output_throughput == pytest.approx(128 / 0.160)
    assert eight.service_ms.mean == pytest.approx(80.0)
    assert eight.queue_ms.mean == pytest.approx(40.0)
    assert eight.e2el_ms.mean == pytest.approx(120.0)
    assert eight.ttft_ms.mean == pytest.approx(50.0)
    assert eight.tpot_ms.p99 == eight.itl_ms.p50 == pytest.approx(10.0)
    assert (eight.slot_utilization, eight.mean_batch_size) == (pytest.approx(1.0), pytest.approx(8.0))


def test_rows_that_are_kept_are_those_of_the_trials_alone():
    _, rows = measure(spec(STATIC, repeats=2))
    assert {(row.cell, row.repeat) for row in rows.requests} == {(c, r) for c in range(3) for r in range(2)}
    assert {(row.cell, row.repeat) for row in rows.steps} == {(c, r) for c in range(3) for r in range(2)}


def test_a_device_whose_tokens_depend_on_the_batch_is_found_out():
    llm = make_llm()
    execute = llm.device.execute

    def padded(batch: Sequence[Span]):
        outputs = execute(batch)
        return [type(out)(token=0) if len(batch) == 8 and n == 5 else out for n, out in enumerate(outputs)]

    llm.device.execute = padded  # type: ignore[method-assign]
    outcome = run(llm, spec(STATIC), Rows())
    assert not outcome.metrics.same_tokens
    [warning] = outcome.warnings
    assert warning.code == "tokens_differ"
    assert "2 of 16 requests" in warning.message
    assert "request 5" in warning.message


def test_an_interrupted_sweep_keeps_the_finished_trials():
    rows, steps = Rows(), iter(range(10**6))

    def cost(_batch: Sequence[Span]) -> None:
        if next(steps) == 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_llm(cost), spec(STATIC, repeats=2), rows)
    ends = [row.finish_reason for row in rows.requests]
    assert ends.count("length") > 0
    assert "aborted" in ends
    [*_, last] = rows.kept
    finished = {row.cell for row in rows.requests if row.finish_reason == "length"}
    assert {cell.cell for cell in last.metrics.cells} <= finished
    assert last.metrics.cells
    assert len(rows.steps) == 250 - 9  # without the warm-up


def test_a_request_that_fails_is_counted_and_warned_of():
    time, rows = FakeTime(), Rows()
    outcome = run(make_llm(time.per_row, fail_at=20), spec(STATIC), rows, time.clock)
    assert sum(cell.failed for cell in outcome.metrics.cells) == [r.finish_reason for r in rows.requests].count("error")
    assert [warning.code for warning in outcome.warnings] == ["requests_failed"]
    assert outcome.metrics.same_tokens


def test_a_trial_in_which_everything_fails_is_an_error():
    llm, steps = make_llm(), iter(range(10**6))
    execute = llm.device.execute

    def broken(batch: Sequence[Span]):
        llm.device.fail_at = llm.device.steps if next(steps) >= 9 else None
        return execute(batch)

    llm.device.execute = broken  # type: ignore[method-assign]
    rows = Rows()
    with pytest.raises(KneeError, match="every request failed"):
        run(llm, spec(STATIC), rows)
    assert {row.finish_reason for row in rows.requests} == {"error"}


def test_one_token_outputs_have_null_where_there_is_nothing():
    m, _ = measure(spec(STATIC, ask(tokens=1)))
    assert m.cells[0].tpot_ms.mean is None
    assert m.cells[0].itl_ms.p99 is None
    assert m.cells[0].ttft_ms.mean is not None


# --- findings ----------------------------------------------------------------------------------------------------


def finding(m: SweepMetrics, start: str) -> str:
    [found] = [sentence for sentence in m.findings if sentence.startswith(start)]
    return found


def test_where_all_requests_are_there_batching_wins_both():
    m, _ = measure(spec(STATIC, repeats=4))
    assert finding(m, "Batching") == (
        "Batching wins both: static (8) against static (1) has +700 % throughput and -82 % latency from arrival; "
        "the service time alone is +0 %."
    )


def test_where_requests_come_one_by_one_waiting_for_a_full_batch_only_costs_latency():
    m, _ = measure(spec(STATIC, ask(arrival="rate:12"), repeats=4))
    assert finding(m, "Batching").startswith("Batching changes only the latency: static (4) against static (1) has +")


def test_few_repeats_give_numbers_and_no_verdict():
    m, _ = measure(spec(STATIC, repeats=3))
    assert finding(m, "Batching").endswith("in 3 repeats: too few to call it a difference.")


def test_repeats_of_windows_that_cannot_matter_count_together():
    m, _ = measure(spec(DYNAMIC, repeats=2))
    assert finding(m, "Batching").startswith("Batching wins both: dynamic (8 / 0 ms) against dynamic (1 / 0 ms)")


def test_where_every_batch_is_full_a_window_cannot_matter():
    m, _ = measure(spec(DYNAMIC))
    assert finding(m, "The wait window").startswith("The wait window cannot matter at batch 1, 4, 8:")


def test_too_few_runs_cannot_tell():
    m, _ = measure(spec(DYNAMIC, ask(arrival="rate:40")))
    assert "too few to tell" in finding(m, "The wait window: dynamic (8 / 10 ms)")
    assert finding(m, "Repeats of a setting: 1.")


def noisy(generator: random.Random) -> Cost:
    """Steps take between 7 and 15 ms."""

    def cost(time: FakeTime, _batch: Sequence[Span]) -> None:
        time.now += 0.010 * generator.uniform(0.7, 1.5)

    return cost


def test_repeats_that_overlap_cannot_be_told_apart():
    m, _ = measure(spec(DYNAMIC, ask(arrival="rate:30"), repeats=4), noisy(random.Random(5)))
    assert "cannot tell dynamic (4 / 10 ms)" in " ".join(m.findings)
    assert "Repeats of a setting" not in " ".join(m.findings)


def test_a_window_that_matters_is_said_to():
    cells = make_cells(["dynamic"], [8], [0.0, 300.0])
    m, _ = measure(spec(cells, ask(arrival="rate:5"), repeats=4))
    assert finding(m, "The wait window matters").startswith("The wait window matters: dynamic (8 / 300 ms) against")


def test_the_best_cells_are_named_with_those_they_cannot_be_told_from():
    m, _ = measure(spec(make_cells(["static", "continuous"], [8], None), repeats=4))
    assert finding(m, "Highest throughput") == (
        "Highest throughput: static (8), 800.0 tokens/s; cannot be told from continuous (8)."
    )


def test_cells_whose_window_cannot_matter_are_one_setting_and_no_rivals():
    m, _ = measure(spec(DYNAMIC, repeats=2))
    assert finding(m, "Highest throughput") == "Highest throughput: dynamic (8), 800.0 tokens/s."


def test_too_few_repeats_name_no_best():
    m, _ = measure(spec(STATIC))
    assert finding(m, "Highest throughput").endswith("too few to call it best.")


def test_a_single_cell_is_compared_with_nothing():
    m, _ = measure(spec(STATIC[:1]))
    assert m.findings == []
    assert len(m.tradeoff) == 1


@pytest.mark.parametrize("arrival", ["burst", "rate:5", "rate:40", "poisson:100"])
def test_every_sentence_is_there_in_chinese(arrival: str):
    m, _ = measure(spec(DYNAMIC, ask(arrival=arrival), repeats=2), noisy(random.Random(5)))
    for sentence in m.findings:
        assert translated("zh", sentence) != sentence


def test_ranges_overlap_where_they_share_a_value():
    assert overlap((1.0, 2.0), (2.0, 3.0))
    assert overlap((1.0, 4.0), (2.0, 3.0))
    assert not overlap((1.0, 2.0), (2.1, 3.0))


def test_a_record_of_a_sweep_can_be_written_and_read():
    m, _ = measure(spec(DYNAMIC, repeats=2))
    assert records.SweepMetrics.model_validate_json(m.model_dump_json()) == m

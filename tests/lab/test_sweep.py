"""Every trial is kept when it is over, and what was kept is not run again; every cell gives the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from knee.devices.base import Span
from knee.errors import KneeError, OutOfMemory
from knee.lab import measure
from knee.lab.arrivals import Arrival
from knee.lab.budget import Budget
from knee.lab.judgement.judge import judge
from knee.lab.measure import SOLO_TOKENS, WARM_TOKENS, Measured
from knee.lab.plan import CellSpec, Job, SweepSpec, make_cells
from knee.lab.progress import Status
from knee.lab.records import Record
from knee.lab.sweep import check, run
from knee.lab.sweep_records import Limits, SweepMetrics
from knee.lab.workload import Prompt, Workload
from knee.llm import LLM
from tests.lab.fake_llm import FakeTime, Rows, Undisturbed, make_llm, rows_of, swept

PROMPTS = tuple(Prompt(tuple(range(length))) for length in (4, 7, 5, 9))
Cost = Callable[[FakeTime, Sequence[Span]], None]


def weights_once(time: FakeTime, _batch: Sequence[Span]) -> None:
    """A decode step costs the read of the weights, rows ride along for free."""
    time.now += 0.010


def ask(requests: int = 16, arrival: str = "burst", tokens: int = 8) -> Workload:
    return Workload(PROMPTS, requests, tokens, Arrival.parse(arrival))


@pytest.fixture(autouse=True)
def no_pulses(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of a trial on fake time."""
    monkeypatch.setattr(measure, "pulse", lambda: 0.001)
    monkeypatch.setattr(measure, "trace_seconds", lambda: 1e-6)


def spec(cells: Sequence[CellSpec], workload: Workload | None = None, repeats: int = 1) -> SweepSpec:
    return SweepSpec(workload or ask(), tuple(cells), repeats)


def simulate(given: SweepSpec, cost: Cost = weights_once) -> tuple[SweepMetrics, Rows]:
    time = FakeTime()
    found, rows = swept(make_llm(lambda batch: cost(time, batch)), given, time)
    return metrics_of(found), rows


def metrics_of(found: Record) -> SweepMetrics:
    assert isinstance(found.metrics, SweepMetrics)
    return found.metrics


def codes(found: Record) -> list[str]:
    """Of the warnings about the work; too few repeats for an interval are usual here."""
    return [warning.code for warning in found.warnings if warning.code != "few_samples"]


STATIC = [CellSpec("static", size) for size in (1, 4, 8)]


# --- before it begins --------------------------------------------------------------------------------------------


def test_a_pool_that_does_not_fit_is_refused_before_work():
    llm = make_llm(positions=10**15)
    huge = Workload(PROMPTS, 1, 10**12)
    with pytest.raises(OutOfMemory):
        check(llm, spec(STATIC, huge))
    assert llm.device.steps == 0


# --- conducting --------------------------------------------------------------------------------------------------


class Watched(Undisturbed):
    """Writes down what it is asked to run; `spoil` may change what came of it."""

    def __init__(self, llm: LLM, time: FakeTime, spoil: Callable[[Measured], None] = lambda _found: None) -> None:
        super().__init__(llm, time.clock)
        self.jobs: list[tuple[int, int]] = []
        self.spoil = spoil

    def __call__(self, job: Job, /) -> Measured:
        self.jobs.append((job.number, job.repeat))
        found = super().__call__(job)
        self.spoil(found)
        return found


def watched(spoil: Callable[[Measured], None] = lambda _found: None) -> Watched:
    time = FakeTime()
    return Watched(make_llm(time.per_row), time, spoil)


def test_trials_run_in_the_planned_order_and_are_judged_between_rounds():
    given, runner, rows = spec(STATIC, repeats=2), watched(), rows_of(spec(STATIC))
    run(given, rows, runner)
    assert runner.jobs == given.trials()
    assert [(trial.cell, trial.repeat) for trial in rows.spec.trials] == given.trials()
    assert [len(metrics_of(record).trials) for record in rows.judged] == [3, 6]


def test_progress_is_told_of_every_trial_before_it_runs():
    told: list[Status] = []
    run(spec(STATIC, repeats=2), rows_of(spec(STATIC)), watched(), tell=told.append)
    assert [status.number for status in told] == list(range(6))
    assert {status.total for status in told} == {6}
    assert {status.label for status in told} == {"static (1)", "static (4)", "static (8)"}
    assert (told[0].best, told[0].seconds_left) == (None, None)
    assert all(status.best is not None and status.seconds_left is not None for status in told[1:])
    assert told[-1].best == "static (8)"  # it has the most power by then


def test_trials_that_are_kept_already_are_not_run_again():
    first, rows = watched(), rows_of(spec(STATIC))
    run(spec(STATIC, repeats=2), rows, first)
    more, runner = spec(STATIC, repeats=3), watched()
    run(more, rows, runner)
    assert runner.jobs == more.trials()[6:]
    assert [len(cell.repeats) for cell in metrics_of(judge(rows.spec, rows.requests, rows.steps)).cells] == [3, 3, 3]


def test_a_trial_that_was_cut_off_or_void_is_run_again():
    rows, given = rows_of(spec(STATIC)), spec(STATIC, repeats=2)
    run(given, rows, watched())
    [*kept, last] = rows.spec.trials
    rows.change(trials=[kept[0].model_copy(update={"void": True}), *kept[1:]])
    runner = watched()
    run(given, rows, runner)
    assert sorted(runner.jobs) == sorted([(kept[0].cell, kept[0].repeat), (last.cell, last.repeat)])


def once(cell: int) -> Callable[[Measured], None]:
    """Spoils the first trial of a cell."""
    spoilt: list[int] = []

    def spoil(found: Measured) -> None:
        if found.trial.cell == cell and not spoilt:
            spoilt.append(cell)
            found.trial.void = True
            found.trial.delays[0] = 0.25

    return spoil


def test_a_void_trial_is_measured_once_more_at_the_end_of_its_round_and_counts_nowhere():
    rows, runner = rows_of(spec(STATIC)), watched(once(1))
    run(spec(STATIC, repeats=2), rows, runner)
    assert runner.jobs == [*spec(STATIC).trials(), (1, 0), *spec(STATIC, repeats=2).trials()[3:]]
    assert sum(row.void for row in rows.requests) == 16
    found = judge(rows.spec, rows.requests, rows.steps)
    assert [len(cell.repeats) for cell in metrics_of(found).cells] == [2, 2, 2]
    [warning] = [one for one in found.warnings if one.code == "late_client"]
    assert "250.00" in warning.message
    assert warning.cells == []


def test_a_trial_that_is_void_again_is_given_up_and_said_to_be_missing():
    def always(found: Measured) -> None:
        found.trial.void = found.trial.cell == 1

    rows, runner = rows_of(spec(STATIC)), watched(always)
    run(spec(STATIC), rows, runner)
    assert runner.jobs.count((1, 0)) == 2
    found = judge(rows.spec, rows.requests, rows.steps)
    assert [cell.cell for cell in metrics_of(found).cells] == [0, 2]
    [warning] = [one for one in found.warnings if one.code == "late_client"]
    assert warning.cells == [1]


def test_a_generator_that_oversleeps_makes_its_trials_void():
    time = FakeTime(overslept=0.005)
    given = spec(STATIC[:1], ask(arrival="rate:2", requests=4, tokens=2))
    found, rows = swept(make_llm(time.per_row), given, time)
    assert [trial.void for trial in rows.spec.trials] == [True, True]
    assert [trial.client_delay_ms for trial in rows.spec.trials] == pytest.approx([5.0, 5.0])
    assert metrics_of(found).cells == []
    assert "late_client" in codes(found)


def test_a_round_for_which_there_is_no_time_is_not_begun_and_said(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]

    def takes(_found: Measured) -> None:
        clock[0] += 10.0

    given = spec(STATIC, repeats=5)
    budget = Budget(79.0, dict.fromkeys(range(3), 10.0), lambda: clock[0])
    rows, runner = rows_of(given), watched(takes)
    monkeypatch.setattr(Budget, "took", lambda *_: None)  # what trials took by the real clock
    run(given, rows, runner, budget=budget, left_out=["No room for static (16)."])
    assert runner.jobs == given.trials()[:6]
    assert rows.spec.left_out[0] == "No room for static (16)."
    assert rows.spec.left_out[1].startswith("Ended after 2 of 5 repeats")
    assert metrics_of(rows.judged[-1]).left_out == rows.spec.left_out[:1]


def test_of_the_roofs_before_and_after_the_better_ones_are_kept():
    before = Limits(read_gb_s=20.0, gflop_s=100.0, dtype="int4", how="a")
    found = iter([before, before.model_copy(update={"read_gb_s": 15.0, "gflop_s": 120.0})])
    rows = rows_of(spec(STATIC))
    run(spec(STATIC), rows, watched(), measure_roofs=lambda: next(found))
    assert rows.spec.limits is not None
    assert (rows.spec.limits.read_gb_s, rows.spec.limits.gflop_s) == (20.0, 120.0)


# --- what comes out ----------------------------------------------------------------------------------------------


def test_every_policy_gives_every_request_the_same_tokens():
    m, rows = simulate(spec(make_cells(["single", "static", "dynamic", "continuous"], [3, 4], [0.0, 5.0]), repeats=2))
    assert m.same_tokens
    assert len({cell.tokens_sha256 for cell in m.cells}) == 1
    assert len(rows.requests) == 9 * 2 * 16


def test_with_the_cache_off_the_tokens_are_the_same():
    on, _ = simulate(spec(STATIC))
    off, _ = simulate(SweepSpec(ask(), tuple(STATIC), kv_cache=False))
    assert {c.tokens_sha256 for c in on.cells} == {c.tokens_sha256 for c in off.cells}


def test_the_numbers_of_a_cell_are_those_of_its_batches():
    m, _ = simulate(spec(STATIC, repeats=5))
    one, _, eight = m.cells
    assert one.duration_s == pytest.approx(16 * 0.080)
    assert eight.duration_s == pytest.approx(2 * 0.080)
    assert eight.output_tokens == 128
    assert eight.output_throughput == pytest.approx(128 / 0.160)
    assert eight.service_ms.mean == pytest.approx(80.0)
    assert eight.queue_ms.mean == pytest.approx(40.0)
    assert eight.e2el_ms.mean == pytest.approx(120.0)
    assert eight.ttft_ms.mean == pytest.approx(50.0)
    assert eight.tpot_ms.p50 == eight.itl_ms.p50 == pytest.approx(10.0)
    assert eight.tpot_ms.p99 is None  # of 80 requests
    assert (eight.slot_utilization, eight.mean_batch_size) == (pytest.approx(1.0), pytest.approx(8.0))


def test_rows_that_are_kept_are_those_of_the_trials_alone():
    _, rows = simulate(spec(STATIC, repeats=2))
    assert {(row.cell, row.repeat) for row in rows.requests} == {(c, r) for c in range(3) for r in range(2)}
    assert {(row.cell, row.repeat) for row in rows.steps} == {(c, r) for c in range(3) for r in range(2)}


def test_a_device_whose_tokens_depend_on_the_batch_is_found_out():
    time = FakeTime()
    llm = make_llm(time.per_row)
    execute = llm.device.execute

    def padded(batch: Sequence[Span]):
        outputs = execute(batch)
        return [type(out)(token=0) if len(batch) == 8 and n == 5 else out for n, out in enumerate(outputs)]

    llm.device.execute = padded  # type: ignore[method-assign]
    found, _ = swept(llm, spec(STATIC), time)
    assert not metrics_of(found).same_tokens
    assert codes(found) == ["tokens_differ"]
    warning = found.warnings[0]
    assert "2 of 16 requests" in warning.message
    assert "request 5" in warning.message


def interrupted(after: int) -> tuple[Rows, Watched]:
    """A sweep that is cut off in its fourth trial, after so many steps, warm-up included."""
    time, given = FakeTime(), spec(STATIC, repeats=2)
    began: list[int] = []

    def cost(batch: Sequence[Span]) -> None:
        began.extend([llm.device.steps] * (len(runner.jobs) == 4 and not began))
        if began and llm.device.steps - began[0] == after:
            raise KeyboardInterrupt
        time.per_row(batch)

    llm = make_llm(cost)
    rows, runner = rows_of(given), Watched(llm, time)
    with pytest.raises(KeyboardInterrupt):
        run(given, rows, runner)
    return rows, runner


def test_an_interrupted_sweep_keeps_the_finished_trials_and_the_rows_of_the_one_that_was_cut_off():
    rows, runner = interrupted(after=WARM_TOKENS + SOLO_TOKENS + 10)
    *whole, cut = runner.jobs
    assert [(trial.cell, trial.repeat) for trial in rows.spec.trials] == whole
    ends = {job: {row.finish_reason for row in rows.requests if (row.cell, row.repeat) == job} for job in runner.jobs}
    assert all(ends[job] == {"length"} for job in whole)
    assert ends[cut] == {"length", "aborted"}
    assert sum((row.cell, row.repeat) == cut for row in rows.steps) == 10
    found = metrics_of(judge(rows.spec, rows.requests, rows.steps))
    assert sorted((cell.cell, one.repeat) for cell in found.cells for one in cell.repeats) == sorted(whole)


def test_an_interrupt_during_a_warm_up_keeps_what_was_before():
    rows, runner = interrupted(after=2)
    assert {(row.cell, row.repeat) for row in rows.requests} == set(runner.jobs[:3])
    assert len(metrics_of(judge(rows.spec, rows.requests, rows.steps)).trials) == 3


def test_a_request_that_fails_is_counted_and_warned_of():
    time = FakeTime()
    found, rows = swept(make_llm(time.per_row, fail_at=20), spec(STATIC), time)
    failed = [row.finish_reason for row in rows.requests].count("error")
    assert sum(cell.failed for cell in metrics_of(found).cells) == failed > 0
    assert codes(found) == ["requests_failed"]
    assert metrics_of(found).same_tokens


def test_a_trial_in_which_everything_fails_is_an_error():
    llm, steps, before = make_llm(), iter(range(10**6)), WARM_TOKENS + SOLO_TOKENS
    execute = llm.device.execute

    def broken(batch: Sequence[Span]):
        llm.device.fail_at = llm.device.steps if next(steps) >= before else None
        return execute(batch)

    llm.device.execute = broken  # type: ignore[method-assign]
    rows = rows_of(spec(STATIC))
    with pytest.raises(KneeError, match=r"static \(\d\): every request failed; .* a logit is NaN"):
        run(spec(STATIC), rows, Undisturbed(llm, FakeTime().clock))
    assert {trial.cell for trial in rows.spec.trials} == {0, 1, 2}
    assert all(trial.void and trial.errors for trial in rows.spec.trials)


def test_a_trial_that_fails_is_kept_with_its_error_and_the_others_go_on():
    llm = make_llm()
    execute, size = llm.device.execute, 0

    def out_of_memory(batch: Sequence[Span]):
        nonlocal size
        size = max(size, len(batch))
        if len(batch) == 8:
            raise KneeError("out of memory")
        return execute(batch)

    llm.device.execute = out_of_memory  # type: ignore[method-assign]
    rows = rows_of(spec(STATIC))
    run(spec(STATIC), rows, Undisturbed(llm, FakeTime().clock))
    failed = {trial.cell for trial in rows.spec.trials if trial.void}
    assert failed == {2}
    assert {trial.cell for trial in rows.spec.trials if not trial.void} == {0, 1}


# --- how a trial is measured -------------------------------------------------------------------------------------


def measured(given: SweepSpec, cell: int = 0, fail_at: int | None = None) -> Measured:
    time = FakeTime()
    return Undisturbed(make_llm(time.per_row, fail_at=fail_at), time.clock)(given.job(cell, 0))


def test_the_warm_up_has_the_size_that_is_measured_and_is_no_part_of_the_trial():
    found = measured(spec(STATIC), cell=2)
    assert [step.decode_rows for step in found.warm_up] == [0, 8, 8, 8]
    assert sum(step.prefill_tokens for step in found.warm_up) == 50
    assert len(found.trial.requests) == 16
    assert found.trial.steps[0].started_at > found.warm_up[-1].started_at


def test_the_typical_request_runs_alone_and_stands_for_a_whole_one():
    lengths = tuple(3 * n + 1 for n in range(16))
    given = replace(ask(), max_new_tokens=max(lengths), new_tokens=lengths)
    solo = measured(spec(STATIC, given), cell=2).solo
    assert solo is not None
    which = given.typical
    assert (solo.prompt_tokens, solo.tokens) == (given.prompt_tokens[which], given.tokens(which))
    assert solo.ttft == pytest.approx(0.010 + 0.001 * solo.prompt_tokens)
    assert solo.tpot == pytest.approx(0.011)


def test_a_request_alone_that_fails_stands_for_nothing():
    assert measured(spec(STATIC), fail_at=WARM_TOKENS).solo is None


# --- the numbers -------------------------------------------------------------------------------------------------


def test_one_token_outputs_have_null_where_there_is_nothing():
    m, _ = simulate(spec(STATIC, ask(tokens=1)))
    assert m.cells[0].tpot_ms.mean is None
    assert m.cells[0].itl_ms.p99 is None
    assert m.cells[0].ttft_ms.mean is not None


def test_a_single_cell_is_compared_with_nothing():
    m, _ = simulate(spec(STATIC[:1], repeats=5))
    assert [row.effects for row in m.tradeoff] == [{}]
    assert m.knee is not None
    assert m.knee.tied == []


def test_a_record_of_a_sweep_can_be_written_and_read():
    m, _ = simulate(spec(make_cells(["dynamic"], [1, 4, 8], [0.0, 10.0]), repeats=6))
    assert m.knee is not None
    assert m.recommendations is not None
    assert SweepMetrics.model_validate_json(m.model_dump_json()) == m


def test_the_same_rows_give_the_same_record():
    _, rows = simulate(spec(STATIC, repeats=5))
    one, other = (judge(rows.spec, rows.requests, rows.steps) for _ in range(2))
    assert one.model_dump_json() == other.model_dump_json()
    shuffled = judge(rows.spec, rows.requests[::-1], rows.steps)
    assert metrics_of(shuffled).cells == metrics_of(one).cells

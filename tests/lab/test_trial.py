"""A trial submits what is due when it is due, waits for nothing else, and loses nothing that it measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.devices.base import Span
from knee.engine.engine import Engine
from knee.engine.policies import make_policy
from knee.engine.policies.base import Admission, Policy, View
from knee.engine.types import Request, SamplingParams
from knee.errors import KneeError, RequestError
from knee.lab.arrivals import Arrival
from knee.lab.rows import hash_tokens, request_rows, step_rows
from knee.lab.trial import Trial, run_trial
from knee.lab.workload import Prompt, Workload
from tests.engine.fake_async_device import FakeAsyncDevice
from tests.lab.fake_llm import FakeTime, make_llm

GREEDY = SamplingParams(ignore_eos=True)


def ask(requests: int, arrival: str = "burst", tokens: int = 3, prompt: int = 4) -> Workload:
    return Workload((Prompt(tuple(range(prompt))),), requests, tokens, Arrival.parse(arrival))


def make_engine(time: FakeTime, policy: Policy, fail_at: int | None = None) -> Engine:
    engine = make_llm(time.per_row, fail_at=fail_at).engine(policy, longest=64)
    engine.clock = time.clock.now
    return engine


def run(
    workload: Workload, policy: Policy, fail_at: int | None = None, overslept: float = 0.0
) -> tuple[Trial, FakeTime]:
    time = FakeTime(overslept=overslept)
    return run_trial(make_engine(time, policy, fail_at), workload, GREEDY, Trial(), time.sleep), time


def test_times_are_seconds_from_the_start_of_the_trial():
    trial, time = run(ask(1), make_policy("single"))
    [row] = request_rows(trial)
    assert (row.scheduled_at, row.sent_at, row.prefill_start) == (0.0, 0.0, 0.0)
    assert row.token_times == pytest.approx([0.014, 0.025, 0.036])
    assert row.finished_at == row.token_times[-1]
    assert [step.ms for step in step_rows(trial)] == pytest.approx([14.0, 11.0, 11.0])
    assert time.slept == []


def test_a_request_that_comes_due_during_a_step_still_counts_from_when_it_was_due():
    trial, _ = run(ask(2, "rate:100"), make_policy("single"))
    late = request_rows(trial)[1]
    assert late.scheduled_at == pytest.approx(0.010)
    assert late.sent_at == pytest.approx(0.014)
    assert late.prefill_start == pytest.approx(0.036)


def test_an_idle_engine_sleeps_until_the_next_arrival():
    trial, time = run(ask(2, "rate:1"), make_policy("continuous", 4))
    assert time.slept == pytest.approx([1.0 - 0.036])
    assert request_rows(trial)[1].prefill_start == pytest.approx(1.0)


def test_a_window_ends_the_wait_where_the_next_arrival_is_later():
    trial, time = run(ask(2, "rate:1"), make_policy("dynamic", 2, max_wait_ms=50.0))
    assert request_rows(trial)[0].prefill_start == pytest.approx(0.050)
    assert time.slept[0] == pytest.approx(0.050)


def test_an_arrival_ends_the_wait_where_the_window_is_longer():
    trial, _ = run(ask(2, "rate:100"), make_policy("dynamic", 2, max_wait_ms=50.0))
    assert [row.prefill_start for row in request_rows(trial)] == pytest.approx([0.010, 0.010])


def test_a_batch_that_nobody_will_fill_does_not_wait():
    trial, time = run(ask(3), make_policy("static", 2))
    assert time.slept == []
    assert [row.finish_reason for row in request_rows(trial)] == ["length"] * 3


@settings(deadline=None, max_examples=40)
@given(
    policy=st.sampled_from(["static", "dynamic", "continuous"]),
    requests=st.integers(1, 12),
    size=st.integers(1, 5),
    arrival=st.sampled_from(["burst", "rate:3", "rate:90", "poisson:40", "poisson:1000"]),
)
def test_every_request_ends_once_and_after_it_was_due(policy, requests, size, arrival):
    trial, _ = run(ask(requests, arrival), make_policy(policy, size))
    rows = request_rows(trial)
    assert [row.request for row in rows] == list(range(requests))
    for row in rows:
        assert row.scheduled_at <= row.sent_at <= row.prefill_start < row.first_token_at <= row.finished_at
        assert len(row.token_times) == row.output_tokens == 3
    assert len({row.token_ids_sha256 for row in rows}) == 1


def test_a_fault_ends_the_requests_of_its_step_and_no_others():
    trial, _ = run(ask(4), make_policy("static", 2), fail_at=1)
    rows = request_rows(trial)
    assert [row.finish_reason for row in rows] == ["error", "error", "length", "length"]
    assert [row.output_tokens for row in rows] == [1, 1, 3, 3]
    assert trial.errors == ["a logit is NaN"]


def test_an_interrupt_keeps_what_was_measured():
    time, steps = FakeTime(), iter(range(100))

    def cost(batch: Sequence[Span]) -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt
        time.per_row(batch)

    engine = make_llm(cost).engine(make_policy("single"), longest=64)
    engine.clock = time.clock.now
    trial = Trial()
    with pytest.raises(KeyboardInterrupt):
        run_trial(engine, ask(4), GREEDY, trial, time.sleep)
    assert [row.finish_reason for row in request_rows(trial)] == ["length", "aborted", "aborted", "aborted"]
    assert [row.output_tokens for row in request_rows(trial)] == [3, 1, 0, 0]
    assert len(step_rows(trial)) == 4


def test_requests_draw_with_seeds_of_their_own():
    time = FakeTime()
    params = SamplingParams(temperature=2.0, ignore_eos=True)
    engine = make_engine(time, make_policy("continuous", 4))
    trial = run_trial(engine, ask(4, tokens=12), params, Trial(), time.sleep)
    assert len({row.token_ids_sha256 for row in request_rows(trial)}) > 1
    assert [request.params.seed for request in trial.requests] == [0, 1, 2, 3]


def test_a_request_that_can_never_be_served_is_an_error():
    with pytest.raises(RequestError, match="in the vocabulary"):
        run(Workload((Prompt((99,)),), 1, 3), make_policy("single"))


class Stubborn(Policy):
    """Lets nobody in and names no time."""

    name = "stubborn"

    def admit(self, _view: View) -> Admission:
        return Admission(0)


def test_a_policy_that_forgets_requests_is_an_error_and_no_hang():
    with pytest.raises(KneeError, match="left 2 requests waiting for ever"):
        run(ask(2), Stubborn())


# --- closed loops ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    policy=st.sampled_from(["single", "static", "dynamic", "continuous"]),
    users=st.integers(1, 6),
    size=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=14),
)
def test_in_a_closed_loop_an_answer_makes_the_next_request_due(policy, users, size, lengths):
    asked = replace(ask(len(lengths), f"closed:{users}", max(lengths)), new_tokens=tuple(lengths))
    trial, _ = run(asked, make_policy(policy, size if policy != "single" else 1))
    rows = request_rows(trial)
    assert [row.output_tokens for row in rows] == lengths
    due, ends = [row.scheduled_at for row in rows], sorted(row.finished_at for row in rows)
    assert due == [0.0] * min(users, len(rows)) + ends[: max(0, len(rows) - users)]
    for moment in due:
        assert sum(row.scheduled_at <= moment < row.finished_at for row in rows) <= users
    assert trial.client_delay == 0.0


@settings(deadline=None, max_examples=60)
@given(
    policy=st.sampled_from(["single", "static", "dynamic", "continuous"]),
    arrival=st.sampled_from(["burst", "rate:90", "poisson:40", "closed:1", "closed:4"]),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=14),
)
def test_steps_that_overlap_lose_nobody(policy, arrival, lengths):
    time, device = FakeTime(), FakeAsyncDevice()
    device.cost = time.per_row
    engine = replace(make_llm(), device=device).engine(make_policy(policy, 1 if policy == "single" else 3), longest=64)
    engine.clock = time.clock.now
    asked = replace(ask(len(lengths), arrival, max(lengths)), new_tokens=tuple(lengths))
    trial = run_trial(engine, asked, GREEDY, Trial(), time.sleep)
    rows = request_rows(trial)
    assert [row.output_tokens for row in rows] == lengths
    assert all(row.scheduled_at <= row.sent_at <= row.prefill_start < row.first_token_at for row in rows)
    users = asked.arrival.users
    if users:
        ends = sorted(row.finished_at for row in rows)
        assert [row.scheduled_at for row in rows] == [0.0] * min(users, len(rows)) + ends[: max(0, len(rows) - users)]
    assert not device.under_way
    engine.kv.check_integrity([])


def test_a_static_batch_starts_when_all_users_wait_for_it():
    trial, time = run(ask(6, "closed:2"), make_policy("static", 4))
    assert time.slept == []
    assert [step.batch_size for step in step_rows(trial)] == [2] * 9


def test_a_window_is_not_waited_out_where_nobody_can_come():
    trial, time = run(ask(4, "closed:2"), make_policy("dynamic", 4, max_wait_ms=1000.0))
    assert time.slept == []
    assert len(request_rows(trial)) == 4


def test_users_whose_requests_failed_ask_again():
    trial, _ = run(ask(5, "closed:2"), make_policy("continuous", 4), fail_at=1)
    rows = request_rows(trial)
    assert [row.finish_reason for row in rows] == ["error", "error", "length", "length", "length"]
    assert [row.scheduled_at for row in rows[2:4]] == [rows[0].finished_at] * 2


# --- the load generator's own delay ------------------------------------------------------------------------------


def test_a_generator_with_an_exact_clock_has_no_delay():
    trial, time = run(ask(5, "rate:5"), make_policy("continuous", 4))
    assert len(time.slept) >= 4
    assert trial.delays == pytest.approx([0.0] * 5)
    assert not trial.late


def test_a_request_that_comes_due_during_a_step_is_not_late():
    trial, _ = run(ask(4, "rate:100"), make_policy("single"))
    assert any(row.sent_at - row.scheduled_at > 0.001 for row in request_rows(trial))
    assert trial.delays == [0.0] * 4
    assert not trial.late


def test_a_generator_that_oversleeps_is_late_by_as_much():
    trial, _ = run(ask(3, "rate:5"), make_policy("continuous", 4), overslept=0.005)
    assert trial.delays == pytest.approx([0.0, 0.005, 0.005])
    assert trial.client_delay == pytest.approx(0.005)
    assert trial.late
    assert [row.client_delay_ms for row in request_rows(trial)] == pytest.approx([0.0, 5.0, 5.0])


@pytest.mark.parametrize(
    ("delay", "latency", "late"),
    [(0.0009, 10.0, False), (0.0011, 10.0, True), (0.0009, 0.1, False), (0.0009, 0.08, True), (0.0, 0.1, False)],
)
def test_a_delay_counts_over_a_millisecond_or_a_hundredth_of_the_latency(delay: float, latency: float, late: bool):
    trial = Trial(delays=[delay], requests=[answered(latency)])
    assert trial.mean_latency == pytest.approx(latency)
    assert trial.late is late


def test_one_late_request_in_a_hundred_is_forgiven():
    delays = [0.005, *[0.0] * 99]
    assert not Trial(delays=delays, requests=[answered(1.0)]).late
    assert Trial(delays=delays[:-1], requests=[answered(1.0)]).late


def answered(latency: float) -> Request:
    request = Request(0, (1,), GREEDY, scheduled_at=5.0, sent_at=5.0)
    request.token_times.append(5.0 + latency)
    return request


def test_rows_of_a_void_trial_say_so():
    trial, _ = run(ask(2), make_policy("single"))
    assert not any(row.void for row in [*request_rows(trial), *step_rows(trial)])
    trial.void = True
    assert all(row.void for row in [*request_rows(trial), *step_rows(trial)])


# --- tokens ------------------------------------------------------------------------------------------------------


def test_the_hash_of_tokens_depends_on_where_one_ends():
    assert hash_tokens([1, 23]) != hash_tokens([12, 3])

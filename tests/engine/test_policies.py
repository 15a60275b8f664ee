"""Laws of the batch policies, over random workloads on a fake clock, and each definition as a small story."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from knee.engine.kv import KVManager
from knee.engine.policies import POLICIES, Continuous, Dynamic, Single, Static, make_policy
from knee.engine.policies.base import Admission, View
from knee.engine.types import Request
from knee.errors import UserError
from tests.engine.fake_engine import FakeEngine, make_request

LAW = settings(deadline=None, max_examples=60)
ROOMY = 500
WAIT_MS = st.sampled_from([0.0, 0.1, 3.0, 10.0, 1000.0])


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    """Up to a dozen requests: bursts, trickles and anything between."""
    gaps = st.sampled_from([0.0, 0.0, 0.0013, 0.01, 0.5])
    requests: list[Request] = []
    now = 0.0
    for id in range(draw(st.integers(1, 12))):
        now += draw(gaps)
        requests.append(make_request(id, draw(st.integers(1, 30)), draw(st.integers(1, 12)), now))
    return requests


@st.composite
def pools(draw: st.DrawFn, requests: list[Request]) -> KVManager:
    """A pool in which each request fits alone, often not much more; or the cache off."""
    if draw(st.integers(0, 4)) == 0:
        return KVManager.off()
    block_size = draw(st.sampled_from([1, 2, 5, 16]))
    longest = max(len(request.prompt) + request.params.max_new_tokens - 1 for request in requests)
    return KVManager(-(-longest // block_size) + draw(st.integers(0, 30)), block_size)


@st.composite
def engines(draw: st.DrawFn, name: str) -> FakeEngine:
    requests = draw(workloads())
    size = 1 if name == "single" else draw(st.integers(1, 6))
    wait_ms = draw(WAIT_MS) if name == "dynamic" else None
    budget = draw(st.integers(size, 40))
    return FakeEngine.of(make_policy(name, size, wait_ms, budget), draw(pools(requests)), *requests)


ANY_ENGINE = st.sampled_from(list(POLICIES)).flatmap(engines)


@settings(LAW, max_examples=200)
@given(ANY_ENGINE)
def test_every_submitted_request_ends(engine: FakeEngine) -> None:
    """Also: no plan exceeds batch size, budget or pool, and no block goes astray; the fake checks each step."""
    submitted = list(engine.arrivals)
    engine.run()
    assert set(engine.done) == set(submitted)
    assert all(len(request.output) == request.params.max_new_tokens for request in submitted)


@LAW
@given(ANY_ENGINE)
def test_all_blocks_come_back(engine: FakeEngine) -> None:
    engine.run()
    assert engine.kv.used_blocks == 0


@LAW
@given(ANY_ENGINE)
def test_no_request_starves(engine: FakeEngine) -> None:
    """A request in the batch whose elders have all ended runs every step, so elders bound the steps before."""
    submitted = list(engine.arrivals)
    engine.run()
    patience = 0
    for request in submitted:
        patience += request.num_tokens
        held_up = [step for step in engine.steps if request in step.running or request in step.waiting]
        assert len(held_up) <= patience


@LAW
@given(ANY_ENGINE)
def test_requests_start_in_order_of_arrival(engine: FakeEngine) -> None:
    engine.run()
    starts = [request.id for step in engine.steps for request in step.newcomers]
    assert starts == sorted(starts)


@LAW
@given(ANY_ENGINE)
def test_the_same_workload_gives_the_same_plans(engine: FakeEngine) -> None:
    """A policy keeps no state: one that has served a workload serves the next as if it were new."""
    arrivals = engine.arrivals
    again = FakeEngine.of(
        engine.policy,
        KVManager(engine.kv.num_blocks, engine.kv.block_size) if engine.kv.enabled else KVManager.off(),
        *(make_request(r.id, len(r.prompt), r.params.max_new_tokens, r.scheduled_at) for r in arrivals),
    )
    assert engine.run().story == again.run().story


@LAW
@given(engines("single"))
def test_single_runs_one_request_a_step(engine: FakeEngine) -> None:
    engine.run()
    assert all(len(step.plan.chunks) == 1 for step in engine.steps)


@LAW
@given(st.sampled_from(["static", "dynamic"]).flatmap(engines))
def test_static_and_dynamic_admit_nobody_while_a_batch_runs(engine: FakeEngine) -> None:
    for step in engine.run().steps:
        assert not (step.newcomers and step.running)
        assert not step.newcomers or step.newcomers == step.plan.admit  # nor while a preempted member waits


@LAW
@given(engines("static"))
def test_static_starts_only_full_batches_until_no_more_are_expected(engine: FakeEngine) -> None:
    for step in engine.run().steps:
        if step.newcomers:
            assert len(step.waiting) >= engine.policy.max_batch_size or not step.more_expected


@LAW
@given(engines("dynamic"))
def test_dynamic_starts_no_later_than_its_window_when_the_engine_is_free(engine: FakeEngine) -> None:
    free_at = 0.0
    for step in engine.run().steps:
        if step.newcomers:
            assert step.started_at <= max(free_at, deadline_of(step.newcomers[0], engine))
        free_at = step.ended_at


@LAW
@given(engines("dynamic"))
def test_dynamic_waits_out_its_window_unless_the_batch_is_full(engine: FakeEngine) -> None:
    for step in engine.run().steps:
        if step.newcomers and step.more_expected and len(step.waiting) < engine.policy.max_batch_size:
            assert step.started_at >= deadline_of(step.newcomers[0], engine)


def deadline_of(request: Request, engine: FakeEngine) -> float:
    assert isinstance(engine.policy, Dynamic)
    return request.scheduled_at + engine.policy.max_wait_ms / 1000


@LAW
@given(at=st.floats(0, 1e9), wait_ms=st.floats(0, 1e9))
def test_a_dynamic_batch_starts_when_woken_exactly_at_its_deadline(at: float, wait_ms: float) -> None:
    policy, kv = Dynamic(max_batch_size=2, max_wait_ms=wait_ms), KVManager(ROOMY, 16)
    waiting = [make_request(0, at=at)]
    plan = policy.plan(View(at, waiting, [], kv, more_expected=True))
    assume(plan.wake_at is not None)
    assert policy.plan(View(plan.wake_at, waiting, [], kv, more_expected=True)).admit


@LAW
@given(workloads(), st.integers(1, 6))
def test_continuous_leaves_no_slot_empty_while_somebody_waits(requests: list[Request], size: int) -> None:
    engine = FakeEngine.of(Continuous(size), KVManager(ROOMY, 16), *requests)
    for step in engine.run().steps:
        wanted = len(step.running) + len(step.waiting)
        assert len(step.running) + len(step.plan.admit) == min(size, wanted)


class WatchedQueue(deque[Request]):
    """Counts how many requests a policy looks at."""

    seen = 0

    def __iter__(self) -> Iterator[Request]:
        for request in super().__iter__():
            self.seen += 1
            yield request


@pytest.mark.parametrize("name", POLICIES)
def test_a_long_queue_is_not_walked(name: str) -> None:
    policy = make_policy(name, 1 if name == "single" else 16)
    waiting = WatchedQueue(make_request(id) for id in range(1000))
    policy.plan(View(0.0, waiting, [], KVManager(ROOMY, 16), more_expected=True))
    assert waiting.seen <= policy.max_batch_size + 1


class Asked(Continuous):
    """Counts how often it is asked who joins."""

    times = 0

    def admit(self, view: View) -> Admission:
        self.times += 1
        return super().admit(view)


def test_a_policy_is_asked_only_while_somebody_waits_and_a_slot_is_free() -> None:
    requests = [make_request(0, new=9), make_request(1, new=4), make_request(2, new=3)]
    engine = FakeEngine.of(Asked(2), KVManager(ROOMY, 16), *requests).run()
    assert isinstance(engine.policy, Asked)
    assert (len(engine.steps), engine.policy.times) == (9, 2)


# --- each policy as its definition says ---------------------------------------------------------------


def story(
    policy: str, *requests: Request, size: int = 2, kv: KVManager | None = None, **options: int
) -> list[dict[int, int]]:
    engine = FakeEngine.of(make_policy(policy, size, **options), kv or KVManager(ROOMY, 2), *requests)
    return engine.run().story


def start_times(policy: str, *arrivals: float, size: int = 2, wait_ms: float | None = None) -> list[float]:
    requests = [make_request(id, new=1, at=at) for id, at in enumerate(arrivals)]
    engine = FakeEngine.of(make_policy(policy, size, wait_ms), KVManager(ROOMY, 2), *requests)
    return [step.started_at for step in engine.run().steps]


def test_single_runs_one_request_after_the_other() -> None:
    requests = [make_request(0, prompt=4, new=2), make_request(1, prompt=3, new=2)]
    assert story("single", *requests, size=1) == [{0: 4}, {0: 1}, {1: 3}, {1: 1}]


def test_static_leaves_a_slot_empty_until_the_whole_batch_is_done() -> None:
    requests = [make_request(0, new=3), make_request(1, new=1), make_request(2, new=1)]
    assert story("static", *requests) == [{0: 4, 1: 4}, {0: 1}, {0: 1}, {2: 4}]


def test_continuous_fills_a_slot_in_the_step_after_it_fell_free() -> None:
    requests = [make_request(0, new=3), make_request(1, new=1), make_request(2, new=1)]
    assert story("continuous", *requests) == [{0: 4, 1: 4}, {0: 1, 2: 4}, {0: 1}]


def test_static_waits_for_company() -> None:
    assert start_times("static", 1.0, 5.0) == [5.0]


def test_static_runs_the_rest_of_the_workload_without_company() -> None:
    assert start_times("static", 1.0, 5.0, 9.0) == [5.0, 9.0]


def test_dynamic_starts_at_the_end_of_its_window() -> None:
    assert start_times("dynamic", 1.0, 5.0, wait_ms=250) == [1.25, 5.0]


def test_dynamic_starts_at_once_when_the_batch_is_full() -> None:
    assert start_times("dynamic", 1.0, 1.1, 5.0, wait_ms=250) == [1.1, 5.0]


def test_continuous_never_waits_for_company() -> None:
    assert start_times("continuous", 1.0, 5.0) == [1.0, 5.0]


def test_decode_comes_before_prefill_which_is_cut_to_the_token_budget() -> None:
    requests = [make_request(0, prompt=2, new=3), make_request(1, prompt=7, new=1)]
    steps = story("continuous", *requests, max_batched_tokens=4)
    assert steps == [{0: 2, 1: 2}, {0: 1, 1: 3}, {0: 1, 1: 2}]


def test_a_request_beyond_the_budget_holds_its_slot_and_runs_later() -> None:
    requests = [make_request(0, prompt=6, new=1), make_request(1, prompt=2, new=1)]
    assert story("continuous", *requests, max_batched_tokens=4) == [{0: 4}, {0: 2, 1: 2}]


def test_with_the_cache_off_each_step_runs_whole_prefixes_whatever_the_budget() -> None:
    requests = [make_request(0, prompt=4, new=2), make_request(1, prompt=3, new=2)]
    steps = story("continuous", *requests, kv=KVManager.off(), max_batched_tokens=2)
    assert steps == [{0: 4, 1: 3}, {0: 5, 1: 4}]


@pytest.mark.parametrize("policy", ["static", "dynamic", "continuous"])
def test_when_the_pool_runs_dry_the_youngest_starts_again_later(policy: str) -> None:
    requests = [make_request(0, prompt=4, new=4), make_request(1, prompt=4, new=2)]
    steps = story(policy, *requests, kv=KVManager(num_blocks=5, block_size=2))
    assert steps == [{0: 4, 1: 4}, {0: 1}, {0: 1}, {0: 1}, {1: 5}]


@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_a_preempted_member_comes_back_before_the_next_batch_starts(policy: str) -> None:
    requests = [make_request(0, prompt=4, new=2), make_request(1, prompt=4, new=3), make_request(2, 1, 1)]
    steps = story(policy, *requests, kv=KVManager(num_blocks=5, block_size=2))
    assert steps == [{0: 4, 1: 4}, {0: 1}, {1: 5}, {1: 1}, {2: 1}]


def test_a_small_request_does_not_overtake_one_that_does_not_fit() -> None:
    requests = [make_request(0, prompt=4, new=2), make_request(1, prompt=6, new=1), make_request(2, prompt=1, new=1)]
    steps = story("continuous", *requests, size=3, kv=KVManager(num_blocks=4, block_size=2))
    assert steps == [{0: 4}, {0: 1}, {1: 6, 2: 1}]


def test_a_newcomer_leaves_a_prefill_under_way_its_blocks() -> None:
    requests = [make_request(0, prompt=6, new=1), make_request(1, prompt=4, new=1)]
    engine = FakeEngine.of(Continuous(2, max_batched_tokens=4), KVManager(4, 2), *requests).run()
    assert engine.story == [{0: 4}, {0: 2}, {1: 4}]
    assert all(request.num_preemptions == 0 for request in engine.done)


# --- what is refused ----------------------------------------------------------------------------------


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="single, static, dynamic, continuous"):
        make_policy("adaptive")


@pytest.mark.parametrize("name", ["single", "static", "continuous"])
def test_a_wait_window_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(UserError, match="wait window"):
        make_policy(name, max_wait_ms=0.0)


@pytest.mark.parametrize("wait_ms", [-1.0, math.nan, math.inf])
def test_a_window_that_is_negative_or_not_finite_is_refused(wait_ms: float) -> None:
    with pytest.raises(UserError, match="wait window"):
        make_policy("dynamic", max_wait_ms=wait_ms)


@pytest.mark.parametrize("policy", POLICIES.values())
@pytest.mark.parametrize("size", [0, -1, math.nan, 1.5])
def test_a_batch_size_that_is_no_whole_number_above_0_is_refused(policy: type, size: float) -> None:
    with pytest.raises(UserError, match="batch size"):
        policy(size)


@pytest.mark.parametrize("budget", [0, -5, math.nan, 3])
def test_a_token_budget_that_cannot_serve_the_batch_is_refused(budget: float) -> None:
    with pytest.raises(UserError, match="token budget"):
        Static(max_batch_size=4, max_batched_tokens=budget)


def test_single_refuses_a_larger_batch() -> None:
    with pytest.raises(UserError, match="one request at a time"):
        Single(max_batch_size=2)

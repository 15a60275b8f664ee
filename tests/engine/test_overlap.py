"""An engine that is a step ahead of its device gives the tokens of one that waits for each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.engine.engine import Engine
from knee.engine.kv import KVManager
from knee.engine.policies import make_policy
from knee.engine.types import FinishReason, Request, SamplingParams, StepStats
from knee.errors import NumericsError
from tests.engine.fake_async_device import FakeAsyncDevice
from tests.engine.test_engine import Spelled, expected
from tests.fake_device import FakeDevice

LAW = settings(deadline=None, max_examples=150)


@dataclass(frozen=True)
class Asked:
    """A request to come: after so many steps, and perhaps taken back after so many more."""

    prompt: tuple[int, ...]
    params: SamplingParams
    step: int = 0
    abort_after: int | None = None


@dataclass(frozen=True)
class Setup:
    """An engine to be made."""

    policy: str = "continuous"
    batch: int = 4
    block_size: int = 4
    blocks: int = 64
    budget: int = 512
    kv: bool = True
    eos: frozenset[int] = frozenset()

    def engine(self, overlap: bool, device: FakeAsyncDevice | None = None) -> Engine:
        device = device or FakeAsyncDevice()
        device.allocate_kv(self.blocks, self.block_size)
        size = 1 if self.policy == "single" else self.batch
        policy = make_policy(self.policy, size, max_batched_tokens=max(size, self.budget))
        kv = KVManager(self.blocks, self.block_size) if self.kv else KVManager.off()
        return Engine(device, policy, kv, Spelled(), self.eos, overlap=overlap)


@st.composite
def params(draw: st.DrawFn, plain: bool = False) -> SamplingParams:
    new = draw(st.integers(1, 20))
    if plain:
        return SamplingParams(max_new_tokens=new, ignore_eos=True)
    letters = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=2)
    return SamplingParams(
        max_new_tokens=new,
        temperature=draw(st.sampled_from([0.0, 0.0, 0.0, 2.0])),
        seed=draw(st.integers(0, 9)),
        stop=tuple(draw(st.lists(letters, max_size=3))),
        ignore_eos=draw(st.booleans()),
    )


@st.composite
def works(draw: st.DrawFn, plain: bool = False, aborts: bool = False) -> list[Asked]:
    asked = []
    for _ in range(draw(st.integers(1, 8))):
        prompt = draw(st.lists(st.integers(0, 49), min_size=1, max_size=20))
        step = 0 if plain else draw(st.integers(0, 12))
        abort_after = draw(st.none() | st.integers(0, 12)) if aborts else None
        asked.append(Asked(tuple(prompt), draw(params(plain)), step, abort_after))
    return asked


@st.composite
def setups(draw: st.DrawFn, work: Sequence[Asked], kv: bool = False) -> Setup:
    """Often with just enough blocks for the longest request, so that others have to give way."""
    block_size = draw(st.integers(1, 6))
    longest = max(len(one.prompt) + one.params.max_new_tokens for one in work)
    return Setup(
        policy=draw(st.sampled_from(["single", "static", "dynamic", "continuous"])),
        batch=draw(st.integers(1, 6)),
        block_size=block_size,
        blocks=-(-longest // block_size) + draw(st.integers(0, 8)),
        budget=draw(st.integers(1, 40)),
        kv=kv or draw(st.integers(0, 5)) > 0,
        eos=frozenset(draw(st.lists(st.integers(0, 49), max_size=12))),
    )


def serve(engine: Engine, work: Sequence[Asked], errors: list[NumericsError] | None = None) -> list[Request]:
    """Everybody to their end, come when they are due; whatever happens, no block goes astray."""
    requests: dict[int, Request] = {}
    engine.more_expected = False
    for step in count():
        for index, one in enumerate(work):
            if one.step == step:
                requests[index] = engine.submit(one.prompt, one.params)
            if one.abort_after is not None and one.step + one.abort_after == step:
                engine.abort(requests[index])
        engine.kv.check_integrity(engine.running)
        if len(requests) == len(work) and not engine.has_work:
            break
        try:
            engine.step()
        except NumericsError as error:
            if errors is None:
                raise
            errors.append(error)
        assert step < 3000, "the engine does not come to an end"
    engine.kv.check_integrity([])
    assert isinstance(engine.device, FakeAsyncDevice)
    assert not engine.device.under_way
    return [requests[index] for index in range(len(work))]


def said(requests: Sequence[Request]) -> list[tuple[list[int], str, FinishReason | None, int]]:
    return [(one.output, one.text, one.finish_reason, len(one.token_times)) for one in requests]


@LAW
@given(works().flatmap(lambda work: st.tuples(st.just(work), setups(work))))
def test_tokens_and_text_are_the_same_whether_steps_overlap_or_not(given: tuple[list[Asked], Setup]) -> None:
    work, setup = given
    ahead = setup.engine(overlap=True)
    assert said(serve(ahead, work)) == said(serve(setup.engine(overlap=False), work))


@LAW
@given(works(aborts=True).flatmap(lambda work: st.tuples(st.just(work), setups(work))))
def test_who_is_taken_back_keeps_a_beginning_and_disturbs_nobody(given: tuple[list[Asked], Setup]) -> None:
    work, setup = given
    alone = [replace(one, abort_after=None) for one in work]
    whole = serve(setup.engine(overlap=False), alone)
    for request, other in zip(serve(setup.engine(overlap=True), work), whole, strict=True):
        if request.finish_reason is FinishReason.ABORTED:
            assert request.output == other.output[: len(request.output)]
            assert other.text.startswith(request.text) or request.params.stop  # what may begin a stop string is text
        else:
            assert said([request]) == said([other])


@LAW
@given(
    works(aborts=True).flatmap(lambda work: st.tuples(st.just(work), setups(work))),
    st.integers(0, 25),
    st.booleans(),
)
def test_a_fault_ends_requests_of_its_step_and_the_others_go_on(
    given: tuple[list[Asked], Setup], fail_at: int, late: bool
) -> None:
    work, setup = given
    whole = serve(setup.engine(overlap=False), [replace(one, abort_after=None) for one in work])
    errors: list[NumericsError] = []
    requests = serve(setup.engine(True, FakeAsyncDevice(fail_at, late)), work, errors)
    failed = [request for request in requests if request.finish_reason is FinishReason.ERROR]
    assert len(errors) == bool(failed)
    assert len(failed) <= setup.batch
    for request, other in zip(requests, whole, strict=True):
        if request.finish_reason in (FinishReason.ERROR, FinishReason.ABORTED):
            assert request.output == other.output[: len(request.output)]
        else:
            assert said([request]) == said([other])


Shape = tuple[int, int, int, int, int, int]


def shapes(engine: Engine, work: Sequence[Asked]) -> list[Shape]:
    for one in work:
        engine.submit(one.prompt, one.params)
    return [shape(result.stats) for result in engine.run() if result.stats]


def shape(stats: StepStats) -> Shape:
    prefill, decode = stats.prefill_tokens, stats.decode_rows
    return prefill, decode, stats.kv_tokens, stats.waiting, stats.batch_size, stats.preempted


@LAW
@given(works(plain=True).flatmap(lambda work: st.tuples(st.just(work), setups(work))))
def test_where_only_lengths_end_requests_the_steps_are_the_same_too(given: tuple[list[Asked], Setup]) -> None:
    work, setup = given
    assert shapes(setup.engine(True), work) == shapes(setup.engine(False), work)


def greedy(new: int = 6, **more: object) -> SamplingParams:
    return SamplingParams(max_new_tokens=new, **more)  # type: ignore[arg-type]


def test_the_next_step_is_started_before_the_first_is_finished() -> None:
    device = FakeAsyncDevice()
    engine = Setup().engine(True, device)
    requests = [engine.submit([1, 2, i], greedy()) for i in range(3)]
    results = [result for result in engine.run() if result.stats]
    assert [request.output for request in requests] == [expected([1, 2, i], 6) for i in range(3)]
    assert device.most_under_way == 2
    assert device.unseen == 3 * 5
    assert len(results) == 6
    assert device.number == 6  # no step too many: who ends by length is known to


def test_a_token_that_the_host_chooses_is_waited_for() -> None:
    device = FakeAsyncDevice()
    engine = Setup().engine(True, device)
    engine.submit([1, 2, 3], greedy(temperature=1.0))
    engine.submit([4, 5, 6], greedy())
    for _ in engine.run():
        pass
    assert device.most_under_way == 1


@pytest.mark.parametrize("setup", [Setup(kv=False), Setup()])
def test_nothing_overlaps_with_the_cache_off_or_where_it_is_not_wanted(setup: Setup) -> None:
    device = FakeAsyncDevice()
    engine = setup.engine(not setup.kv, device)
    engine.submit([1, 2, 3], greedy())
    for _ in engine.run():
        pass
    assert device.most_under_way == 1


def test_a_device_that_does_not_overlap_is_never_asked_to() -> None:
    device = FakeDevice()
    assert not Engine(device, make_policy("single"), KVManager.off(), overlap=True).overlap


def test_an_end_that_nobody_foresaw_costs_one_row_that_is_dropped() -> None:
    tokens = expected([7, 8], 10)
    device = FakeAsyncDevice()
    engine = Setup(eos=frozenset({tokens[1]})).engine(True, device)
    request = engine.submit([7, 8], greedy(10))
    rows = [result.stats.decode_rows for result in engine.run() if result.stats]
    assert (request.output, request.finish_reason) == (tokens[:2], FinishReason.EOS)
    assert rows == [0, 1, 1]
    assert not engine.has_work


def test_a_slot_is_filled_while_the_last_token_of_who_had_it_is_on_its_way() -> None:
    engine = Setup("single").engine(True)
    requests = [engine.submit([1, 2, 3], greedy(1)), engine.submit([4, 5], greedy(2))]
    engine.step()
    assert (requests[0].finish_reason, engine.running) == (FinishReason.LENGTH, requests[1:])


def test_a_step_lands_although_all_its_requests_have_been_taken_back() -> None:
    engine = Setup().engine(True)
    request = engine.submit([4, 5], greedy(2))
    engine.step()
    engine.abort(request)
    assert (engine.running, engine.has_work) == ([], True)
    result = engine.step()
    assert (result.events, result.stats is not None) == ((), True)
    assert (request.output, engine.has_work) == (expected([4, 5], 1), False)


def test_an_error_of_a_step_that_all_have_left_is_nobody_s() -> None:
    engine = Setup().engine(True, FakeAsyncDevice(fail_at=1))
    request = engine.submit([1, 2, 3], greedy(5))
    engine.step()
    engine.abort(request)
    assert engine.step().events == ()
    other = engine.submit([1, 2], greedy(3))
    for _ in engine.run():
        pass
    assert other.output == expected([1, 2], 3)


@pytest.mark.parametrize("late", [False, True])
def test_a_step_that_fails_takes_nothing_from_the_one_before(late: bool) -> None:
    engine = Setup().engine(True, FakeAsyncDevice(fail_at=2, fail_late=late))
    request = engine.submit([1, 2, 3], greedy(5))
    assert len(engine.step().events) == len(engine.step().events) == 1
    with pytest.raises(NumericsError):
        engine.step()
    assert (request.output, request.finish_reason) == (expected([1, 2, 3], 2), FinishReason.ERROR)


def ticking(seconds: float = 1.0) -> Iterator[float]:
    return count(0.0, seconds)


@pytest.mark.parametrize("seconds", [None, 0.5, 100.0])
def test_durations_add_up_to_the_time_that_passed(seconds: float | None) -> None:
    clock = ticking()
    engine = Setup().engine(True, FakeAsyncDevice(seconds=seconds))
    engine.clock = lambda: next(clock)
    request = engine.submit([1, 2, 3], greedy(5))
    stats = [result.stats for result in engine.run() if result.stats]
    assert all(one.started_at + one.duration == two.started_at for one, two in pairwise(stats))
    assert all(0 <= one.host_time < one.duration for one in stats)
    for at, one in zip(request.token_times, stats, strict=True):
        assert one.started_at < at < one.started_at + one.duration
    assert request.prefill_start == stats[0].started_at
    if seconds is not None:
        assert all(one.device_time == seconds for one in stats)


class Interrupted(FakeAsyncDevice):
    """Ctrl-C comes in step 3."""

    def start(self, batch):  # type: ignore[no-untyped-def]
        if self.number == 3 and not self.fail_late:
            self.fail_late = True
            raise KeyboardInterrupt
        return super().start(batch)

    def finish(self, started):  # type: ignore[no-untyped-def]
        output = super().finish(started)
        if started.number == 3 and self.seconds is None:
            self.seconds = 1.0
            raise KeyboardInterrupt
        return output


@pytest.mark.parametrize(("late", "lost"), [(False, "start"), (True, "finish")])
@pytest.mark.parametrize("overlap", [False, True])
def test_after_an_interrupt_the_others_go_on(late: bool, lost: str, overlap: bool) -> None:
    engine = Setup("single").engine(overlap, Interrupted(fail_late=late, seconds=None if lost == "finish" else 1.0))
    first, second = engine.submit([1, 2, 3], greedy(9)), engine.submit([4, 5], greedy(3))
    with pytest.raises(KeyboardInterrupt):
        for _ in engine.run():
            pass
    for _ in engine.run():
        pass
    assert first.finish_reason is FinishReason.ABORTED
    assert first.output == expected([1, 2, 3], len(first.output))
    assert second.output == expected([4, 5], 3)
    engine.kv.check_integrity([])

"""A device that takes long over the first step of every shape: no measurement has such a step in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from knee.devices.base import Span
from knee.lab import baseline, inspect, kvcache
from knee.lab.arrivals import Arrival
from knee.lab.measure import measure, measure_alone
from knee.lab.plan import REHEARSED, SweepSpec, make_cells, rehearsal
from knee.lab.workload import Prompt, Workload
from tests.fake_device import FakeDevice
from tests.lab.fake_llm import STEP_S, FakeTime, Rows, make_llm

PROMPT = Prompt(tuple(range(13)))
LEARNING_S = 1.0


class Learning:
    """What a step costs: more where there was none with as many tokens and as long a context yet."""

    def __init__(self) -> None:
        self.time = FakeTime()
        self.seen: set[tuple[int, int]] = set()
        self.requests = 0

    def __call__(self, batch: Sequence[Span]) -> None:
        shape = sum(len(span.tokens) for span in batch), max(span.start for span in batch) // 8
        self.time.now += STEP_S if shape in self.seen else LEARNING_S
        self.seen.add(shape)
        self.requests += sum(span.start == 0 for span in batch)


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> Learning:
    monkeypatch.setattr(FakeDevice, "learns_shapes", True)
    return Learning()


def test_a_baseline(learning: Learning) -> None:
    spec = baseline.BaselineSpec(Workload((PROMPT,), 1, 40))
    metrics: Any = baseline.run(make_llm(learning), spec, Rows(), learning.time.clock).metrics
    assert metrics.prefill_cold_ms == pytest.approx(1e3 * LEARNING_S)
    assert [*metrics.prefill_runs_ms, *metrics.decode_step_ms] == pytest.approx([1e3 * STEP_S] * 44)


def test_the_cache_on_and_off(learning: Learning) -> None:
    spec = kvcache.KvCacheSpec(PROMPT, (4, 9), 20)
    metrics: Any = kvcache.run(make_llm(learning), spec, Rows(), learning.time.clock).metrics
    assert [cell.total_ms for cell in metrics.cells] == pytest.approx([2e4 * STEP_S] * 4)


def test_a_request_taken_apart(learning: Learning) -> None:
    spec = inspect.InspectSpec(Workload((PROMPT,), 1, 20))
    metrics: Any = inspect.run(make_llm(learning), spec, Rows(), learning.time.clock).metrics
    steps = [*metrics.steps, *metrics.kv_cache_off.steps]
    assert [step.ms for step in steps] == pytest.approx([1e3 * STEP_S] * 38)


@pytest.mark.parametrize("arrival", [Arrival(), Arrival("poisson", 20.0), Arrival("closed", users=5)], ids=str)
@pytest.mark.parametrize("policy", ["static", "dynamic", "continuous"])
def test_a_trial(learning: Learning, policy: str, arrival: Arrival) -> None:
    prompts = tuple(Prompt(tuple(range(length))) for length in (5, 13, 8, 21, 3))
    workload = Workload(prompts, 12, 20, arrival)
    [cell] = make_cells([policy], [4], None)
    spec = SweepSpec(workload, (cell,), repeats=1)
    found = measure(make_llm(learning), spec.job(0, 0), learning.time.clock)
    assert max(step.duration for step in found.warm_up) >= LEARNING_S
    durations = [step.duration for step in found.trial.steps]
    late = sum(duration > 2 * STEP_S for duration in durations)
    assert late <= len(durations) // 20, "arrivals meet other steps than in the rehearsal, now and then"
    if arrival == Arrival():
        assert late == 0
    assert found.solo is not None
    assert (found.solo.ttft, found.solo.tpot) == pytest.approx((STEP_S, STEP_S))


def test_a_request_alone(learning: Learning) -> None:
    workload = Workload((PROMPT,), 3, 20)
    [cell] = make_cells(["single"], [1], None)
    solo = measure_alone(make_llm(learning), SweepSpec(workload, (cell,), repeats=1).job(0, 0), learning.time.clock)
    assert solo is not None
    assert (solo.ttft, solo.tpot) == pytest.approx((STEP_S, STEP_S))


def test_of_a_long_trial_only_the_beginning_is_rehearsed(learning: Learning) -> None:
    workload = Workload((PROMPT,), 10 * REHEARSED, 2)
    [cell] = make_cells(["continuous"], [4], None)
    measure(make_llm(learning), SweepSpec(workload, (cell,), repeats=1).job(0, 0), learning.time.clock)
    warm_up, alone = 4, 1
    assert learning.requests == 11 * REHEARSED + warm_up + 2 * alone


@pytest.mark.parametrize(
    ("requests", "size", "arrival", "rehearsed"),
    [
        (10, 4, Arrival(), 10),
        (1000, 4, Arrival(), 64),
        (1000, 256, Arrival(), 512),
        (100, 4, Arrival("rate", 2.0), 21),
        (100, 4, Arrival("rate", 0.01), 1),
        (100, 4, Arrival("closed", users=5), 64),
    ],
    ids=str,
)
def test_so_much_of_a_trial_is_rehearsed(requests: int, size: int, arrival: Arrival, rehearsed: int) -> None:
    workload = Workload((PROMPT,), requests, 7, arrival, new_tokens=(7,) * requests)
    assert rehearsal(workload, size).requests == rehearsed


def test_other_devices_need_no_rehearsal() -> None:
    counted = Learning()
    workload = Workload((PROMPT,), 6, 2)
    [cell] = make_cells(["continuous"], [4], None)
    measure(make_llm(counted), SweepSpec(workload, (cell,), repeats=1).job(0, 0), counted.time.clock)
    assert counted.requests == 6 + 4 + 1

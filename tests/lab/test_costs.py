"""The cost model is the program's cost in seven numbers; floors and the roofline's knee follow from it."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.devices.cuda import limits as gpu_limits
from knee.devices.reference import ReferenceDevice
from knee.lab import speed
from knee.lab.costs import best_of, cost_model, device_widths, floor_of, measure_limits, roofline_batch, step_cost
from knee.lab.sweep_records import CostModel, Limits
from knee.models import build_program
from knee.program import Program, SpanShape, StepShape, Widths
from tests.devices.models import CONFIGS
from tests.devices.weights import array_weights, random_values
from tests.lab.fake_llm import make_llm
from tests.lab.test_speed import FakeNative
from tests.test_program import DISTILGPT2, SMOLLM2

MODELS = CONFIGS | {"smollm2": SMOLLM2, "distilgpt2": DISTILGPT2}
MACHINE = Limits(read_gb_s=40.0, gflop_s=200.0, dtype="int8", how="told")


@cache
def program(name: str) -> Program:
    return build_program(MODELS[name])


spans = st.integers(1, 40).flatmap(
    lambda new: st.builds(SpanShape, new=st.just(new), cached=st.integers(0, 500), outputs=st.integers(0, new))
)
# Where no logits are wanted the last matrix is not read, which no linear model can say.
steps = st.lists(spans, min_size=1, max_size=6).map(tuple).map(StepShape).filter(lambda step: step.outputs > 0)
sizes = st.sampled_from([0.5625, 1.0, 2.0, 4.0])


# --- what a step costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=30)
@given(step=steps, weight=sizes, kv=sizes)
def test_the_model_gives_the_cost_of_the_program(name: str, step: StepShape, weight: float, kv: float) -> None:
    widths = Widths(weight=weight, kv=kv)
    model = cost_model(program(name), widths)
    cost = step_cost(model, tokens=step.tokens, outputs=step.outputs, pairs=step.attended, context=step.context)
    exact = program(name).cost(step, widths)
    assert (cost.flops, cost.weight_bytes, cost.kv_bytes) == (exact.flops, exact.weight_bytes, exact.kv_bytes)


@settings(max_examples=30)
@given(step=steps, weight=st.floats(0.1, 8), kv=st.floats(0.1, 8))
def test_widths_need_not_be_whole(step: StepShape, weight: float, kv: float) -> None:
    widths = Widths(weight=weight, kv=kv)
    cost = step_cost(
        cost_model(program("smollm2"), widths),
        tokens=step.tokens,
        outputs=step.outputs,
        pairs=step.attended,
        context=step.context,
    )
    assert cost.bytes == pytest.approx(program("smollm2").cost(step, widths).bytes, rel=1e-12)


def test_a_decode_step_reads_the_weights_once_and_every_cached_token() -> None:
    model = cost_model(program("smollm2"), Widths(weight=2, kv=2))
    assert model.weight_bytes == 2 * program("smollm2").parameters
    assert model.weight_bytes_per_token == 2 * 576  # the token's row of the embedding
    assert model.kv_bytes_per_context == model.kv_bytes_per_token == 22.5 * 1024


def test_widths_are_those_that_the_device_keeps() -> None:
    small = program("llama")
    device = ReferenceDevice(small, array_weights(small, random_values(small)))
    assert device_widths(replace(make_llm(), program=small, device=device)) == Widths(weight=4.0, kv=4.0)


# --- floors ------------------------------------------------------------------------------------------------------


def made(**values: float) -> CostModel:
    """A model whose step costs 100 bytes and nothing else, but for what is given."""
    nothing = dict.fromkeys(CostModel.model_fields, 0.0)
    return CostModel(**{**nothing, "weight_bytes": 100.0, **values})


def limits(read: float = 1e-9, flops: float = 1e-9) -> Limits:
    """By default a byte a second and a FLOP a second."""
    return Limits(read_gb_s=read, gflop_s=flops, dtype="int8", how="told")


def test_a_floor_is_the_longer_of_reading_and_calculating() -> None:
    model = made(flops_per_token=10.0, flops_per_pair=1.0, kv_bytes_per_context=2.0)
    floor = floor_of(model, limits(), tokens=4, outputs=4, pairs=20, context=20)
    assert (floor.memory_s, floor.arithmetic_s) == pytest.approx((140.0, 60.0))
    assert (floor.seconds, floor.bound) == (floor.memory_s, "memory")
    assert floor_of(model, limits(), tokens=20, outputs=20, pairs=20, context=20).bound == "arithmetic"


def test_the_roofline_batch_is_where_arithmetic_overtakes_the_read() -> None:
    assert roofline_batch(made(flops_per_token=8.0, flops_per_output=2.0), limits(), context=30) == pytest.approx(10.0)


@given(st.sampled_from(["smollm2", "distilgpt2"]), st.floats(1, 300), st.floats(1, 4000), st.floats(1, 900))
def test_at_the_roofline_batch_reading_takes_as_long_as_calculating(
    name: str, read: float, flops: float, context: float
) -> None:
    model, machine = cost_model(program(name), Widths(weight=1, kv=2)), limits(read, flops)
    batch = roofline_batch(model, machine, context)
    if batch is not None:
        floor = floor_of(model, machine, tokens=batch, outputs=batch, pairs=batch * context, context=batch * context)
        assert floor.memory_s == pytest.approx(floor.arithmetic_s, rel=1e-6)


def test_long_contexts_read_faster_than_they_calculate_for_ever() -> None:
    model = cost_model(program("smollm2"), Widths(weight=1, kv=2))
    assert roofline_batch(model, MACHINE, context=30) is not None
    assert roofline_batch(model, MACHINE, context=100_000) is None


@pytest.mark.parametrize("machine", [limits(read=0.0), limits(flops=0.0)])
def test_a_machine_without_a_limit_has_no_roofline(machine: Limits) -> None:
    assert roofline_batch(made(flops_per_token=1.0), machine, context=10) is None


# --- the machine -------------------------------------------------------------------------------------------------


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SMALLEST_ARRAYS", "_LARGEST_ARRAYS"):
        monkeypatch.setattr(speed, name, 2**20)
    for name in ("_RUNS", "_ROOF_RUNS"):
        monkeypatch.setattr(speed, name, range(1, 2))
    monkeypatch.setattr(speed, "_KERNEL_SECONDS", 0.0)
    monkeypatch.setattr(speed, "_matrix_size", lambda: 64)


@pytest.mark.usefixtures("_quick")
def test_limits_are_what_the_native_kernels_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNative(bandwidth=4e10)
    monkeypatch.setattr(speed, "find_native", lambda: fake)
    monkeypatch.setattr(speed, "choose_isa", lambda: "avx2")
    found = measure_limits("int8", threads=3)
    assert found == Limits(read_gb_s=40.0, gflop_s=300.0, dtype="int8", how="native avx2")
    assert fake.asked == {("avx2", 3)}


@pytest.mark.usefixtures("_quick")
def test_without_native_kernels_numpy_sets_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "knee.devices.cpu._native", None)
    found = measure_limits("float32", threads=1)
    assert found.read_gb_s > 0
    assert "BLAS sgemm" in found.how
    with pytest.raises(ValueError, match="int8 arithmetic was not measured"):
        measure_limits("int8", threads=1)


def test_of_two_measurements_each_limit_is_the_better_one() -> None:
    before = Limits(read_gb_s=30.0, gflop_s=200.0, dtype="int8", how="native avx2")
    after = Limits(read_gb_s=40.0, gflop_s=100.0, dtype="int8", how="native avx2")
    assert best_of(before, after) == Limits(read_gb_s=40.0, gflop_s=200.0, dtype="int8", how="native avx2")
    other = after.model_copy(update={"how": "native avx2 · BLAS sgemv"})
    assert best_of(before, other).how == "native avx2 · BLAS sgemv"


def test_the_roofs_of_the_cuda_device_are_the_gpu_s(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def product(dtype: str) -> gpu_limits.Speed:
        asked.append(dtype)
        return gpu_limits.Speed(790_000.0, 780_000.0, 9, "torch bfloat16 matmul")

    monkeypatch.setattr(gpu_limits, "read_speed", lambda: gpu_limits.Speed(3000.0, 2900.0, 9, "torch amax"))
    monkeypatch.setattr(gpu_limits, "copy_speed", lambda: gpu_limits.Speed(2950.0, 2900.0, 9, "torch copy"))
    monkeypatch.setattr(gpu_limits, "product_speed", product)
    monkeypatch.setattr(gpu_limits, "release", lambda: asked.append("release"))
    found = measure_limits("int8", 2, "cuda")
    assert found == Limits(read_gb_s=3000.0, gflop_s=790_000.0, dtype="int8", how="torch amax · torch bfloat16 matmul")
    assert asked == ["int8", "release"]  # the memory belongs to the trials

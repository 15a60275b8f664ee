"""The machine's speeds: the fastest way counts, native kernels are asked where they are, a floor is a roofline."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import pytest

from knee.lab import speed
from knee.lab.speed import Kernels, Rate, Speed, find_kernels, find_native, measure_speed
from knee.program import Cost

MODULE = "knee.devices.cpu._native"


@dataclass
class FakeNative:
    """An extension whose machine does exactly as told, in bytes/s and FLOP/s."""

    supported: list[str] = field(default_factory=lambda: ["avx2", "portable"])
    bandwidth: float = 1e15
    dots: dict[str, float] = field(
        default_factory=lambda: {"float32": 1.0, "bfloat16": 2e15, "int8": 3e11, "int4": 4e11}
    )
    asked: set[tuple[str, int]] = field(default_factory=set)

    def supported_isas(self) -> list[str]:
        return self.supported

    def compiled_isas(self) -> list[str]:
        return ["avx512", "avx2", "portable"]

    def read_bandwidth(self, isa: str, threads: int, size: int) -> float:
        assert size > 0
        self.asked.add((isa, threads))
        return self.bandwidth

    def dot_rate(self, isa: str, dtype: str, threads: int) -> float:
        self.asked.add((isa, threads))
        return self.dots[dtype]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_SMALLEST_ARRAYS", 2**20)
    monkeypatch.setattr(speed, "_LARGEST_ARRAYS", 2**20)
    monkeypatch.setattr(speed, "_KERNEL_SECONDS", 0.0)
    monkeypatch.setattr(speed, "_RUNS", range(1, 2))
    monkeypatch.setattr(speed, "_NATIVE_RUNS", range(1, 2))
    monkeypatch.setattr(speed, "_matrix_size", lambda: 64)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> FakeNative:
    fake = FakeNative()
    monkeypatch.setattr(speed, "find_native", lambda: fake)
    monkeypatch.setattr(speed, "choose_isa", lambda: "avx2")
    return fake


def test_of_several_ways_the_fastest_is_the_machines(native: FakeNative) -> None:
    got = measure_speed(3)
    assert (got.read_gb_s.best, got.read_gb_s.how) == (1e6, "native avx2")
    assert (got.bfloat16_gflop_s.best, got.bfloat16_gflop_s.how) == (2e6, "native avx2")
    assert got.float32_gflop_s.how.startswith("BLAS")  # one FLOP/s is not much
    assert [got.gflop_s(dtype).best for dtype in ("int8", "int4")] == [300.0, 400.0]
    assert got.copy_gb_s.how == "NumPy copyto"
    assert native.asked == {("avx2", 3)}


def test_without_the_extension_numpy_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    got = measure_speed(1)
    assert got.kernels is None
    assert got.read_gb_s.best >= got.read_gb_s.median > 0
    with pytest.raises(ValueError, match="int8 arithmetic was not measured"):
        got.gflop_s("int8")


def test_an_extension_for_other_processors_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, FakeNative(supported=[]))
    assert find_native() is None


def test_the_kernels_are_those_that_the_device_takes(native: FakeNative, monkeypatch: pytest.MonkeyPatch) -> None:
    all_built = ("avx512", "avx2", "portable")
    assert find_kernels(native) == Kernels("avx2", ("avx2", "portable"), all_built)
    monkeypatch.setattr(speed, "choose_isa", lambda: "portable")
    assert find_kernels(native).in_use == "portable"


def test_a_floor_is_the_longer_of_reading_and_calculating() -> None:
    machine = Speed(
        read_gb_s=Rate(10.0, 1.0, 1, ""),
        copy_gb_s=Rate(1.0, 1.0, 1, ""),
        float32_gflop_s=Rate(100.0, 1.0, 1, ""),
        bfloat16_gflop_s=Rate(400.0, 1.0, 1, ""),
    )
    cost = Cost(flops=3e9, weight_bytes=0.1e9, kv_bytes=0.1e9, activation_bytes=9e9)
    floors = [machine.floor(cost, dtype) for dtype in ("float32", "bfloat16")]
    assert [one.bound for one in floors] == ["arithmetic", "memory"]
    assert [one.seconds for one in floors] == pytest.approx([0.03, 0.02])

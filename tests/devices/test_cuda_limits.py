"""The GPU's roofs without a GPU: a torch that only counts what it is asked, on a clock of its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from knee.devices.cuda import limits

BANDWIDTH, RATE = 3e12, 8e14  # bytes and FLOPs a second


class FakeArray:
    def __init__(self, torch: FakeTorch, elements: int, itemsize: int) -> None:
        self.torch, self.elements, self.itemsize = torch, elements, itemsize
        torch.allocated += self.bytes

    def __del__(self) -> None:
        self.torch.allocated -= self.bytes

    @property
    def bytes(self) -> int:
        return self.elements * self.itemsize

    def to(self, kind: SimpleNamespace) -> FakeArray:
        return FakeArray(self.torch, self.elements, kind.itemsize)

    def amax(self) -> None:
        self.torch.took(self.bytes / BANDWIDTH)

    def copy_(self, other: FakeArray) -> None:
        assert other.bytes == self.bytes
        self.torch.took(2 * self.bytes / BANDWIDTH)


class FakeTorch:
    """Every third piece of work takes twice as long. `most` is the most memory that was taken."""

    __version__ = "2.11.0"
    float32, int32 = (SimpleNamespace(itemsize=4) for _ in range(2))
    bfloat16, float16 = (SimpleNamespace(itemsize=2) for _ in range(2))
    uint8 = SimpleNamespace(itemsize=1)

    def __init__(self, free: int = 80 * 2**30, cuda: str | None = "13.0", there: bool = True) -> None:
        self.free, self.allocated, self.most = free, 0, 0
        self.now, self.works, self.products = 0.0, 0, list[tuple[int, int]]()
        self.emptied = 0
        self.version = SimpleNamespace(cuda=cuda)
        self.cuda = SimpleNamespace(
            is_available=lambda: there,
            get_device_name=lambda: "NVIDIA H100",
            empty_cache=self.empty_cache,
            mem_get_info=lambda: (free - self.allocated, free),
            Event=self.event,
        )
        self.precision = "highest"

    def event(self, enable_timing: bool) -> FakeEvent:
        assert enable_timing
        return FakeEvent(self)

    def empty_cache(self) -> None:
        self.emptied += 1

    def get_float32_matmul_precision(self) -> str:
        return self.precision

    def took(self, seconds: float) -> None:
        self.most = max(self.most, self.allocated)
        self.works += 1
        self.now += seconds * (2 if self.works % 3 == 0 else 1)

    def ones(self, size: int, dtype: SimpleNamespace, device: str) -> FakeArray:
        assert device == "cuda"
        return FakeArray(self, size, dtype.itemsize)

    def randn(self, rows: int, columns: int, dtype: SimpleNamespace, device: str) -> FakeArray:
        return self.ones(rows * columns, dtype, device)

    def empty_like(self, other: FakeArray) -> FakeArray:
        return FakeArray(self, other.elements, other.itemsize)

    def matmul(self, a: FakeArray, b: FakeArray, out: FakeArray) -> None:
        assert a.bytes == b.bytes == out.bytes
        self.products.append((a.itemsize, math.isqrt(a.elements)))
        self.took(2 * math.isqrt(a.elements) ** 3 / RATE)


class FakeEvent:
    def __init__(self, torch: FakeTorch) -> None:
        self.torch, self.at = torch, 0.0

    def record(self) -> None:
        self.at = self.torch.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: FakeEvent) -> float:
        return (other.at - self.at) * 1e3


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTorch]:
    monkeypatch.setattr(limits, "_SECONDS", 0.0)

    def install(**more: Any) -> FakeTorch:
        fake = FakeTorch(**more)
        monkeypatch.setitem(sys.modules, "torch", fake)  # type: ignore[arg-type]
        return fake

    return install


def test_reading_counts_bytes_once_and_a_copy_twice(torch: Callable[..., FakeTorch]) -> None:
    fake = torch()
    read, copy = limits.read_speed(), limits.copy_speed()
    assert (read.best, copy.best) == (3000.0, 3000.0)
    assert (read.how, copy.how) == ("torch amax, 1024 MiB", "torch copy, 1024 MiB")
    assert read.runs == copy.runs == 3
    assert fake.allocated == 0


@pytest.mark.parametrize(
    ("dtype", "itemsize", "computes"),
    [("float32", 4, "float32"), ("bfloat16", 2, "bfloat16"), ("float16", 2, "float16"), ("int8", 2, "bfloat16")],
)
def test_products_are_of_the_type_that_the_device_computes_in(
    torch: Callable[..., FakeTorch], dtype: str, itemsize: int, computes: str
) -> None:
    fake = torch()
    found = limits.product_speed(dtype)
    assert found.best == 800_000.0
    assert found.median == 800_000.0
    assert found.how == f"torch {computes} matmul, 8192 x 8192"
    assert set(fake.products) == {(itemsize, 8192)}
    assert fake.allocated == 0


def test_tf32_is_told(torch: Callable[..., FakeTorch]) -> None:
    torch().precision = "high"
    assert "in TF32" in limits.product_speed("float32").how
    assert "TF32" not in limits.product_speed("bfloat16").how


@pytest.mark.parametrize("free", [2**30, 256 * 2**20])
def test_where_memory_is_short_less_of_it_is_taken(torch: Callable[..., FakeTorch], free: int) -> None:
    fake = torch(free=free)
    for measure in (limits.read_speed, limits.copy_speed, lambda: limits.product_speed("float32")):
        assert measure().best > 0
    assert fake.most <= free // 2
    assert fake.emptied >= 3  # before looking at what is free


def test_a_type_that_no_gpu_has_is_an_error(torch: Callable[..., FakeTorch]) -> None:
    torch()
    with pytest.raises(ValueError, match="int4 arithmetic"):
        limits.product_speed("int4")


def test_why_nothing_can_be_measured(torch: Callable[..., FakeTorch], monkeypatch: pytest.MonkeyPatch) -> None:
    torch()
    assert limits.unavailable() is None
    assert limits.name() == "NVIDIA H100"
    torch(there=False)
    assert "finds no GPU" in (limits.unavailable() or "")
    torch(cuda=None)
    assert "built without CUDA" in (limits.unavailable() or "")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "extra cuda" in (limits.unavailable() or "")


def test_a_torch_that_cannot_be_loaded_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(limits, "_torch", broken)
    assert "libcudart" in (limits.unavailable() or "")

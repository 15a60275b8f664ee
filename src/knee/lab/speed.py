"""How fast this machine reads, copies and calculates, and the floor that follows for a step.

A decode step at batch 1 reads every weight once, so its floor is bytes / read bandwidth; a large batch meets the
arithmetic rate instead; the batch size where the two meet is the knee.

Each speed is measured in several ways, and the fastest is taken for the machine's: knee's native kernels where the
extension is there, and what NumPy reaches. Without the extension NumPy's speeds are all there is: a lower bound of
the machine, and no int8 or int4, which NumPy has no fast product of. A native rate of arithmetic is what the device's
own inner loop reaches in the first cache, with the instruction set in use: a bound of these kernels, and not of what
the processor could do with better ones.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, Protocol, cast

import ml_dtypes
import numpy as np
import psutil
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from knee.devices.cpu.device import choose_isa
from knee.devices.cpu.dtypes import Dtype
from knee.machine import first_line
from knee.program import Cost

_CPUS = Path("/sys/devices/system/cpu")
_KERNEL_SECONDS = 0.4  # for the repetitions of one kernel
_RUNS = range(5, 21)  # at least and at most so many repetitions
_NATIVE_RUNS = range(2, 21)  # each of which is several passes, and fills its memory anew
_ROOF_RUNS = range(2, 5)
_SMALLEST_ARRAYS = 256 * 2**20
_LARGEST_ARRAYS = 2 * 2**30
_COLUMNS = 4096

Run = Callable[[], float]  # one run of a kernel, and how fast it was


@dataclass(frozen=True, slots=True)
class Rate:
    """A speed over several runs, in the unit that its field names; `how` is the kernel that reached it."""

    best: float
    median: float
    runs: int
    how: str


@dataclass(frozen=True, slots=True)
class Kernels:
    """Instruction sets of the native kernels, best first: those that this CPU runs, and all of the build."""

    in_use: str
    supported: tuple[str, ...]
    compiled: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Floor:
    """The least time that a step can take: its bytes at full bandwidth, or its arithmetic at the full rate."""

    memory_s: float
    arithmetic_s: float

    @property
    def seconds(self) -> float:
        """Reading and calculating overlap, so the longer of the two."""
        return max(self.memory_s, self.arithmetic_s)

    @property
    def bound(self) -> Literal["memory", "arithmetic"]:
        """Which of the two it is."""
        return "memory" if self.memory_s >= self.arithmetic_s else "arithmetic"


@dataclass(frozen=True, slots=True)
class Speed:
    """Bandwidths in GB/s (10^9 bytes; a copy counts its read and its write), arithmetic in GFLOP/s.

    int8 and int4 are None where there are no native kernels. NumPy's bfloat16 is widened to float32 first.
    """

    read_gb_s: Rate
    copy_gb_s: Rate
    float32_gflop_s: Rate
    bfloat16_gflop_s: Rate
    int8_gflop_s: Rate | None = None
    int4_gflop_s: Rate | None = None
    kernels: Kernels | None = None

    def gflop_s(self, dtype: Dtype) -> Rate:
        """The arithmetic rate with weights of a type. `ValueError` for one that was not measured."""
        rates: Mapping[Dtype, Rate | None] = {
            "float32": self.float32_gflop_s,
            "bfloat16": self.bfloat16_gflop_s,
            "int8": self.int8_gflop_s,
            "int4": self.int4_gflop_s,
        }
        if (rate := rates[dtype]) is None:
            raise ValueError(f"{dtype} arithmetic was not measured: there are no native kernels")
        return rate

    def floor(self, cost: Cost, dtype: Dtype) -> Floor:
        """The roofline (Williams et al. 2009): what a step of this cost takes at least, weights being of this type."""
        return Floor(cost.bytes / (self.read_gb_s.best * 1e9), cost.flops / (self.gflop_s(dtype).best * 1e9))


def measure_speed(threads: int) -> Speed:
    """Read, copy and arithmetic with so many threads, in five seconds or so."""
    numpy, native = _numpy_speed(threads), find_native()
    return numpy if native is None else _with_native(numpy, native, threads)


def measure_roofs(dtype: Dtype, threads: int) -> tuple[Rate, Rate]:
    """Reading in GB/s and arithmetic with weights of one type in GFLOP/s, in a second or so.

    `ValueError` for a type that cannot be measured without native kernels.
    """
    native = find_native()
    if native is None:
        speed = _numpy_speed(threads)
        return speed.read_gb_s, speed.gflop_s(dtype)
    isa, size = find_kernels(native).in_use, _array_bytes()
    read = _rate(f"native {isa}", lambda: native.read_bandwidth(isa, threads, size) / 1e9, _ROOF_RUNS)
    return read, _rate(f"native {isa}", lambda: native.dot_rate(isa, dtype, threads) / 1e9, _ROOF_RUNS)


# --- native kernels ----------------------------------------------------------------------------------------------


class Native(Protocol):
    """What is used here of the extension module. Its kernels time themselves: bytes/s, FLOP/s, of the best pass."""

    def supported_isas(self) -> list[str]: ...

    def compiled_isas(self) -> list[str]: ...

    def read_bandwidth(self, isa: str, threads: int, bytes: int, /) -> float: ...

    def dot_rate(self, isa: str, dtype: str, threads: int, /) -> float: ...


def find_native() -> Native | None:
    """The extension module; None where knee was built without it, or for none of this CPU's instruction sets."""
    try:
        native = cast(Native, importlib.import_module("knee.devices.cpu._native"))
    except ImportError:
        return None
    return native if native.supported_isas() else None


def find_kernels(native: Native) -> Kernels:
    """The instruction sets of a build, and the one that the cpu device takes. `UserError` where KNEE_ISA is none."""
    return Kernels(choose_isa(), tuple(native.supported_isas()), tuple(native.compiled_isas()))


def _with_native(numpy: Speed, native: Native, threads: int) -> Speed:
    kernels, size = find_kernels(native), _array_bytes()
    isa = kernels.in_use

    def dot(dtype: Dtype) -> Rate:
        return _rate(f"native {isa}", lambda: native.dot_rate(isa, dtype, threads) / 1e9, _NATIVE_RUNS)

    read = _rate(f"native {isa}", lambda: native.read_bandwidth(isa, threads, size) / 1e9, _NATIVE_RUNS)
    return replace(
        numpy,
        read_gb_s=_fastest(numpy.read_gb_s, read),
        float32_gflop_s=_fastest(numpy.float32_gflop_s, dot("float32")),
        bfloat16_gflop_s=_fastest(numpy.bfloat16_gflop_s, dot("bfloat16")),
        int8_gflop_s=dot("int8"),
        int4_gflop_s=dot("int4"),
        kernels=kernels,
    )


def _fastest(*rates: Rate) -> Rate:
    return max(rates, key=lambda rate: rate.best)


# --- NumPy's kernels ---------------------------------------------------------------------------------------------


def _numpy_speed(threads: int) -> Speed:
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        rows = max(1, _array_bytes() // threads // 4 // _COLUMNS)
        # Each thread touches its own part first, so that it lies in the memory next to that thread's core.
        parts = list(pool.map(lambda _: np.ones((rows, _COLUMNS), np.float32), range(threads)))
        read, copy = _read(pool, parts), _copy(pool, parts)
    with threadpool_limits(threads):
        size = _matrix_size()
        return Speed(read, copy, _multiply_float32(size), _multiply_bfloat16(size))


def _read(pool: ThreadPoolExecutor, parts: Sequence[NDArray[np.float32]]) -> Rate:
    # Which of NumPy's kernels comes closest to the machine's limit differs from one processor to the next.
    ones = np.ones(_COLUMNS, np.float32)
    kernels: dict[str, Callable[[NDArray[np.float32]], object]] = {
        "BLAS sgemv": lambda part: part @ ones,
        "NumPy int32 max": lambda part: part.view(np.int32).max(),
    }
    size = sum(part.nbytes for part in parts) / 1e9
    works = {how: partial(_everywhere, pool, kernel, parts) for how, kernel in kernels.items()}
    return _fastest(*(_rate(how, _timed(size, work)) for how, work in works.items()))


def _copy(pool: ThreadPoolExecutor, parts: Sequence[NDArray[np.float32]]) -> Rate:
    # From one half of each part to the other: no second set of arrays is needed.
    halves = [np.split(part[: len(part) // 2 * 2], 2) for part in parts]
    moved = sum(part.nbytes for part in parts)  # half of it read, half of it written
    work = partial(_everywhere, pool, lambda half: np.copyto(*half), halves)
    return _rate("NumPy copyto", _timed(moved / 1e9, work))


def _everywhere(pool: ThreadPoolExecutor, kernel: Callable[[Any], object], parts: Iterable[Any]) -> None:
    for _ in pool.map(kernel, parts):
        pass


def _matrix_size() -> int:
    """Large enough that a product takes some time, and no longer."""
    size, seconds = 512, 0.0
    while seconds < 0.03 and size < 4096:
        size *= 2
        matrix = np.ones((size, size), np.float32)
        seconds = _seconds(partial(np.matmul, matrix, matrix))
    return size


def _multiply_float32(size: int) -> Rate:
    matrix = np.ones((size, size), np.float32)
    work = partial(np.matmul, matrix, matrix)
    return _rate(f"BLAS sgemm, {size} x {size}", _timed(2 * size**3 / 1e9, work))


def _multiply_bfloat16(size: int) -> Rate:
    matrix = np.ones((size, size), ml_dtypes.bfloat16)

    def multiply() -> object:
        return np.matmul(matrix.astype(np.float32), matrix.astype(np.float32))

    return _rate(f"widened to float32, BLAS sgemm, {size} x {size}", _timed(2 * size**3 / 1e9, multiply))


# --- timing ------------------------------------------------------------------------------------------------------


def _rate(how: str, run: Run, runs: range | None = None) -> Rate:
    runs = runs or _RUNS
    run()  # warm: pages mapped, threads started
    speeds: list[float] = []
    until = time.perf_counter() + _KERNEL_SECONDS
    while len(speeds) < runs.start or (time.perf_counter() < until and len(speeds) < runs.stop - 1):
        speeds.append(run())
    return Rate(round(max(speeds), 2), round(median(speeds), 2), len(speeds), how)


def _timed(amount: float, work: Callable[[], object]) -> Run:
    return lambda: amount / _seconds(work)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _array_bytes() -> int:
    """Far more than the last caches hold, within what is free."""
    wanted = min(max(_SMALLEST_ARRAYS, 4 * _last_cache_bytes()), _LARGEST_ARRAYS)
    return min(wanted, psutil.virtual_memory().available // 4)


def _last_cache_bytes() -> int:
    caches = {
        first_line(folder / "shared_cpu_list"): first_line(folder / "size")
        for folder in _CPUS.glob("cpu*/cache/index3")
    }
    return sum(int(size[:-1]) * 1024 for size in caches.values() if size.endswith("K") and size[:-1].isdecimal())

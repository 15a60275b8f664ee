"""How fast a GPU reads, copies and multiplies, by torch: the two roofs of its roofline.

Best and median of several runs, each timed on the GPU by CUDA events. Arrays are far larger than its caches, or as
large as what is free. torch is imported when something is measured.
"""

from __future__ import annotations

import gc
import importlib
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

_SECONDS = 0.3  # for the repetitions of one kernel
_RUNS = range(3, 101)  # at least and at most so many repetitions
_WARM_RUNS = 3
_BUFFER_BYTES = 2**30
_SIZES = (8192, 4096, 2048, 1024)
_COMPUTES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16", "int8": "bfloat16"}


class Speed(NamedTuple):
    """A speed over several runs; `how` is the kernel that reached it."""

    best: float
    median: float
    runs: int
    how: str


def unavailable() -> str | None:
    """Why nothing can be measured here; None where it can."""
    try:
        torch = _torch()
    except ImportError:
        return "torch is not installed; it comes with knee's extra cuda"
    except Exception as error:  # a library that does not fit the driver, or another one that it was built for
        return f"torch cannot be imported ({error})"
    if not torch.version.cuda:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU: its driver may be too old"
    return None


def name() -> str:
    """The GPU that is measured."""
    return str(_torch().cuda.get_device_name())


def read_speed() -> Speed:
    """Reading, GB/s: the largest element of an array."""
    torch, size = _torch(), _buffer_bytes()
    numbers = torch.ones(size // 4, dtype=torch.int32, device="cuda")
    return _speed(size / 1e9, numbers.amax, f"torch amax, {_mib(size)}")


def copy_speed() -> Speed:
    """A copy from one place of the GPU's memory to another, GB/s: bytes read and bytes written."""
    torch, size = _torch(), _buffer_bytes()
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return _speed(2 * size / 1e9, lambda: target.copy_(source), f"torch copy, {_mib(size)}")


def product_speed(dtype: str) -> Speed:
    """Products of large matrices, GFLOP/s, as they are calculated with weights of this type.

    Random numbers, since equal ones take less power and run faster than any model does. `ValueError` for a type that
    the device does not have.
    """
    if dtype not in _COMPUTES:
        raise ValueError(f"{dtype} arithmetic cannot be measured on a GPU")
    torch, computes = _torch(), _COMPUTES[dtype]
    kind = getattr(torch, computes)
    size = _matrix_size(kind.itemsize)
    a, b = (torch.randn(size, size, dtype=torch.float32, device="cuda").to(kind) for _ in range(2))
    out = torch.empty_like(a)
    tf32 = " in TF32" if computes == "float32" and torch.get_float32_matmul_precision() != "highest" else ""
    how = f"torch {computes} matmul{tf32}, {size} x {size}"
    return _speed(2 * size**3 / 1e9, lambda: torch.matmul(a, b, out=out), how)


def release() -> None:
    """Give back what torch keeps of arrays, and of a model, that are gone: it belongs to the trials."""
    gc.collect()
    _torch().cuda.empty_cache()


def _torch() -> Any:
    return importlib.import_module("torch")


def _free_bytes() -> int:
    release()
    return int(_torch().cuda.mem_get_info()[0])


def _buffer_bytes() -> int:
    """Of one of two arrays; a whole number of elements."""
    return min(_BUFFER_BYTES, _free_bytes() // 4) // 4096 * 4096


def _matrix_size(itemsize: int) -> int:
    """Of three matrices, and one in float32 while they are filled, that take half of what is free."""
    free = _free_bytes()
    return next((size for size in _SIZES if (3 * itemsize + 4) * size**2 <= free // 2), _SIZES[-1])


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _speed(amount: float, work: Callable[[], object], how: str) -> Speed:
    for _ in range(_WARM_RUNS):
        work()
    speeds: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(speeds) < _RUNS.start or (time.perf_counter() < until and len(speeds) < _RUNS.stop - 1):
        speeds.append(amount / _gpu_seconds(work))
    return Speed(round(max(speeds), 2), round(median(speeds), 2), len(speeds), how)


def _gpu_seconds(work: Callable[[], object]) -> float:
    cuda = _torch().cuda
    begin, end = (cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3

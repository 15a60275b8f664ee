"""What this machine can do, and what about it would spoil a measurement.

Three speeds, measured with NumPy on all usable cores, and the state of the machine around us. A decode step at batch
1 reads every weight once, so its floor is bytes / read bandwidth; a large batch meets the arithmetic rate instead;
the batch size where the two meet is the knee. NumPy's rates are what a simple program reaches: a lower bound of the
machine, and they say nothing about knee's own kernels.

`diagnose` is pure; its findings are a closed set, each with advice (`messages.py`, "doctor.*").
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import psutil
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from knee.lab.environment import cpu_quota, read_hardware
from knee.lab.messages import Lang, text
from knee.lab.records import Hardware

FindingCode = Literal[
    "other_load", "one_core", "cpu_quota", "swap", "governor", "battery", "hot", "coarse_timer", "unsteady"
]
FINDING_CODES: tuple[FindingCode, ...] = get_args(FindingCode)

_CPUS = Path("/sys/devices/system/cpu")
_LOAD_SECONDS = 0.5
_KERNEL_SECONDS = 0.6  # for the repetitions of one kernel
_RUNS = range(5, 21)  # at least and at most so many repetitions
_SMALLEST_ARRAYS = 256 * 2**20
_LARGEST_ARRAYS = 2 * 2**30
_COLUMNS = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """A speed over several runs, in the unit that its field names; `how` is the kernel that reached it."""

    best: float
    median: float
    runs: int
    how: str


@dataclass(frozen=True, slots=True)
class Speed:
    """Bandwidths in GB/s (10^9 bytes; a copy counts its read and its write), arithmetic in GFLOP/s.

    bfloat16 is what NumPy makes of it: operands widened to float32, then float32 arithmetic. Instructions of the
    processor's own for it, where there are any, go unused.
    """

    read_gb_s: Rate
    copy_gb_s: Rate
    float32_gflop_s: Rate
    bfloat16_gflop_s: Rate


@dataclass(frozen=True, slots=True)
class State:
    """What goes on around us. None is what this system does not tell.

    `other_load` is in cores, of those that we may use: other processes, and on a virtual machine its neighbours.
    """

    other_load: float
    swap_used_gib: float
    cpu_quota: float | None
    governor: str | None
    on_battery: bool | None
    temperature_c: float | None
    timer_resolution_ns: int


@dataclass(frozen=True)
class Finding:
    """Something that makes measurements on this machine less trustworthy."""

    code: FindingCode
    values: dict[str, float | str]

    def message(self, lang: Lang) -> str:
        """What is wrong."""
        return text(lang, f"doctor.{self.code}", **self.values)

    def advice(self, lang: Lang) -> str:
        """What to do about it."""
        return text(lang, f"doctor.{self.code}.advice")


@dataclass(frozen=True, slots=True)
class Report:
    """All that `knee doctor` says."""

    hardware: Hardware
    speed: Speed
    state: State
    findings: list[Finding]

    def to_json(self, lang: Lang) -> dict[str, Any]:
        """The report as one JSON object; what this machine cannot tell is null."""
        findings = [
            {"code": one.code, "message": one.message(lang), "advice": one.advice(lang)} for one in self.findings
        ]
        return {
            "hardware": self.hardware.model_dump(),
            **asdict(self.speed),
            "bfloat16_note": bfloat16_note(self.hardware, lang),
            **asdict(self.state),
            "findings": findings,
        }


def examine() -> Report:
    """Measure the machine and look around, in less than ten seconds."""
    hardware = read_hardware()
    state = read_state()  # before our own work heats the machine
    speed = measure_speed(hardware.cores)
    return Report(hardware, speed, state, diagnose(hardware, state, speed))


def diagnose(hardware: Hardware, state: State, speed: Speed | None = None) -> list[Finding]:
    """What is wrong with a machine in this state for measuring; without `speed`, as far as the state tells."""
    found: list[tuple[bool, FindingCode, dict[str, float | str]]] = [
        (state.other_load > max(0.1, 0.05 * hardware.cores), "other_load", {"cores": state.other_load}),
        (hardware.cores == 1, "one_core", {}),
        (state.cpu_quota is not None, "cpu_quota", {"quota": state.cpu_quota or 0.0}),
        (state.swap_used_gib > 0.25, "swap", {"gib": state.swap_used_gib}),
        (state.governor not in (None, "performance"), "governor", {"governor": state.governor or ""}),
        (state.on_battery is True, "battery", {}),
        ((state.temperature_c or 0.0) >= 90.0, "hot", {"celsius": state.temperature_c or 0.0}),
        (state.timer_resolution_ns > 10_000, "coarse_timer", {"ns": state.timer_resolution_ns}),
    ]
    if speed is not None:
        spread = max(1.0 - rate.median / rate.best for rate in (speed.read_gb_s, speed.float32_gflop_s))
        found.append((spread > 0.15, "unsteady", {"spread": spread}))
    return [Finding(code, values) for is_so, code, values in found if is_so]


def bfloat16_note(hardware: Hardware, lang: Lang) -> str:
    """How bfloat16 was measured, and whether the processor has instructions for it."""
    native = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if name in hardware.isa]
    return text(lang, "doctor.bfloat16_with" if native else "doctor.bfloat16_without", isa=", ".join(native))


# --- the state of the machine ------------------------------------------------------------------------------------


def read_state() -> State:
    """Look around for half a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # psutil's, where a sandbox hides /proc/vmstat
        swap = psutil.swap_memory().used / 2**30
    return State(
        other_load=round(other_load(), 3),
        swap_used_gib=round(swap, 3),
        cpu_quota=cpu_quota(),
        governor=_governor(),
        on_battery=_on_battery(),
        temperature_c=_temperature(),
        timer_resolution_ns=timer_resolution_ns(),
    )


def other_load(seconds: float = _LOAD_SECONDS) -> float:
    """Cores that are busy with other things than this process, of those that we may use; waits `seconds`."""
    process = psutil.Process()
    started = time.perf_counter()
    busy, own = _busy_seconds(), sum(process.cpu_times()[:2])
    time.sleep(seconds)
    elapsed = time.perf_counter() - started
    others = (_busy_seconds() - busy) - (sum(process.cpu_times()[:2]) - own)
    return max(0.0, others / elapsed)


def _busy_seconds() -> float:
    cpus = psutil.cpu_times(percpu=True)
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cpus))
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(cpus[cpu], name, 0.0) for cpu in ours if cpu < len(cpus) for name in names))


def timer_resolution_ns() -> int:
    """The smallest step that the monotonic clock was seen to take."""
    ticks = (time.perf_counter_ns() for _ in range(20_000))
    return min((later - earlier for earlier, later in pairwise(ticks) if later > earlier), default=1)


def _governor() -> str | None:
    return _text(_CPUS / "cpu0/cpufreq/scaling_governor") or None


def _on_battery() -> bool | None:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _temperature() -> float | None:
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return max((sensor.current for group in sensors.values() for sensor in group), default=None)


# --- speed -------------------------------------------------------------------------------------------------------


def measure_speed(cores: int) -> Speed:
    """Read, copy and arithmetic with `cores` threads."""
    with threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
        rows = max(1, _array_bytes() // cores // 4 // _COLUMNS)
        # Each thread touches its own part first, so that it lies in the memory next to that thread's core.
        parts = list(pool.map(lambda _: np.ones((rows, _COLUMNS), np.float32), range(cores)))
        read = _read(pool, parts)
        copy = _copy(pool, parts)
    with threadpool_limits(cores):
        size = _matrix_size()
        return Speed(read, copy, _multiply_float32(size), _multiply_bfloat16(size))


def _read(pool: ThreadPoolExecutor, parts: Sequence[NDArray[np.float32]]) -> Rate:
    # Which of NumPy's kernels comes closest to the machine's limit differs from one processor to the next.
    ones = np.ones(_COLUMNS, np.float32)
    kernels: dict[str, Callable[[NDArray[np.float32]], object]] = {
        "BLAS sgemv": lambda part: part @ ones,
        "NumPy int32 max": lambda part: part.view(np.int32).max(),
    }
    size = sum(part.nbytes for part in parts)
    rates = [_rate(how, size / 1e9, partial(_everywhere, pool, kernel, parts)) for how, kernel in kernels.items()]
    return max(rates, key=lambda rate: rate.best)


def _copy(pool: ThreadPoolExecutor, parts: Sequence[NDArray[np.float32]]) -> Rate:
    # From one half of each part to the other: no second set of arrays is needed.
    halves = [np.split(part[: len(part) // 2 * 2], 2) for part in parts]
    moved = sum(part.nbytes for part in parts)  # half of it read, half of it written
    return _rate("NumPy copyto", moved / 1e9, lambda: _everywhere(pool, lambda half: np.copyto(*half), halves))


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
    return _rate(f"BLAS sgemm, {size} x {size}", 2 * size**3 / 1e9, partial(np.matmul, matrix, matrix))


def _multiply_bfloat16(size: int) -> Rate:
    matrix = np.ones((size, size), ml_dtypes.bfloat16)

    def multiply() -> object:
        return np.matmul(matrix.astype(np.float32), matrix.astype(np.float32))

    return _rate(f"widened to float32, BLAS sgemm, {size} x {size}", 2 * size**3 / 1e9, multiply)


def _rate(how: str, amount: float, work: Callable[[], object]) -> Rate:
    work()  # warm: pages mapped, threads started
    times: list[float] = []
    while len(times) < _RUNS.start or (sum(times) < _KERNEL_SECONDS and len(times) < _RUNS.stop - 1):
        times.append(_seconds(work))
    return Rate(round(amount / min(times), 2), round(amount / median(times), 2), len(times), how)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _array_bytes() -> int:
    """Far more than the last caches hold, within what is free."""
    wanted = min(max(_SMALLEST_ARRAYS, 4 * _last_cache_bytes()), _LARGEST_ARRAYS)
    return min(wanted, psutil.virtual_memory().available // 4)


def _last_cache_bytes() -> int:
    caches = {_text(folder / "shared_cpu_list"): _text(folder / "size") for folder in _CPUS.glob("cpu*/cache/index3")}
    return sum(int(size[:-1]) * 1024 for size in caches.values() if size.endswith("K") and size[:-1].isdecimal())


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""

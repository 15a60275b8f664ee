"""What else goes on on the machine while a trial runs. What a system does not tell is None."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

import psutil

from knee.machine import cpu_quota, usable_cores

_PROCESSOR_SENSORS = ("core", "cpu", "k10", "zen", "package", "soc")


@dataclass(frozen=True, slots=True)
class Seen:
    """`other_load` in cores: other processes and, on a virtual machine, its neighbours. `swapped_gib`: in and out.

    Under a CPU quota the counts of the cores are those of everybody on the host, and say nothing about us.
    """

    other_load: float | None
    frequency_mhz: float | None
    temperature_c: float | None
    swapped_gib: float


class Load:
    """Counts from when it is made until `stop`."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._started = time.perf_counter()
        self._busy, self._own = busy_seconds(), self._own_seconds()
        self._swapped = _swapped_bytes()

    def stop(self) -> Seen:
        """What was seen since. The system counts in ticks of 10 ms, so a short time tells little: it counts as 1 s."""
        elapsed = max(1.0, time.perf_counter() - self._started)
        others = (busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        load = min(max(0.0, others / elapsed), float(usable_cores())) if cpu_quota() is None else None
        swapped = max(0, _swapped_bytes() - self._swapped) / 2**30
        return Seen(load, frequency_mhz(), temperature_c(), swapped)

    def _own_seconds(self) -> float:
        return float(sum(self._process.cpu_times()[:2]))


def busy_seconds() -> float:
    """Seconds that the CPUs we may use were busy since the system started, with anybody's work."""
    cpus = psutil.cpu_times(percpu=True)
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cpus))
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return float(sum(getattr(cpus[cpu], name, 0.0) for cpu in ours if cpu < len(cpus) for name in names))


def frequency_mhz() -> float | None:
    """Of the cores, on average, where the system tells."""
    try:
        frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    except (OSError, NotImplementedError, RuntimeError):  # sandboxes and virtual machines hide it in several ways
        return None
    return frequency.current if frequency and frequency.current > 0 else None


def temperature_c() -> float | None:
    """The processor's hottest sensor, where there is one; disks and batteries have some, too."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    own = [group for name, group in sensors.items() if any(part in name.lower() for part in _PROCESSOR_SENSORS)]
    return max((sensor.current for group in own for sensor in group), default=None)


def swap_gib() -> float:
    """Swap in use."""
    return float(_swap().used / 2**30)


def _swapped_bytes() -> int:
    """In and out since the system started."""
    swap = _swap()
    return int(swap.sin + swap.sout)


def _swap() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # psutil's, where a sandbox hides /proc/vmstat
        return psutil.swap_memory()

"""What else goes on on the machine while a trial runs. What a system does not tell is None."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

import psutil

from knee.machine import usable_cores


@dataclass(frozen=True, slots=True)
class Seen:
    """`other_load` in cores: other processes and, on a virtual machine, its neighbours (steal)."""

    other_load: float
    frequency_mhz: float | None
    temperature_c: float | None
    swap_gib: float


class Load:
    """Counts from when it is made until `stop`."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._started = time.perf_counter()
        self._busy, self._own = busy_seconds(), self._own_seconds()

    def stop(self) -> Seen:
        """What was seen since. The clock ticks of the system are 10 ms, so a short time tells "
        "little: it counts as 1 s."""
        elapsed = max(1.0, time.perf_counter() - self._started)
        others = (busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        load = min(max(0.0, others / elapsed), float(usable_cores()))
        return Seen(load, frequency_mhz(), temperature_c(), swap_gib())

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
    """The hottest sensor, where there is one."""
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return max((sensor.current for group in sensors.values() for sensor in group), default=None)


def swap_gib() -> float:
    """Swap in use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # psutil's, where a sandbox hides /proc/vmstat
        return float(psutil.swap_memory().used / 2**30)

"""What the GPU does while a trial runs, by its own sensors (NVML): how busy it is, its memory, power and energy.

A thread beside the measured one reads the sensors every 50 ms and sleeps in between. Its calls go through ctypes, which
lets go of the GIL while NVML works, so the measured thread waits for some lines of Python and no longer: less than a
thousandth of the time.

What NVML says is of the whole card, whoever uses it. What it does not say is None, and `missing` has the reason;
nothing here raises. `pynvml` is imported when something is to be read and not before.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

PERIOD_S = 0.05
_PATIENCE_S = 1.0  # for the last sample
SHORTEST_S = 0.5  # sensors are updated about every 0.1 s: of a shorter time they say more about what was before

# A sensor's name, and how it is read. NVML has mW, mJ and percent.
_SENSORS: Mapping[str, Callable[[Any, Any], float]] = {
    "utilization": lambda nvml, gpu: min(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100, 1.0),
    "memory": lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used / 2**30,
    "power": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
    "energy": lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3,
    "clock": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "temperature": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "throttle": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),
}
_SAMPLED = ("utilization", "memory", "power", "clock", "temperature", "throttle")
_SLOW = ("utilization", "power", "energy")  # those that say nothing about a short time

# Why a GPU holds its clock down, by the bits of NVML; that it idles, or was told to, is no reason to worry.
_THROTTLE = {
    "power_cap": 0x04,
    "hardware_slowdown": 0x08,
    "thermal": 0x20,
    "hardware_thermal": 0x40,
    "power_brake": 0x80,
}


@dataclass(frozen=True, slots=True)
class GpuSeen:
    """What was seen in `seconds`: the mean of utilization (a fraction), power (W) and SM clock, the most of the rest.

    `throttled` has the share of the time in which the clock was held down, by the reason for it. `missing` are
    sentences, one for each thing that is None.
    """

    seconds: float
    utilization: float | None = None
    memory_gib: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    clock_mhz: float | None = None
    temperature_c: float | None = None
    throttled: dict[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


class GpuMonitor:
    """Watches the GPU that a model on `device` uses from `start` to `stop`; of any other device it sees nothing.

    To be made before the time that is measured begins: finding the GPU takes a while.
    """

    def __init__(self, device: str) -> None:
        self._sensors = _Sensors() if device == "cuda" else None
        self._samples: list[_Sample] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.perf_counter()
        self._energy: float | None = None

    def start(self) -> None:
        """Begin to watch."""
        if self._sensors is not None and not self._sensors.closed:
            self._thread = threading.Thread(target=self._watch, args=(self._sensors,), name="knee-gpu", daemon=True)
            self._energy = self._sensors.read("energy")
            self._thread.start()
        self._started = time.perf_counter()

    def stop(self) -> GpuSeen | None:
        """What was seen since. To be called once."""
        if self._sensors is None:
            return None
        seconds, energy = time.perf_counter() - self._started, self._sensors.read("energy")
        self._over.set()
        if self._thread is not None:
            self._thread.join(timeout=_PATIENCE_S)
        self._sensors.close()
        counted = None if self._energy is None or energy is None else max(0.0, energy - self._energy)
        return _seen(list(self._samples), seconds, counted, self._sensors)

    def _watch(self, sensors: _Sensors) -> None:
        over = False
        while not over:
            self._samples.append(sensors.sample())
            over = self._over.wait(PERIOD_S)
        self._samples.append(sensors.sample())


# --- from samples to numbers -------------------------------------------------------------------------------------


def _seen(samples: Sequence[_Sample], seconds: float, counted: float | None, sensors: _Sensors) -> GpuSeen:
    def values(name: str) -> list[float]:
        return [sample.values[name] for sample in samples if name in sample.values]

    energy = _integral(samples) if counted is None else counted
    found = {
        "utilization": _mean(values("utilization")),
        "memory": max(values("memory"), default=None),
        "power": _mean(values("power")) if counted is None else counted / max(seconds, SHORTEST_S),
        "energy": energy,
        "clock": _mean(values("clock")),
        "temperature": max(values("temperature"), default=None),
    }
    if seconds < SHORTEST_S:
        found |= dict.fromkeys(_SLOW)
    masks = [int(mask) for mask in values("throttle")]
    held = {why: _mean([float(mask & bit > 0) for mask in masks]) for why, bit in _THROTTLE.items()}
    missing = [*(name for name, value in found.items() if value is None), *([] if masks else ["throttle"])]
    return GpuSeen(
        seconds=seconds,
        utilization=found["utilization"],
        memory_gib=found["memory"],
        power_w=found["power"],
        energy_j=found["energy"],
        clock_mhz=found["clock"],
        temperature_c=found["temperature"],
        throttled={why: share for why, share in held.items() if share},
        missing=_reasons(missing, sensors, sampled=counted is None and found["energy"] is not None),
    )


def _integral(samples: Sequence[_Sample]) -> float | None:
    """Power over time, in J, by trapezoids."""
    points = [(sample.at, sample.values["power"]) for sample in samples if "power" in sample.values]
    if len(points) < 2:
        return None
    return sum((later[0] - earlier[0]) * (earlier[1] + later[1]) / 2 for earlier, later in pairwise(points))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _reasons(missing: Sequence[str], sensors: _Sensors, sampled: bool) -> tuple[str, ...]:
    """Why these are not there, a sentence each: NVML as a whole, a sensor of its own, or too short a time."""
    from knee.lab.messages import text  # words, which a trial without a GPU has no use for

    if sensors.unseen:
        return (text("en", "note.gpu_unseen", error=sensors.unseen),)
    found = []
    for name in missing:
        if name in sensors.refused:
            found.append(text("en", f"note.gpu_{name}", error=sensors.refused[name]))
        elif name in _SLOW:
            found.append(text("en", "note.gpu_short", seconds=SHORTEST_S))
        else:
            found.append(text("en", f"note.gpu_{name}", error="no answer in time"))
    if sampled:
        found.append(text("en", "note.gpu_energy_sampled"))
    return tuple(dict.fromkeys(found))


# --- the sensors -------------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """What the sensors that answered said, and when."""

    at: float
    values: dict[str, float]


class _Sensors:
    """The sensors of the GPU in use. `unseen` says why there are none; `refused` why one does not answer."""

    def __init__(self) -> None:
        self.unseen = ""
        self.refused: dict[str, str] = {}
        self.closed = True
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            self.unseen = "nvidia-ml-py is not installed; it comes with knee's extra cuda"
            return
        try:
            self._nvml.nvmlInit()
            self.closed = False
            self._gpu = _gpu_in_use(self._nvml)
        except Exception as error:  # pynvml has a type for each error, and drivers give answers that no type is for
            self.unseen = _words(error)
            self.close()

    def sample(self) -> _Sample:
        """One look at all sensors that are sampled."""
        now = time.perf_counter()
        return _Sample(now, {name: value for name in _SAMPLED if (value := self.read(name)) is not None})

    def read(self, name: str) -> float | None:
        """One sensor; who has refused once is not asked again."""
        if self.closed or name in self.refused:
            return None
        try:
            return float(_SENSORS[name](self._nvml, self._gpu))
        except Exception as error:  # as above, and in a thread where nobody would hear of it
            self.refused[name] = _words(error)
            return None

    def close(self) -> None:
        """Let NVML go."""
        if not self.closed:
            self.closed = True
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _gpu_in_use(nvml: Any) -> Any:
    """NVML's handle of the first GPU that CUDA sees. NVML itself knows nothing of CUDA_VISIBLE_DEVICES."""
    uuid = _uuid_of_torch()
    if uuid and (found := _by_uuid(nvml, uuid)) is not None:
        return found
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    if visible.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(visible))
    if visible.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(visible)
    if visible and (found := _by_uuid(nvml, visible)) is not None:
        return found
    raise LookupError(f"no GPU is named by CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']}")


def _by_uuid(nvml: Any, begin: str) -> Any:
    """The GPU whose UUID begins so, as CUDA lets it be written."""
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        if str(nvml.nvmlDeviceGetUUID(gpu)).removeprefix("GPU-").startswith(begin.removeprefix("GPU-")):
            return gpu
    return None


def _uuid_of_torch() -> str:
    """Which GPU torch uses in this process, if it does: CUDA counts the fastest first, NVML by their slots."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    except (AttributeError, RuntimeError, AssertionError):
        pass  # a torch that does not say
    return ""

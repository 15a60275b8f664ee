"""What this machine can do, and what about it would spoil a measurement.

Its speeds come from `speed.py`; here is the state of the machine around us. `diagnose` is pure; its findings are a
closed set, each with advice (`messages.py`, "doctor.*").
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from knee.lab.environment import read_hardware
from knee.lab.gpu_speed import GpuSpeed, look_at_gpu
from knee.lab.load import busy_seconds, swap_gib, temperature_c
from knee.lab.messages import Lang, text
from knee.lab.records import Hardware
from knee.lab.speed import Kernels, Speed, measure_speed
from knee.machine import cpu_quota, default_threads, first_line

FindingCode = Literal[
    "other_load", "one_core", "cpu_quota", "swap", "governor", "battery", "hot", "coarse_timer", "unsteady"
]
FINDING_CODES: tuple[FindingCode, ...] = get_args(FindingCode)

_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_LOAD_SECONDS = 0.5


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
    """All that `knee doctor` says. `gpu_note` is why there are no speeds of a GPU that is there."""

    hardware: Hardware
    speed: Speed
    state: State
    findings: list[Finding]
    gpu: GpuSpeed | None = None
    gpu_note: str = ""

    def to_json(self, lang: Lang) -> dict[str, Any]:
        """The report as one JSON object; what this machine cannot tell is null."""
        findings = [
            {"code": one.code, "message": one.message(lang), "advice": one.advice(lang)} for one in self.findings
        ]
        return {
            "hardware": self.hardware.model_dump(),
            **asdict(self.speed),
            "bfloat16_note": bfloat16_note(self.hardware, lang, self.speed.kernels),
            **asdict(self.state),
            "gpu": None if self.gpu is None else asdict(self.gpu),
            "gpu_note": self.gpu_note,
            "findings": findings,
        }


def examine() -> Report:
    """Measure the machine and look around, in less than ten seconds; some more with a GPU, for torch to be loaded."""
    hardware = read_hardware()
    state = read_state()  # before our own work heats the machine
    speed = measure_speed(default_threads())
    gpu, gpu_note = look_at_gpu(hardware.gpus)
    return Report(hardware, speed, state, diagnose(hardware, state, speed), gpu, gpu_note)


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


def bfloat16_note(hardware: Hardware, lang: Lang, kernels: Kernels | None = None) -> str:
    """How bfloat16 was measured, and whether the processor has instructions for it."""
    native = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if name in hardware.isa]
    names = ", ".join(native)
    if kernels is None:  # NumPy widens to float32, whatever the processor has
        return text(lang, "doctor.bfloat16_with" if native else "doctor.bfloat16_without", isa=names)
    return text(lang, "doctor.bfloat16_native" if native else "doctor.bfloat16_widened", isa=names)


def kernels_note(kernels: Kernels | None, lang: Lang) -> str:
    """Which instruction sets knee's kernels use here, could use, and were built for in vain."""
    if kernels is None:
        return text(lang, "doctor.no_kernels")
    others = [isa for isa in kernels.supported if isa != kernels.in_use]
    absent = [isa for isa in kernels.compiled if isa not in kernels.supported]
    none = text(lang, "record.none")
    return text(
        lang,
        "doctor.kernels_list",
        in_use=kernels.in_use,
        others=", ".join(others) or none,
        absent=", ".join(absent) or none,
    )


# --- the state of the machine ------------------------------------------------------------------------------------


def read_state() -> State:
    """Look around for half a second."""
    return State(
        other_load=round(other_load(), 3),
        swap_used_gib=round(swap_gib(), 3),
        cpu_quota=cpu_quota(),
        governor=_governor(),
        on_battery=_on_battery(),
        temperature_c=temperature_c(),
        timer_resolution_ns=timer_resolution_ns(),
    )


def other_load(seconds: float = _LOAD_SECONDS) -> float:
    """Cores that are busy with other things than this process, of those that we may use; waits `seconds`."""
    process = psutil.Process()
    started = time.perf_counter()
    busy, own = busy_seconds(), sum(process.cpu_times()[:2])
    time.sleep(seconds)
    elapsed = time.perf_counter() - started
    others = (busy_seconds() - busy) - (sum(process.cpu_times()[:2]) - own)
    return max(0.0, others / elapsed)


def timer_resolution_ns() -> int:
    """The smallest step that the monotonic clock was seen to take."""
    ticks = (time.perf_counter_ns() for _ in range(20_000))
    return min((later - earlier for earlier, later in pairwise(ticks) if later > earlier), default=1)


def _governor() -> str | None:
    return first_line(_GOVERNOR) or None


def _on_battery() -> bool | None:
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged

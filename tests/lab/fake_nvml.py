"""The module `pynvml` without a GPU: cards with what their sensors say, and refusals of every kind."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from knee.lab import gpu

UUIDS = ("GPU-aaaa1111-0000", "GPU-bbbb2222-0000")
CALLS = {
    "utilization": "nvmlDeviceGetUtilizationRates",
    "memory": "nvmlDeviceGetMemoryInfo",
    "power": "nvmlDeviceGetPowerUsage",
    "energy": "nvmlDeviceGetTotalEnergyConsumption",
    "clock": "nvmlDeviceGetClockInfo",
    "temperature": "nvmlDeviceGetTemperature",
    "throttle": "nvmlDeviceGetCurrentClocksThrottleReasons",
}


class NVMLError(Exception):
    """As pynvml's: its words are those of NVML."""


class FakeNvml:
    """Two cards. `refused` are calls that raise; each reading of the energy counter finds `per_reading` J more."""

    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU = 1, 0
    NVMLError = NVMLError

    def __init__(self, refused: dict[str, str] | None = None, per_reading: float = 24.0) -> None:
        self.refused = {CALLS.get(name, name): why for name, why in (refused or {}).items()}
        self.per_reading = per_reading
        self.users = 0
        self.asked: list[tuple[str, Any]] = []
        self.counted = 5.0
        self.watts = 300.0
        self.throttle = 0

    def _ask(self, call: str, card: Any = None) -> None:
        self.asked.append((call, card))
        if call in self.refused:
            raise NVMLError(self.refused[call])
        assert self.users or call == "nvmlInit"

    def nvmlInit(self) -> None:  # noqa: N802
        self._ask("nvmlInit")
        self.users += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        self._ask("nvmlDeviceGetHandleByIndex", index)
        if index >= len(UUIDS):
            raise NVMLError("Invalid Argument")
        return UUIDS[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def nvmlDeviceGetUUID(self, card: str) -> str:  # noqa: N802
        return card

    def nvmlDeviceGetUtilizationRates(self, card: str) -> SimpleNamespace:  # noqa: N802
        self._ask("nvmlDeviceGetUtilizationRates", card)
        return SimpleNamespace(gpu=75, memory=10)

    def nvmlDeviceGetMemoryInfo(self, card: str) -> SimpleNamespace:  # noqa: N802
        self._ask("nvmlDeviceGetMemoryInfo", card)
        return SimpleNamespace(used=3 * 2**30, total=80 * 2**30)

    def nvmlDeviceGetPowerUsage(self, card: str) -> int:  # noqa: N802
        self._ask("nvmlDeviceGetPowerUsage", card)
        return int(self.watts * 1e3)

    def nvmlDeviceGetTotalEnergyConsumption(self, card: str) -> int:  # noqa: N802
        self._ask("nvmlDeviceGetTotalEnergyConsumption", card)
        self.counted += self.per_reading
        return int(self.counted * 1e3)

    def nvmlDeviceGetClockInfo(self, card: str, which: int) -> int:  # noqa: N802
        self._ask("nvmlDeviceGetClockInfo", card)
        assert which == self.NVML_CLOCK_SM
        return 1980

    def nvmlDeviceGetTemperature(self, card: str, which: int) -> int:  # noqa: N802
        self._ask("nvmlDeviceGetTemperature", card)
        assert which == self.NVML_TEMPERATURE_GPU
        return 61

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: str) -> int:  # noqa: N802
        self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", card)
        return self.throttle

    def times(self, name: str) -> int:
        """How often a sensor was asked."""
        return [call for call, _ in self.asked].count(CALLS[name])

    @property
    def cards(self) -> set[str]:
        """Whose sensors were read."""
        return {card for call, card in self.asked if call in CALLS.values()}


def install(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml | None, shortest: float = 0.0) -> FakeNvml | None:
    """`pynvml` is the fake, or is not installed; a time of `shortest` seconds is long enough."""
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "torch", None)  # whose word would count  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "SHORTEST_S", shortest)
    monkeypatch.setattr(gpu, "PERIOD_S", 0.001)
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    return fake

"""What else went on during a trial: our own work does not count, and what a system does not tell is null."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from knee.lab import load
from knee.lab.load import Load, frequency_mhz, swap_gib, temperature_c
from knee.machine import usable_cores


def seen(monkeypatch: pytest.MonkeyPatch, busy: float, own: float, seconds: float) -> float:
    """Other load where in so many seconds the cores were `busy` and this process had its `own` share of that."""
    now, did = [50.0], [20.0, 30.0]
    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(load, "busy_seconds", lambda: did[0])
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: (did[1], 0.0, 99.0)))
    counting = Load()
    now[0], did[0], did[1] = now[0] + seconds, did[0] + busy, did[1] + own
    return counting.stop().other_load


def test_our_own_work_is_no_other_load(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, busy=8.0, own=8.0, seconds=4.0) == 0.0
    assert seen(monkeypatch, busy=8.0, own=7.0, seconds=4.0) == 0.25
    assert seen(monkeypatch, busy=1.0, own=1.01, seconds=4.0) == 0.0


def test_a_time_of_few_clock_ticks_counts_as_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, busy=0.01, own=0.0, seconds=0.001) == pytest.approx(0.01)


def test_nobody_keeps_more_cores_busy_than_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(monkeypatch, busy=1e6, own=0.0, seconds=1.0) == usable_cores()


def test_what_a_system_does_not_tell_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise NotImplementedError("can't find current frequency file")

    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    assert frequency_mhz() is None
    for name in ("cpu_freq", "sensors_temperatures"):
        monkeypatch.delattr(psutil, name, raising=False)
    assert (frequency_mhz(), temperature_c()) == (None, None)
    monkeypatch.setattr(psutil, "sensors_temperatures", dict, raising=False)
    assert temperature_c() is None


def test_the_processor_s_hottest_sensor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = {
        "coretemp": [SimpleNamespace(current=41.0), SimpleNamespace(current=77.5)],
        "nvme": [SimpleNamespace(current=91.0)],
    }
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert temperature_c() == 77.5


def test_swap_is_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=3 * 2**29))
    assert swap_gib() == 1.5

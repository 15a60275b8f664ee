"""What the GPU's sensors say gets into the record; what they do not say is null with a reason, and nothing breaks."""

from __future__ import annotations

import json
import pickle
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from knee.lab import baseline as baseline_lab
from knee.lab import gpu
from knee.lab.arrivals import Arrival
from knee.lab.baseline import BaselineSpec
from knee.lab.experiment import Outcome
from knee.lab.gpu import GpuMonitor, GpuSeen
from knee.lab.judgement.judge import judge
from knee.lab.markdown import to_markdown
from knee.lab.measure import measure
from knee.lab.messages import translated
from knee.lab.plan import CellSpec, SweepSpec
from knee.lab.records import BaselineMetrics, Record
from knee.lab.rows import trial_row
from knee.lab.sweep_records import GpuUse, SweepMetrics, TrialRow
from knee.lab.workload import Prompt, Workload
from tests.fake_device import FakeDevice
from tests.lab.fake_llm import FakeTime, Rows, make_llm, swept
from tests.lab.fake_nvml import CALLS, UUIDS, FakeNvml, install
from tests.lab.judgement.sweeps import make, setting, steady
from tests.lab.samples import record

FIELDS = {
    "utilization": "utilization",
    "memory": "memory_gib",
    "power": "power_w",
    "energy": "energy_j",
    "clock": "clock_mhz",
    "temperature": "temperature_c",
}


def watched(seconds: float = 0.02) -> GpuSeen:
    monitor = GpuMonitor("cuda")
    monitor.start()
    time.sleep(seconds)
    seen = monitor.stop()
    assert seen is not None
    assert not [thread for thread in threading.enumerate() if thread.name == "knee-gpu"]
    return seen


def nothing_but_reasons(seen: GpuSeen) -> bool:
    return all(getattr(seen, field) is None for field in FIELDS.values()) and not seen.throttled


# --- the monitor -------------------------------------------------------------------------------------------------


def test_every_sensor_is_read_and_energy_is_what_its_counter_gained(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    install(monkeypatch, fake)
    seen = watched()
    assert (seen.utilization, seen.memory_gib, seen.clock_mhz, seen.temperature_c) == (0.75, 3.0, 1980.0, 61.0)
    assert seen.energy_j == pytest.approx(24.0)
    assert seen.missing == ()
    assert fake.times("power") >= 2
    assert fake.times("energy") == 2  # before and after, and not in between
    assert fake.users == 0
    assert fake.cards == {UUIDS[0]}


def test_mean_power_is_energy_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(), shortest=0.01)
    seen = watched(0.05)
    assert seen.power_w == pytest.approx(24.0 / seen.seconds)


def test_without_a_counter_energy_is_added_up_from_power_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({"energy": "Not Supported"}))
    seen = watched(0.05)
    assert seen.power_w == pytest.approx(300.0)
    assert seen.energy_j == pytest.approx(300.0 * seen.seconds, rel=0.5)
    assert ["added up from power" in sentence for sentence in seen.missing] == [True]


def test_of_another_device_nothing_is_seen_and_nothing_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    install(monkeypatch, fake)
    monitor = GpuMonitor("cpu")
    monitor.start()
    assert monitor.stop() is None
    assert fake.asked == []


def test_without_pynvml_everything_is_null_with_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    seen = watched()
    assert nothing_but_reasons(seen)
    assert [("not installed" in sentence) for sentence in seen.missing] == [True]


@pytest.mark.parametrize("why", ["Driver Not Loaded", "Insufficient Permissions", "NVML Shared Library Not Found"])
def test_where_nvml_does_not_start_its_own_words_are_the_reason(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    fake = FakeNvml({"nvmlInit": why})
    install(monkeypatch, fake)
    seen = watched()
    assert nothing_but_reasons(seen)
    [sentence] = seen.missing
    assert why in sentence
    assert fake.users == 0


def test_where_no_gpu_may_be_seen_that_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml({"nvmlDeviceGetHandleByIndex": "Insufficient Permissions"})
    install(monkeypatch, fake)
    seen = watched()
    assert nothing_but_reasons(seen)
    assert "Insufficient Permissions" in seen.missing[0]
    assert fake.users == 0


@pytest.mark.parametrize("sensor", ["utilization", "memory", "clock", "temperature", "throttle"])
def test_a_sensor_that_refuses_is_null_alone_and_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, sensor: str
) -> None:
    fake = FakeNvml({sensor: "Not Supported"})
    install(monkeypatch, fake)
    seen = watched()
    assert [name for name, field in FIELDS.items() if getattr(seen, field) is None] == [
        name for name in [sensor] if name in FIELDS
    ]
    [sentence] = seen.missing
    assert "Not Supported" in sentence
    assert translated("zh", sentence) != sentence
    assert fake.times(sensor) == 1


def test_a_card_without_power_and_counter_has_no_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({"power": "Not Supported", "energy": "Not Supported"}))
    seen = watched()
    assert (seen.power_w, seen.energy_j) == (None, None)
    assert len(seen.missing) == 2
    assert seen.utilization == 0.75


def test_a_pynvml_that_lacks_a_call_is_a_sensor_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(FakeNvml):
        nvmlDeviceGetTotalEnergyConsumption = property()  # type: ignore[assignment]  # noqa: N815

    install(monkeypatch, Old())
    assert watched().energy_j is not None


def test_of_a_short_time_slow_sensors_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml(), shortest=60.0)
    seen = watched()
    assert (seen.utilization, seen.power_w, seen.energy_j) == (None, None, None)
    assert seen.memory_gib == 3.0
    [sentence] = seen.missing
    assert "60.0 s" in sentence


def test_reasons_for_a_held_down_clock_have_their_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    fake.throttle = 0x01 | 0x04 | 0x40  # idle is none
    install(monkeypatch, fake)
    assert watched().throttled == {"power_cap": 1.0, "hardware_thermal": 1.0}


def test_a_driver_that_hangs_does_not_hold_the_trial_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(FakeNvml):
        go = threading.Event()

        def nvmlDeviceGetUtilizationRates(self, card: str) -> SimpleNamespace:  # noqa: N802
            self.go.wait(10)
            return super().nvmlDeviceGetUtilizationRates(card)

    fake = Hanging()
    install(monkeypatch, fake)
    monkeypatch.setattr(gpu, "_PATIENCE_S", 0.05)
    monitor = GpuMonitor("cuda")
    monitor.start()
    seen = monitor.stop()
    fake.go.set()
    assert seen is not None
    assert (seen.utilization, seen.memory_gib) == (None, None)
    assert seen.energy_j == pytest.approx(24.0)
    assert any("no answer in time" in sentence for sentence in seen.missing)


# --- which GPU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "card"),
    [
        ("1", UUIDS[1]),
        ("1,0", UUIDS[1]),
        (" 0 ", UUIDS[0]),
        (UUIDS[1], UUIDS[1]),
        ("GPU-bbbb", UUIDS[1]),
        ("MIG-1234", "MIG-1234"),
    ],
)
def test_the_first_visible_gpu_is_the_one(monkeypatch: pytest.MonkeyPatch, visible: str, card: str) -> None:
    fake = FakeNvml()
    install(monkeypatch, fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert watched().missing == ()
    assert fake.cards == {card}


@pytest.mark.parametrize("visible", ["", "-1", "GPU-cccc", "7", "NoDevFiles"])
def test_a_gpu_that_is_not_there_is_not_seen(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    fake = FakeNvml()
    install(monkeypatch, fake)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = watched()
    assert nothing_but_reasons(seen)
    assert len(seen.missing) == 1
    assert fake.users == 0


@pytest.mark.parametrize(("uuid", "card"), [("bbbb2222-0000", UUIDS[1]), ("of a card that NVML has not", UUIDS[0])])
def test_torch_knows_which_gpu_it_uses_if_it_uses_one(monkeypatch: pytest.MonkeyPatch, uuid: str, card: str) -> None:
    fake = FakeNvml()
    install(monkeypatch, fake)
    properties = SimpleNamespace(uuid=uuid)
    cuda = SimpleNamespace(
        is_initialized=lambda: True, current_device=lambda: 0, get_device_properties=lambda _device: properties
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    watched()
    assert fake.cards == {card}


@pytest.mark.parametrize("torch", [SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: 0))])
def test_a_torch_that_does_not_say_leaves_it_to_the_environment(monkeypatch: pytest.MonkeyPatch, torch: Any) -> None:
    fake = FakeNvml()
    install(monkeypatch, fake)
    monkeypatch.setitem(sys.modules, "torch", torch)
    watched()
    assert fake.cards == {UUIDS[0]}


# --- a trial -----------------------------------------------------------------------------------------------------


class CudaLike(FakeDevice):
    name = "cuda"


def cuda_llm(cost: Any = lambda _batch: None, warnings: tuple[str, ...] = ()) -> Any:
    llm = make_llm()
    device = CudaLike(llm.program, cost)
    device.warnings = warnings
    return type(llm)(llm.checkpoint, llm.program, device, None, llm.load_times)


def sweep_spec(repeats: int = 5) -> SweepSpec:
    workload = Workload((Prompt((1, 2, 3)),), 4, 5, Arrival())
    return SweepSpec(workload, (CellSpec("static", 1), CellSpec("continuous", 2)), repeats=repeats)


def test_a_trial_on_a_gpu_has_what_it_did_and_each_token_s_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml())
    found = measure(cuda_llm(warnings=("no graph.",)), sweep_spec().job(0, 0), FakeTime().clock)
    row = trial_row(pickle.loads(pickle.dumps(found)), "2025-01-31T12:00:00+00:00", 1.0)
    assert row.gpu is not None
    assert row.gpu.energy_j == pytest.approx(24.0)
    assert row.gpu.joules_per_token == pytest.approx(24.0 / 20)
    assert row.device_warnings == ["no graph."]
    assert TrialRow.model_validate_json(row.model_dump_json()) == row


def test_a_trial_on_another_device_has_nothing_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml())
    found = measure(make_llm(), sweep_spec().job(0, 0), FakeTime().clock)
    row = trial_row(found, "2025-01-31T12:00:00+00:00", 1.0)
    assert (row.gpu, row.device_warnings) == (None, [])


def test_a_trial_that_fails_leaves_no_thread_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    fake = FakeNvml()
    install(monkeypatch, fake)
    monkeypatch.setattr("knee.lab.measure.Load", lambda: monkeypatch.setattr("knee.lab.measure.run_trial", fail))
    with pytest.raises(RuntimeError, match="gone"):
        measure(cuda_llm(), sweep_spec().job(0, 0), FakeTime().clock)
    assert fake.users == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "knee-gpu"]


# --- a sweep's record --------------------------------------------------------------------------------------------


def test_cells_have_the_median_of_their_trials_and_energy_with_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml())
    time_ = FakeTime()
    made, rows = swept(cuda_llm(time_.per_row), sweep_spec(), time_)
    assert isinstance(made.metrics, SweepMetrics)
    for cell in made.metrics.cells:
        assert cell.gpu is not None
        assert (cell.gpu.utilization, cell.gpu.memory_gib) == (0.75, 3.0)
        assert cell.gpu.joules_per_token == pytest.approx(1.2)
        assert cell.intervals["joules_per_token"].value == pytest.approx(1.2)
        assert cell.intervals["joules_per_token"].n == 5
    assert Record.model_validate_json(made.model_dump_json()) == made
    assert len(rows.spec.trials) == 10


USE = GpuUse(
    seconds=2.0,
    utilization=0.5,
    memory_gib=4.0,
    power_w=250.0,
    energy_j=500.0,
    joules_per_token=15.625,
    clock_mhz=1980.0,
    temperature_c=55.0,
)
TWO = [(setting(size=1), steady(0.2)), (setting(size=4), steady(0.1))]


def judged(change: Any, **more: Any) -> tuple[Record, SweepMetrics]:
    found = judge(*make(TWO, trial=lambda cell, repeat: {"gpu": change(cell, repeat)}, **more))
    assert isinstance(found.metrics, SweepMetrics)
    return found, found.metrics


def test_memory_and_temperature_of_a_cell_are_the_highest() -> None:
    def changed(_cell: int, repeat: int) -> GpuUse:
        return USE.model_copy(update={"memory_gib": 4.0 + repeat, "temperature_c": 55.0 + repeat, "power_w": repeat})

    _, metrics = judged(changed)
    found = metrics.cells[0].gpu
    assert found is not None
    assert (found.memory_gib, found.temperature_c, found.power_w) == (8.0, 59.0, 2.0)


def test_why_something_is_null_stands_once_in_the_notes() -> None:
    short = "GPU utilization, power and energy are null where the requests took less than 0.5 s: the sensors are not "
    short += "that fast; more requests or longer answers take longer"
    record_, metrics = judged(lambda *_: GpuUse(seconds=0.1, missing=[short]))
    assert record_.notes.count(short) == 1
    assert metrics.cells[0].gpu is not None
    assert metrics.cells[0].gpu.energy_j is None
    assert "joules_per_token" not in metrics.cells[0].intervals
    assert translated("zh", short) in to_markdown(record_, "zh")


def test_a_repeat_without_energy_leaves_the_cell_without_an_interval() -> None:
    _, metrics = judged(lambda _cell, repeat: USE if repeat else USE.model_copy(update={"joules_per_token": None}))
    assert "joules_per_token" not in metrics.cells[0].intervals
    assert metrics.cells[0].gpu is not None
    assert metrics.cells[0].gpu.joules_per_token == 15.625


def test_a_record_without_a_gpu_says_nothing_of_one() -> None:
    record_, metrics = judged(lambda *_: None)
    assert metrics.cells[0].gpu is None
    assert "J/token" not in to_markdown(record_)
    assert not any(note.startswith("GPU") for note in record_.notes)


def test_records_of_before_are_read() -> None:
    written = json.loads(record("sweep").model_dump_json())
    for cell in written["metrics"]["cells"]:
        del cell["gpu"]
    read = Record.model_validate(written)
    assert isinstance(read.metrics, SweepMetrics)
    assert read.metrics.cells[0].gpu is None
    written = json.loads(record("baseline").model_dump_json())
    del written["metrics"]["gpu"]
    read = Record.model_validate(written)
    assert isinstance(read.metrics, BaselineMetrics)
    assert read.metrics.gpu is None


# --- baseline ----------------------------------------------------------------------------------------------------


def baseline(
    monkeypatch: pytest.MonkeyPatch, device: Callable[[Any], Any], smi: bool = True
) -> tuple[BaselineMetrics, Outcome]:
    """On a device, where there is nvidia-smi or not."""
    time_ = FakeTime()
    monkeypatch.setattr(baseline_lab, "has_nvidia_smi", lambda: smi)
    spec = BaselineSpec(Workload((Prompt((1, 2, 3)),), 1, 10))
    outcome = baseline_lab.run(device(time_.per_row), spec, Rows(), time_.clock)
    assert isinstance(outcome.metrics, BaselineMetrics)
    return outcome.metrics, outcome


def test_a_baseline_s_utilization_is_the_mean_over_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml())
    metrics, outcome = baseline(monkeypatch, cuda_llm)
    assert metrics.gpu_utilization == 0.75
    assert metrics.gpu is not None
    assert metrics.gpu.joules_per_token == pytest.approx(2.4)
    assert not any("GPU" in note for note in outcome.notes)


def test_without_nvml_a_baseline_s_utilization_is_null_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    metrics, outcome = baseline(monkeypatch, lambda cost: cuda_llm(cost, ("slow.",)))
    assert metrics.gpu_utilization is None
    assert any("NVML" in note for note in outcome.notes)
    assert [one.code for one in outcome.warnings] == ["device_fallback"]


@pytest.mark.parametrize(("smi", "told"), [(True, "ran on the CPU"), (False, "no NVIDIA GPU")])
def test_a_baseline_on_the_cpu_says_so_whatever_gpu_is_there(
    monkeypatch: pytest.MonkeyPatch, smi: bool, told: str
) -> None:
    install(monkeypatch, FakeNvml())
    metrics, outcome = baseline(monkeypatch, make_llm, smi)
    assert (metrics.gpu_utilization, metrics.gpu) == (None, None)
    assert any(told in note for note in outcome.notes)


# --- on the page -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_reports_show_what_the_gpu_did(lang: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from knee.cli.display import print_record
    from knee.lab.report import to_html

    use = USE.model_copy(update={"throttled": {"power_cap": 0.25}})
    swept_, _ = judged(lambda *_: use)
    _, requests, steps = make(TWO)
    single = record("baseline").model_copy(
        update={"metrics": record("baseline").metrics.model_copy(update={"gpu": use, "gpu_utilization": 0.5})}
    )
    for page in (to_markdown(swept_, lang), to_markdown(single, lang)):
        for shown in ("50%", "4.00", "250.00", "500.00", "15.6", "1980", "power cap 25%"):
            assert shown in page
    for page in (to_html(single, [], [], lang), to_html(swept_, requests, steps, lang)):
        assert "15.6" in page
        assert "power cap 25%" in page
    print_record(single, lang)
    assert "15.6 J" in capsys.readouterr().out
    print_record(swept_, lang)
    assert "J/token" in capsys.readouterr().out


def test_calls_of_the_fake_are_those_of_the_monitor() -> None:
    assert set(CALLS) == set(gpu._SENSORS)

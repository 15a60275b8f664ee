"""Findings follow from the state of the machine, each comes with advice, and the report is plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from knee.cli import doctor as command
from knee.lab import doctor, gpu_speed
from knee.lab.doctor import FINDING_CODES, State, bfloat16_note, diagnose, kernels_note, other_load
from knee.lab.gpu_speed import GpuSpeed
from knee.lab.messages import LANGUAGES, MESSAGES
from knee.lab.records import Gpu
from knee.lab.speed import Kernels, Rate, Speed
from tests.lab.samples import record

QUIET = State(
    other_load=0.01,
    swap_used_gib=0.0,
    cpu_quota=None,
    governor="performance",
    on_battery=False,
    temperature_c=45.0,
    timer_resolution_ns=40,
)
STEADY = Speed(*[Rate(best=45.0, median=44.0, runs=9, how="a")] * 4)
HARDWARE = record().hardware
KERNELS = Kernels("avx2", ("avx2", "portable"), ("avx512_bf16", "avx2", "portable"))


def codes(state: State = QUIET, speed: Speed | None = STEADY, cores: int = 2) -> list[str]:
    return [found.code for found in diagnose(HARDWARE.model_copy(update={"cores": cores}), state, speed)]


def test_a_quiet_machine_has_no_findings() -> None:
    assert codes() == codes(speed=None) == []
    silent = replace(QUIET, governor=None, on_battery=None, temperature_c=None)
    assert codes(silent) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"other_load": 0.5}, "other_load"),
        ({"swap_used_gib": 1.0}, "swap"),
        ({"cpu_quota": 1.5}, "cpu_quota"),
        ({"governor": "powersave"}, "governor"),
        ({"on_battery": True}, "battery"),
        ({"temperature_c": 95.0}, "hot"),
        ({"timer_resolution_ns": 15_600_000}, "coarse_timer"),
    ],
)
def test_each_trouble_is_found_alone(change: dict[str, object], code: str) -> None:
    assert codes(replace(QUIET, **change)) == [code]


def test_one_core_and_an_unsteady_speed_are_found() -> None:
    assert codes(cores=1) == ["one_core"]
    shaky = replace(STEADY, read_gb_s=Rate(best=45.0, median=30.0, runs=9, how="a"))
    assert codes(speed=shaky) == ["unsteady"]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_finding_has_words_and_advice(lang: doctor.Lang) -> None:
    bad = State(2.0, 1.0, 1.5, "powersave", True, 95.0, 20_000)
    shaky = replace(STEADY, read_gb_s=Rate(best=45.0, median=30.0, runs=9, how="a"))
    found = diagnose(HARDWARE.model_copy(update={"cores": 1}), bad, shaky)
    assert [one.code for one in found] == list(FINDING_CODES)
    for one in found:
        assert one.message(lang)
        assert one.advice(lang)


def test_bfloat16_says_whether_the_processor_has_instructions_for_it() -> None:
    without = HARDWARE.model_copy(update={"isa": ["avx2"]})
    assert "avx512_bf16), which go unused" in bfloat16_note(HARDWARE, "en")
    assert bfloat16_note(HARDWARE, "en", KERNELS) == "the processor has instructions for it (avx512_bf16)"
    for kernels in (None, KERNELS):
        assert "no instructions" in bfloat16_note(without, "en", kernels)


def test_the_kernels_are_named_those_in_use_first() -> None:
    said = "avx2 is used; this CPU also runs: portable; built, but not for this CPU: avx512_bf16"
    assert kernels_note(KERNELS, "en") == said
    assert kernels_note(Kernels("a", ("a",), ("a",)), "en").endswith(
        "also runs: none; built, but not for this CPU: none"
    )
    assert "NumPy" in kernels_note(None, "en")


@pytest.mark.parametrize("kernels", [None, KERNELS])
def test_an_examination_reports_as_json(monkeypatch: pytest.MonkeyPatch, kernels: Kernels | None) -> None:
    monkeypatch.setattr(doctor, "measure_speed", lambda _threads: replace(STEADY, kernels=kernels))
    document = json.loads(json.dumps(doctor.examine().to_json("zh"), allow_nan=False))
    for name in ("read_gb_s", "copy_gb_s", "float32_gflop_s", "bfloat16_gflop_s"):
        assert document[name] == {"best": 45.0, "median": 44.0, "runs": 9, "how": "a"}
    assert document["int8_gflop_s"] is document["int4_gflop_s"] is None
    assert document["bfloat16_note"]
    assert document["kernels"] == (
        kernels
        and {"in_use": "avx2", "supported": ["avx2", "portable"], "compiled": ["avx512_bf16", "avx2", "portable"]}
    )
    assert document["timer_resolution_ns"] > 0


class FakeSystem:
    """A clock that moves when somebody sleeps, and what was busy until then: `busy` cores, `own` of them with us."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, busy: float, own: float) -> None:
        self.now, self.own = 50.0, own
        monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=lambda: self.now, sleep=self.sleep))
        monkeypatch.setattr(doctor, "busy_seconds", lambda: busy * self.now)
        monkeypatch.setattr(doctor.psutil, "Process", lambda: self)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def cpu_times(self) -> tuple[float, ...]:
        return self.own * self.now * 0.75, self.own * self.now * 0.25, 99.0


@pytest.mark.parametrize(
    ("busy", "own", "others"), [(0.9, 0.9, 0.0), (1.5, 0.0, 1.5), (1.5, 0.5, 1.0), (0.2, 0.3, 0.0)]
)
def test_others_work_is_other_load_and_ours_is_not(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, others: float
) -> None:
    FakeSystem(monkeypatch, busy, own)
    assert other_load(0.5) == pytest.approx(others)


def test_the_catalogue_has_no_advice_for_nothing() -> None:
    advised = {key.split(".")[1] for key in MESSAGES if key.startswith("doctor.") and key.endswith(".advice")}
    assert advised == set(FINDING_CODES)


# --- the GPU -----------------------------------------------------------------------------------------------------

GPU = GpuSpeed("NVIDIA H100", *[Rate(best=3000.0, median=2900.0, runs=9, how="a")] * 5)


def examined(monkeypatch: pytest.MonkeyPatch, gpus: list[Gpu], why: str | None, measured: object) -> doctor.Report:
    """A machine with these GPUs, of which `why` says that they cannot be measured."""

    def measure() -> object:
        if isinstance(measured, Exception):
            raise measured
        return measured

    hardware = HARDWARE.model_copy(update={"gpus": gpus})
    monkeypatch.setattr(doctor, "read_hardware", lambda: hardware)
    monkeypatch.setattr(doctor, "measure_speed", lambda _threads: STEADY)
    monkeypatch.setattr(gpu_speed.limits, "unavailable", lambda: why)
    monkeypatch.setattr(gpu_speed, "_measured", measure)
    return doctor.examine()


def shown(report: doctor.Report, lang: doctor.Lang = "en") -> dict[str, str]:
    return dict(command._rows(report, lang))


def test_a_gpu_s_speeds_are_shown_beside_the_processor_s(monkeypatch: pytest.MonkeyPatch) -> None:
    report = examined(monkeypatch, HARDWARE.gpus, None, GPU)
    for lang in LANGUAGES:
        assert sum("3000.0" in row for row in shown(report, lang).values()) == 5
    assert "GB/s" in shown(report)["GPU copy bandwidth (read + write)"]
    document = json.loads(json.dumps(report.to_json("en"), allow_nan=False))
    assert document["gpu"]["copy_gb_s"] == {"best": 3000.0, "median": 2900.0, "runs": 9, "how": "a"}
    assert document["gpu_note"] == ""


@pytest.mark.parametrize(
    ("why", "error", "told"),
    [
        ("torch is not installed", None, "torch is not installed"),
        (None, RuntimeError("CUDA error: out of memory\nand more"), "CUDA error: out of memory"),
        (None, RuntimeError(), "RuntimeError"),
    ],
)
def test_a_gpu_that_cannot_be_measured_is_told_of_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, why: str | None, error: Exception | None, told: str
) -> None:
    report = examined(monkeypatch, HARDWARE.gpus, why, error)
    assert report.gpu is None
    assert report.gpu_note == told
    assert shown(report)["GPU speeds"] == f"not measured: {told}"
    assert report.to_json("en")["gpu"] is None


def test_without_a_gpu_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_speed.limits, "_torch", lambda: pytest.fail("asked"))
    report = examined(monkeypatch, [], None, RuntimeError("asked"))
    assert (report.gpu, report.gpu_note) == (None, "")
    assert not [name for name in shown(report) if name.startswith("GPU ")]

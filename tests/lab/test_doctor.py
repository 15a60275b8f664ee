"""Findings follow from the state of the machine, each comes with advice, and the report is plain JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from knee.lab import doctor
from knee.lab.doctor import FINDING_CODES, State, bfloat16_note, diagnose, kernels_note, other_load
from knee.lab.messages import LANGUAGES, MESSAGES
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

"""From a measurement to a run on disk: what was found so far is kept, and a clock that jumps is told of."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from knee.errors import RecordError, UserError
from knee.lab import experiment, measure
from knee.lab.doctor import State
from knee.lab.experiment import Outcome, Setting, Sink, draft, perform, run_to_resume, workload_record
from knee.lab.measure import Measured
from knee.lab.plan import Job, SweepSpec, make_cells
from knee.lab.records import Record
from knee.lab.rejudge import rejudged
from knee.lab.runs import list_runs, read_run
from knee.lab.spec import RunSpec
from knee.lab.sweep import run, settings_of
from knee.lab.sweep_records import SweepMetrics
from knee.lab.workload import Prompt, Workload
from knee.llm import LLM
from tests.engine.fake_async_device import FakeAsyncDevice
from tests.lab.fake_llm import FakeTime, Undisturbed, make_llm
from tests.lab.samples import SWEEP, record

QUIET = State(0.0, 0.0, None, None, None, None, 40)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No look around, and no arithmetic to time the machine with."""
    monkeypatch.setattr(experiment, "read_state", lambda: QUIET)
    monkeypatch.setattr(measure, "pulse", lambda: 0.001)
    monkeypatch.setattr(measure, "trace_seconds", lambda: 1e-6)


def begun() -> Record:
    return record("sweep").model_copy(update={"metrics": None, "status": "running", "warnings": []})


def measured(out: Path, measure) -> Record:
    return perform(begun(), Setting("sweep", out), measure, lambda _path: None)


def test_an_interrupted_run_keeps_the_metrics_of_what_was_finished(tmp_path: Path) -> None:
    def measure(sink: Sink) -> Outcome:
        sink.keep(Outcome(SWEEP, notes=["half way"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path, measure)
    [entry] = list_runs(tmp_path)
    kept = read_run(entry.path).record
    assert (kept.status, kept.metrics, kept.notes) == ("interrupted", SWEEP, ["half way"])
    assert "| dynamic |" in (entry.path / "record.md").read_text(encoding="utf-8")


def test_what_was_known_before_stays_beside_what_was_found(tmp_path: Path) -> None:
    started = begun().model_copy(update={"notes": ["Weights in int8."]})
    found = perform(started, Setting("sweep", tmp_path), lambda _: Outcome(SWEEP, notes=["done"]), lambda _path: None)
    assert found.notes == ["Weights in int8.", "done"]


@pytest.mark.parametrize(("threads", "warned"), [(None, False), (4, False), (5, True)])
def test_more_threads_than_cores_are_warned_of(tmp_path: Path, threads: int | None, warned: bool) -> None:
    started = begun()
    started.hardware.cores, started.model.threads = 4, threads
    found = perform(started, Setting("sweep", tmp_path), lambda _: Outcome(SWEEP), lambda _path: None)
    messages = [warning.message for warning in found.warnings if warning.code == "threads"]
    assert messages == (
        ["5 threads share 4 usable cores: they wait for each other at every step; give --threads 4 or fewer."]
        if warned
        else []
    )


def test_the_record_says_what_the_device_chose(tmp_path: Path) -> None:
    llm = make_llm()
    llm.device.dtype_reason, llm.device.isa, llm.device.threads = "rounded from the file's BF16", "avx2", 3
    prompts = Workload((Prompt((1, 2)),), 1, 1)
    with_reason = draft("sweep", llm, prompts, record("sweep").batch_policy, True, Setting("sweep", tmp_path))
    assert with_reason.notes == ["Weights in float32: rounded from the file's BF16."]
    assert (with_reason.model.dtype, with_reason.model.isa, with_reason.model.threads) == ("float32", "avx2", 3)
    assert draft("sweep", make_llm(), prompts, with_reason.batch_policy, True, Setting("sweep", tmp_path)).notes == []


def test_a_run_that_waits_for_each_step_where_it_need_not_says_so(tmp_path: Path) -> None:
    ahead, prompts = replace(make_llm(), device=FakeAsyncDevice()), Workload((Prompt((1, 2)),), 1, 3)

    def notes(llm: LLM, overlap: str) -> list[str]:
        setting = Setting("sweep", tmp_path, options={"overlap": overlap})
        return draft("sweep", llm, prompts, record("sweep").batch_policy, True, setting).notes

    assert notes(ahead, "on") == notes(make_llm(), "off") == []
    [note] = notes(ahead, "off")
    assert "waited for each step" in note


def test_a_machine_that_slept_during_a_run_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    def measure(_sink: Sink) -> Outcome:
        monkeypatch.setattr(experiment.time, "time", lambda: real() + 90)
        return Outcome(SWEEP)

    found = measured(tmp_path, measure)
    [gap] = [warning for warning in found.warnings if warning.code == "clock_gap"]
    assert "90.0" in gap.message


def test_a_steady_clock_is_not_warned_of(tmp_path: Path) -> None:
    found = measured(tmp_path, lambda _sink: Outcome(SWEEP))
    assert not [warning for warning in found.warnings if warning.code == "clock_gap"]


# --- a run that is judged from its rows --------------------------------------------------------------------------

SPEC = SweepSpec(Workload((Prompt((1, 2, 3)),), 4, 3), make_cells(["static"], [1, 2], None), repeats=3)


def asked(**changes: Any) -> Record:
    """The draft of a sweep over `SPEC`, with some of its fields changed."""
    return begun().model_copy(update={"workload": workload_record(SPEC.workload), "name": "first sweep", **changes})


class Stopping(Undisturbed):
    """Runs so many trials; the next one is cut off."""

    def __init__(self, trials: int) -> None:
        time = FakeTime()
        super().__init__(make_llm(time.per_row), time.clock)
        self.left = trials

    def __call__(self, job: Job, /) -> Measured:
        self.left -= 1
        found = super().__call__(job)
        found.interrupted = self.left < 0
        return found


def sweep(
    out: Path, trials: int = 100, made: Record | None = None, resume: str | None = None, lang: Any = "en"
) -> Path:
    """A sweep that is cut off after so many trials, if it has more; gives its folder."""
    opened: list[Path] = []
    setting = Setting("sweep", out, lang, resume=resume)
    begin = RunSpec(draft=made or asked(), cells=settings_of(SPEC))
    try:
        perform(made or asked(), setting, lambda sink: run(SPEC, sink, Stopping(trials)), opened.append, begin)
    except KeyboardInterrupt:
        assert trials < 6
    return opened[0]


def repeats(folder: Path) -> dict[str, list[int]]:
    """Of each cell, those that count in the record."""
    found = json.loads((folder / "record.json").read_text())["metrics"]["cells"]
    return {cell["label"]: [repeat["repeat"] for repeat in cell["repeats"]] for cell in found}


def test_a_record_can_be_made_again_from_the_rest_to_the_byte(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    before = read_run(folder).record
    assert before.status == "done"
    assert isinstance(before.metrics, SweepMetrics)
    for file in ("record.json", "record.md", "record.zh.md"):
        (folder / file).unlink()
    assert rejudged(read_run(folder)).record.model_dump_json() == before.model_dump_json()


def test_a_record_of_an_earlier_knee_is_not_judged_again(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    (folder / "spec.json").unlink()
    assert rejudged(read_run(folder)) == read_run(folder)


@pytest.mark.parametrize("trials", [1, 2, 4])
def test_a_sweep_that_was_cut_off_holds_its_whole_trials_judged(tmp_path: Path, trials: int) -> None:
    folder = sweep(tmp_path, trials)
    found = read_run(folder)
    assert found.record.status == "interrupted"
    assert sum(map(len, repeats(folder).values())) == trials
    assert len(found.requests) == 4 * (trials + 1)  # of the one that was cut off, too
    assert rejudged(found).record == found.record
    assert "| static | 1 |" in (folder / "record.md").read_text()


def test_a_sweep_that_was_cut_off_in_its_first_trial_has_no_metrics_yet(tmp_path: Path) -> None:
    found = read_run(sweep(tmp_path, 0))
    assert (found.record.status, found.record.metrics) == ("interrupted", None)
    assert rejudged(found).record == found.record


@pytest.mark.parametrize("trials", [0, 1, 4])
def test_a_resumed_sweep_has_the_rows_of_an_uninterrupted_one(tmp_path: Path, trials: int) -> None:
    whole = read_run(sweep(tmp_path / "whole"))
    folder = sweep(tmp_path / "cut", trials)
    assert sweep(tmp_path / "cut", resume="latest") == folder
    found = read_run(folder)
    assert found.record.status == "done"
    assert repeats(folder) == {"static (1)": [0, 1, 2], "static (2)": [0, 1, 2]}
    assert [(row.cell, row.repeat, row.request) for row in found.requests] == [
        (row.cell, row.repeat, row.request) for row in whole.requests
    ]
    assert len(found.steps) == len(whole.steps)
    assert [row.token_ids_sha256 for row in found.requests] == [row.token_ids_sha256 for row in whole.requests]


def test_a_resumed_sweep_that_is_cut_off_again_says_so_and_holds_more(tmp_path: Path) -> None:
    folder = sweep(tmp_path, 1)
    (folder / "record.md").unlink()
    sweep(tmp_path, 2, resume="latest")
    assert sum(map(len, repeats(folder).values())) == 3
    assert {json.loads((folder / name).read_text())["status"] for name in ("spec.json", "record.json")} == {
        "interrupted"
    }
    assert "| static | 1 |" in (folder / "record.md").read_text()
    sweep(tmp_path, resume="latest")
    assert sum(map(len, repeats(folder).values())) == 6


def test_a_run_that_is_taken_up_again_reads_as_running(tmp_path: Path) -> None:
    sweep(tmp_path, 1)
    seen: list[str] = []

    def look(sink: Sink) -> None:
        sink.change(seed=3)
        sink.judge()
        [entry] = list_runs(tmp_path)
        found = read_run(entry.path)
        seen.extend([found.record.status, rejudged(found).record.status])

    perform(asked(), Setting("sweep", tmp_path, resume="latest"), look, lambda _path: None)
    assert seen == ["running", "running"]


def test_a_resumed_sweep_keeps_its_name_its_beginning_and_what_was_warned_of(tmp_path: Path) -> None:
    first = asked(created_at="2025-01-01T00:00:00+00:00", name="old", notes=["Weights in int4."])
    folder = sweep(tmp_path, 1, first)
    spec = read_run(folder).spec
    assert spec is not None
    again = asked(created_at="2026-01-01T00:00:00+00:00", name="new", command=["knee", "sweep", "--resume", "latest"])
    found = read_run(sweep(tmp_path, made=again, resume="latest")).record
    assert (found.created_at, found.name, found.notes) == (first.created_at, "old", ["Weights in int4."])
    assert found.command == again.command
    known = [warning.code for warning in found.warnings]
    assert all(warning.code in known for warning in spec.draft.warnings)


def other(**changes: Any) -> Record:
    return asked(**{name: getattr(asked(), name).model_copy(update=change) for name, change in changes.items()})


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (other(model={"sha256": "1" * 64}), "the model's files"),
        (other(model={"dtype": "int8"}), "the weights' type"),
        (other(model={"isa": "avx2"}), "the instruction set"),
        (other(model={"threads": 7}), "the threads"),
        (other(workload={"sha256": "1" * 64}), "the workload"),
        (other(hardware={"cpu": "another"}), "the processor"),
        (other(hardware={"cores": 64}), "the cores"),
        (asked(options={"seed": 3, "policies": ["static"]}), "seed, policies"),
    ],
)
def test_a_sweep_is_not_resumed_as_another_and_stays_as_it_was(tmp_path: Path, made: Record, said: str) -> None:
    folder = sweep(tmp_path, 1)
    before = read_run(folder).record
    for _ in range(2):
        with pytest.raises(UserError, match=rf"was begun otherwise \({said} differ\)"):
            sweep(tmp_path, made=made, resume="latest")
    after = read_run(folder).record
    assert (after.status, after.metrics) == ("interrupted", before.metrics)


def test_options_that_change_nothing_measured_may_differ(tmp_path: Path) -> None:
    folder = sweep(tmp_path, 1, asked(options={"seed": 0, "budget": "3m", "lang": "en", "repeats": 9}))
    made = asked(options={"seed": 0, "budget": None, "lang": "zh", "repeats": 3, "resume": "latest"})
    assert read_run(sweep(tmp_path, made=made, resume=folder.name, lang="zh")).record.status == "done"
    assert "实验名称" in (folder / "record.md").read_text()


def test_a_run_that_is_done_or_of_an_earlier_knee_is_not_resumed(tmp_path: Path) -> None:
    folder = sweep(tmp_path)
    with pytest.raises(RecordError, match="nothing to resume"):
        sweep(tmp_path, resume="latest")
    (folder / "spec.json").unlink()
    with pytest.raises(UserError, match=r"no spec\.json"):
        run_to_resume(Setting("sweep", tmp_path, resume="latest"))


def test_the_seconds_of_all_attempts_add_up(tmp_path: Path) -> None:
    folder = sweep(tmp_path, 1)
    first = read_run(folder).spec
    sweep(tmp_path, resume="latest")
    second = read_run(folder).spec
    assert first is not None
    assert second is not None
    assert 0 < (first.seconds or 0) < (second.seconds or 0)


def test_a_warning_about_the_circumstances_is_said_once(tmp_path: Path) -> None:
    crowded = asked()
    crowded.model.threads = crowded.hardware.cores + 1
    sweep(tmp_path, 1, crowded)
    found = read_run(sweep(tmp_path, made=crowded, resume="latest")).record
    assert [warning.code for warning in found.warnings].count("threads") == 1

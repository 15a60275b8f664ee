"""From a measurement to a run on disk: what was found so far is kept, and a clock that jumps is told of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from knee.lab import experiment
from knee.lab.experiment import Outcome, Setting, Sink, draft, perform
from knee.lab.records import Record
from knee.lab.runs import list_runs, read_run
from knee.lab.workload import Prompt, Workload
from tests.lab.fake_llm import make_llm
from tests.lab.samples import SWEEP, record


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

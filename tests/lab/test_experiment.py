"""From a measurement to a run on disk: what was found so far is kept, and a clock that jumps is told of."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from knee.lab import experiment
from knee.lab.experiment import Outcome, Setting, Sink, perform
from knee.lab.records import Record
from knee.lab.runs import list_runs, read_run
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

"""Kill -9 at a random moment of a sweep: what was measured is readable, and `--resume` ends with the same cells.

KNEE_KILLS says how many moments (by default a few, for CI), KNEE_KILL_SEED which.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from knee.lab.rejudge import rejudged
from knee.lab.runs import lacks_trials, list_runs, read_run
from knee.lab.sweep_records import SweepMetrics

KILLS = int(os.environ.get("KNEE_KILLS", "3"))
SEED = int(os.environ.get("KNEE_KILL_SEED", "0"))
KNEE = (sys.executable, "-c", "import sys; from knee.cli.main import main; main(sys.argv[1:])")
SWEEP = ("--batch-sizes", "1,2", "--repeats", "2", "--requests", "4", "--max-new-tokens", "3", "--device", "reference")
_ATTEMPTS = 5


def command(model: Path, out: Path, *more: str) -> list[str]:
    return [*KNEE, "sweep", *SWEEP, "--model", str(model), "--out", str(out), *more]


def finish(model: Path, out: Path, *more: str) -> None:
    """Run a sweep to its end, and resume it while trials are missing.

    Trials of a few milliseconds are void as soon as the load generator waits for a core of a busy machine, and now and
    then the second measurement of one is void as well.
    """
    for _ in range(_ATTEMPTS):
        done = subprocess.run(command(model, out, *more), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        [entry] = list_runs(out)
        if not lacks_trials(read_run(entry.path)):
            return
        more = ("--resume", entry.path.name)


def cells(out: Path) -> list[tuple[str, list[int], str]]:
    """What must be the same whenever the sweep was cut off: settings, repeats, tokens."""
    [entry] = list_runs(out)
    run = rejudged(read_run(entry.path))
    assert run.record.status == "done"
    assert isinstance(run.record.metrics, SweepMetrics)
    assert sum(not row.void for row in run.requests) == 2 * 2 * 4
    return [(one.label, [r.repeat for r in one.repeats], one.tokens_sha256) for one in run.record.metrics.cells]


def kill_after(seconds: float, model: Path, out: Path) -> None:
    process = subprocess.Popen(command(model, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, "a trial's process outlived the sweep"
    assert len(gone) == len(children)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, list[tuple[str, list[int], str]]]:
    """An uninterrupted sweep: how long it takes, and its cells."""
    out, started = tmp_path_factory.mktemp("whole"), time.monotonic()
    finish(model, out)
    return time.monotonic() - started, cells(out)


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_sweep_is_readable_and_resumes_to_the_same_cells(
    number: int, model: Path, whole: tuple[float, list[tuple[str, list[int], str]]], tmp_path: Path
) -> None:
    seconds, expected = whole
    # The middle of each of as many parts of the time, more or less, so that few kills still meet different moments.
    share = (number + random.Random(SEED * 1000 + number).random()) / KILLS
    kill_after(share * seconds, model, tmp_path)
    runs = list_runs(tmp_path)
    if not runs:  # it had not got so far as to make a folder
        finish(model, tmp_path)
    else:
        [entry] = runs
        assert entry.problem is None
        cut = rejudged(read_run(entry.path))
        assert cut.record.status in ("interrupted", "done")
        if cut.record.status == "interrupted" or lacks_trials(cut):
            finish(model, tmp_path, "--resume", entry.path.name)
    assert cells(tmp_path) == expected

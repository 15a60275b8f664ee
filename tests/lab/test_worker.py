"""A trial in a process of its own gives what one in this process gives; whatever ends the child, its parent says so."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from knee.errors import KneeError, ModelLoadError, RequestError
from knee.lab import worker
from knee.lab.arrivals import Arrival
from knee.lab.plan import CellSpec, Job, SweepSpec
from knee.lab.rows import request_rows, step_rows
from knee.lab.worker import FreshProcess, InThisProcess, ModelChoice
from knee.lab.workload import Prompt, Workload
from tests.cli.conftest import tiny_config, tiny_tensors
from tests.lab.pausing import IN_LOADING, IN_THE_TRIAL, gone, pausing, wait_for
from tests.weights.files import write_folder

PROMPTS = (Prompt((1, 2, 3)), Prompt((9, 8, 7, 6, 5)))


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> ModelChoice:
    folder = write_folder(tmp_path_factory.mktemp("models") / "tiny", tiny_tensors(), tiny_config())
    return ModelChoice(str(folder), "reference", "float32", 1)


def job(arrival: str = "burst", requests: int = 4, prompts: tuple[Prompt, ...] = PROMPTS, tokens: int = 5) -> Job:
    workload = Workload(prompts, requests, tokens, Arrival.parse(arrival))
    return SweepSpec(workload, (CellSpec("static", 1), CellSpec("continuous", 2))).job(1, 3)


def child_of(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Every fresh process runs this code instead."""
    monkeypatch.setattr(worker, "_COMMAND", (sys.executable, "-c", code))


# --- an answer ---------------------------------------------------------------------------------------------------


def test_a_fresh_process_gives_the_tokens_and_steps_of_this_one(choice: ModelChoice) -> None:
    fresh, here = FreshProcess(choice)(job()), InThisProcess(choice.load())(job())
    assert (fresh.trial.cell, fresh.trial.repeat) == (1, 3)
    tokens, expected = (
        [(row.prompt_tokens, row.output_tokens, row.finish_reason, row.token_ids_sha256) for row in request_rows(trial)]
        for trial in (fresh.trial, here.trial)
    )
    assert tokens == expected
    steps, expected_steps = (
        [(row.prefill_tokens, row.decode_rows, row.batch_size, row.kv_tokens) for row in step_rows(trial)]
        for trial in (fresh.trial, here.trial)
    )
    assert steps == expected_steps
    assert [step.decode_rows for step in fresh.warm_up] == [step.decode_rows for step in here.warm_up]
    assert fresh.solo is not None
    assert here.solo is not None
    assert (fresh.solo.prompt_tokens, fresh.solo.tokens) == (here.solo.prompt_tokens, here.solo.tokens)
    assert not fresh.interrupted
    assert (fresh.load or 0) > 0
    assert here.load is None


def test_what_a_library_prints_does_not_get_into_the_answer(
    choice: ModelChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_of(
        monkeypatch,
        "import os\nfrom knee.lab import worker\nload = worker.ModelChoice.load\n"
        "def loud(self):\n    print('hello', flush=True)\n    os.write(1, b'x' * 100000)\n    return load(self)\n"
        "worker.ModelChoice.load = loud\nworker.main()",
    )
    assert len(FreshProcess(choice)(job()).trial.requests) == 4


# --- an error ----------------------------------------------------------------------------------------------------


def test_an_error_of_the_child_reaches_the_parent_as_it_is_with_its_words(choice: ModelChoice) -> None:
    nowhere = ModelChoice("/nowhere/model", "reference", "auto", None)
    with pytest.raises(ModelLoadError, match="/nowhere/model"):
        FreshProcess(nowhere)(job())
    with pytest.raises(RequestError, match="999 is not in the vocabulary"):
        FreshProcess(choice)(job(prompts=(Prompt((999,)),)))


def test_a_child_that_fails_is_told_of_with_its_last_words(
    choice: ModelChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_of(
        monkeypatch,
        "from knee.lab import worker\nworker.measure = lambda *_, **__: 1 / 0\nworker.main()",
    )
    with pytest.raises(KneeError, match=r"exit code 1 before it answered: ZeroDivisionError: division by zero$"):
        FreshProcess(choice)(job())


def test_a_child_that_dies_before_it_reads_is_told_of(choice: ModelChoice, monkeypatch: pytest.MonkeyPatch) -> None:
    child_of(monkeypatch, "import sys; sys.exit(3)")
    with pytest.raises(KneeError, match="exit code 3 before it answered: it said nothing"):
        FreshProcess(choice)(job(prompts=tuple(Prompt((n,) * 400) for n in range(2000))))  # more than a pipe holds


@pytest.mark.parametrize("complaints", [0, 100_000])
def test_a_child_that_is_killed_is_told_of(
    choice: ModelChoice, monkeypatch: pytest.MonkeyPatch, complaints: int
) -> None:
    child_of(
        monkeypatch,
        "import os, signal, sys\nfrom knee.lab import measure, worker\n"
        f"def die(*_):\n    sys.stderr.write('warning\\n' * {complaints})\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "measure.run_trial = die\nworker.main()",
    )
    with pytest.raises(KneeError, match=r"ended with signal 9 before it answered: (it said nothing|warning)$"):
        FreshProcess(choice)(job())


# --- an end ------------------------------------------------------------------------------------------------------

DEAF = "import signal\nset_ = signal.signal\nsignal.signal = lambda *_: set_(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Ctrl-C while the parent waits for an answer, once the child is where it is wanted; gives where its pid stands."""
    marker, read = tmp_path / "pid", worker._read
    told: list[bool] = []

    def first_interrupted(pipe: IO[bytes]) -> Any:
        if not told:
            told.append(True)
            wait_for(marker.exists)
            raise KeyboardInterrupt
        return read(pipe)

    def prepare(where: str) -> Path:
        child_of(monkeypatch, pausing(marker, where))
        monkeypatch.setattr(worker, "_read", first_interrupted)
        return marker

    return prepare


def test_an_interrupt_gives_what_was_measured_until_then(
    choice: ModelChoice, interrupted: Callable[[str], Path]
) -> None:
    marker = interrupted(IN_THE_TRIAL)
    found = FreshProcess(choice)(job("rate:0.1", requests=3))
    assert found.interrupted
    [row] = request_rows(found.trial)
    assert (row.finish_reason, row.output_tokens) == ("length", 5)
    assert len(found.trial.steps) == 5
    assert gone(int(marker.read_text()))


def test_an_interrupt_before_anything_was_measured_is_an_interrupt(
    choice: ModelChoice, interrupted: Callable[[str], Path]
) -> None:
    marker = interrupted(IN_LOADING)
    with pytest.raises(KeyboardInterrupt):
        FreshProcess(choice)(job())
    assert gone(int(marker.read_text()))


def test_a_child_that_does_not_answer_soon_is_killed(
    choice: ModelChoice, interrupted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = interrupted(f"{DEAF}\n{IN_LOADING}")
    monkeypatch.setattr(worker, "_PATIENCE_S", 0.2)
    with pytest.raises(KeyboardInterrupt):
        FreshProcess(choice)(job())
    assert gone(int(marker.read_text()))


PARENT = (
    "import pickle, sys\nfrom pathlib import Path\nfrom knee.lab import worker\n"
    "order, code = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
    "worker._COMMAND = (sys.executable, '-c', code)\n"
    "worker.FreshProcess(order.choice)(order.job)"
)


@pytest.mark.parametrize("where", [IN_LOADING, IN_THE_TRIAL])
def test_the_child_ends_with_its_parent_even_if_that_is_killed(choice: ModelChoice, tmp_path: Path, where: str) -> None:
    marker, order = tmp_path / "pid", tmp_path / "order"
    code = pausing(marker, where)
    order.write_bytes(pickle.dumps((worker.Order(choice, job("rate:0.1", requests=3)), code)))
    with subprocess.Popen([sys.executable, "-c", PARENT, str(order)]) as parent:
        try:
            wait_for(marker.exists)
            child = int(marker.read_text())
            assert os.getsid(child) != os.getsid(parent.pid)  # Ctrl-C in the terminal is not for the child
        finally:
            parent.kill()
    wait_for(lambda: gone(child))

"""Fresh processes that stop where a test wants them, so that no test has to guess how long they take to get there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 60.0  # for a machine that is busy with other things

# In the first pause of the trial, or while the model is loaded.
IN_THE_TRIAL = "worker.measure = lambda llm, job, **more: measure.measure(llm, job, Clock(sleep=pause), **more)"
IN_LOADING = "worker.ModelChoice.load = pause"

_CODE = """
import os, time
from pathlib import Path
from knee.lab import measure, worker
from knee.lab.trial import Clock

def pause(*_):
    file = Path({marker!r})
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").rename(file)
    time.sleep(1000)

{where}
worker.main()
"""


def pausing(marker: Path, where: str) -> str:
    """Code of a worker that, once it is there, writes its pid to `marker` and waits for ever."""
    return _CODE.format(marker=str(marker), where=where)


def wait_for(what: Callable[[], Any]) -> None:
    """Until it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Also a zombie, which is nobody's child any more and waits for an init that may not be there."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

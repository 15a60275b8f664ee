"""A trial in a process of its own: both ends of the pipe.

A fresh process a trial, because what a process is lucky or unlucky with (where its memory lies, which pages are huge,
how its hash seeds fall) stays with it for all it does; repeats in one process would share that luck and agree too well
(Kalibera & Jones 2013, "Rigorous benchmarking in reasonable time"). Not forked: a copy of this process would share the
very memory whose place matters, and native threads do not survive a fork.

Down the child's stdin goes a pickled `Order`, up its stdout come a pickled `Answer`: both ends are this code. The child
lives in a session of its own, so that Ctrl-C reaches only the parent, which then asks the child by SIGTERM for what
it has measured so far. When the parent is gone, however it went, the child's stdin ends and so does the child.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import IO, Protocol

from knee.errors import KneeError
from knee.lab.measure import Measured, measure
from knee.lab.plan import Job
from knee.lab.trial import REAL_TIME, Clock
from knee.llm import LLM

# Not -m: the classes of what comes back would belong to __main__. -P: nothing is imported from the current folder.
_COMMAND = (sys.executable, "-P", "-c", "from knee.lab.worker import main; main()")
_PATIENCE_S = 10.0


class Runner(Protocol):
    """Who runs a trial, and where."""

    def __call__(self, job: Job, /) -> Measured:
        """Run it to its end. Raises `KneeError`; an interrupt gives what there is, with `interrupted` set."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """What to load, in the words of the command line."""

    model: str
    device: str
    dtype: str
    threads: int | None
    batch_invariant: bool = True

    def load(self) -> LLM:
        """Raises what `LLM.load` does."""
        return LLM.load(self.model, self.device, self.dtype, self.threads, self.batch_invariant)


@dataclass(frozen=True, slots=True)
class Order:
    """One trial, and the model to run it on."""

    choice: ModelChoice
    job: Job


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: a measurement, or the error that prevented it."""

    measured: Measured | None = None
    error: KneeError | None = None


# --- the parent's end --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FreshProcess:
    """Runs every trial in a new process that loads the model itself."""

    choice: ModelChoice

    def __call__(self, job: Job, /) -> Measured:
        """Raises the child's `KneeError`, or one that says how the child died."""
        child = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        with child, _killed_in_the_end(child) as errors:
            interrupted = False
            try:
                answer = self._ask(child, job)
            except KeyboardInterrupt:
                interrupted = True
                answer = _hurried(child)
            return _result(answer, interrupted, child, errors)

    def _ask(self, child: subprocess.Popen[bytes], job: Job) -> Answer | None:
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it died early; what it said on stderr tells why
            pickle.dump(Order(self.choice, job), child.stdin)
            child.stdin.flush()
        return _read(child.stdout)


@contextlib.contextmanager
def _killed_in_the_end(child: subprocess.Popen[bytes]) -> Iterator[_Drain]:
    assert child.stdin is not None
    assert child.stderr is not None
    errors = _Drain(child.stderr)
    try:
        yield errors
    finally:
        if child.poll() is None:
            child.kill()
        with contextlib.suppress(BrokenPipeError):  # an order that nobody read
            child.stdin.close()
        errors.wait()  # the pipe is closed next, and nobody may be reading from it then


def _hurried(child: subprocess.Popen[bytes]) -> Answer | None:
    """What a child has so far, if it says so soon."""
    assert child.stdout
    child.send_signal(signal.SIGTERM)
    alarm = threading.Timer(_PATIENCE_S, child.kill)
    alarm.start()
    try:
        return _read(child.stdout)
    finally:
        alarm.cancel()


def _read(pipe: IO[bytes]) -> Answer | None:
    try:
        answer = pickle.load(pipe)
    except (EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError, ValueError):
        return None  # cut off, or Ctrl-C came while it was read
    assert isinstance(answer, Answer)
    return answer


def _result(answer: Answer | None, interrupted: bool, child: subprocess.Popen[bytes], errors: _Drain) -> Measured:
    if answer is not None and answer.measured is not None:
        answer.measured.stop = interrupted
        return answer.measured
    if interrupted:
        raise KeyboardInterrupt
    if answer is not None and answer.error is not None:
        raise answer.error
    raise KneeError(f"a trial's process ended with {_how(child)} before it answered: {errors.last_line}")


def _how(child: subprocess.Popen[bytes]) -> str:
    code = child.wait()
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class _Drain:
    """Reads what a child complains of, so that its pipe does not fill up."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._text = b""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for line in self._pipe:
            self._text = (self._text + line)[-4000:]

    def wait(self) -> None:
        self._thread.join(timeout=1.0)

    @property
    def last_line(self) -> str:
        self.wait()
        lines = self._text.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@dataclass(frozen=True, slots=True)
class InThisProcess:
    """Runs every trial on one loaded model: for tests, which bring their own device and clock."""

    llm: LLM
    clock: Clock = REAL_TIME

    def __call__(self, job: Job, /) -> Measured:
        """Raises `KneeError`."""
        return measure(self.llm, job, self.clock)


# --- the child's end ---------------------------------------------------------------------------------------------


def main() -> None:
    """Read an order, carry it out, answer, leave."""
    signal.signal(signal.SIGTERM, _interrupt)
    order = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_leave_with_the_parent, daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not get between the bytes of the answer
    with contextlib.suppress(KeyboardInterrupt):
        pickle.dump(_carry_out(order), answers)
        answers.flush()
    os._exit(0)  # nothing is left to do, and to take a model apart takes a while


def _carry_out(order: Order) -> Answer:
    try:
        started = time.perf_counter()
        llm = order.choice.load()
        loaded = time.perf_counter() - started
        gc.collect()
        gc.freeze()  # what was loaded stays: no collection during the trial has to look at it
        found = measure(llm, order.job, ended=_deaf)
        found.load = loaded
    except KneeError as error:
        return Answer(error=error)
    return Answer(found)


def _deaf() -> None:
    """From here on an interrupt would only lose a trial that is whole: who is in a hurry can wait for the answer."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _leave_with_the_parent() -> None:
    # Not sys.stdin.buffer, whose lock this thread would hold for ever.
    os.read(0, 1)
    os._exit(1)

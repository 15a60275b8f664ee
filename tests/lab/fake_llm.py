"""A loaded model that is none: the fake device, a clock that moves only as told, a list where rows go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from knee.devices.base import Span
from knee.lab.experiment import Outcome, workload_record
from knee.lab.judgement.judge import judge
from knee.lab.measure import Measured
from knee.lab.plan import Job, SweepSpec
from knee.lab.records import Record, RequestRow, StepRow
from knee.lab.spec import RunSpec
from knee.lab.sweep import policies_of, run
from knee.lab.sweep_records import TrialRow
from knee.lab.trial import Clock
from knee.lab.worker import InThisProcess
from knee.llm import LLM, LoadTimes
from knee.weights.checkpoint import Checkpoint
from tests.fake_device import FakeDevice, tiny_program
from tests.lab.samples import record

STEP_S, ROW_S = 0.010, 0.001


@dataclass
class FakeTime:
    """Stands still but for sleep, which takes `overslept` seconds too long, and what a device's steps cost."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)
    overslept: float = 0.0

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds + self.overslept

    def per_row(self, batch: Sequence[Span]) -> None:
        """A step costs 10 ms and 1 ms for each token that runs."""
        self.now += STEP_S + ROW_S * sum(len(span.tokens) for span in batch)


@dataclass
class Rows:
    """Keeps what a run folder would, and every judgement of it."""

    spec: RunSpec = field(default_factory=lambda: RunSpec(draft=record("sweep", done=False)))
    requests: list[RequestRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    kept: list[Outcome] = field(default_factory=list)
    judged: list[Record] = field(default_factory=list)

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        self.requests += rows

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        self.steps += rows

    def add_trial(self, trial: TrialRow) -> None:
        self.change(trials=[*self.spec.trials, trial])

    def change(self, **parts: Any) -> None:
        self.spec = self.spec.model_copy(update=parts)

    def judge(self) -> None:
        self.judged.append(judge(self.spec, self.requests, self.steps))

    def keep(self, so_far: Outcome) -> None:
        self.kept.append(so_far)


def rows_of(given: SweepSpec) -> Rows:
    """Where the rows of a sweep go that is about to start."""
    asked = {"workload": workload_record(given.workload), "batch_policy": policies_of(given.cells)}
    return Rows(RunSpec(draft=record("sweep", done=False, **asked)))


@dataclass(frozen=True)
class Undisturbed:
    """Runs trials in this process and forgets what the machine was like meanwhile, which is nobody's business here."""

    llm: LLM
    clock: Clock

    def __call__(self, job: Job, /) -> Measured:
        found = InThisProcess(self.llm, self.clock)(job)
        return replace(found, pulses=None, other_load=None, frequency_mhz=None, temperature_c=None, swap_gib=None)


def swept(llm: LLM, given: SweepSpec, time: FakeTime, **more: Any) -> tuple[Record, Rows]:
    """A sweep in this process on fake time: its judged record, and its rows."""
    rows = rows_of(given)
    run(given, rows, Undisturbed(llm, time.clock), **more)
    return judge(rows.spec, rows.requests, rows.steps), rows


def make_llm(
    cost: Callable[[Sequence[Span]], None] = lambda _batch: None,
    positions: int = 4096,
    fail_at: int | None = None,
    eos: int | None = None,
) -> LLM:
    """A model with a vocabulary of 50 and without a tokenizer; `eos` ends a text."""
    program = tiny_program(positions=positions)
    ends = frozenset() if eos is None else frozenset({eos})
    checkpoint = Checkpoint("fake", "nowhere", "gguf", (), {}, {}, ends, Path())
    return LLM(checkpoint, program, FakeDevice(program, cost, fail_at), None, LoadTimes(120.0, 7.0))

"""A loaded model that is none: the fake device, a clock that moves only as told, a list where rows go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from knee.devices.base import Span
from knee.lab.experiment import Outcome
from knee.lab.records import RequestRow, StepRow
from knee.lab.trial import Clock
from knee.llm import LLM, LoadTimes
from knee.weights.checkpoint import Checkpoint
from tests.fake_device import FakeDevice, tiny_program

STEP_S, ROW_S = 0.010, 0.001


@dataclass
class FakeTime:
    """Stands still but for sleep and what a device's steps cost."""

    now: float = 100.0
    slept: list[float] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.now, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def per_row(self, batch: Sequence[Span]) -> None:
        """A step costs 10 ms and 1 ms for each token that runs."""
        self.now += STEP_S + ROW_S * sum(len(span.tokens) for span in batch)


@dataclass
class Rows:
    """Keeps what a run folder would."""

    requests: list[RequestRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    kept: list[Outcome] = field(default_factory=list)

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        self.requests += rows

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        self.steps += rows

    def keep(self, so_far: Outcome) -> None:
        self.kept.append(so_far)


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

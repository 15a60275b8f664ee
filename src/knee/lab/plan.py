"""What a sweep runs, decided before anything runs: cells, trials and their order. Pure, seeded, light to import.

Only the policy changes between cells: workload, model and KV pool rules are the same for all. Trials run round by
round, each round with every cell once in a random order, so that a machine that warms up or is disturbed does so to
all cells alike, and cells can be compared within a round.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from knee.engine.policies import Policy, make_policy
from knee.engine.types import SamplingParams
from knee.errors import UserError
from knee.lab.workload import Workload

DEFAULT_BLOCK_SIZE = 16
DEFAULT_TOKEN_BUDGET = 512
DEFAULT_REPEATS = 5
REHEARSED = 64
"""Requests of a trial that are rehearsed on a device that learns shapes, or two batches if that is more."""
REHEARSED_S = 10.0
"""And no request that is due later than this, in seconds from the first one."""


@dataclass(frozen=True, slots=True)
class CellSpec:
    """A batch policy at one setting. `max_wait_ms` is None for a policy without a window."""

    policy: str
    max_batch_size: int
    max_wait_ms: float | None = None

    def __str__(self) -> str:
        window = "" if self.max_wait_ms is None else f" / {self.max_wait_ms:g} ms"
        return f"{self.policy} ({self.max_batch_size}{window})"

    def make(self, token_budget: int) -> Policy:
        """A fresh policy. Raises `UserError` for values that make none."""
        return make_policy(self.policy, self.max_batch_size, self.max_wait_ms, token_budget)


def make_cells(
    policies: Sequence[str], batch_sizes: Sequence[int], waits_ms: Sequence[float] | None
) -> tuple[CellSpec, ...]:
    """All settings: `dynamic` at every size and window, `single` once, the others at every size.

    `waits_ms` None means that no window was asked for: dynamic then has one of 0. Raises `UserError` for empty lists,
    repeated values, and windows that no policy would use.
    """
    for name, values in (("policy", policies), ("batch size", batch_sizes), ("wait window", waits_ms)):
        if values is not None and not values:
            raise UserError(f"there is no {name}: give at least one")
        if values is not None and len(set(values)) < len(values):
            raise UserError(f"a {name} is given twice: each is measured once")
    if waits_ms is not None and "dynamic" not in policies:
        raise UserError("only policy dynamic has a wait window: leave --wait-ms out or add dynamic to --policies")
    cells = []
    for policy in policies:
        windows = (waits_ms or (0.0,)) if policy == "dynamic" else (None,)
        sizes = (1,) if policy == "single" else batch_sizes
        cells += [CellSpec(policy, size, window) for size in sizes for window in windows]
    return tuple(cells)


@dataclass(frozen=True, slots=True)
class SweepSpec:
    """A sweep over `cells` with `repeats` trials each; `seed` decides the order within a round.

    `slo` has limits in ms by the name of the latency.
    """

    workload: Workload
    cells: tuple[CellSpec, ...]
    repeats: int = DEFAULT_REPEATS
    seed: int = 0
    params: SamplingParams = field(default_factory=lambda: SamplingParams(ignore_eos=True))
    kv_cache: bool = True
    block_size: int = DEFAULT_BLOCK_SIZE
    token_budget: int = DEFAULT_TOKEN_BUDGET
    overlap: bool = True  # where the device can

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"the number of repeats is {self.repeats}: it must be at least 1")
        for cell in self.cells:
            cell.make(self.token_budget)

    @property
    def largest(self) -> CellSpec:
        """The cell that needs the most memory."""
        return max(self.cells, key=lambda cell: cell.max_batch_size)

    def trials(self) -> list[tuple[int, int]]:
        """(cell, repeat) in the order in which they run."""
        order = []
        generator = random.Random(self.seed)
        for repeat in range(self.repeats):
            cells = list(range(len(self.cells)))
            generator.shuffle(cells)
            order += [(cell, repeat) for cell in cells]
        return order

    def job(self, cell: int, repeat: int) -> Job:
        """One trial of it."""
        return Job(
            cell,
            repeat,
            self.cells[cell],
            self.workload,
            self.params,
            self.kv_cache,
            self.block_size,
            self.token_budget,
            self.overlap,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """All that one trial needs to know. Plain data, so that it can go to another process."""

    number: int
    repeat: int
    cell: CellSpec
    workload: Workload
    params: SamplingParams
    kv_cache: bool
    block_size: int
    token_budget: int
    overlap: bool = True


def rehearsal(workload: Workload, max_batch_size: int) -> Workload:
    """The beginning of a trial, in which most shapes of its steps occur."""
    requests = min(workload.requests, max(REHEARSED, 2 * max_batch_size))
    if workload.times is not None:
        requests = min(requests, bisect_right(workload.times, workload.times[0] + REHEARSED_S))
    return replace(workload, requests=requests)

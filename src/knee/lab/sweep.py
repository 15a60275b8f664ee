"""The sweep: batch policies at several sizes and wait windows on one workload, and what each costs and buys.

Only the policy changes between cells: the same engine, KV pool and prompts serve all of them, the repeats run round
by round in a random order, so that a machine that warms up or is disturbed does so to all cells alike. Every cell
must give the same tokens; where one does not, its times mean nothing and the sweep says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from knee.engine.engine import Engine
from knee.engine.policies import Policy, make_policy
from knee.engine.types import SamplingParams
from knee.errors import KneeError, UserError
from knee.lab.experiment import Outcome, Sink, check_requests, warning
from knee.lab.findings import Measured, findings
from knee.lab.metrics import requests_that_differ, summarize_cell, tradeoff
from knee.lab.records import BatchPolicy, RequestRow, StepRow, SweepCell, SweepMetrics, Warning_
from knee.lab.slo import Slo, goodput
from knee.lab.trial import REAL_TIME, Clock, Progress, Trial, ignore, run_trial
from knee.lab.workload import Arrival, Workload
from knee.llm import DEFAULT_BLOCK_SIZE, LLM

DEFAULT_TOKEN_BUDGET = 512
_WARM_TOKENS = 3


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
    """A sweep over `cells` with `repeats` trials each; `seed` decides the order within a round."""

    workload: Workload
    cells: tuple[CellSpec, ...]
    repeats: int = 1
    seed: int = 0
    params: SamplingParams = field(default_factory=lambda: SamplingParams(ignore_eos=True))
    kv_cache: bool = True
    block_size: int = DEFAULT_BLOCK_SIZE
    token_budget: int = DEFAULT_TOKEN_BUDGET
    slo: Slo | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"the number of repeats is {self.repeats}: it must be at least 1")
        for cell in self.cells:
            cell.make(self.token_budget)

    @property
    def policies(self) -> BatchPolicy:
        """All of them in one line of a record: the names, the largest batch, the longest window."""
        windows = [cell.max_wait_ms for cell in self.cells if cell.max_wait_ms is not None]
        return BatchPolicy(
            name=", ".join(dict.fromkeys(cell.policy for cell in self.cells)),
            max_batch_size=self.largest.max_batch_size,
            max_wait_ms=max(windows, default=None),
        )

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


def check(llm: LLM, spec: SweepSpec) -> None:
    """Raise `RequestError` or `OutOfMemory` for a sweep that cannot run, before anything does."""
    check_requests(_engine(llm, spec), spec.workload, spec.params)


def run(llm: LLM, spec: SweepSpec, sink: Sink, clock: Clock = REAL_TIME, progress: Progress = ignore) -> Outcome:
    """Measure all cells, but for the trials that `sink` holds already. `progress` is told of each before it runs.

    Every trial's rows go to `sink` when it is over, also when it is cut off. Raises `KneeError` if no request of a
    trial came to its end.
    """
    engine = _engine(llm, spec)
    engine.clock = clock.now
    _warm_up(engine, spec, clock)
    measured = [
        _Rows([row for row in sink.requests if row.cell == cell], [row for row in sink.steps if row.cell == cell])
        for cell in range(len(spec.cells))
    ]
    there = {(row.cell, row.repeat) for row in sink.requests}
    errors: list[str] = []
    order = [trial for trial in spec.trials() if trial not in there]
    for number, (cell, repeat) in enumerate(order):
        progress(number, len(order), str(spec.cells[cell]))
        trial = Trial(cell, repeat)
        _run_cell(engine, spec, trial, sink, clock)
        measured[cell].add(trial)
        errors += trial.errors
        sink.keep(_outcome(spec, measured, errors))
    return _outcome(spec, measured, errors)


@dataclass(slots=True)
class _Rows:
    """All that was measured of a cell so far."""

    requests: list[RequestRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        self.requests += trial.request_rows()
        self.steps += trial.step_rows()


def _engine(llm: LLM, spec: SweepSpec) -> Engine:
    """One engine for all cells, with room for the largest."""
    policy = spec.largest.make(spec.token_budget)
    longest = spec.workload.longest
    return llm.engine(policy, longest=longest, kv_cache=spec.kv_cache, block_size=spec.block_size)


def _warm_up(engine: Engine, spec: SweepSpec, clock: Clock) -> None:
    """A few tokens at every batch size."""
    for size in sorted({cell.max_batch_size for cell in spec.cells}):
        engine.policy = make_policy("continuous", size, max_batched_tokens=spec.token_budget)
        tokens = min(_WARM_TOKENS, spec.workload.max_new_tokens)
        prompts = spec.workload.prompts[: spec.workload.requests]
        warm_up = replace(spec.workload, prompts=prompts, requests=size, arrival=Arrival(), max_new_tokens=tokens)
        run_trial(engine, warm_up, spec.params, Trial(), clock.sleep)


def _run_cell(engine: Engine, spec: SweepSpec, trial: Trial, sink: Sink, clock: Clock) -> None:
    engine.policy = spec.cells[trial.cell].make(spec.token_budget)
    try:
        run_trial(engine, spec.workload, spec.params, trial, clock.sleep)
    finally:
        sink.add_requests(trial.request_rows())
        sink.add_steps(trial.step_rows())
    engine.kv.check_integrity([])
    if len(trial.errors) and not any(request.token_times for request in trial.requests):
        raise KneeError(f"{spec.cells[trial.cell]}: every request failed; the first error: {trial.errors[0]}")


def _outcome(spec: SweepSpec, measured: Sequence[_Rows], errors: Sequence[str]) -> Outcome:
    together = [
        Measured(str(cell), _summarize(spec, cell, rows), rows.requests, rows.steps)
        for cell, rows in zip(spec.cells, measured, strict=True)
        if rows.requests
    ]
    cells = [one.cell for one in together]
    differing = requests_that_differ(row for rows in measured for row in rows.requests)
    metrics = SweepMetrics(
        cells=cells, tradeoff=tradeoff(cells), same_tokens=not differing, findings=findings(together)
    )
    return Outcome(metrics, _warnings(spec, differing, sum(cell.failed for cell in cells), errors))


def _summarize(spec: SweepSpec, cell: CellSpec, rows: _Rows) -> SweepCell:
    found = summarize_cell(cell.policy, cell.max_batch_size, cell.max_wait_ms, rows.requests, rows.steps)
    if spec.slo is None:
        return found
    good = goodput(rows.requests, found.duration_s, len(found.repeats), spec.slo)
    return found.model_copy(update={"goodput": good})


def _warnings(spec: SweepSpec, differing: Sequence[int], failed: int, errors: Sequence[str]) -> list[Warning_]:
    found = []
    if differing:
        found.append(warning("tokens_differ", count=len(differing), of=spec.workload.requests, first=differing[0]))
    if failed:
        found.append(warning("requests_failed", count=failed, error=errors[0] if errors else "?"))
    return found

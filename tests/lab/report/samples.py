"""Runs that never ran: a sweep from a small simulation of the batch policies, judged like any other."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from statistics import fmean

from knee.lab.costs import floor_of
from knee.lab.judgement.judge import judge
from knee.lab.records import BaselineMetrics, InspectMetrics, KvCacheCell, KvCacheMetrics, Record, RequestRow, StepRow
from knee.lab.spec import CellSetting, RunSpec
from knee.lab.sweep_records import CostModel, Limits, Solo, TrialRow, WarmStep
from tests.lab.samples import BASELINE, INSPECT, record

COSTS = CostModel(
    flops_per_token=212e6,
    flops_per_output=57e6,
    flops_per_pair=69_000.0,
    weight_bytes=84e6,
    weight_bytes_per_token=600.0,
    kv_bytes_per_token=23_040.0,
    kv_bytes_per_context=23_040.0,
)
LIMITS = Limits(read_gb_s=21.4, gflop_s=310.0, dtype="int4", how="native avx2 · 2 threads")
PROMPT, NEW = 24, 32


@dataclass
class _Run:
    """A request on its way."""

    number: int
    due: float
    prefill_start: float | None = None
    times: list[float] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.times) == NEW


@dataclass
class _Server:
    """One trial under one policy, in simulated time."""

    setting: CellSetting
    runs: list[_Run]
    noise: random.Random
    now: float = 0.0
    running: list[_Run] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)

    def serve(self) -> None:
        while not all(run.done for run in self.runs):
            waiting = [run for run in self.runs if run.due <= self.now and run.prefill_start is None]
            joining = self._joining(waiting)
            if not joining and not self.running:
                self.now = self._next_moment(waiting)
                continue
            self._step(joining, len(waiting) - len(joining))

    def _joining(self, waiting: list[_Run]) -> list[_Run]:
        free = self.setting.max_batch_size - len(self.running)
        if self.setting.policy == "continuous":
            return waiting[:free]
        if self.running or not waiting:
            return []
        more = any(run.due > self.now for run in self.runs)
        full = len(waiting) >= self.setting.max_batch_size
        late = self.now >= waiting[0].due + (self.setting.max_wait_ms or 0.0) / 1e3 - 1e-9
        patient = self.setting.policy == "static"
        return waiting[:free] if full or not more or (late and not patient) else []

    def _next_moment(self, waiting: list[_Run]) -> float:
        moments = [run.due for run in self.runs if run.due > self.now]
        if waiting and self.setting.policy == "dynamic":
            moments.append(waiting[0].due + (self.setting.max_wait_ms or 0.0) / 1e3)
        return min(moments)

    def _step(self, joining: list[_Run], waiting: int) -> None:
        for run in joining:
            run.prefill_start = self.now
        rows, tokens = len(self.running), len(joining) * PROMPT
        context = sum(PROMPT + len(run.times) for run in self.running)
        cost = floor_of(
            COSTS, LIMITS, tokens=rows + tokens, outputs=rows + len(joining), pairs=context + tokens, context=context
        )
        device = cost.seconds * self.noise.uniform(1.08, 1.3)
        host = self.noise.uniform(0.0002, 0.0004)
        started, self.now = self.now, self.now + device + host
        self.running += joining
        for run in self.running:
            run.times.append(self.now)
        size = len(self.running)
        self.running = [run for run in self.running if not run.done]
        self.steps.append(
            {
                "started_at": started,
                "ms": (self.now - started) * 1e3,
                "prefill_tokens": tokens,
                "decode_rows": rows,
                "kv_tokens": sum(PROMPT + len(run.times) - 1 for run in self.running),
                "waiting": waiting,
                "host_ms": host * 1e3,
                "batch_size": size,
            }
        )


def settings(sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> list[CellSetting]:
    """With all sizes 30 cells: dynamic with three windows, static, continuous."""
    dynamic = [CellSetting(policy="dynamic", max_batch_size=n, max_wait_ms=wait) for n in sizes for wait in (0, 10, 50)]
    others = [CellSetting(policy=policy, max_batch_size=n) for policy in ("static", "continuous") for n in sizes]
    return dynamic + others


def _trial(
    cell: int, setting: CellSetting, repeat: int, dues: list[float]
) -> tuple[TrialRow, list[RequestRow], list[StepRow]]:
    noise = random.Random(1000 * cell + repeat)
    server = _Server(setting, [_Run(number, due) for number, due in enumerate(dues)], noise)
    server.serve()
    requests = [
        RequestRow(
            cell=cell,
            repeat=repeat,
            request=run.number,
            scheduled_at=run.due,
            sent_at=run.due,
            prefill_start=run.prefill_start,
            first_token_at=run.times[0],
            finished_at=run.times[-1],
            prompt_tokens=PROMPT,
            output_tokens=NEW,
            finish_reason="length",
            token_ids_sha256=f"{run.number:064d}",
            token_times=run.times,
            client_delay_ms=0.02,
        )
        for run in server.runs
    ]
    steps = [StepRow(cell=cell, repeat=repeat, step=number, **step) for number, step in enumerate(server.steps)]  # type: ignore[arg-type]
    trial = TrialRow(
        cell=cell,
        repeat=repeat,
        started_at=f"2025-01-31T12:{repeat:02}:{cell:02}+00:00",
        seconds=server.now + 1.2,
        load_ms=820.0,
        warm_up=[WarmStep(ms=9.1, prefill_tokens=24, decode_rows=0), WarmStep(ms=5.2, prefill_tokens=0, decode_rows=1)],
        solo=Solo(prompt_tokens=PROMPT, tokens=NEW, ttft_ms=24.0, tpot_ms=4.8, e2el_ms=24.0 + 31 * 4.8),
        client_delay_ms=0.03,
        pulse_ms=(noise.uniform(3.1, 3.3), noise.uniform(3.1, 3.4)),
        other_load=0.02,
        frequency_mhz=3400.0,
        temperature_c=61.0,
        swap_gib=0.0,
        trace_us=4.1,
    )
    return trial, requests, steps


@cache
def sweep(
    repeats: int = 5, sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32), requests: int = 24, rate: float = 12.0
) -> tuple[RunSpec, tuple[RequestRow, ...], tuple[StepRow, ...]]:
    """A sweep as a run leaves it: its spec, and its rows. `rate` in requests/s; 0: all at once."""
    arrivals = random.Random(7)
    dues = [0.0]
    while len(dues) < requests:
        dues.append(dues[-1] + (arrivals.expovariate(rate) if rate else 0.0))
    cells, trials = settings(sizes), []
    rows: list[RequestRow] = []
    steps: list[StepRow] = []
    for repeat in range(repeats):
        for number, setting in enumerate(cells):
            trial, found, ran = _trial(number, setting, repeat, dues)
            trials.append(trial)
            rows += found
            steps += ran
    draft = record(
        "sweep", done=False, name="which batch policy?", command=["knee", "sweep", "--repeats", str(repeats)]
    )
    draft.model.threads, draft.model.isa, draft.model.dtype = 2, "avx2", "int4"
    draft.options = {"model": "smollm2-135m", "requests": requests, "batch_sizes": list(sizes), "slo": None}
    draft.workload.requests, draft.workload.prompt_tokens = requests, [PROMPT] * requests
    draft.workload.arrival, draft.workload.times = (f"poisson:{rate:g}" if rate else "burst"), dues
    spec = RunSpec(
        status="done",
        draft=draft,
        cells=cells,
        repeats=repeats,
        slo={"ttft": 200.0, "e2el": 900.0},
        limits=LIMITS,
        costs=COSTS,
        left_out=["No room in a budget of 5 min for 1 settings: single (1)."],
        trials=trials,
    )
    return spec, tuple(rows), tuple(steps)


@cache
def judged(**options: object) -> tuple[Record, tuple[RequestRow, ...], tuple[StepRow, ...]]:
    """The sweep with its record."""
    spec, requests, steps = sweep(**options)  # type: ignore[arg-type]
    return judge(spec, requests, steps), requests, steps


def kvcache() -> KvCacheMetrics:
    """Three lengths, 50 tokens each: without the cache a token takes longer with every one before it."""
    noise = random.Random(3)
    cells = []
    for length in (10, 50, 200):
        for switch in ("on", "off"):
            each = [4.8 + 0.002 * n if switch == "on" else 3.0 + 1.6 * n for n in range(length, length + 50)]
            times = [value * noise.uniform(0.95, 1.1) for value in each]
            cells.append(
                KvCacheCell(
                    prompt_length=length,
                    kv_cache=switch,  # type: ignore[arg-type]
                    prefill_ms=times[0],
                    token_ms=times,
                    decode_ms_per_step=fmean(times[1:]),
                    total_ms=sum(times),
                    kv_bytes=23_040 * (length + 49) if switch == "on" else 0,
                    token_ids_sha256="0" * 64,
                )
            )
    return KvCacheMetrics(cells=cells, pays_from_tokens=11, kv_bytes_per_token=23_040, same_tokens=True)


def baseline() -> BaselineMetrics:
    """The log's first experiment with steps that differ."""
    steps = [4.5, 4.4, 4.6, 7.9, 4.5, 4.4, 4.5, 4.6, 4.5]
    return BASELINE.model_copy(update={"decode_step_ms": steps, "prefill_runs_ms": [91.0, 92.0, 95.5, 90.2, 92.4]})


def inspect() -> InspectMetrics:
    """Nine steps with the cache and without."""
    first = INSPECT.steps[0]
    on = [first.model_copy(update={"step": n, "kv_len": 13 + n, "ms": 4.0 + n % 3 / 4}) for n in range(1, 10)]
    off = [first.model_copy(update={"step": n, "kv_len": 0, "ms": 19.0 + 2.5 * n}) for n in range(1, 10)]
    without = INSPECT.kv_cache_off.model_copy(update={"steps": off})
    return INSPECT.model_copy(update={"steps": on, "kv_cache_off": without})


def run_of(kind: str) -> tuple[Record, tuple[RequestRow, ...], tuple[StepRow, ...]]:
    """A realistic record of a kind, with its rows."""
    if kind == "sweep":
        return judged()
    metrics = {"kvcache": kvcache, "baseline": baseline, "inspect": inspect}[kind]()
    return judge(RunSpec(status="done", draft=record(kind, done=False), observed=metrics), (), ()), (), ()

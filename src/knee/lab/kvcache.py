"""When the KV cache pays: prompts of growing length, each with the cache on and off, every token timed.

Without the cache a step runs the whole prefix again, so a token gets slower with length; with it a step runs one
token, at the price of memory that grows with length. All cells are warmed up first, and all must give the same
tokens on and off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from statistics import fmean

from knee.engine.engine import Engine
from knee.engine.policies import make_policy
from knee.engine.types import Request, SamplingParams
from knee.errors import KneeError, UserError
from knee.lab.experiment import Outcome, Sink, check_requests, on_off, warning
from knee.lab.judgement.doubts import fell_back
from knee.lab.kv_steps import pays_from, step_pairs
from knee.lab.messages import text
from knee.lab.progress import Progress, ignore
from knee.lab.records import KvCacheCell, KvCacheMetrics
from knee.lab.rows import hash_tokens, request_rows, step_rows
from knee.lab.trial import REAL_TIME, Clock, Trial, run_trial
from knee.lab.workload import Prompt, Workload
from knee.llm import DEFAULT_BLOCK_SIZE, LLM

DEFAULT_LENGTHS = (10, 50, 200)
_WARM_TOKENS = 3


@dataclass(frozen=True, slots=True)
class KvCacheSpec:
    """Prompts of these lengths (tokens), made from `prompt` by repeating and cutting it."""

    prompt: Prompt
    lengths: tuple[int, ...] = DEFAULT_LENGTHS
    max_new_tokens: int = 50
    ignore_eos: bool = True
    block_size: int = DEFAULT_BLOCK_SIZE
    overlap: bool = True  # where the device can

    def __post_init__(self) -> None:
        if not self.lengths:
            raise UserError("there are no prompt lengths: give at least one, like 10,50,200")
        if wrong := [length for length in self.lengths if length < 1]:
            raise UserError(f"a prompt length is {wrong[0]}: it must be at least 1")
        if len(set(self.lengths)) < len(self.lengths):
            raise UserError("a prompt length is given twice: each is measured once")
        _ = self.params  # refuses what no request may ask for

    @property
    def params(self) -> SamplingParams:
        """Greedy; all lengths get all tokens unless the end-of-sequence token may end them."""
        return SamplingParams(max_new_tokens=self.max_new_tokens, ignore_eos=self.ignore_eos)

    def workload(self, length: int) -> Workload:
        """One request with a prompt of this length."""
        ids = tuple(islice(cycle(self.prompt.ids), length))
        return Workload((Prompt(ids),), 1, self.max_new_tokens)

    @property
    def together(self) -> Workload:
        """All prompts as one workload, for the record."""
        prompts = tuple(self.workload(length).prompts[0] for length in self.lengths)
        return Workload(prompts, len(prompts), self.max_new_tokens)


@dataclass(frozen=True, slots=True)
class _Cell:
    number: int
    length: int
    kv_cache: bool


def check(llm: LLM, spec: KvCacheSpec) -> None:
    """Raise `RequestError` or `OutOfMemory` for a length that cannot run, before anything does."""
    longest = spec.workload(max(spec.lengths))
    check_requests(_engine(llm, spec, longest, kv_cache=True), longest, spec.params)


def run(llm: LLM, spec: KvCacheSpec, sink: Sink, clock: Clock = REAL_TIME, progress: Progress = ignore) -> Outcome:
    """Measure every length with the cache on and off. `progress` is told of each cell before it runs."""
    pairs = [(length, kv_cache) for length in spec.lengths for kv_cache in (True, False)]
    plan = [_Cell(number, *pair) for number, pair in enumerate(pairs)]
    cells = []
    for cell in plan:
        progress(cell.number, len(plan), f"{cell.length} {on_off(cell.kv_cache)}")
        cells.append(_measure(llm, spec, cell, sink, clock))
        if not cell.kv_cache:  # both of this length are there
            sink.keep(_outcome(llm, cells))
    return _outcome(llm, cells)


def _outcome(llm: LLM, cells: Sequence[KvCacheCell]) -> Outcome:
    hashes = {(cell.prompt_length, cell.token_ids_sha256) for cell in cells}
    metrics = KvCacheMetrics(
        cells=list(cells),
        pays_from_tokens=pays_from(step_pairs(cells)),
        kv_bytes_per_token=llm.device.kv_bytes_per_token,
        same_tokens=len(hashes) == len({cell.prompt_length for cell in cells}),
    )
    warnings = [] if metrics.same_tokens else [warning("kv_cache_tokens_differ")]
    return Outcome(metrics, [*warnings, *fell_back(llm.device.warnings)], findings(metrics))


def _engine(llm: LLM, spec: KvCacheSpec, workload: Workload, kv_cache: bool) -> Engine:
    """With a budget for the whole prompt in one step, since without a cache it is never split."""
    policy = make_policy("single", max_batched_tokens=workload.longest)
    return llm.engine(
        policy, longest=workload.longest, kv_cache=kv_cache, block_size=spec.block_size, overlap=spec.overlap
    )


def _measure(llm: LLM, spec: KvCacheSpec, cell: _Cell, sink: Sink, clock: Clock) -> KvCacheCell:
    workload = spec.workload(cell.length)
    engine = _engine(llm, spec, workload, cell.kv_cache)
    engine.clock = clock.now
    tokens = workload.max_new_tokens if llm.device.learns_shapes else min(_WARM_TOKENS, workload.max_new_tokens)
    warm_up = replace(workload, max_new_tokens=tokens)
    run_trial(engine, warm_up, spec.params, Trial(), clock.sleep)
    trial = Trial(cell=cell.number)
    try:
        run_trial(engine, workload, spec.params, trial, clock.sleep)
    finally:
        sink.add_requests(request_rows(trial))
        sink.add_steps(step_rows(trial))
    if trial.errors:
        raise KneeError(trial.errors[0])
    return _cell(llm, cell, trial.requests[0])


def _cell(llm: LLM, cell: _Cell, request: Request) -> KvCacheCell:
    assert request.prefill_start is not None
    token_ms = [(b - a) * 1e3 for a, b in pairwise([request.prefill_start, *request.token_times])]
    cached = len(request.prompt) + len(request.output) - 1 if cell.kv_cache else 0
    return KvCacheCell(
        prompt_length=cell.length,
        kv_cache=on_off(cell.kv_cache),
        prefill_ms=token_ms[0],
        token_ms=token_ms,
        decode_ms_per_step=fmean(token_ms[1:]) if len(token_ms) > 1 else None,
        total_ms=sum(token_ms),
        kv_bytes=cached * llm.device.kv_bytes_per_token,
        token_ids_sha256=hash_tokens(request.output),
    )


# --- from cells to an answer -------------------------------------------------------------------------------------


def findings(metrics: KvCacheMetrics) -> list[str]:
    """When the cache saves time and what memory it takes, in sentences that follow from the numbers."""
    longest = max(cell.prompt_length for cell in metrics.cells)
    on, off = (next(c for c in metrics.cells if (c.prompt_length, c.kv_cache) == (longest, k)) for k in ("on", "off"))
    values = {
        "length": longest,
        "on": f"{on.total_ms:.1f}",
        "off": f"{off.total_ms:.1f}",
        "ratio": f"{off.total_ms / on.total_ms:.2f}",
        "memory": f"{on.kv_bytes / 2**20:.2f}",
    }
    pays = "never" if metrics.pays_from_tokens is None else "from"
    return [
        text("en", f"finding.kv_pays_{pays}", tokens=metrics.pays_from_tokens),
        text("en", "finding.kv_total", **values),
        text("en", "finding.kv_memory", each=f"{metrics.kv_bytes_per_token / 1024:.1f}", **values),
    ]

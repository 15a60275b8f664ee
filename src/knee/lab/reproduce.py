"""A run again, from its record alone: files that its command named may be gone, what was in them is in the record.

`prepare` turns a record into work that `experiment.perform` can measure, by the same functions that the commands use;
`reproduction` says what came of it. Whether the work is still the same (the model's files, the tokens of the prompts,
the arrivals) is checked before anything runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from knee.engine.types import SamplingParams
from knee.errors import UserError
from knee.lab import baseline, inspect, kvcache, sweep
from knee.lab.arrivals import Arrival
from knee.lab.compare import TOKENS, RunComparison, compare
from knee.lab.experiment import Outcome, Setting, Sink, draft
from knee.lab.plan import DEFAULT_BLOCK_SIZE, DEFAULT_TOKEN_BUDGET, CellSpec, SweepSpec
from knee.lab.progress import Progress, Tell, ignore, nobody
from knee.lab.records import BatchPolicy, Record
from knee.lab.schema import Model
from knee.lab.spec import RunSpec
from knee.lab.sweep_records import SweepMetrics
from knee.lab.worker import FreshProcess, ModelChoice, Runner
from knee.lab.workload import Prompt, Source, Workload, encode_sources
from knee.llm import LLM

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "ignore_eos")
_ALONE = BatchPolicy(name="single", max_batch_size=1, max_wait_ms=None)


@dataclass(frozen=True)
class Again:
    """How to run a record again: its new setting, and who watches. `runner` runs a sweep's trials."""

    setting: Setting
    repeats: int | None = None  # of a sweep; None: as many as it had
    anyway: bool = False
    tell: Tell = nobody
    progress: Progress = ignore
    runner: Callable[[ModelChoice], Runner] = FreshProcess


@dataclass(frozen=True)
class Prepared:
    """An experiment that can be performed."""

    record: Record
    setting: Setting
    measure: Callable[[Sink], Outcome | None]
    begin: RunSpec


def prepare(record: Record, again: Again) -> Prepared:
    """Everything but the measurement: loads the model and checks that the work is the record's.

    Raises `UserError` for a record that does not say enough, for a model that is not there, and, unless `again.anyway`,
    for a model or a workload that has become another one.
    """
    if record.metrics is None or (isinstance(record.metrics, SweepMetrics) and not record.metrics.cells):
        raise UserError(f"{record.name} measured nothing that could be reproduced: run its command again")
    if again.repeats is not None and record.kind != "sweep":
        raise UserError(f"--repeats is for sweeps and this is a {record.kind}: leave it out")
    llm = choice_of(record).load()
    if llm.checkpoint.sha256() != record.model.sha256 and not again.anyway:
        raise UserError(
            f"{record.options['model']} is not the model of the run any more (SHA-256 {llm.checkpoint.sha256()[:12]}… "
            f"instead of {record.model.sha256[:12]}…): put that one there, or add --anyway"
        )
    work = _WORK[record.kind](record, llm, again)
    if not again.anyway:
        _check_same_work(record, work.workload)
    setting = replace(again.setting, options=_options(record, again.setting.options, work.options))
    made = draft(record.kind, llm, work.workload, work.policy, record.kv_cache == "on", setting)
    return Prepared(made, setting, work.measure, RunSpec(draft=made, **work.begin))


def choice_of(record: Record) -> ModelChoice:
    """The model, in the words of the command that made the record."""
    options: Mapping[str, Any] = record.options
    if "model" not in options:
        raise UserError(f"{record.name} does not say its options, an early knee wrote it: run its command again")
    # A path was relative to the folder of then; where the record says which it was, nothing else is looked for.
    source = record.model.source
    name = source if Path(source).is_absolute() else options["model"]
    return ModelChoice(
        name,
        record.model.device,  # which may have been chosen by "auto", on a machine with other devices
        options.get("dtype", "auto"),
        options.get("threads"),
        options.get("batch_invariant") != "off",
    )


def _options(record: Record, new: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """The record's options with what is otherwise this time; a limit on time, or a run taken up, is not repeated."""
    gone: dict[str, Any] = {name: None for name in ("budget", "resume") if name in record.options}
    return {**record.options, **gone, **new, **changed}


def _check_same_work(record: Record, now: Workload) -> None:
    times = None if now.times is None else list(now.times)
    if now.sha256 != record.workload.sha256 or (record.workload.times not in (None, times)):
        raise UserError(
            "the workload would not be the run's: its prompts become other tokens, or its arrivals other times, than "
            "they did then; add --anyway to run it all the same"
        )


# --- from a record to work ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a record asks to run. `begin` is what a `RunSpec` knows from the start, `options` what they really were."""

    workload: Workload
    policy: BatchPolicy
    measure: Callable[[Sink], Outcome | None]
    begin: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def workload_of(record: Record, prompts: Sequence[Prompt]) -> Workload:
    """The record's workload with its prompts in tokens; a trace's times come from the record, not from its file."""
    work = record.workload
    arrival = Arrival.parse(work.arrival)
    if arrival.kind == "trace":
        arrival = replace(arrival, replayed=tuple(work.times or ()))
    new_tokens = None if work.new_tokens is None else tuple(work.new_tokens)
    return Workload(tuple(prompts), work.requests, work.max_new_tokens, arrival, work.seed, new_tokens)


def sources_of(record: Record) -> list[Source]:
    """The prompts as they were given, or as token ids where not all of them were texts."""
    return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in record.workload.prompts]


def sweep_spec(record: Record, workload: Workload, repeats: int | None = None) -> SweepSpec:
    """The cells and the repeats that the run had, which a budget or an interrupt may have made fewer than asked for."""
    options: Mapping[str, Any] = record.options
    metrics = record.metrics
    assert isinstance(metrics, SweepMetrics)
    had = max(len(cell.repeats) for cell in metrics.cells)
    return SweepSpec(
        workload=workload,
        cells=tuple(CellSpec(cell.policy, cell.max_batch_size, cell.max_wait_ms) for cell in metrics.cells),
        repeats=had if repeats is None else repeats,
        seed=options.get("seed", workload.seed),
        params=_params(record, "ignore_eos"),
        kv_cache=record.kv_cache == "on",
        block_size=_block_size(record),
        overlap=_overlap(record),
        token_budget=options.get("max_batched_tokens", DEFAULT_TOKEN_BUDGET),
    )


def _params(record: Record, *names: str) -> SamplingParams:
    asked: dict[str, Any] = {name: record.options[name] for name in names if name in record.options}
    return SamplingParams(max_new_tokens=record.workload.max_new_tokens, **asked)


def _block_size(record: Record) -> int:
    asked: Any = record.options.get("block_size", DEFAULT_BLOCK_SIZE)
    return int(asked)


def _overlap(record: Record) -> bool:
    return record.options.get("overlap") != "off"


def _sweep(record: Record, llm: LLM, again: Again) -> Work:
    workload = workload_of(record, encode_sources(sources_of(record), llm.encode))
    spec = sweep_spec(record, workload, again.repeats)
    sweep.check(llm, spec)
    slo, choice = record.options.get("slo"), choice_of(record)
    roofs = sweep.roofs_of(llm)

    def measure(sink: Sink) -> None:  # keeps no hold of the model: its memory belongs to the trials
        sweep.run(spec, sink, again.runner(choice), tell=again.tell, measure_roofs=roofs)

    return Work(
        workload,
        sweep.policies_of(spec.cells),
        measure,
        begin=sweep.beginning(llm, spec, None if slo is None else str(slo)),
        options={"repeats": spec.repeats},
    )


def _baseline(record: Record, llm: LLM, _again: Again) -> Work:
    options: Mapping[str, Any] = record.options
    sources, started = sources_of(record), time.perf_counter()
    prompts = encode_sources(sources, llm.encode)
    tokenize_ms = (time.perf_counter() - started) * 1e3 if isinstance(sources[0], str) else None
    spec = baseline.BaselineSpec(
        workload=workload_of(record, prompts),
        params=_params(record, *_SAMPLING),
        tokenize_ms=tokenize_ms,
        warm_prefills=options.get("warm_prefills", baseline.MIN_WARM_PREFILLS),
        kv_cache=record.kv_cache == "on",
        block_size=_block_size(record),
        overlap=_overlap(record),
    )
    baseline.check(llm, spec)
    return Work(spec.workload, _ALONE, lambda sink: baseline.run(llm, spec, sink))


def _inspect(record: Record, llm: LLM, _again: Again) -> Work:
    spec = inspect.InspectSpec(
        workload_of(record, encode_sources(sources_of(record), llm.encode)),
        _params(record, "ignore_eos").ignore_eos,
        _block_size(record),
    )
    inspect.check(llm, spec)
    return Work(spec.workload, _ALONE, lambda sink: inspect.run(llm, spec, sink))


def _kvcache(record: Record, llm: LLM, again: Again) -> Work:
    """The record's prompts are one prompt, repeated and cut to each length: the longest holds all of it."""
    ids = max((tuple(map(int, prompt)) for prompt in record.workload.prompts), key=len)
    spec = kvcache.KvCacheSpec(
        prompt=Prompt(ids),
        lengths=tuple(record.workload.prompt_tokens),
        max_new_tokens=record.workload.max_new_tokens,
        ignore_eos=_params(record, "ignore_eos").ignore_eos,
        block_size=_block_size(record),
        overlap=_overlap(record),
    )
    kvcache.check(llm, spec)
    return Work(spec.together, _ALONE, lambda sink: kvcache.run(llm, spec, sink, progress=again.progress))


_WORK: Mapping[str, Callable[[Record, LLM, Again], Work]] = {
    "baseline": _baseline,
    "inspect": _inspect,
    "kvcache": _kvcache,
    "sweep": _sweep,
}


# --- what came of it ---------------------------------------------------------------------------------------------


class Reproduction(Model):
    """The run and its repetition. `within` of the `intervals` that the old run has hold the new one's median.

    `same_model` is whether the model's files were the same, without which nobody expects the same tokens.
    """

    tokens: Literal["same", "differ", "unknown"]
    same_model: bool
    within: NonNegativeInt
    intervals: NonNegativeInt
    comparison: RunComparison

    @property
    def failed(self) -> bool:
        """Whether tokens differ that must not: of the same model, asked the same."""
        same_work = all(one.key == TOKENS for one in self.comparison.unequal)
        return self.tokens == "differ" and self.same_model and same_work


def reproduction(before: Record, after: Record) -> Reproduction:
    """What became of the tokens, the metrics and the environment."""
    found = compare(before, after, anyway=True)
    known = [change.within for change in found.changes if change.within is not None]
    torn = _agrees(before) and not _agrees(after)
    return Reproduction(
        tokens="differ" if torn else found.tokens,
        same_model=before.model.sha256 == after.model.sha256,
        within=sum(known),
        intervals=len(known),
        comparison=found,
    )


def _agrees(record: Record) -> bool:
    """Whether a sweep gave the same tokens in all cells and repeats."""
    return not isinstance(record.metrics, SweepMetrics) or record.metrics.same_tokens

"""`knee sweep`: batch policies, sizes and wait windows compared on one workload."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from knee.cli.options import (
    NAMES,
    NUMBERS,
    WHOLE_NUMBERS,
    block_size_option,
    ignore_eos_option,
    kv_cache_option,
    max_new_tokens_option,
    model_options,
    overlap_option,
    prompts_options,
    run_options,
    settle,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from knee.lab.arrivals import TraceLine
    from knee.lab.budget import Budget, Pace
    from knee.lab.experiment import Setting
    from knee.lab.plan import SweepSpec
    from knee.lab.runs import Run
    from knee.lab.worker import ModelChoice, Runner
    from knee.lab.workload import Source
    from knee.llm import LLM


@click.command()
@click.option(
    "--policies", type=NAMES, default=("dynamic",), help="single, static, dynamic, continuous.  [default: dynamic]"
)
@click.option("--batch-sizes", type=WHOLE_NUMBERS, default=(1, 4, 8), help="Batch sizes.  [default: 1,4,8]")
@click.option("--wait-ms", type=NUMBERS, help="Wait windows of policy dynamic, in ms.  [default: 0]")
@click.option("--requests", type=int, help="Number of requests.  [default: 16, or the number of prompts if more]")
@click.option(
    "--arrival",
    default="burst",
    show_default=True,
    help="burst, rate:R, poisson:R, gamma:R:CV (R requests/s), closed:N (users) or trace:FILE.",
)
@click.option("--repeats", type=int, default=5, show_default=True, help="Trials of each cell, each in a fresh process.")
@click.option("--budget", metavar="TIME", help="End within 90s, 3m or 1h: plans cells and repeats into it.")
@click.option(
    "--slo", help="Limits in ms, ttft:200,tpot:50,e2el:2000; recommends by the requests/s within all of them."
)
@click.option("--resume", metavar="RUN", help="Take up a run that was cut off: only what is missing is measured.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random arrivals and the order of trials.")
@max_new_tokens_option(32)
@ignore_eos_option(True)
@click.option(
    "--max-batched-tokens",
    type=int,
    help="Token budget of a step.  [default: what suits the device: 512 on the CPU]",
)
@prompts_options
@model_options
@kv_cache_option
@block_size_option
@overlap_option
@run_options
def command(**options: Any) -> None:
    """Compare batch policies, batch sizes and wait windows.

    Requests go on after the end of their text unless --no-ignore-eos is given, so that all get the same number of
    tokens. Policy single has one cell, of batch size 1; only policy dynamic has wait windows. A trace is JSONL, each
    line {"arrival": seconds, "prompt_length": tokens, "output_length": tokens}, or "prompt" or "prompt_ids" instead
    of a length.
    """
    run_sweep(options)


def run_sweep(options: dict[str, Any]) -> None:
    """Check, load, measure, keep, show."""
    from knee.cli.display import sweep_progress
    from knee.cli.experiment import keep_and_show, load, setting_of
    from knee.lab.budget import parse_budget
    from knee.lab.experiment import draft
    from knee.lab.spec import RunSpec
    from knee.lab.sweep import beginning, check, parse_limits, policies_of, roofs_of, run

    began = time.monotonic()
    settle(options)
    asked = read_work(options)
    seconds = parse_budget(options["budget"]) if options["budget"] is not None else None
    parse_limits(options["slo"])  # refused now, if it has to be
    setting = setting_of("sweep", options)
    before = _to_resume(setting)
    llm = load(options)
    spec = with_prompts(asked, llm)
    if before is not None:
        spec = _as_begun(spec, before)
    check(llm, spec)
    planned = _plan(spec, seconds, llm, before, began)
    record = draft("sweep", llm, planned.spec.workload, policies_of(planned.spec.cells), spec.kv_cache, setting)
    begin, roofs = RunSpec(draft=record, **beginning(llm, planned.spec, options["slo"])), roofs_of(llm)
    del llm  # its memory belongs to the trials, each of which loads its own
    with sweep_progress(options["lang"]) as tell:
        keep_and_show(
            record,
            setting,
            options,
            lambda sink: run(
                planned.spec,
                sink,
                make_runner(choice_of(options)),
                budget=planned.budget,
                left_out=planned.left_out,
                tell=tell,
                measure_roofs=roofs,
            ),
            begin,
        )


def choice_of(options: dict[str, Any]) -> ModelChoice:
    """The model that the options name."""
    from knee.lab.worker import ModelChoice

    invariant = options["batch_invariant"] != "off"
    return ModelChoice(options["model"], options["device"], options["dtype"], options["threads"], invariant)


def make_runner(choice: ModelChoice) -> Runner:
    """Who runs the trials."""
    from knee.lab.worker import FreshProcess

    return FreshProcess(choice)


# --- what is asked -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A sweep as the options say it: checked as far as that goes without a model."""

    spec: SweepSpec
    sources: Sequence[Source]
    trace: Sequence[TraceLine]


def read_work(options: dict[str, Any]) -> Asked:
    """All that the options alone decide; the prompts are encoded when there is a model. Raises `UserError`."""
    from knee.engine.types import SamplingParams
    from knee.errors import UserError
    from knee.lab.arrivals import Arrival, read_trace
    from knee.lab.plan import SweepSpec, make_cells
    from knee.lab.workload import PLACEHOLDER, Workload, gather_sources, replayed

    arrival = Arrival.parse(options["arrival"])
    trace = read_trace(Path(arrival.file)) if arrival.file is not None else ()
    sources = gather_sources(options["prompts"], options["prompt_ids"], options["prompts_file"])
    if trace and sources:
        raise UserError("a trace has its own prompts: leave --prompt, --prompt-ids and --prompts-file out")
    new, seed = options["max_new_tokens"], options["seed"]
    params = SamplingParams(max_new_tokens=new, ignore_eos=options["ignore_eos"])
    lengths = tuple(line.output_length or new for line in trace)
    requests = _requests(options["requests"], len(trace) or max(16, len(sources)), len(trace))
    workload = Workload(
        (PLACEHOLDER,),
        requests,
        max(lengths[:requests], default=new),
        replayed(arrival, trace[:requests]) if trace else arrival,
        seed,
        lengths[:requests] if len(set(lengths[:requests])) > 1 else None,
    )
    spec = SweepSpec(
        workload=workload,
        cells=make_cells(options["policies"], options["batch_sizes"], options["wait_ms"]),
        repeats=options["repeats"],
        seed=seed,
        params=params,
        kv_cache=options["kv_cache"] == "on",
        block_size=options["block_size"],
        token_budget=options["max_batched_tokens"],
        overlap=options["overlap"] != "off",
    )
    return Asked(spec, sources, trace[:requests])


def _requests(asked: int | None, default: int, most: int) -> int:
    from knee.errors import UserError

    if asked is not None and most and asked > most:
        raise UserError(f"the trace has {most} requests and {asked} are asked for: leave --requests out")
    return default if asked is None else asked


def with_prompts(asked: Asked, llm: LLM) -> SweepSpec:
    """The sweep with its prompts in token ids. Raises `RequestError` for an empty one, or one that is too long."""
    from knee.errors import RequestError
    from knee.lab.workload import BUILT_IN_PROMPTS, encode_sources, trace_sources

    sources = asked.sources
    if asked.trace:
        lacking = any(line.prompt is None for line in asked.trace)
        longest = max(line.prompt_length or 0 for line in asked.trace)
        if longest > llm.program.positions:  # before it is made
            raise RequestError(f"the trace has a prompt of {longest} tokens: the context is {llm.program.positions}")
        sources = trace_sources(asked.trace, _filler(llm) if lacking else ())
    prompts = encode_sources(sources or BUILT_IN_PROMPTS, llm.encode)
    return replace(asked.spec, workload=replace(asked.spec.workload, prompts=prompts))


def _filler(llm: LLM) -> Sequence[int]:
    """Tokens for prompts of which only the length is known; any will do where there is no tokenizer."""
    from knee.lab.workload import BUILT_IN_PROMPTS

    if llm.tokenizer is None:
        return range(min(llm.program.vocab_size, 1000))
    return llm.encode("\n".join(BUILT_IN_PROMPTS))


# --- what is planned ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """What will run, under which budget, and what there was no room for."""

    spec: SweepSpec
    budget: Budget
    left_out: Sequence[str]


def _plan(spec: SweepSpec, seconds: float | None, llm: LLM, before: Run | None, began: float) -> Planned:
    from knee.lab.budget import Budget, lasting, plan_within

    if before is None and seconds is not None:
        return Planned(*plan_within(spec, seconds, _pace(llm, spec), started=began))
    budget = Budget(seconds, dict.fromkeys(range(len(spec.cells)), 0.0), started=began)
    if before is None or before.spec is None:
        return Planned(spec, budget, ())
    for trial in before.spec.trials:  # its cells are those of the run; the time only says when to stop
        budget.took(trial.cell, trial.seconds)
    return Planned(spec, budget, lasting(before.spec.left_out))


def _pace(llm: LLM, spec: SweepSpec) -> Pace:
    """What a request takes alone, measured once, and what it takes to start."""
    from knee.errors import KneeError
    from knee.lab.budget import Pace
    from knee.lab.measure import measure_alone
    from knee.lab.plan import CellSpec

    solo = measure_alone(llm, replace(spec, cells=(CellSpec("single", 1),)).job(0, 0))
    start = llm.device.start_seconds + (llm.load_times.model_ms + llm.load_times.tokenizer_ms) / 1e3
    if solo is None:
        raise KneeError("the device failed on the first request: try it with knee generate")
    return Pace(start, solo.ttft / solo.prompt_tokens, solo.tpot or solo.ttft, llm.device.learns_shapes)


def _to_resume(setting: Setting) -> Run | None:
    from knee.lab.experiment import run_to_resume

    return run_to_resume(setting) if setting.resume else None


def _as_begun(spec: SweepSpec, run: Run) -> SweepSpec:
    """With the cells that the run was begun with: a budget may have left some out."""
    from knee.lab.plan import CellSpec

    assert run.spec is not None
    cells = tuple(CellSpec(one.policy, one.max_batch_size, one.max_wait_ms) for one in run.spec.cells)
    return replace(spec, cells=cells or spec.cells)

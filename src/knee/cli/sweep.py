"""`knee sweep`: batch policies, sizes and wait windows compared on one workload."""

from __future__ import annotations

from dataclasses import replace
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
    prompts_options,
    run_options,
)

if TYPE_CHECKING:
    from knee.lab.sweep import SweepSpec


@click.command()
@click.option(
    "--policies", type=NAMES, default=("dynamic",), help="single, static, dynamic, continuous.  [default: dynamic]"
)
@click.option("--batch-sizes", type=WHOLE_NUMBERS, default=(1, 4, 8), help="Batch sizes.  [default: 1,4,8]")
@click.option("--wait-ms", type=NUMBERS, help="Wait windows of policy dynamic, in ms.  [default: 0]")
@click.option("--requests", type=int, help="Number of requests.  [default: 16, or the number of prompts if more]")
@click.option("--arrival", default="burst", show_default=True, help="burst, rate:R or poisson:R (requests/s).")
@click.option("--repeats", type=int, default=2, show_default=True, help="Trials of each cell.")
@click.option("--slo", help="Limits in ms, ttft:200,tpot:50,e2el:2000; counts the requests/s within all of them.")
@click.option("--resume", metavar="RUN", help="Take up a run that was cut off: only what is missing is measured.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of Poisson arrivals and the order of trials.")
@max_new_tokens_option(32)
@ignore_eos_option(True)
@click.option("--max-batched-tokens", type=int, default=512, show_default=True, help="Token budget of a step.")
@prompts_options
@model_options
@kv_cache_option
@block_size_option
@run_options
def command(**options: Any) -> None:
    """Compare batch policies, batch sizes and wait windows.

    Requests go on after the end of their text unless --no-ignore-eos is given, so that all get the same number of
    tokens. Policy single has one cell, of batch size 1; only policy dynamic has wait windows.
    """
    from knee.cli.experiment import load, run_experiment
    from knee.lab.sweep import check, run
    from knee.lab.workload import BUILT_IN_PROMPTS, encode_sources, gather_sources

    sources = gather_sources(options["prompts"], options["prompt_ids"], options["prompts_file"])
    spec = _spec(options, options["requests"] if options["requests"] is not None else max(16, len(sources)))
    llm = load(options)
    prompts = encode_sources(sources or BUILT_IN_PROMPTS, llm.encode)
    spec = replace(spec, workload=replace(spec.workload, prompts=prompts))
    check(llm, spec)
    run_experiment(
        "sweep",
        llm,
        spec.workload,
        spec.policies,
        options,
        lambda sink, progress: run(llm, spec, sink, progress=progress),
    )


def _spec(options: dict[str, Any], requests: int) -> SweepSpec:
    """All that the options alone decide, checked; the prompts come when there is a model to encode them."""
    from knee.engine.types import SamplingParams
    from knee.lab.slo import Slo
    from knee.lab.sweep import SweepSpec, make_cells
    from knee.lab.workload import PLACEHOLDER, Arrival, Workload

    new, seed = options["max_new_tokens"], options["seed"]
    return SweepSpec(
        workload=Workload((PLACEHOLDER,), requests, new, Arrival.parse(options["arrival"]), seed),
        cells=make_cells(options["policies"], options["batch_sizes"], options["wait_ms"]),
        repeats=options["repeats"],
        seed=seed,
        params=SamplingParams(max_new_tokens=new, ignore_eos=options["ignore_eos"]),
        kv_cache=options["kv_cache"] == "on",
        block_size=options["block_size"],
        token_budget=options["max_batched_tokens"],
        slo=Slo.parse(options["slo"]) if options["slo"] is not None else None,
    )

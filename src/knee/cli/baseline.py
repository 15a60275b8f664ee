"""`knee baseline`: one request, and where its time goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from knee.cli.options import (
    block_size_option,
    ignore_eos_option,
    kv_cache_option,
    max_new_tokens_option,
    model_options,
    one_prompt_options,
    overlap_option,
    run_options,
    sampling_options,
    settle,
)

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "ignore_eos", "max_new_tokens")


@click.command()
@one_prompt_options
@max_new_tokens_option(10)
@ignore_eos_option(True)
@click.option(
    "--warm-prefills", type=int, default=5, show_default=True, help="Repeats after the cold prefill, at least 5."
)
@sampling_options
@model_options
@kv_cache_option
@block_size_option
@overlap_option
@run_options
def command(**options: Any) -> None:
    """Measure one request: loading, prefill, decode loop."""
    from knee.cli.experiment import encode_one, load, one_source, run_experiment
    from knee.engine.types import SamplingParams
    from knee.lab.baseline import BaselineSpec, check, run
    from knee.lab.records import BatchPolicy
    from knee.lab.workload import PLACEHOLDER, Workload

    settle(options)
    params = SamplingParams(**{name: options[name] for name in SAMPLING})
    spec = BaselineSpec(
        workload=Workload((PLACEHOLDER,), 1, params.max_new_tokens, seed=params.seed),
        params=params,
        warm_prefills=options["warm_prefills"],
        kv_cache=options["kv_cache"] == "on",
        block_size=options["block_size"],
        overlap=options["overlap"] != "off",
    )
    source = one_source(options)
    llm = load(options)
    prompt, tokenize_ms = encode_one(llm, source)
    workload = replace(spec.workload, prompts=(prompt,))
    spec = replace(spec, workload=workload, tokenize_ms=tokenize_ms)
    check(llm, spec)
    policy = BatchPolicy(name="single", max_batch_size=1, max_wait_ms=None)
    run_experiment("baseline", llm, workload, policy, options, lambda sink, _: run(llm, spec, sink))

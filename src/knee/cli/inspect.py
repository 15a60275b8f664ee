"""`knee inspect`: prefill and decode taken apart by hand, with the KV cache and without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from knee.cli.options import (
    block_size_option,
    ignore_eos_option,
    max_new_tokens_option,
    model_options,
    one_prompt_options,
    run_options,
    settle,
)


@click.command()
@one_prompt_options
@max_new_tokens_option(10)
@ignore_eos_option(True)
@model_options
@block_size_option
@run_options
def command(**options: Any) -> None:
    """Take prefill and decode apart, token by token."""
    from knee.cli.experiment import encode_one, load, one_source, run_experiment
    from knee.lab.inspect import InspectSpec, check, run
    from knee.lab.records import BatchPolicy
    from knee.lab.workload import PLACEHOLDER, Workload

    settle(options)
    spec = InspectSpec(
        Workload((PLACEHOLDER,), 1, options["max_new_tokens"]), options["ignore_eos"], options["block_size"]
    )
    source = one_source(options)
    llm = load(options)
    spec = replace(spec, workload=replace(spec.workload, prompts=(encode_one(llm, source)[0],)))
    check(llm, spec)
    policy = BatchPolicy(name="single", max_batch_size=1, max_wait_ms=None)
    run_experiment("inspect", llm, spec.workload, policy, options, lambda sink, _: run(llm, spec, sink))

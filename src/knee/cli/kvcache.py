"""`knee kvcache`: prompts of growing length with the KV cache on and off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from knee.cli.options import (
    WHOLE_NUMBERS,
    block_size_option,
    ignore_eos_option,
    max_new_tokens_option,
    model_options,
    one_prompt_options,
    overlap_option,
    run_options,
    settle,
)


@click.command()
@click.option(
    "--prompt-lengths",
    type=WHOLE_NUMBERS,
    default=(10, 50, 200),
    help="Prompt lengths in tokens.  [default: 10,50,200]",
)
@max_new_tokens_option(50)
@ignore_eos_option(True)
@one_prompt_options
@model_options
@block_size_option
@overlap_option
@run_options
def command(**options: Any) -> None:
    """Measure when the KV cache pays, and what it costs.

    Each prompt length runs with the cache on and off. The prompt is repeated and cut to the length.
    """
    from knee.cli.experiment import encode_one, load, one_source, run_experiment
    from knee.lab.kvcache import KvCacheSpec, check, run
    from knee.lab.records import BatchPolicy
    from knee.lab.workload import PLACEHOLDER

    settle(options)
    spec = KvCacheSpec(
        prompt=PLACEHOLDER,
        lengths=options["prompt_lengths"],
        max_new_tokens=options["max_new_tokens"],
        ignore_eos=options["ignore_eos"],
        block_size=options["block_size"],
        overlap=options["overlap"] != "off",
    )
    source = one_source(options)
    llm = load(options)
    spec = replace(spec, prompt=encode_one(llm, source)[0])
    if isinstance(source, str) and not options["prompts_file"]:
        options["prompts"] = (source,)  # the built-in one too: the record's prompts are the ids that it was cut to
    check(llm, spec)
    policy = BatchPolicy(name="single", max_batch_size=1, max_wait_ms=None)
    run_experiment(
        "kvcache", llm, spec.together, policy, options, lambda sink, progress: run(llm, spec, sink, progress=progress)
    )

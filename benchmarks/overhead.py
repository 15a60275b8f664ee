"""What recording costs: the same steps with the engine's reports and without, in turns.

    python -m benchmarks.overhead

A short burst of requests runs in a static batch, once with `Engine.trace` on and once off, many times over, in an order
that changes; each pair gives one difference of the mean decode step. The median of these differences has an interval
like everything else. Beside it stands what a trial measures of itself (`knee.lab.measure.trace_seconds`): the time
that one such report takes with cold caches and no model around it, which is what a run's report quotes.
"""

from __future__ import annotations

import argparse
import gc
import time
from statistics import median

from rich.console import Console
from rich.table import Table

from knee.engine.policies import make_policy
from knee.engine.types import SamplingParams, StepStats
from knee.lab.environment import read_hardware
from knee.lab.measure import trace_seconds
from knee.lab.statistics import median_interval
from knee.lab.workload import BUILT_IN_PROMPTS
from knee.llm import LLM


def decode_seconds(llm: LLM, batch: int, tokens: int, trace: bool) -> float:
    """The mean decode step of one static batch, in seconds; reports are kept as a trial keeps them."""
    engine = llm.engine(make_policy("static", max_batch_size=batch), longest=128)
    engine.trace = trace
    for number in range(batch):
        prompt = llm.encode(BUILT_IN_PROMPTS[number % len(BUILT_IN_PROMPTS)])[:16]
        engine.submit(prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    kept: list[StepStats] = []
    result = engine.step()  # the prefill
    while any(not request.output for request in engine.running):
        result = engine.step()
    steps, started = 0, time.perf_counter()
    while engine.has_work:
        result = engine.step()
        steps += 1
        if trace and result.stats is not None:
            kept.append(result.stats)
    return (time.perf_counter() - started) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-sizes", default="1,8,16")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    llm = LLM.load(options.model)
    table = Table(
        title=f"Recording, {options.pairs} pairs · {read_hardware().cpu}, {options.model} @ {llm.device.dtype}"
    )
    for header in ("batch", "step ms", "reports on - off, us a step", "of a step", "as a trial sees it, us"):
        table.add_column(header, justify="right")
    gc.collect()
    gc.freeze()
    for batch in map(int, options.batch_sizes.split(",")):
        decode_seconds(llm, batch, options.tokens, True)
        differences, steps = [], []
        for pair in range(options.pairs):
            order = (True, False) if pair % 2 else (False, True)
            took = {trace: decode_seconds(llm, batch, options.tokens, trace) for trace in order}
            differences.append((took[True] - took[False]) * 1e6)
            steps.append(took[False] * 1e3)
        found, step = median_interval(differences), median(steps)
        table.add_row(
            str(batch),
            f"{step:.2f}",
            f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]",
            f"{found.value / step / 10:.2f} %",
            f"{median(trace_seconds() for _ in range(5)) * 1e6:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()

"""What recording costs: steps with the engine's reports and without, in turns.

    python -m benchmarks.overhead

A static batch decodes, and every other step reports nothing (`Engine.trace`); which of the two goes first changes from
batch to batch. A batch gives one difference, between the median step with a report and the one without, so that what
slows the machine for a while meets both. The median of these differences has an interval like everything else. Beside
it stands what a trial measures of itself (`knee.lab.measure.trace_seconds`): the time that one such report takes with
cold caches and no model around it, which is what a run's report quotes.
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


def difference(llm: LLM, batch: int, tokens: int, first: bool) -> tuple[float, float]:
    """Seconds of the median decode step without a report, and how much longer one with a report took."""
    engine = llm.engine(make_policy("static", max_batch_size=batch), longest=256)
    for number in range(batch):
        prompt = llm.encode(BUILT_IN_PROMPTS[number % len(BUILT_IN_PROMPTS)])[:16]
        engine.submit(prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True))
    engine.step()  # the prefill
    while any(not request.output for request in engine.running):
        engine.step()
    kept: list[StepStats] = []
    took: dict[bool, list[float]] = {True: [], False: []}
    trace = first
    while engine.has_work:
        engine.trace = trace
        started = time.perf_counter()
        result = engine.step()
        if trace and result.stats is not None:
            kept.append(result.stats)
        took[trace].append(time.perf_counter() - started)
        trace = not trace
    plain = median(took[False])
    return plain, median(took[True]) - plain


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-sizes", default="1,8,16")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    llm = LLM.load(options.model)
    table = Table(
        title=f"Recording, {options.batches} batches · {read_hardware().cpu}, {options.model} @ {llm.device.dtype}"
    )
    for header in ("batch", "step ms", "reports on - off, us a step", "of a step", "as a trial sees it, us"):
        table.add_column(header, justify="right")
    gc.collect()
    gc.freeze()
    for batch in map(int, options.batch_sizes.split(",")):
        difference(llm, batch, options.tokens, True)
        pairs = [difference(llm, batch, options.tokens, bool(number % 2)) for number in range(options.batches)]
        differences, steps = [more * 1e6 for _, more in pairs], [plain * 1e3 for plain, _ in pairs]
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

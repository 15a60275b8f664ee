"""The engine on this machine, and how near it comes to the machine's own limit.

    python -m benchmarks.cpu
    python -m benchmarks.cpu --isa avx2,portable --json speeds.json

Two models, in every weight type of the device: SmolLM2, and distilgpt2's shape with random weights. Decode is the
whole engine (policy, sampling, text) in a static batch: prompts of 16 tokens, and the steps after the last prefill are
timed from the end of one to the end of the next. Prefill is the step that runs a prompt of 512 tokens and chooses the
first new one.

"limit" is the roofline: the bytes of weights and KV cache of the step over the read bandwidth, or its FLOPs over the
arithmetic rate of the weight type, whichever takes longer. Both speeds are measured as `knee doctor` does, before and
after. Rounds go over all weight types in turn, so that a drift of the machine meets all of them; tables have medians of
rounds. On a shared machine speeds vary: more than 100 % of the limit says that it was measured in a worse moment.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.random_models import DISTILGPT2, write_random
from knee.devices import choose_device
from knee.devices.cpu.dtypes import Dtype
from knee.engine.policies import make_policy
from knee.engine.types import SamplingParams, StepStats
from knee.lab.environment import read_hardware, read_software
from knee.lab.speed import Floor, Rate, Speed, measure_speed
from knee.llm import LLM
from knee.machine import default_threads
from knee.program import StepShape, Widths

TEXT = Path(__file__).parent / "text.txt"
DECODE_PROMPT = 16
PREFILL_PROMPT = 512
RANDOM = "distilgpt2 (random)"


# --- models ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model in one weight type, and tokens to feed it with."""

    model: str
    dtype: Dtype
    llm: LLM
    tokens: Sequence[int]

    def widths(self) -> Widths:
        """Bytes of a weight and of a cached element as this device keeps them, scales and padding included."""
        device, program = self.llm.device, self.llm.program
        return Widths(
            weight=device.weight_bytes / program.parameters,
            kv=device.kv_bytes_per_token / program.kv_elements_per_token,
        )

    def prompts(self, count: int, length: int) -> list[Sequence[int]]:
        """Pieces of the text that differ from each other."""
        stride = (len(self.tokens) - length) // count
        return [self.tokens[i * stride : i * stride + length] for i in range(count)]


def load(options: argparse.Namespace, folder: Path) -> list[Subject]:
    """Every model in every weight type."""
    device, threads = options.device, options.threads
    dtypes = options.dtypes.split(",") if options.dtypes else choose_device(device).dtypes
    subjects = []
    for dtype in cast(Sequence[Dtype], dtypes):
        llm = LLM.load(options.model, device, dtype, threads)
        subjects.append(Subject(options.model, dtype, llm, llm.encode(TEXT.read_text("utf-8"))))
    if not options.random_batch_sizes:
        return subjects
    write_random(DISTILGPT2, folder)
    ids = np.random.default_rng(1).integers(0, DISTILGPT2["vocab_size"], 2048).tolist()
    return subjects + [
        Subject(RANDOM, dtype, LLM.load(str(folder), device, dtype, threads), ids)
        for dtype in cast(Sequence[Dtype], dtypes)
    ]


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: mean milliseconds of a step, and the share of them that was not the device's."""

    ms: float
    host: float


def run_steps(llm: LLM, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[tuple[float, StepStats]]:
    """One static batch to its end: seconds and report of each step, seconds counted between ends of steps."""
    policy = make_policy("static", max_batch_size=len(prompts))
    engine = llm.engine(policy, longest=max(map(len, prompts)) + new_tokens)
    for prompt in prompts:
        engine.submit(prompt, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
    steps, before = [], time.perf_counter()
    for result in engine.run():
        now = time.perf_counter()
        assert result.stats
        steps.append((now - before, result.stats))
        before = now
    return steps


def sample(steps: Sequence[tuple[float, StepStats]]) -> Sample:
    """The mean of some steps."""
    host = sum(stats.host_time for _, stats in steps) / sum(stats.duration for _, stats in steps)
    return Sample(1e3 * sum(seconds for seconds, _ in steps) / len(steps), host)


def steady(steps: Sequence[tuple[float, StepStats]]) -> Sequence[tuple[float, StepStats]]:
    """The steps after the last one in which a prompt ran."""
    prefilled = max(i for i, (_, stats) in enumerate(steps) if stats.prefill_tokens)
    return steps[prefilled + 1 :]


@dataclass
class Case:
    """A line of the tables: what runs, its samples, and how long its step takes at least."""

    subject: Subject
    work: str  # "decode" or "prefill"
    batch: int
    rows: int  # tokens that a step runs
    run: Callable[[], Sample]
    shape: StepShape
    samples: list[Sample] = field(default_factory=list)

    def floor(self, speed: Speed) -> Floor:
        """Of the step in the middle of the run."""
        return speed.floor(self.subject.llm.program.cost(self.shape, self.subject.widths()), self.subject.dtype)


def decode_case(subject: Subject, batch: int, new_tokens: int) -> Case:
    """`batch` requests, from the first token to the last."""
    prompts = subject.prompts(batch, DECODE_PROMPT)

    def run() -> Sample:
        return sample(steady(run_steps(subject.llm, prompts, new_tokens)))

    middle = DECODE_PROMPT + new_tokens // 2
    return Case(subject, "decode", batch, batch, run, StepShape.decode(batch, middle))


def prefill_case(subject: Subject) -> Case:
    """One prompt, in one step."""
    [prompt] = subject.prompts(1, PREFILL_PROMPT)

    def run() -> Sample:
        steps = run_steps(subject.llm, [prompt], 1)
        assert len(steps) == 1
        return sample(steps)

    return Case(subject, "prefill", 1, PREFILL_PROMPT, run, StepShape.prefill(PREFILL_PROMPT))


def make_cases(subjects: Sequence[Subject], options: argparse.Namespace) -> list[Case]:
    """Lines in the order in which they run: weight types in turn for each kind of work, and not one after the other."""
    cases = []
    for model, sizes in ((options.model, options.batch_sizes), (RANDOM, options.random_batch_sizes)):
        chosen = [subject for subject in subjects if subject.model == model]
        for size in integers(sizes):
            cases += [decode_case(subject, size, options.new_tokens) for subject in chosen]
        cases += [prefill_case(subject) for subject in chosen]
    return cases


def measure(cases: Sequence[Case], rounds: int) -> None:
    """Every case once to warm up, then in turns."""
    for turn in range(-1, rounds):
        for case in cases if turn % 2 else reversed(cases):
            taken = case.run()
            if turn >= 0:
                case.samples.append(taken)


def fastest(speeds: Sequence[Speed]) -> Speed:
    """Of several measurements of one machine, the best of each speed."""

    def best(rates: Sequence[Rate]) -> Rate:
        return max(rates, key=lambda rate: rate.best)

    first = speeds[0]
    return Speed(
        best([one.read_gb_s for one in speeds]),
        best([one.copy_gb_s for one in speeds]),
        best([one.float32_gflop_s for one in speeds]),
        best([one.bfloat16_gflop_s for one in speeds]),
        first.int8_gflop_s and best([one.int8_gflop_s for one in speeds if one.int8_gflop_s]),
        first.int4_gflop_s and best([one.int4_gflop_s for one in speeds if one.int4_gflop_s]),
        first.kernels,
    )


# --- results -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tables, with every sample that its medians are made of."""

    model: str
    dtype: str
    work: str
    batch: int
    rows: int
    samples: tuple[Sample, ...]
    floor: Floor

    @property
    def ms(self) -> float:
        """Median of the rounds."""
        return statistics.median(one.ms for one in self.samples)

    @property
    def spread(self) -> float:
        """From the lowest to the highest, over the median."""
        times = [one.ms for one in self.samples]
        return (max(times) - min(times)) / self.ms

    @property
    def tokens_per_s(self) -> float:
        """Rows of a step over its time: new tokens for decode, prompt tokens for prefill."""
        return 1e3 * self.rows / self.ms

    @property
    def host(self) -> float:
        """Share of the step that is not the device's."""
        return statistics.median(one.host for one in self.samples)

    @property
    def of_limit(self) -> float:
        """1 is as fast as this machine can be."""
        return 1e3 * self.floor.seconds / self.ms

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        figures = {name: getattr(self, name) for name in ("ms", "spread", "tokens_per_s", "host", "of_limit")}
        floor = {"floor_ms": 1e3 * self.floor.seconds, "bound": self.floor.bound}
        return asdict(self) | figures | floor


def make_row(case: Case, speed: Speed) -> Row:
    """What a case gave, against the machine."""
    subject = case.subject
    floor = case.floor(speed)
    return Row(subject.model, subject.dtype, case.work, case.batch, case.rows, tuple(case.samples), floor)


def make_table(model: str, rows: Sequence[Row]) -> Table:
    """One model's lines."""
    columns = ("work", "weights", "tokens/s", "ms/step", "spread", "host", "limit ms", "of the limit", "limit is")
    table = Table(*columns, title=f"{model}, rounds: {len(rows[0].samples)}")
    before = ""
    for row in rows:
        work = f"decode {row.batch}" if row.work == "decode" else f"prefill {row.rows}"
        table.add_row(
            "" if work == before else work,
            row.dtype,
            f"{row.tokens_per_s:,.1f}",
            f"{row.ms:,.2f}",
            f"{row.spread:.0%}",
            f"{row.host:.1%}",
            f"{1e3 * row.floor.seconds:,.2f}",
            f"{row.of_limit:.0%}",
            row.floor.bound,
        )
        before = work
    return table


def describe(speed: Speed, subjects: Sequence[Subject]) -> Iterator[str]:
    """What the limits are made of, a line each."""
    isa = "none" if speed.kernels is None else speed.kernels.in_use
    yield f"native kernels: {isa} · read {speed.read_gb_s.best:.1f} GB/s ({speed.read_gb_s.how})"
    for subject in subjects:
        widths, rate = subject.widths(), speed.gflop_s(subject.dtype)
        yield (
            f"{subject.model} {subject.dtype}: {subject.llm.device.weight_bytes / 1e6:,.0f} MB, {widths.weight:.2f} B "
            f"a weight, {widths.kv:.0f} B a cached element · {rate.best:,.0f} GFLOP/s ({rate.how})"
        )


def integers(text: str) -> list[int]:
    """ "1,4,8" -> [1, 4, 8]."""
    return [int(part) for part in text.split(",") if part]


# --- commands ----------------------------------------------------------------------------------------------------


def bench(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print; the document has every sample."""
    threads = options.threads or default_threads()
    with tempfile.TemporaryDirectory() as folder:
        subjects = load(options, Path(folder))
    cases = make_cases(subjects, options)
    before = measure_speed(threads)
    measure(cases, options.rounds)
    speed = fastest([before, measure_speed(threads)])
    rows = [make_row(case, speed) for case in cases]
    console = Console(width=120)
    for line in describe(speed, subjects):
        console.print(line, highlight=False)
    for model in dict.fromkeys(row.model for row in rows):
        console.print(make_table(model, [row for row in rows if row.model == model]))
    return {
        "hardware": read_hardware().model_dump(),
        "software": read_software().model_dump(),
        "device": subjects[0].llm.device.name,
        "threads": threads,
        "speed": asdict(speed),
        "rows": [row.to_json() for row in rows],
    }


def bench_isas(isas: Sequence[str]) -> dict[str, Any]:
    """The same command in a process for each instruction set: a device chooses its kernels once."""
    documents: dict[str, Any] = {}
    for isa in isas:
        print(f"\n=== {isa} ===", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "result.json"
            command = [sys.executable, "-m", "benchmarks.cpu", *sys.argv[1:], "--isa", "", "--json", str(file)]
            subprocess.run(command, env=os.environ | {"KNEE_ISA": isa}, check=True)
            documents[isa] = json.loads(file.read_text("utf-8"))
    return {"isas": documents}


def main() -> None:
    """One table a model, for each instruction set that was asked for."""
    options = _options()
    isas = [isa for isa in options.isa.split(",") if isa]
    document = bench_isas(isas) if isas else bench(options)
    if options.json:
        options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", help="default: all that the device has")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-sizes", default="1,4,8,16,32")
    parser.add_argument("--random-batch-sizes", default="1,8", help="of distilgpt2's shape; empty leaves it out")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", default="", help="run once for each of these, KNEE_ISA set: avx2,portable")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    main()

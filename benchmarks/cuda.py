"""The engine on a GPU: against the card's own limits, part by part, and beside the processor of the same machine.

    python -m benchmarks.cuda
    python -m benchmarks.cuda --only table,profile --models smollm2 --json speeds.json

Sections, all of them unless `--only` names some:

- table: bursts of B prompts of 16 tokens, 128 new tokens each, greedy, continuous batching; every model and type.
  tokens/s is from the first submit to the last token; a step's time is the median decode step's, by the engine's
  clock and by the device's. "limit" is the roofline of the decode step in the middle of the run: bytes of weights and
  KV cache over the bandwidth of a large copy or read, or FLOPs over the rate of a large matrix product, both measured
  here.
- mixed: 256 requests at once, prompts and outputs of 100 to 1024 tokens each, seeded.
- switches: the same bursts with one thing switched over, all variants in turns.
- profile: the kernels of decode steps.
- start: from the start of a process to its first token, with an empty cache of compiled kernels and a filled one.
- sweep: policy dynamic, batch size by wait window, on the device and on the machine's processor.

Models have known shapes and random weights in bfloat16, written to a temporary folder; `--model` takes a real one
instead. Every figure comes after a run of the same shape to warm up; repeats go over the batch sizes in turn.

Beside the rows of SmolLM2's shape stands what vLLM 0.26.0 (torch 2.11) reached with the same work on one H100 80GB:
measured elsewhere on the same kind of card, and not in this run.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.cuda_profile import new_tokens, profile_decode, profile_table
from benchmarks.random_models import DISTILGPT2, LLAMA_3_2_1B, SMOLLM2_135M, tiny, write_random
from knee.devices import choose_device
from knee.engine.engine import Engine
from knee.engine.policies import make_policy
from knee.engine.types import SamplingParams, StepStats
from knee.errors import UserError
from knee.lab.costs import measure_limits
from knee.lab.environment import read_hardware, read_software
from knee.lab.measure import measure
from knee.lab.plan import SweepSpec, make_cells
from knee.lab.speed import Floor
from knee.lab.statistics import percentile
from knee.lab.sweep_records import Limits
from knee.lab.trial import Trial
from knee.lab.workload import Prompt, Workload
from knee.llm import LLM
from knee.machine import default_threads
from knee.program import Program, StepShape, Widths

MODELS = {"smollm2": SMOLLM2_135M, "distilgpt2": DISTILGPT2, "llama-1b": LLAMA_3_2_1B}
SECTIONS = ("start", "table", "mixed", "switches", "profile", "sweep")
PROMPT = 16
VLLM = {1: 469.0, 16: 5802.0, 64: 15608.0, 256: 29149.0}  # tokens/s by batch size: SmolLM2-135M, 16 + 128 tokens
VLLM_MIXED = 22100.0  # output tokens/s: 256 requests, lengths of 100 to 1024
VLLM_IS = "vLLM 0.26.0, torch 2.11, on one H100 80GB: measured elsewhere, on the same kind of card"
_SMOLLM2_SIZES = (30, 9, 3, 49152)  # layers, heads, KV heads, vocabulary


# --- work --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Prompts, and how many new tokens each of them gets."""

    prompts: Sequence[Sequence[int]]
    new_tokens: Sequence[int]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(len(prompt) + new for prompt, new in zip(self.prompts, self.new_tokens, strict=True))


def random_prompts(lengths: Sequence[int], vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Random token ids, so that prompts differ."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, length).tolist() for length in lengths]


def burst(batch: int, new_tokens: int, vocab_size: int) -> Work:
    """`batch` short prompts."""
    return Work(random_prompts([PROMPT] * batch, vocab_size), [new_tokens] * batch)


def mixed_work(requests: int, lengths: tuple[int, int], vocab_size: int) -> Work:
    """Lengths of prompts and outputs uniform between two numbers, both included."""
    low, high = lengths
    drawn = np.random.default_rng(0).integers(low, high, (2, requests), endpoint=True)
    return Work(random_prompts(drawn[0].tolist(), vocab_size), drawn[1].tolist())


# --- running it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: its time and tokens, and medians of its decode steps in ms.

    `step_ms` is the engine's own report, `device_ms` the device's part of it, `wall_ms` from the end of a step to the
    end of the next.
    """

    seconds: float
    tokens_per_s: float
    step_ms: float
    device_ms: float
    wall_ms: float


def make_engine(llm: LLM, batch: int, longest: int, budget: int) -> Engine:
    """With room for `batch` of the longest requests."""
    policy = make_policy("continuous", batch, max_batched_tokens=budget)
    return llm.engine(policy, longest=longest, block_size=llm.device.block_size_default)


def run_work(engine: Engine, work: Work, batch: int, budget: int) -> Sample:
    """All requests at once, in an idle engine, to the last token."""
    engine.policy = make_policy("continuous", batch, max_batched_tokens=budget)
    steps: list[tuple[float, StepStats]] = []
    began = before = time.perf_counter()
    requests = [
        engine.submit(prompt, SamplingParams(max_new_tokens=new, ignore_eos=True))
        for prompt, new in zip(work.prompts, work.new_tokens, strict=True)
    ]
    for result in engine.run():
        now = time.perf_counter()
        if result.stats:
            steps.append((now - before, result.stats))
        before = now
    seconds = max(request.token_times[-1] for request in requests) - began
    tokens = sum(len(request.output) for request in requests)
    return Sample(seconds, tokens / seconds, *step_times(steps))


def step_times(steps: Sequence[tuple[float, StepStats]]) -> tuple[float, float, float]:
    """Medians over the decode steps, in ms: reported, on the device, between ends. Pure decode where there is any."""
    decode = [one for one in steps if one[1].decode_rows and not one[1].prefill_tokens] or list(steps)
    times = [(stats.duration, stats.device_time, wall) for wall, stats in decode]
    reported, device, wall = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return reported, device, wall


# --- the limit ---------------------------------------------------------------------------------------------------


def floor(llm: LLM, shape: StepShape, limits: Limits) -> Floor:
    """The least time of a step, its weights and cache as this device keeps them."""
    program, device = llm.program, llm.device
    widths = Widths(
        weight=device.weight_bytes / program.parameters,
        kv=device.kv_bytes_per_token / program.kv_elements_per_token,
    )
    cost = program.cost(shape, widths)
    return Floor(cost.bytes / (limits.read_gb_s * 1e9), cost.flops / (limits.gflop_s * 1e9))


def tell_limits(limits: Limits) -> str:
    """In a line."""
    rate = f"{limits.gflop_s / 1e3:,.2f} TFLOP/s"
    return f"limits: {limits.read_gb_s:,.0f} GB/s, {rate} with weights in {limits.dtype} ({limits.how})"


# --- section: table ----------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A batch size of a model: a sample a repeat, and the limit of its decode step."""

    model: str
    dtype: str
    batch: int
    floor: Floor
    vllm: float | None = None
    samples: list[Sample] = field(default_factory=list)

    def median(self, part: str) -> float:
        """Of one of a sample's figures."""
        return statistics.median(getattr(sample, part) for sample in self.samples)

    @property
    def of_limit(self) -> float:
        """1 is as fast as the card can be."""
        return 1e3 * self.floor.seconds / self.median("step_ms")

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        figures = {part: self.median(part) for part in ("tokens_per_s", "step_ms", "device_ms", "wall_ms")}
        limit = {"limit_ms": 1e3 * self.floor.seconds, "bound": self.floor.bound, "of_limit": self.of_limit}
        ratio = figures["tokens_per_s"] / self.vllm if self.vllm else None
        return asdict(self) | figures | limit | {"vllm_ratio": ratio}


def table_rows(name: str, llm: LLM, limits: Limits, options: argparse.Namespace) -> list[Row]:
    """Bursts at every batch size: one each to warm up, then repeats in turns."""
    new, vocab, budget = options.new_tokens, llm.program.vocab_size, options.token_budget
    middle = PROMPT + (new + 1) // 2  # of the contexts of the decode steps, from PROMPT + 1 to PROMPT + new - 1
    reference = VLLM if is_reference(llm) and new == 128 else {}
    rows, works = [], {}
    for batch in options.batch_sizes:
        least = floor(llm, StepShape.decode(batch, middle), limits)
        rows.append(Row(name, llm.device.dtype, batch, least, reference.get(batch)))
        works[batch] = burst(batch, new, vocab)
    engine = make_engine(llm, max(works), PROMPT + new, budget)
    for turn in range(-1, options.repeats):
        for row in rows if turn % 2 == 0 else reversed(rows):
            sample = run_work(engine, works[row.batch], row.batch, budget)
            if turn >= 0:
                row.samples.append(sample)
    return rows


def is_reference(llm: LLM) -> bool:
    """Whether vLLM's figures are of this model and type."""
    sizes = _sizes(llm.program)
    return sizes == _SMOLLM2_SIZES and llm.device.name == "cuda" and llm.device.dtype == "bfloat16"


def _sizes(program: Program) -> tuple[int, ...]:
    return program.layers, program.heads, program.kv_heads, program.vocab_size


def make_table(rows: Sequence[Row]) -> Table:
    """One model in one type."""
    columns = ["batch", "tokens/s", "range", "ms/step", "range", "on device", "limit ms", "bound", "of limit"]
    beside = any(row.vllm for row in rows)
    title = f"{rows[0].model}, {rows[0].dtype}, repeats: {len(rows[0].samples)}"
    table = Table(*columns, *(["vLLM*", "ratio"] if beside else []), title=title)
    for row in rows:
        tokens = [sample.tokens_per_s for sample in row.samples]
        steps = [sample.step_ms for sample in row.samples]
        cells = [
            str(row.batch),
            f"{row.median('tokens_per_s'):,.0f}",
            f"{min(tokens):,.0f}-{max(tokens):,.0f}",
            f"{row.median('step_ms'):.3f}",
            f"{min(steps):.3f}-{max(steps):.3f}",
            f"{row.median('device_ms'):.3f}",
            f"{1e3 * row.floor.seconds:.3f}",
            row.floor.bound,
            f"{row.of_limit:.0%}",
        ]
        ratio = [f"{row.vllm:,.0f}", f"{row.median('tokens_per_s') / row.vllm:.2f}x"] if row.vllm else ["", ""]
        table.add_row(*cells, *(ratio if beside else []))
    return table


# --- section: mixed ----------------------------------------------------------------------------------------------


def mixed_result(llm: LLM, options: argparse.Namespace) -> dict[str, Any]:
    """Requests of all lengths at once, after one such run to warm up."""
    work = mixed_work(options.mixed_requests, options.mixed_lengths, llm.program.vocab_size)
    batch, budget = options.mixed_requests, options.token_budget
    engine = make_engine(llm, batch, work.longest, budget)
    warm_up, sample = [run_work(engine, work, batch, budget) for _ in range(2)]
    as_measured = options.mixed_requests == 256 and options.mixed_lengths == (100, 1024)
    return asdict(sample) | {
        "requests": batch,
        "prompt_tokens": sum(map(len, work.prompts)),
        "output_tokens": sum(work.new_tokens),
        "warm_up_seconds": warm_up.seconds,
        "vllm": VLLM_MIXED if is_reference(llm) and as_measured else None,
    }


def tell_mixed(found: dict[str, Any]) -> str:
    """In a line."""
    line = (
        f"mixed: {found['requests']} requests, {found['prompt_tokens']:,} prompt and {found['output_tokens']:,} output "
        f"tokens in {found['seconds']:.2f} s: {found['tokens_per_s']:,.0f} output tokens/s "
        f"(median decode step {found['step_ms']:.2f} ms; the run before, cold: {found['warm_up_seconds']:.2f} s)"
    )
    if found["vllm"]:
        line += f"; vLLM* {found['vllm']:,.0f}: {found['tokens_per_s'] / found['vllm']:.2f}x"
    return line


# --- section: switches -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Switch:
    """Something of the engine or the device that is on or off, under one of these names.

    `only_off`: where it is off, the device cannot do it. `if_device`: the device's attribute that says whether it can.
    """

    name: str
    attributes: tuple[str, ...]
    only_off: bool = False
    if_device: str | None = None

    def find(self, engine: Engine) -> tuple[object, str] | None:
        """Whose attribute it is; None where there is none that could be switched over."""
        if self.if_device is not None and not getattr(engine.device, self.if_device):
            return None
        for owner in (engine, engine.device):
            for attribute in self.attributes:
                value = getattr(owner, attribute, None)
                if isinstance(value, bool) and (value or not self.only_off):
                    return owner, attribute
        return None


SWITCHES = (
    Switch("overlap", ("overlap",), only_off=True),
    Switch("CUDA graphs", ("graphs",), only_off=True),
    Switch("batch-invariant", ("batch_invariant",), if_device="can_vary"),
)


@dataclass
class Variant:
    """The engine as it is, or with one switch turned; samples by batch size."""

    name: str
    switch: Switch | None = None
    samples: dict[int, list[Sample]] = field(default_factory=dict)

    def median(self, batch: int, part: str) -> float:
        """Of one of a sample's figures."""
        return statistics.median(getattr(sample, part) for sample in self.samples[batch])


def switch_variants(llm: LLM, options: argparse.Namespace) -> list[Variant]:
    """All variants in turns, each time with a new KV pool, so that no graph of another variant is left."""
    works = {size: burst(size, options.new_tokens, llm.program.vocab_size) for size in options.switch_batch_sizes}
    variants = [Variant("as it is")]
    probe = make_engine(llm, 1, PROMPT, options.token_budget)
    for switch in SWITCHES:
        if found := switch.find(probe):
            variants.append(Variant(f"{switch.name} {'off' if getattr(*found) else 'on'}", switch))
    for turn in range(options.repeats):
        for variant in variants if turn % 2 == 0 else reversed(variants):
            engine = make_engine(llm, max(works), PROMPT + options.new_tokens, options.token_budget)
            with turned(variant.switch, engine):
                for size, work in works.items():
                    run_work(engine, work, size, options.token_budget)
                    sample = run_work(engine, work, size, options.token_budget)
                    variant.samples.setdefault(size, []).append(sample)
    return variants


@contextmanager
def turned(switch: Switch | None, engine: Engine) -> Iterator[None]:
    """Switch it over, and back."""
    found = switch.find(engine) if switch else None
    if not found:
        yield
        return
    owner, attribute = found
    before = getattr(owner, attribute)
    setattr(owner, attribute, not before)
    try:
        yield
    finally:
        setattr(owner, attribute, before)


def switch_table(variants: Sequence[Variant]) -> Table:
    """tokens/s of each, and beside the first."""
    table = Table("variant", "batch", "tokens/s", "range", "ms/step", "on device", "beside as it is", title="switches")
    for variant in variants:
        for number, (batch, samples) in enumerate(variant.samples.items()):
            tokens = [sample.tokens_per_s for sample in samples]
            plain = [sample.tokens_per_s for sample in variants[0].samples[batch]]
            ratio = statistics.median(ours / theirs for ours, theirs in zip(tokens, plain, strict=True))
            table.add_row(
                "" if number else variant.name,
                str(batch),
                f"{statistics.median(tokens):,.0f}",
                f"{min(tokens):,.0f}-{max(tokens):,.0f}",
                f"{variant.median(batch, 'step_ms'):.3f}",
                f"{variant.median(batch, 'device_ms'):.3f}",
                f"{ratio:.2f}x",
            )
    return table


# --- section: start ----------------------------------------------------------------------------------------------

# As `knee generate --prompt-ids`: prints when the first token is there.
FIRST_TOKEN = """
import json, sys, time
from knee import LLM, SamplingParams
from knee.engine.policies import make_policy
imported = time.perf_counter()
llm = LLM.load(*sys.argv[1:])
loaded = time.perf_counter()
engine = llm.engine(make_policy("single"), longest=77)
engine.submit(list(range(1, 14)), SamplingParams(max_new_tokens=64, ignore_eos=True))
for result in engine.run():
    if result.events:
        break
first = time.perf_counter()
print(json.dumps({"load_s": loaded - imported, "first_step_s": first - loaded}), flush=True)
"""


def start_times(path: str, device: str, dtype: str, warm_runs: int) -> dict[str, list[dict[str, float]]]:
    """Seconds to the first token of 13, of fresh processes: the first of them has to compile its kernels.

    The model's file is in the system's cache. `load_s` includes the import of the device's library.
    """
    found: dict[str, list[dict[str, float]]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache}
        for run in range(1 + warm_runs):
            command = [sys.executable, "-c", FIRST_TOKEN, path, device, dtype]
            began = time.perf_counter()
            with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout
                line = process.stdout.readline()
                seconds = time.perf_counter() - began
            if not line:
                raise RuntimeError(f"the process that makes a first token ended with exit code {process.returncode}")
            found["warm" if run else "cold"].append({"seconds": seconds, **json.loads(line)})
    return found


def tell_start(found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """A line for each kind."""
    for kind, runs in found.items():
        middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
        all_of_them = ", ".join(f"{run['seconds']:.2f}" for run in runs)
        yield (
            f"start, compiled kernels {kind}: {middle['seconds']:.2f} s to the first token "
            f"(loading {middle['load_s']:.2f}, first step {middle['first_step_s']:.2f}; runs: {all_of_them})"
        )


# --- section: sweep ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cell:
    """One trial of a setting: tokens/s, and percentiles of the time from arrival to the last token, in ms."""

    device: str
    batch: int
    wait_ms: float
    requests: int
    tokens_per_s: float
    p50_ms: float
    p95_ms: float


def sweep_cells(llm: LLM, sizes: Sequence[int], requests: int, new_tokens: int, budget_s: float) -> list[Cell]:
    """The log's sweep, its trials as `knee sweep` measures them, but in this process and one of each setting.

    All sizes without a window come first, and no setting begins after `budget_s`.
    """
    lengths = np.random.default_rng(2).integers(8, 40, 16).tolist()
    prompts = tuple(Prompt(tuple(ids)) for ids in random_prompts(lengths, llm.program.vocab_size))
    spec = SweepSpec(
        Workload(prompts, requests, new_tokens),
        make_cells(["dynamic"], sizes, [0.0, 10.0]),
        repeats=1,
        block_size=llm.device.block_size_default,
        token_budget=max(llm.device.token_budget_default, *sizes),
    )
    found: list[Cell] = []
    began = time.perf_counter()
    for number in sorted(range(len(spec.cells)), key=lambda i: spec.cells[i].max_wait_ms or 0.0):
        if time.perf_counter() - began > budget_s:
            break
        cell = spec.cells[number]
        trial = measure(llm, spec.job(number, 0)).trial
        wait = cell.max_wait_ms or 0.0
        found.append(Cell(llm.device.name, cell.max_batch_size, wait, requests, *_trial_figures(trial)))
    return found


def _trial_figures(trial: Trial) -> tuple[float, float, float]:
    ends = [request.token_times[-1] for request in trial.requests]
    latencies = sorted(1e3 * (end - request.scheduled_at) for end, request in zip(ends, trial.requests, strict=True))
    seconds = max(ends) - min(request.scheduled_at for request in trial.requests)
    tokens = sum(len(request.token_times) for request in trial.requests)
    return tokens / seconds, percentile(latencies, 50), percentile(latencies, 95)


def gain(cells: Sequence[Cell]) -> float | None:
    """The best batch's tokens/s over batch 1's."""
    alone = [cell.tokens_per_s for cell in cells if cell.batch == 1]
    return max(cell.tokens_per_s for cell in cells) / max(alone) if alone else None


def sweep_table(by_device: dict[str, list[Cell]]) -> Table:
    """Devices side by side."""
    heads = [f"{name} {part}" for name in by_device for part in ("tokens/s", "p50 ms", "p95 ms")]
    counts = ", ".join(f"{cells[0].requests} on {name}" for name, cells in by_device.items() if cells)
    table = Table("batch", "wait ms", *heads, title=f"sweep, policy dynamic; requests at once: {counts}")
    found = {(cell.device, cell.batch, cell.wait_ms): cell for cells in by_device.values() for cell in cells}
    for batch, wait in sorted({(batch, wait) for _, batch, wait in found}):
        line = []
        for name in by_device:
            cell = found.get((name, batch, wait))
            line += [f"{value:,.0f}" for value in (cell.tokens_per_s, cell.p50_ms, cell.p95_ms)] if cell else [""] * 3
        table.add_row(str(batch), f"{wait:g}", *line)
    return table


# --- all of it ---------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A name, what to load under it, and in which type."""

    name: str
    path: str
    dtype: str


class Report:
    """Prints, and keeps all numbers in a file that is written anew after each part, whatever comes after."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.document = about(options)
        self.failed: list[str] = []
        self._console = Console(width=130)

    def tell(self, *parts: str | Table) -> None:
        """Lines and tables."""
        for part in parts:
            self._console.print(part, highlight=False, markup=False)

    def keep(self, name: str, value: Any) -> None:
        """A part's numbers."""
        self.document[name] = value
        if self.options.json:
            self.options.json.write_text(json.dumps(self.document, indent=2) + "\n", "utf-8")

    def keep_more(self, name: str, values: Sequence[Any]) -> None:
        """More of a part's numbers."""
        self.keep(name, [*self.document.get(name, []), *values])

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """How long a part took. One that fails says so, and the others go on."""
        began = time.perf_counter()
        try:
            yield
        except Exception:
            traceback.print_exc()
            self.failed.append(name)
        took = self.document.setdefault("seconds", {})
        took[name] = took.get(name, 0.0) + time.perf_counter() - began
        self.tell(f"[{name}: {took[name]:.0f} s{', FAILED' if name in self.failed else ''}]")


def about(options: argparse.Namespace) -> dict[str, Any]:
    """The machine, versions, the date, and what was asked."""
    versions = {}
    for name in ("torch", "triton", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": read_hardware().model_dump(),
        "software": read_software().model_dump(),
        "versions": versions,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()},
        "vllm": {"of": VLLM_IS, "burst": VLLM, "mixed": VLLM_MIXED},
    }


def model_paths(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Names, and what to load: the real model, or folders that are written now."""
    if options.model:
        return {options.model: options.model}
    for name in options.models:
        write_random(tiny(MODELS[name]) if options.tiny else MODELS[name], folder / name, "BF16")
    return {name: str(folder / name) for name in options.models}


def table_section(model: Model, llm: LLM, limits: Limits, to: Report) -> None:
    """One model in one type."""
    rows = table_rows(model.name, llm, limits, to.options)
    to.keep_more("table", [row.to_json() for row in rows])
    to.tell(make_table(rows))


def mixed_section(model: Model, llm: LLM, to: Report) -> None:
    """A line."""
    found = mixed_result(llm, to.options)
    to.keep("mixed", found | {"model": model.name, "dtype": model.dtype})
    to.tell(tell_mixed(found))


def switches_section(llm: LLM, to: Report) -> None:
    """All variants in a table."""
    variants = switch_variants(llm, to.options)
    to.keep("switches", [asdict(variant) for variant in variants])
    to.tell(switch_table(variants))


def profile_section(llm: LLM, to: Report) -> None:
    """A table a batch size."""
    options = to.options
    if llm.device.name != "cuda":
        to.tell(f"profile: left out, device {llm.device.name} runs no kernels that torch.profiler sees")
        return
    for batch in options.profile_batch_sizes:
        prompts = random_prompts([PROMPT] * batch, llm.program.vocab_size)
        engine = make_engine(llm, batch, PROMPT + new_tokens(options.profile_steps), options.token_budget)
        found = profile_decode(engine, prompts, options.profile_steps)
        to.keep_more("profile", [asdict(found)])
        to.tell(profile_table(found))


def sweep_section(model: Model, llm: LLM, to: Report) -> None:
    """On the device, then on the processor."""
    options = to.options
    tokens, budget = options.sweep_tokens, options.sweep_budget
    sizes, requests = options.sweep_batch_sizes, options.sweep_requests
    by_device = {llm.device.name: sweep_cells(llm, sizes, requests, tokens, budget)}
    if llm.device.name != "cpu":
        requests = options.sweep_cpu_requests
        on_cpu = LLM.load(model.path, "cpu", model.dtype)
        fitting = [size for size in sizes if size <= requests]
        by_device["cpu"] = sweep_cells(on_cpu, fitting, requests, tokens, budget)
    gains = {name: gain(cells) for name, cells in by_device.items()}
    to.keep("sweep", {"cells": [asdict(cell) for cells in by_device.values() for cell in cells], "gain": gains})
    to.tell(sweep_table(by_device))
    to.tell(
        *(f"{name}: the best batch makes {more:.1f}x the tokens/s of batch 1" for name, more in gains.items() if more)
    )


def start_section(model: Model, to: Report) -> None:
    """A line each, cold and warm."""
    found = start_times(model.path, to.options.device, model.dtype, to.options.start_runs)
    to.keep("start", found)
    to.tell(*tell_start(found))


def run_sections(model: Model, sections: Sequence[str], limits: Limits, to: Report) -> None:
    """The sections that need a loaded model."""
    llm = LLM.load(model.path, to.options.device, model.dtype)
    works: dict[str, Callable[[], None]] = {
        "table": lambda: table_section(model, llm, limits, to),
        "mixed": lambda: mixed_section(model, llm, to),
        "switches": lambda: switches_section(llm, to),
        "profile": lambda: profile_section(llm, to),
        "sweep": lambda: sweep_section(model, llm, to),
    }
    for name, work in works.items():
        if name in sections:
            with to.part(name):
                work()


def main(arguments: Sequence[str] | None = None) -> int:
    """The sections that are asked for, all but the table with the first model in the first type. 1 if any failed."""
    options = parse(arguments)
    try:
        for dtype in options.dtypes:
            choose_device(options.device, dtype)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    to = Report(options)
    with tempfile.TemporaryDirectory() as folder:
        paths = model_paths(options, Path(folder))
        if options.tiny:
            to.tell("tiny models and little work: this shows that all of it runs, and no speed")
        first, *others = [Model(name, path, dtype) for name, path in paths.items() for dtype in options.dtypes]
        if "start" in options.only:
            with to.part("start"):
                start_section(first, to)
        if set(options.only) - {"start"}:
            limits = {dtype: measure_limits(dtype, default_threads(), options.device) for dtype in options.dtypes}
            to.keep("limits", [one.model_dump() for one in limits.values()])
            to.tell(*map(tell_limits, limits.values()))
            run_sections(first, options.only, limits[first.dtype], to)
            for model in others if "table" in options.only else []:
                gc.collect()  # the memory of the one before
                run_sections(model, ["table"], limits[model.dtype], to)
    if any(found["vllm"] for found in [*to.document.get("table", []), to.document.get("mixed", {"vllm": None})]):
        to.tell(f"* {VLLM_IS}; not part of this run")
    to.keep("failed", to.failed)
    return int(bool(to.failed))


# --- options -----------------------------------------------------------------------------------------------------


def integers(text: str) -> list[int]:
    """ "1,16" -> [1, 16]."""
    return [int(part) for part in text.split(",") if part]


def words(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads a list of known words."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
        return found

    return read


def length_range(text: str) -> tuple[int, int]:
    """ "100,1024" -> (100, 1024)."""
    low, high = integers(text)
    return low, high


TINY = {
    "batch_sizes": [1, 4],
    "new_tokens": 6,
    "repeats": 2,
    "mixed_requests": 6,
    "mixed_lengths": (3, 12),
    "switch_batch_sizes": [1, 4],
    "profile_batch_sizes": [1, 4],
    "profile_steps": 3,
    "start_runs": 1,
    "sweep_batch_sizes": [1, 4, 8],
    "sweep_requests": 8,
    "sweep_cpu_requests": 4,
    "sweep_tokens": 4,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options; `--tiny` changes what others are by default."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda",
        description=__doc__.split("\n")[0] + " A few minutes.",
        epilog="Runs from a checkout, with the extra cuda. What the sections are stands at the top of the file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--device", default="cuda", help="what to measure")
    add("--model", help="a real model instead of the random ones")
    add("--models", type=words(list(MODELS)), default=list(MODELS), metavar="NAME,…", help=", ".join(MODELS))
    add("--dtypes", type=lambda text: text.split(","), default=["bfloat16"], metavar="TYPE,…", help="of weights")
    add("--only", type=words(SECTIONS), default=list(SECTIONS), metavar="SECTION,…", help=", ".join(SECTIONS))
    add("--profile", action="store_true", help="the same as --only profile")
    add("--tiny", action="store_true", help="tiny models and little work: whether all of this runs")
    add("--batch-sizes", type=integers, default=[1, 16, 64, 256], metavar="B,…", help="of the table")
    add("--new-tokens", type=int, default=128, help="of each request, in the table and the switches")
    add("--repeats", type=int, default=3, help="of the table and the switches, after one to warm up")
    add("--token-budget", type=int, default=8192, help="tokens of a step")
    add("--mixed-requests", type=int, default=256, help="of the mixed workload, all at once")
    add("--mixed-lengths", type=length_range, default=(100, 1024), metavar="LOW,HIGH", help="of prompts and outputs")
    add("--switch-batch-sizes", type=integers, default=[1, 16, 256], metavar="B,…", help="of the switches")
    add("--profile-batch-sizes", type=integers, default=[1, 16, 256], metavar="B,…", help="of the profile")
    add("--profile-steps", type=int, default=20, help="decode steps that are profiled")
    add("--start-runs", type=int, default=2, help="starts with a filled cache of kernels, after one with an empty one")
    add("--sweep-batch-sizes", type=integers, default=[1, 4, 16, 64, 256], metavar="B,…", help="of the sweep")
    add("--sweep-requests", type=int, default=256, help="of a trial of the sweep, all at once")
    add("--sweep-cpu-requests", type=int, default=256, help="on the processor; no larger batches there")
    add("--sweep-tokens", type=int, default=16, help="new tokens of each request of the sweep")
    add("--sweep-budget", type=float, default=60.0, metavar="S", help="no setting of a device begins after so long")
    add("--json", type=Path, metavar="FILE", help="where all numbers go")
    if parser.parse_args(arguments).tiny:
        parser.set_defaults(**TINY)
    options = parser.parse_args(arguments)
    if options.profile:
        options.only = ["profile"]
    return options


if __name__ == "__main__":
    sys.exit(main())

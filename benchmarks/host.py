"""The host's own time in a step: what `Engine.step` takes in Python while the device waits.

    python -m benchmarks.host --batch-sizes 1,4,8,16,32

The device answers at once with canned tokens of real text, so what is left is planning, spans, applying tokens, text
and reports, in steady decode:

- warm: one step follows the other. "step" is all of it; text is what a tokenizer adds, its tokens seen before; rest is
  the view, the counts and the clock.
- cold: in each step the device reads as much memory as a model has, and the interpreter finds its own code and data
  thrown out of the caches. This is what `host_ms` of a record can be at best.

A run's figure is the median of its steps, and the table has the lowest of many runs: other processes and a shared
cache only ever add time. So it is what the code costs, not what a busy machine makes of it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tests.fake_device import FakeDevice, tiny_program

from knee.devices.base import Span, SpanOutput
from knee.engine.detokenize import Spelling, TokenBytes
from knee.engine.engine import Engine
from knee.engine.kv import KVManager
from knee.engine.policies import make_policy
from knee.engine.types import SamplingParams, TokenEvent
from knee.weights.load import open_checkpoint
from knee.weights.tokenizer import load_tokenizer

TEXT = Path(__file__).parents[1] / "docs" / "architecture.md"
BLOCK_SIZE = 16
COLUMNS = ("step", "plan", "spans", "apply", "text", "events", "rest", "step, cold")


class CannedDevice(FakeDevice):
    """Answers each batch with the next tokens of a text, every row from a place of its own; reads `traffic` first."""

    def __init__(self, tokens: Sequence[int], batch_size: int, traffic: NDArray[np.float32] | None) -> None:
        super().__init__(tiny_program(vocab_size=max(tokens) + 1))
        outputs = [SpanOutput(token=token) for token in tokens]
        n = len(tokens)
        self.answers = [[outputs[(step + row * n // batch_size) % n] for row in range(batch_size)] for step in range(n)]
        self.traffic = traffic

    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:  # noqa: ARG002
        """The next answer."""
        if self.traffic is not None:
            self.traffic.sum()
        self.steps += 1
        return self.answers[self.steps % len(self.answers)]


@dataclass
class Timed:
    """Keeps how many microseconds each call of a function takes."""

    call: Callable[..., Any]
    times: list[float] = field(default_factory=list)

    def __call__(self, *args: Any) -> Any:
        started = time.perf_counter()
        result = self.call(*args)
        self.times.append((time.perf_counter() - started) * 1e6)
        return result

    @property
    def median(self) -> float:
        """Of all calls so far."""
        return statistics.median(self.times)


@dataclass(frozen=True, eq=False)
class Setting:
    """One line of the table, before it is measured."""

    policy: str
    batch_size: int
    steps: int
    tokens: Sequence[int]
    tokenizer: TokenBytes

    def engine(self, text: bool = True, traffic: NDArray[np.float32] | None = None) -> Engine:
        """An engine in steady decode: every prompt has been prefilled and the first tokens are out."""
        device = CannedDevice(self.tokens, self.batch_size, traffic)
        prompt, new_tokens = self.tokens[:32], self.steps + 16
        blocks = -(-(len(prompt) + new_tokens) // BLOCK_SIZE) * self.batch_size
        policy = make_policy(self.policy, max_batch_size=self.batch_size, max_batched_tokens=4096)
        engine = Engine(device, policy, KVManager(blocks, BLOCK_SIZE), self.tokenizer if text else None)
        for _ in range(self.batch_size):
            engine.submit(prompt, SamplingParams(max_new_tokens=new_tokens, ignore_eos=True))
        if text:
            for token in set(self.tokens):
                engine._spelling.text_of(token)
        for _ in range(8):
            engine.step()
        return engine


def run(steps: int, engine: Any, **watched: Timed) -> dict[str, float]:
    """The median microseconds of the whole step and of the watched parts of it."""
    step = Timed(engine.step)
    for _ in range(steps):
        step()
    return {"step": step.median} | {name: part.median for name, part in watched.items()}


def run_parts(setting: Setting) -> dict[str, float]:
    """Plan, prepare and apply, without text."""
    engine: Any = setting.engine(text=False)
    engine.policy.plan, engine._prepare, engine._apply = parts = [
        Timed(engine.policy.plan),
        Timed(engine._prepare),
        Timed(engine._apply),
    ]
    return run(setting.steps, engine, plan=parts[0], spans=parts[1], apply=parts[2])


def run_cold(setting: Setting, traffic: NDArray[np.float32]) -> dict[str, float]:
    """The engine's own account of its host time, when the device reads `traffic` in each step."""
    engine = setting.engine(traffic=traffic)
    stats = [engine.step().stats for _ in range(min(setting.steps, 20))]
    return {"step": statistics.median(one.host_time for one in stats if one) * 1e6}


def run_events(setting: Setting) -> dict[str, float]:
    """Making a step's events, alone."""
    request, rows = setting.engine().running[0], range(setting.batch_size)
    make = Timed(lambda: [TokenEvent(request, 1, "text", 0.0, None, (), None) for _ in rows])
    for _ in range(setting.steps):
        make()
    return {"events": make.median}


def measure(setting: Setting, traffic: NDArray[np.float32]) -> dict[str, float]:
    """One run of each kind."""
    parts = run_parts(setting)
    return {
        "whole": run(setting.steps, setting.engine())["step"],
        "bare": run(setting.steps, setting.engine(text=False))["step"],
        "cold": run_cold(setting, traffic)["step"],
        "plan": parts["plan"],
        "spans": parts["spans"],
        "apply": parts["apply"],
        "events": run_events(setting)["events"],
    }


def columns(best: dict[str, float]) -> list[float]:
    """The figures of a line, from the lowest of each kind."""
    return [
        best["whole"],
        best["plan"],
        best["spans"],
        best["apply"] - best["events"],
        best["whole"] - best["bare"],
        best["events"],
        best["bare"] - best["plan"] - best["spans"] - best["apply"],
        best["cold"],
    ]


def first_time(tokenizer: TokenBytes, tokens: Sequence[int]) -> float:
    """Microseconds that a token's text takes when it is new to the engine."""
    seconds = []
    for token in set(tokens):
        spelling = Spelling(tokenizer)
        started = time.perf_counter()
        spelling.text_of(token)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e6


def main() -> None:
    """Measure every policy and batch size; print one table."""
    options = _options()
    tokenizer = load_tokenizer(open_checkpoint(options.model))
    assert tokenizer
    tokens = tokenizer.encode(TEXT.read_text("utf-8"))
    traffic = np.ones(options.traffic_mib << 18, np.float32)
    title = f"µs a step on the host, steady decode: lowest of {options.repetitions} medians of {options.steps} steps"
    caption = f"text: {first_time(tokenizer, tokens):.1f} µs more for a token that is new to the engine"
    table = Table("policy", "batch", *COLUMNS, title=title, caption=caption)
    policies, sizes = options.policies.split(","), map(int, options.batch_sizes.split(","))
    settings = [Setting(*line, options.steps, tokens, tokenizer) for line in product(policies, sizes)]
    runs: dict[Setting, list[dict[str, float]]] = {setting: [] for setting in settings}
    for _ in range(options.repetitions):  # a slow minute of the machine meets all lines and costs none of them
        for setting in settings:
            runs[setting].append(measure(setting, traffic))
    for setting, figures in runs.items():
        best = {name: min(one[name] for one in figures) for name in figures[0]}
        table.add_row(setting.policy, str(setting.batch_size), *(f"{figure:.1f}" for figure in columns(best)))
    Console(width=110).print(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer to use")
    parser.add_argument("--policies", default="static,continuous")
    parser.add_argument("--batch-sizes", default="1,4,8,16,32")
    parser.add_argument("--steps", type=int, default=100, help="steps in a run")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--traffic-mib", type=int, default=128, help="what the device reads in a cold step")
    return parser.parse_args()


if __name__ == "__main__":
    main()

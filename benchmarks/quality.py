"""What smaller weights cost in quality: every weight type against float32, on two thousand positions of plain text.

    python -m benchmarks.quality

The text (`text.txt`) is given to both, window by window and through the KV cache, so that at every position both see
the same tokens before it (teacher forcing). Counted are the positions at which both choose the same next token, the
perplexity of the token that really follows, and the mean Kullback-Leibler divergence from float32's distribution.
float32 is the reference device, which shares no kernel with the others. The exit code is 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from knee.devices import Span, Want, choose_device
from knee.devices.base import Device, FloatArray
from knee.llm import DEFAULT_BLOCK_SIZE, LLM

TEXT = Path(__file__).parent / "text.txt"
WINDOW = 512  # tokens that a position can look back at most
CHUNK = 128  # positions a step: their logits, 25 MB of float32 for SmolLM2, are held a few times over


@dataclass(frozen=True, slots=True)
class Limit:
    """What a weight type may cost: the least share of equal choices, the largest change of perplexity."""

    share: float
    change: float


LIMITS: Mapping[str, Limit] = {"int8": Limit(0.99, 0.01), "int4": Limit(0.95, 0.05)}


@dataclass(frozen=True, slots=True)
class Agreement:
    """Sums over positions: equal choices, surprise (nats) of float32 and of the other, divergence (nats)."""

    positions: int = 0
    equal: int = 0
    float32_surprise: float = 0.0
    surprise: float = 0.0
    divergence: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.positions + other.positions,
            self.equal + other.equal,
            self.float32_surprise + other.float32_surprise,
            self.surprise + other.surprise,
            self.divergence + other.divergence,
        )

    @property
    def share(self) -> float:
        """Of the positions, those with the same choice."""
        return self.equal / self.positions

    @property
    def perplexity(self) -> float:
        """Of the text, given what came before each token of it."""
        return math.exp(self.surprise / self.positions)

    @property
    def change(self) -> float:
        """Of the perplexity against float32's: 0.01 is one percent more."""
        return math.exp((self.surprise - self.float32_surprise) / self.positions) - 1

    @property
    def mean_divergence(self) -> float:
        """Nats a position."""
        return self.divergence / self.positions

    def keeps(self, limit: Limit | None) -> bool:
        """Whether it is within the limit; always where there is none."""
        return limit is None or (self.share >= limit.share and abs(self.change) <= limit.change)


def log_probabilities(logits: FloatArray) -> FloatArray:
    """(positions, vocab): natural logarithms of the softmax.

    In float32 but for the sums: NumPy's exp takes many times longer in float64, and there are 120 million of them.
    """
    shifted: FloatArray = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64))
    return shifted


def compare(truth: FloatArray, other: FloatArray, targets: Sequence[int]) -> Agreement:
    """Log probabilities of the same positions from both; `targets` are the tokens that really follow."""
    rows = np.arange(len(targets))
    return Agreement(
        positions=len(targets),
        equal=int((truth.argmax(axis=-1) == other.argmax(axis=-1)).sum()),
        float32_surprise=-float(truth[rows, targets].sum(dtype=np.float64)),
        surprise=-float(other[rows, targets].sum(dtype=np.float64)),
        divergence=float((np.exp(truth) * (truth - other)).sum(dtype=np.float64)),
    )


def chunks(tokens: Sequence[int]) -> Iterator[tuple[Span, Sequence[int]]]:
    """The text as spans of windows that start anew, and the tokens that follow each position."""
    last = len(tokens) - 1  # nothing follows the last token
    table = tuple(range(-(-WINDOW // DEFAULT_BLOCK_SIZE)))
    for window in range(0, last, WINDOW):
        for first in range(window, min(window + WINDOW, last), CHUNK):
            end = min(first + CHUNK, window + WINDOW, last)
            span = Span(tokens[first:end], first - window, table, Want.ALL_LOGITS)
            yield span, tokens[first + 1 : end + 1]


def run(device: Device, span: Span) -> FloatArray:
    """Log probabilities of every position of a span."""
    [output] = device.execute([span])
    assert output.logits is not None
    return log_probabilities(output.logits)


def measure(truth: Device, others: Mapping[str, Device], tokens: Sequence[int]) -> dict[str, Agreement]:
    """Every device against the true one, all in one pass over the text."""
    for device in (truth, *others.values()):
        device.allocate_kv(-(-WINDOW // DEFAULT_BLOCK_SIZE), DEFAULT_BLOCK_SIZE)
    sums = dict.fromkeys(others, Agreement())
    for span, targets in chunks(tokens):
        expected = run(truth, span)
        for name, device in others.items():
            sums[name] += compare(expected, run(device, span), targets)
    return sums


def make_table(title: str, found: Mapping[str, Agreement]) -> Table:
    """A row a weight type, its limits beside what was found."""
    columns = ("weights", "same choice", "at least", "perplexity", "change", "at most", "mean KL, nats", "")
    table = Table(*columns, title=title)
    for dtype, one in found.items():
        limit = LIMITS.get(dtype)
        verdict = "" if limit is None else "kept" if one.keeps(limit) else "MISSED"
        table.add_row(
            dtype,
            f"{one.share:.2%}",
            f"{limit.share:.0%}" if limit else "",
            f"{one.perplexity:.3f}",
            f"{one.change:+.2%}",
            f"{limit.change:.0%}" if limit else "",
            f"{one.mean_divergence:.5f}",
            verdict,
        )
    return table


def to_json(found: Mapping[str, Agreement]) -> list[dict[str, Any]]:
    """A row a weight type."""
    return [
        {
            "dtype": dtype,
            "positions": one.positions,
            "same_choice": one.share,
            "perplexity": one.perplexity,
            "perplexity_change": one.change,
            "mean_kl_nats": one.mean_divergence,
            "keeps_limit": one.keeps(LIMITS.get(dtype)),
        }
        for dtype, one in found.items()
    ]


def main() -> int:
    """Load every weight type beside float32, run the text, print one table."""
    options = _options()
    dtypes = options.dtypes.split(",") if options.dtypes else choose_device(options.device).dtypes
    reference = LLM.load(options.model, "reference", "float32")
    tokens = reference.encode(options.text.read_text("utf-8"))
    others = {dtype: LLM.load(options.model, options.device, dtype, options.threads).device for dtype in dtypes}
    found = measure(reference.device, others, tokens)
    device = next(iter(others.values())).name
    title = f"{options.model} on {device} against float32 on reference, {len(tokens) - 1:,} positions"
    Console(width=110).print(make_table(title, found))
    if options.json:
        document = {"model": options.model, "device": device, "window": WINDOW, "rows": to_json(found)}
        options.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0 if all(one.keeps(LIMITS.get(dtype)) for dtype, one in found.items()) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", help="default: all that the device has")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

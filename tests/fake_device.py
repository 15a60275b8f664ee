"""A device without a model: its KV pool holds token ids, and the next token is a hash of the context read from it.

So a wrong block table, a lost block or two owners of one block change the tokens, as they would with a real model,
and a test is exact and fast. `cost` makes a step take as long as it says, on whatever clock the test brings.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from knee.devices.base import Device, Span, SpanOutput, Want, WeightPlan, Weights
from knee.errors import NumericsError
from knee.program import Buffer, Program


def tiny_program(vocab_size: int = 50, positions: int = 4096) -> Program:
    """A program with sizes and no operations."""
    return Program(
        architecture="Fake",
        ops=(),
        buffers={"logits": Buffer(vocab_size, "outputs")},
        weights={},
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        vocab_size=vocab_size,
        positions=positions,
    )


def next_token(context: Sequence[int], vocab_size: int = 50) -> int:
    """What the fake model says after a context."""
    return zlib.crc32(bytes(str(list(context)), "ascii")) % vocab_size


class FakeDevice(Device):
    """Counts its steps; fails with `NumericsError` in step number `fail_at`."""

    name = "fake"
    dtypes = ("float32",)
    dtype = "float32"
    kv_bytes_per_token = 256
    weight_bytes = 0

    def __init__(
        self,
        program: Program | None = None,
        cost: Callable[[Sequence[Span]], None] = lambda _batch: None,
        fail_at: int | None = None,
    ) -> None:
        self.program = program or tiny_program()
        self.cost = cost
        self.fail_at = fail_at
        self.steps = 0
        self.pool: list[int | None] = []
        self.block_size = 1

    @classmethod
    def plan(cls, program: Program, weights: Weights, dtype: str = "auto") -> WeightPlan:
        """There are none."""
        raise NotImplementedError

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """Empty slots."""
        self.pool = [None] * (num_blocks * block_size)
        self.block_size = block_size

    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:
        """Write the new tokens to their slots, read the contexts back from theirs."""
        self.cost(batch)
        self.steps += 1
        if self.steps - 1 == self.fail_at:
            raise NumericsError("a logit is NaN")
        return [self._run(span) for span in batch]

    def _run(self, span: Span) -> SpanOutput:
        context = self._context(span)
        if span.want is Want.NOTHING:
            return SpanOutput()
        if span.want is Want.TOKEN:
            return SpanOutput(token=next_token(context, self.program.vocab_size))
        first = span.start if span.want is Want.ALL_LOGITS else len(context) - 1
        rows = [self._logits(context[: i + 1]) for i in range(first, len(context))]
        return SpanOutput(logits=np.array(rows, dtype=np.float32))

    def _context(self, span: Span) -> list[int]:
        if not span.block_table:
            assert span.start == 0
            return list(span.tokens)
        for i, token in enumerate(span.tokens, start=span.start):
            self.pool[self._slot(span, i)] = token
        context = [self.pool[self._slot(span, i)] for i in range(span.start + len(span.tokens))]
        assert None not in context
        return [token for token in context if token is not None]

    def _slot(self, span: Span, position: int) -> int:
        return span.block_table[position // self.block_size] * self.block_size + position % self.block_size

    def _logits(self, context: Sequence[int]) -> list[float]:
        best = next_token(context, self.program.vocab_size)
        return [5.0 if token == best else -0.01 * token for token in range(self.program.vocab_size)]

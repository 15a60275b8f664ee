"""What a device is to the engine: it takes a program and its weights once, then executes one batch a step.

A batch is a list of spans, one for each request in the step. A span says which tokens to run, how many tokens of
the same request came before them, and in which blocks of the KV pool that request's keys and values live. Nothing
else travels: a device holds the weights and the KV pool and no other state between steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from knee.program import Program

FloatArray = NDArray[np.float32]


class Want(Enum):
    """What the engine needs to know after a span has run."""

    NOTHING = "nothing"  # a prefill chunk that is not the last
    TOKEN = "token"  # the greedy next token, from the last position
    LOGITS = "logits"  # the logits of the last position
    ALL_LOGITS = "all logits"  # the logits of every position of the span


@dataclass(frozen=True, slots=True)
class Span:
    """One request's part of a step.

    `tokens` stand at positions `start`, `start + 1`, …; `start` tokens of the request are already in the KV cache.
    `block_table` lists the pool's blocks that hold the request's keys and values, enough for `start + len(tokens)`
    positions. An empty table means that nothing is cached: the span is the whole prefix (`start` is 0) and attends
    to its own keys and values only.
    """

    tokens: Sequence[int]
    start: int
    block_table: Sequence[int]
    want: Want


@dataclass(frozen=True, slots=True)
class SpanOutput:
    """`token` for `Want.TOKEN`; `logits` of shape (1, vocab) or (len(tokens), vocab) for the two wishes for logits."""

    token: int | None = None
    logits: FloatArray | None = None


class Device(ABC):
    """A program with its weights, ready to run. Not safe for use from two threads at once."""

    name: ClassVar[str]  # "reference", "cpu", "cuda"
    dtypes: ClassVar[tuple[str, ...]]  # the weight types that it has: "float32", "bfloat16", …
    dtype: str  # the one in use
    program: Program

    @abstractmethod
    def __init__(
        self, program: Program, weights: Mapping[str, FloatArray], dtype: str = "auto", threads: int | None = None
    ) -> None:
        """Take a program and its float32 weights. `choose_device` has checked `dtype` and `threads`."""

    @abstractmethod
    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """Make the KV pool: `num_blocks` blocks of `block_size` tokens. Replaces an earlier pool and its contents."""

    @abstractmethod
    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:
        """Run one step; outputs in the order of the spans.

        Spans of one batch must own disjoint blocks. Raises `NumericsError` where a wanted logit is NaN or infinite.
        """

    @property
    @abstractmethod
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take in the pool, all layers together."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes that the weights take in the device's memory."""

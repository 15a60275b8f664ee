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
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from knee.errors import NumericsError
from knee.program import Program, WeightSpec

FloatArray = NDArray[np.float32]


class StoredWeight(NamedTuple):
    """A weight's bytes as they lie in its file, and where in them the weight is.

    `data` is flat, read-only as a rule, at any alignment. It holds a matrix of `rows` x `columns` elements (a vector
    is one of one column) in the storage type `storage`. Outputs [`begin`, `end`) of it are the weight: rows, or columns
    where the matrix is stored `transposed`.
    """

    data: NDArray[np.uint8]
    storage: str  # one of STORED
    rows: int
    columns: int
    transposed: bool
    begin: int
    end: int


# Storage types that weights are handed out in as they are. What a file keeps in another one comes as F32.
STORED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1")


class Weight(Protocol):
    """A weight that is checked and not yet read; nothing is kept of what is read."""

    @property
    def spec(self) -> WeightSpec:
        """What the program asks for."""

    @property
    def storage(self) -> str:
        """How the file keeps it: "F32", "BF16", "Q4_1", "Q6_K", …"""

    def read(self) -> FloatArray:
        """The weight in float32, C-contiguous, of the spec's shape. `NumericsError` where it is not finite."""

    def stored(self) -> StoredWeight:
        """The weight's bytes, mapped where that is possible. Nobody has looked whether they are finite numbers."""

    def release(self) -> None:
        """Let the memory go that mapped bytes take, where the system can; they may be read again."""


Weights = Mapping[str, Weight]


class Want(Enum):
    """What the engine needs to know after a span has run."""

    NOTHING = "nothing"  # a prefill chunk that is not the last
    TOKEN = "token"  # the greedy next token, from the last position
    LOGITS = "logits"  # the logits of the last position
    ALL_LOGITS = "all logits"  # the logits of every position of the span


@dataclass(slots=True)  # not frozen: one is made for every request in every step, and freezing doubles its cost
class Span:
    """One request's part of a step. Never changed once it is made.

    `tokens` stand at positions `start`, `start + 1`, …; `start` tokens of the request are already in the KV cache.
    `block_table` lists the pool's blocks that hold the request's keys and values, enough for `start + len(tokens)`
    positions. An empty table means that nothing is cached: the span is the whole prefix (`start` is 0) and attends
    to its own keys and values only.

    A device that `overlaps` may be given a span whose last token is not known yet: `tokens` then ends with `UNKNOWN`,
    and `source` says which span of the batch that was started just before makes it.

    `draw` (temperature, number in [0, 1)) is for a device that `draws`: the wanted token is not the greedy one, but the
    first by id up to which the tokens' probabilities at this temperature add up to more than this number.
    """

    tokens: Sequence[int]
    start: int
    block_table: Sequence[int]
    want: Want
    source: int | None = None
    draw: tuple[float, float] | None = None


UNKNOWN = -1
"""The place of a token that is still being made; see `Span`."""


@dataclass(slots=True)
class SpanOutput:
    """`token` for `Want.TOKEN`; `logits` of shape (1, vocab) or (len(tokens), vocab) for the two wishes for logits."""

    token: int | None = None
    logits: FloatArray | None = None


class StepOutput(NamedTuple):
    """A step's outputs in the order of its spans, and the seconds it took by the device's own clock, if it has one."""

    spans: list[SpanOutput]
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """The type that a device keeps a model's matrices in, why, and about how many bytes all weights will take."""

    dtype: str
    bytes: int
    reason: str = ""


def not_finite(span: Span) -> NumericsError:
    """What `execute` raises for a span with a wanted logit that is NaN or infinite."""
    position = span.start + len(span.tokens) - 1
    return NumericsError(f"a logit at position {position} is NaN or infinite: the weights may be damaged")


class Device(ABC):
    """A program with its weights, ready to run. Not safe for use from two threads at once."""

    name: ClassVar[str]  # "reference", "cpu", "cuda"
    dtypes: ClassVar[tuple[str, ...]]  # the weight types that it has: "float32", "bfloat16", …
    dtype: str  # the one in use
    dtype_reason: str = ""  # why, or what it costs, where the file's values are not simply kept as asked
    isa: str | None = None  # the instruction set of its kernels; None: its libraries' choice
    threads: int | None = None  # None: its libraries' choice
    program: Program
    overlaps: ClassVar[bool] = (
        False  # `start` comes back before the step is done, and may be called again before `finish`
    )
    block_size_default: ClassVar[int] = 16  # tokens in a block of the KV pool that suit its kernels
    token_budget_default: ClassVar[int] = 512  # tokens a step that suit it, where a prompt is run in chunks
    batch_invariant: bool = True  # the same tokens whatever else is in the batch
    draws: ClassVar[bool] = False  # can draw a token by its probability, see `Span.draw`
    can_vary: ClassVar[bool] = False  # whether that may be switched off, for speed
    learns_shapes: ClassVar[bool] = False  # the first step of a shape takes longer than the next: it is compiled for it
    start_seconds: ClassVar[float] = 0.6  # that a process takes beside loading a model, about: Python, libraries
    warnings: tuple[str, ...] = ()  # what did not go as intended since the device was made, a sentence each

    @abstractmethod
    def __init__(self, program: Program, weights: Weights, dtype: str = "auto", threads: int | None = None) -> None:
        """Read a program's weights. `choose_device` has checked `dtype` and `threads`.

        Raises `NumericsError` with the tensor's name where a weight is NaN or infinite.
        """

    @classmethod
    def unavailable(cls) -> str | None:
        """Why this device cannot run here, and what to do about it; None where it can."""
        return None

    @classmethod
    @abstractmethod
    def plan(cls, program: Program, weights: Weights, dtype: str = "auto") -> WeightPlan:
        """How the device would keep these weights; reads none of them."""

    @abstractmethod
    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """Make the KV pool: `num_blocks` blocks of `block_size` tokens. Replaces an earlier pool and its contents."""

    @abstractmethod
    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:
        """Run one step; outputs in the order of the spans.

        Spans of one batch must own disjoint blocks. Raises `NumericsError` where a wanted logit is NaN or infinite.
        """

    def start(self, batch: Sequence[Span]) -> Any:
        """Begin a step; what comes back is for `finish`, which has to be called once for each step, in their order.

        Where the device `overlaps`, one more step may be started before the one before is finished; else the step is
        done when this returns. Raises as `execute`; a device that overlaps may raise in `finish` instead. It has read
        the block tables when this returns: they change after it.
        """
        return StepOutput(self.execute(batch))

    def finish(self, started: Any) -> StepOutput:
        """Wait for a step that was started."""
        assert isinstance(started, StepOutput)
        return started

    @classmethod
    def free_memory(cls) -> int | None:
        """Bytes that weights and KV pool may still take where this device keeps them; None: main memory."""
        return None

    @property
    @abstractmethod
    def kv_bytes_per_token(self) -> int:
        """Bytes that one token's keys and values take in the pool, all layers together."""

    @property
    @abstractmethod
    def weight_bytes(self) -> int:
        """Bytes that the weights take in the device's memory."""

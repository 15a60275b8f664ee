"""A model as a list of operations, each of which knows what it costs.

`models/` emit a `Program`; `devices/` execute it; floors and rooflines follow from its costs. The list is flat:
a dozen kinds of operation over named buffers and named weights. The number of rows is left open: a buffer is a
matrix with one row for each token of a step ("tokens"), or one for each position whose logits are wanted
("outputs").

Costs count what cannot be avoided: a multiply-add is 2 FLOPs; each weight is read once a step, whatever the number
of rows; keys and values are read once for each request's context and written once; activations are counted apart,
because on most machines they stay in a cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

Activation = Literal["silu", "gelu_tanh", "relu"]
RowsOf = Literal["tokens", "outputs"]


# --- what a step looks like, for costs ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpanShape:
    """One request's part of a step: `new` tokens run after `cached` earlier ones, `outputs` logits are wanted."""

    new: int
    cached: int = 0
    outputs: int = 1

    @property
    def attended(self) -> int:
        """Pairs of query and key under the causal mask."""
        return self.new * self.cached + self.new * (self.new + 1) // 2


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step runs."""

    spans: tuple[SpanShape, ...]

    @classmethod
    def decode(cls, batch: int, context: int) -> StepShape:
        """`batch` requests, one new token each, `context` tokens of each (the new one included)."""
        return cls((SpanShape(new=1, cached=context - 1),) * batch)

    @classmethod
    def prefill(cls, tokens: int) -> StepShape:
        """One request's whole prompt."""
        return cls((SpanShape(new=tokens),))

    @property
    def tokens(self) -> int:
        """Rows of the step."""
        return sum(span.new for span in self.spans)

    @property
    def outputs(self) -> int:
        """Rows whose logits are wanted."""
        return sum(span.outputs for span in self.spans)

    @property
    def attended(self) -> int:
        """Pairs of query and key, all requests together."""
        return sum(span.attended for span in self.spans)

    @property
    def context(self) -> int:
        """Tokens whose keys and values are read, each request's counted once."""
        return sum(span.cached + span.new for span in self.spans)


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes of one element: a weight, a cached key or value, an activation."""

    weight: float = 4.0
    kv: float = 4.0
    activation: float = 4.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one operation, or a whole step, has to do and to move."""

    flops: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes that come from memory: weights and KV cache, without the activations."""
        return self.weight_bytes + self.kv_bytes

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.kv_bytes + other.kv_bytes,
            self.activation_bytes + other.activation_bytes,
        )


# --- what the operations work on ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Buffer:
    """A matrix of activations: one row a token or a wanted output, `width` columns."""

    width: int
    rows: RowsOf = "tokens"

    def count(self, shape: StepShape) -> int:
        """Rows in a step."""
        return shape.tokens if self.rows == "tokens" else shape.outputs


@dataclass(frozen=True, slots=True)
class WeightSpec:
    """A weight that a program needs, and where a checkpoint keeps it.

    `shape` is how operations see it: (outputs, inputs) for a matrix, (width,) for a vector. It is read from the
    checkpoint's tensor `source`; `transposed` if that one is stored as (inputs, outputs); `part` (start, stop) takes
    these outputs only, where one stored tensor holds several weights.
    """

    shape: tuple[int, ...]
    source: str
    transposed: bool = False
    part: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021): dimension i of a head turns with `inverse_frequencies[i]`.

    The two halves of a head form the pairs (i, i + head_dim/2), as in Hugging Face checkpoints.
    """

    inverse_frequencies: tuple[float, ...]


# --- the operations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Op(ABC):
    """Base of all operations."""

    @abstractmethod
    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """FLOPs and bytes of this operation in a step of this shape."""


@dataclass(frozen=True, slots=True)
class Embed(Op):
    """out = weight[token] (+ position_weight[position])."""

    out: str
    weight: str
    position_weight: str | None = None

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """Only the looked-up rows are read."""
        tables = 1 if self.position_weight is None else 2
        elements = shape.tokens * program.buffers[self.out].width
        return Cost(
            flops=elements * (tables - 1),
            weight_bytes=elements * tables * widths.weight,
            activation_bytes=elements * widths.activation,
        )


@dataclass(frozen=True, slots=True)
class Norm(Op):
    """out = x normalized over each group of `len(weight)` columns, times weight (+ bias).

    `kind` "rms" is Zhang & Sennrich 2019, "layer" is Ba et al. 2016. A group is the whole row, or one head where
    queries and keys are normalized head by head (Qwen3).
    """

    kind: Literal["rms", "layer"]
    out: str
    x: str
    weight: str
    eps: float
    bias: str | None = None

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """About five FLOPs an element; the weights are a vector."""
        elements = program.elements(self.x, shape)
        vectors = 1 if self.bias is None else 2
        return Cost(
            flops=5 * elements,
            weight_bytes=vectors * program.weights[self.weight].size * widths.weight,
            activation_bytes=2 * elements * widths.activation,
        )


@dataclass(frozen=True, slots=True)
class Linear(Op):
    """out = x @ weight.T (+ bias) (then the activation) (+ residual)."""

    out: str
    x: str
    weight: str
    bias: str | None = None
    activation: Activation | None = None
    residual: str | None = None

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """2 x rows x weights FLOPs; the weights are read once."""
        weights = program.weights[self.weight].size
        rows = program.buffers[self.x].count(shape)
        stored = weights + (program.weights[self.bias].size if self.bias else 0)
        moved = program.elements(self.x, shape) + program.elements(self.out, shape) * (2 if self.residual else 1)
        return Cost(
            flops=2 * rows * weights,
            weight_bytes=stored * widths.weight if rows else 0.0,
            activation_bytes=moved * widths.activation,
        )


@dataclass(frozen=True, slots=True)
class WriteKV(Op):
    """Turn q and k by their positions (in place, where there is a rope), then write k and v into the KV cache."""

    layer: int
    q: str
    k: str
    v: str
    rope: Rope | None = None

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """Six FLOPs for each turned pair; one write of k and v."""
        turned = program.elements(self.q, shape) + program.elements(self.k, shape) if self.rope else 0
        written = program.elements(self.k, shape) + program.elements(self.v, shape)
        return Cost(
            flops=3 * turned,
            kv_bytes=written * widths.kv,
            activation_bytes=(2 * turned + written) * widths.activation,
        )


@dataclass(frozen=True, slots=True)
class Attention(Op):
    """out = softmax(q k^T x scale, causal) v over the KV cache of the same layer; heads share keys in groups (GQA)."""

    layer: int
    out: str
    q: str
    k: str
    v: str
    scale: float

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """Two products over all query-key pairs; the context's keys and values are read once."""
        q_width, kv_width = program.buffers[self.q].width, program.buffers[self.k].width
        heads = q_width // program.head_dim
        return Cost(
            flops=shape.attended * (4 * q_width + 5 * heads),
            kv_bytes=2 * shape.context * kv_width * widths.kv,
            activation_bytes=2 * program.elements(self.q, shape) * widths.activation,
        )


@dataclass(frozen=True, slots=True)
class Gate(Op):
    """out = activation(gate) * up (gated linear unit, Shazeer 2020)."""

    out: str
    gate: str
    up: str
    activation: Activation

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """About six FLOPs an element."""
        elements = program.elements(self.out, shape)
        return Cost(flops=6 * elements, activation_bytes=3 * elements * widths.activation)


@dataclass(frozen=True, slots=True)
class SelectOutputs(Op):
    """out = the rows of x whose logits are wanted; everything after it works on these rows only."""

    out: str
    x: str

    def cost(self, program: Program, shape: StepShape, widths: Widths) -> Cost:
        """A copy."""
        return Cost(activation_bytes=2 * program.elements(self.out, shape) * widths.activation)


# --- the program -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A model: operations in order, the buffers and weights they name, and the shape of the KV cache.

    The buffer "logits" holds the result. `positions` is the longest context that the model was made for.
    """

    architecture: str
    ops: tuple[Op, ...]
    buffers: Mapping[str, Buffer]
    weights: Mapping[str, WeightSpec]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    positions: int

    @cached_property
    def parameters(self) -> int:
        """Number of weights, a tied embedding counted once."""
        return sum(spec.size for spec in self.weights.values())

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of the KV cache that one token takes, all layers together."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def elements(self, buffer: str, shape: StepShape) -> int:
        """Elements of a buffer in a step."""
        found = self.buffers[buffer]
        return found.count(shape) * found.width

    def cost(self, shape: StepShape, widths: Widths = Widths()) -> Cost:
        """What a whole step costs."""
        return sum_costs([op.cost(self, shape, widths) for op in self.ops])


def sum_costs(costs: Sequence[Cost]) -> Cost:
    """All costs together."""
    return sum(costs, start=Cost())

"""The reference device: NumPy in float32. The readable truth that other devices are tested against.

It interprets the program operation by operation. Linear layers are BLAS calls, everything else is a few lines of
NumPy, so that one can read how a decoder-only transformer runs with a paged KV cache. It does not promise the same
bits for a row whatever the batch, because BLAS sums in another order for another number of rows; the logits agree
to float32 rounding.

The rows of a step are the tokens of all spans, one span after another. A KV pool is one matrix a layer and kind,
with a row ("slot") for each token that fits: token `i` of a request is in slot
`block_table[i // block_size] * block_size + i % block_size`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

from knee.devices.base import Device, FloatArray, Span, SpanOutput, Want, Weight, WeightPlan, Weights, not_finite
from knee.errors import UserError
from knee.machine import usable_cores
from knee.program import (
    Activation,
    Attention,
    Embed,
    Gate,
    Linear,
    Norm,
    Op,
    Program,
    Rope,
    SelectOutputs,
    WriteKV,
)

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

# Queries that attend in one go: bounds the matrix of scores to heads x 128 x context.
_QUERY_BLOCK = 128


@dataclass(frozen=True, slots=True)
class _SpanRows:
    """Where one span's rows stand in the step, and where its keys and values are in the pool."""

    span: Span
    rows: slice
    slots: IntArray | slice | None  # of the whole context, new tokens included; None: keep nothing

    @property
    def context(self) -> int:
        return self.span.start + len(self.span.tokens)


class _Step:
    """What all operations of one step need to know, worked out once."""

    def __init__(self, batch: Sequence[Span], block_size: int) -> None:
        self.spans = _lay_out(batch, block_size)
        self.tokens = np.array([token for span in batch for token in span.tokens], dtype=np.int64)
        self.positions = np.concatenate([np.arange(s.start, s.start + len(s.tokens)) for s in batch])
        self.new_slots = _new_slots(self.spans)
        self.output_rows = np.array([row for item in self.spans for row in _wanted_rows(item)], dtype=np.int64)
        self.buffers: dict[str, FloatArray] = {}
        self._turns: dict[int, tuple[FloatArray, FloatArray]] = {}

    def turns(self, rope: Rope) -> tuple[FloatArray, FloatArray]:
        """Cosine and sine of each row's angles, (rows, 1, head_dim / 2); the same for all layers."""
        if id(rope) not in self._turns:
            frequencies = np.array(rope.inverse_frequencies, dtype=np.float32)
            angles = self.positions[:, None, None].astype(np.float32) * frequencies
            self._turns[id(rope)] = np.cos(angles), np.sin(angles)
        return self._turns[id(rope)]


def _lay_out(batch: Sequence[Span], block_size: int) -> list[_SpanRows]:
    spans, first = [], 0
    for span in batch:
        rows = slice(first, first + len(span.tokens))
        spans.append(_SpanRows(span, rows, _slots(span, block_size)))
        first = rows.stop
    return spans


def _slots(span: Span, block_size: int) -> IntArray | slice | None:
    """Slots of a span's whole context; a slice where the blocks follow each other, so that no copy is needed."""
    if not span.block_table:
        return None
    context = span.start + len(span.tokens)
    blocks = np.array(span.block_table[: -(-context // block_size)], dtype=np.int64)
    if (np.diff(blocks) == 1).all():
        first = int(blocks[0]) * block_size
        return slice(first, first + context)
    return (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[:context]


def _new_slots(spans: Sequence[_SpanRows]) -> IntArray | None:
    """Slots that the step's rows are written to; None with the KV cache off."""
    if any(item.slots is None for item in spans):
        return None
    parts = []
    for item in spans:
        slots = np.arange(item.slots.start, item.slots.stop) if isinstance(item.slots, slice) else item.slots
        assert slots is not None
        parts.append(slots[item.span.start :])
    return np.concatenate(parts)


def _wanted_rows(item: _SpanRows) -> range:
    if item.span.want is Want.NOTHING:
        return range(0)
    return range(item.rows.start if item.span.want is Want.ALL_LOGITS else item.rows.stop - 1, item.rows.stop)


class ReferenceDevice(Device):
    """Runs a program with NumPy. See the module's text."""

    name = "reference"
    dtypes = ("float32",)

    def __init__(
        self,
        program: Program,
        weights: Weights,
        dtype: str = "auto",  # noqa: ARG002  it has only one
        threads: int | None = None,
    ) -> None:
        if threads is not None:
            _limit_threads(threads)
        self.dtype = "float32"
        self.threads = threads
        self.program = program
        self.weights = _read_all(weights, threads)
        self.block_size = 1
        self.keys: list[FloatArray] = []
        self.values: list[FloatArray] = []
        self._kernels: dict[type[Op], Callable[[Any, _Step], None]] = {
            Embed: self._embed,
            Norm: self._norm,
            Linear: self._linear,
            WriteKV: self._write_kv,
            Attention: self._attention,
            Gate: self._gate,
            SelectOutputs: self._select,
        }

    @classmethod
    def plan(cls, program: Program, weights: Weights, dtype: str = "auto") -> WeightPlan:  # noqa: ARG003  it has only one
        """Everything in float32."""
        return WeightPlan("float32", 4 * program.parameters)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values in float32."""
        return 4 * self.program.kv_elements_per_token

    @property
    def weight_bytes(self) -> int:
        """All weights in float32."""
        return sum(weight.nbytes for weight in self.weights.values())

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """One matrix of keys and one of values a layer; the operating system gives pages as they are written."""
        width = self.program.kv_heads * self.program.head_dim
        self.block_size = block_size
        for pool in (self.keys, self.values):
            pool.clear()
            pool.extend(np.zeros((num_blocks * block_size, width), np.float32) for _ in range(self.program.layers))

    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:
        """Interpret the program over the rows of all spans."""
        step = _Step(batch, self.block_size)
        # Overflow to infinity is well defined here, and caught where it reaches a logit.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for op in self.program.ops:
                self._kernels[type(op)](op, step)
        return _outputs(step)

    def _embed(self, op: Embed, step: _Step) -> None:
        x = self.weights[op.weight][step.tokens]
        if op.position_weight is not None:
            x += self.weights[op.position_weight][step.positions]
        step.buffers[op.out] = x

    def _norm(self, op: Norm, step: _Step) -> None:
        x, weight = step.buffers[op.x], self.weights[op.weight]
        groups = x.reshape(len(x), x.shape[1] // weight.size, weight.size)
        if op.kind == "layer":
            groups = groups - groups.mean(axis=-1, keepdims=True)
        variance = np.square(groups).mean(axis=-1, keepdims=True)
        normed = groups / np.sqrt(variance + np.float32(op.eps)) * weight
        if op.bias is not None:
            normed += self.weights[op.bias]
        step.buffers[op.out] = normed.reshape(x.shape)

    def _linear(self, op: Linear, step: _Step) -> None:
        out = step.buffers[op.x] @ self.weights[op.weight].T
        if op.bias is not None:
            out += self.weights[op.bias]
        if op.activation is not None:
            out = _ACTIVATE[op.activation](out)
        if op.residual is not None:
            out += step.buffers[op.residual]
        step.buffers[op.out] = out

    def _write_kv(self, op: WriteKV, step: _Step) -> None:
        if op.rope is not None:
            for name in (op.q, op.k):
                step.buffers[name] = self._turn(step.buffers[name], *step.turns(op.rope))
        if step.new_slots is not None:
            self.keys[op.layer][step.new_slots] = step.buffers[op.k]
            self.values[op.layer][step.new_slots] = step.buffers[op.v]

    def _turn(self, x: FloatArray, cos: FloatArray, sin: FloatArray) -> FloatArray:
        """Rotate the pairs (i, i + head_dim/2) of every head."""
        heads = x.reshape(len(x), -1, self.program.head_dim)
        half = self.program.head_dim // 2
        first, second = heads[..., :half], heads[..., half:]
        turned = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
        return turned.reshape(x.shape)

    def _attention(self, op: Attention, step: _Step) -> None:
        q = step.buffers[op.q]
        out = np.empty_like(q)
        for item in step.spans:
            if item.slots is None:
                keys, values = step.buffers[op.k][item.rows], step.buffers[op.v][item.rows]
            else:
                keys, values = self.keys[op.layer][item.slots], self.values[op.layer][item.slots]
            self._attend(q[item.rows], keys, values, item.span.start, op.scale, out[item.rows])
        step.buffers[op.out] = out

    def _attend(
        self, q: FloatArray, keys: FloatArray, values: FloatArray, start: int, scale: float, out: FloatArray
    ) -> None:
        """One span: q (new, heads x dim) over keys and values (context, kv_heads x dim), into out."""
        kv_heads, dim = self.program.kv_heads, self.program.head_dim
        k = keys.reshape(-1, kv_heads, dim).transpose(1, 2, 0)
        v = values.reshape(-1, kv_heads, dim).transpose(1, 0, 2)
        for first in range(0, len(q), _QUERY_BLOCK):
            block = slice(first, min(first + _QUERY_BLOCK, len(q)))
            rows, seen = block.stop - block.start, start + block.stop
            # (kv_heads, group x rows, dim): the heads that share a key head become rows of one product.
            grouped = q[block].reshape(rows, kv_heads, -1, dim).transpose(1, 2, 0, 3).reshape(kv_heads, -1, dim)
            scores: FloatArray = np.matmul(grouped, k[..., :seen])
            scores *= scale
            if rows > 1:
                scores.reshape(kv_heads, -1, rows, seen)[..., _future(rows, seen)] = -np.inf
            mixed = _softmax(scores) @ v[:, :seen]
            out[block] = mixed.reshape(kv_heads, -1, rows, dim).transpose(2, 0, 1, 3).reshape(rows, -1)

    def _gate(self, op: Gate, step: _Step) -> None:
        step.buffers[op.out] = _ACTIVATE[op.activation](step.buffers[op.gate]) * step.buffers[op.up]

    def _select(self, op: SelectOutputs, step: _Step) -> None:
        step.buffers[op.out] = step.buffers[op.x][step.output_rows]


def _read_all(weights: Weights, threads: int | None) -> dict[str, FloatArray]:
    """All weights in float32, read by a few threads, the largest first, so that the threads end together.

    NumPy lets go of the interpreter's lock while it decodes; a thread needs little memory beside its result.
    """

    def read(item: tuple[str, Weight]) -> tuple[str, FloatArray]:
        name, weight = item
        values = weight.read()
        weight.release()
        return name, values

    largest_first = sorted(weights.items(), key=lambda item: -item[1].spec.size)
    with ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="load") as pool:
        values = dict(pool.map(read, largest_first))
    return {name: values[name] for name in weights}


def _limit_threads(threads: int) -> None:
    if not any(pool["user_api"] == "blas" for pool in threadpool_info()):
        raise UserError("this NumPy's BLAS (Accelerate, perhaps) cannot be told its number of threads: omit --threads")
    threadpool_limits(limits=threads, user_api="blas")


def _future(rows: int, seen: int) -> BoolArray:
    """(rows, seen): which keys come after each of the last `rows` of `seen` positions."""
    return ~np.tri(rows, seen, seen - rows, dtype=np.bool_)


def _softmax(scores: FloatArray) -> FloatArray:
    weights: FloatArray = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _silu(x: FloatArray) -> FloatArray:
    out: FloatArray = x / (1 + np.exp(-x))
    return out


def _gelu_tanh(x: FloatArray) -> FloatArray:
    """The tanh approximation of Hendrycks & Gimpel 2016, as GPT-2 uses it."""
    out: FloatArray = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return out


def _relu(x: FloatArray) -> FloatArray:
    out: FloatArray = np.maximum(x, 0)
    return out


_ACTIVATE: dict[Activation, Callable[[FloatArray], FloatArray]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}


def _outputs(step: _Step) -> list[SpanOutput]:
    """Hand each span the rows of "logits" that it wanted."""
    logits, outputs, first = step.buffers["logits"], [], 0
    for item in step.spans:
        rows = logits[first : first + len(_wanted_rows(item))]
        first += len(rows)
        outputs.append(_output(item.span, rows))
    return outputs


def _output(span: Span, logits: FloatArray) -> SpanOutput:
    if span.want is Want.NOTHING:
        return SpanOutput()
    if not np.isfinite(logits).all():
        raise not_finite(span)
    if span.want is Want.TOKEN:
        return SpanOutput(token=int(logits[-1].argmax()))
    return SpanOutput(logits=logits)

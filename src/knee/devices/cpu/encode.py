"""Hands a program with its weights to the native code, once: a call for each weight, buffer and operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from knee.devices.base import FloatArray, Weights
from knee.devices.cpu.dtypes import FOUR_BITS
from knee.devices.fuse import RESULT, FusedLinear, FusedOp, fuse
from knee.errors import UserError
from knee.program import Attention, Embed, Gate, Norm, Op, Program, Rope, SelectOutputs, WriteKV

if TYPE_CHECKING:
    from knee.devices.cpu import _native

_NO_VIEW = (-1, 0, 0)
_NONE = -1


def encode(model: _native.Model, program: Program, weights: Weights, keep: Mapping[str, str]) -> None:
    """Pack the weights as `keep` says of each matrix, and write down the fused operations.

    Raises `NumericsError` with the tensor's name where a weight is NaN or infinite.
    """
    # 4-bit blocks are kept with their minimum, in int8 too: others beside them would be rounded to their 16 values.
    kinds = {name: (kept, weights[name].storage in FOUR_BITS) for name, kept in keep.items()}
    ops = fuse(program, kinds)
    encoder = _Encoder(model, program, weights, keep, _neighbours(ops))
    for op in ops:
        encoder.add(op)


def _neighbours(ops: Sequence[FusedOp]) -> dict[str, tuple[str, ...]]:
    """For each buffer that a fused layer writes beside others: all of them, in their order."""
    return {name: op.writes for op in ops if isinstance(op, FusedLinear) for name in op.writes if len(op.writes) > 1}


@dataclass(slots=True)
class _Encoder:
    """Ids of what the model has been given already."""

    model: _native.Model
    program: Program
    weights: Weights
    keep: Mapping[str, str]
    neighbours: Mapping[str, tuple[str, ...]]
    buffers: dict[tuple[str, ...], int] = field(default_factory=dict)
    matrices: dict[tuple[str, ...], int] = field(default_factory=dict)
    ropes: dict[Rope, int] = field(default_factory=dict)

    def add(self, op: FusedOp) -> None:
        """One operation, with the weights and buffers that it needs."""
        view = self._view
        match op:
            case Embed():
                table = _NONE if op.position_weight is None else self.model.table(self._read(op.position_weight))
                self.model.embed(view(op.out), self._matrix((op.weight,)), table)
            case Norm():
                weight, bias = self._vector(op.weight), self._vector(op.bias)
                self.model.norm(view(op.out), view(op.x), op.kind, weight, bias, op.eps)
            case FusedLinear() if op.writes == (RESULT,):
                self._logits(op)
            case FusedLinear():
                self._linear(op)
            case WriteKV():
                self.model.write_kv(op.layer, view(op.q), view(op.k), view(op.v), self._rope(op.rope))
            case Attention():
                self.model.attention(op.layer, view(op.out), view(op.q), view(op.k), view(op.v), op.scale)
            case SelectOutputs():
                self.model.select_outputs(view(op.out), view(op.x))
            case _:
                raise _unknown(op)

    def _linear(self, op: FusedLinear) -> None:
        first = op.parts[0]
        self.model.linear(
            self._view(first.out),
            self._prologue(op),
            self._matrix(tuple(part.weight for part in op.parts)),
            self._bias(op),
            first.activation or "",
            None if first.residual is None else self._view(first.residual),
        )

    def _logits(self, op: FusedLinear) -> None:
        [part] = op.parts
        if part.activation is not None or part.residual is not None:
            raise _unknown(part)
        matrix, vocab = self._matrix((part.weight,)), self.program.buffers[RESULT].width
        self.model.logits(self._prologue(op), matrix, self._bias(op), vocab)

    def _prologue(self, op: FusedLinear) -> _native.Prologue:
        match op.prologue:
            case None:
                return ("copy", self._view(op.parts[0].x), _NO_VIEW, _NONE, _NONE, 0.0, "")
            case Norm() as norm:
                weight, bias = self._vector(norm.weight), self._vector(norm.bias)
                return (norm.kind, self._view(norm.x), _NO_VIEW, weight, bias, norm.eps, "")
            case Gate() as gate:
                return ("gate", self._view(gate.gate), self._view(gate.up), _NONE, _NONE, 0.0, gate.activation)

    # --- buffers -------------------------------------------------------------------------------------------------

    def _view(self, name: str) -> _native.View:
        """Where a buffer is. Those that one layer writes are parts of one buffer, each from a fresh panel on."""
        group = self.neighbours.get(name, (name,))
        if group not in self.buffers:
            width = sum(self._padded(self._width(one)) for one in group)
            self.buffers[group] = self.model.buffer(width, self.program.buffers[name].rows == "outputs")
        column = sum(self._padded(self._width(one)) for one in group[: group.index(name)])
        return (self.buffers[group], column, self._width(name))

    def _width(self, name: str) -> int:
        return self.program.buffers[name].width

    def _padded(self, width: int) -> int:
        panel = self.model.panel
        return -(-width // panel) * panel

    # --- weights -------------------------------------------------------------------------------------------------

    def _matrix(self, names: tuple[str, ...]) -> int:
        """A tied embedding is the matrix of the logits too."""
        if names not in self.matrices:
            self.matrices[names] = self._pack(names)
            for name in names:
                self.weights[name].release()
        return self.matrices[names]

    def _pack(self, names: tuple[str, ...]) -> int:
        keep = self.keep[names[0]]
        try:
            return self.model.matrix([self.weights[name].stored() for name in names], keep)
        except ValueError as error:
            for name in names:
                self.weights[name].read()  # says which tensor is not finite
            sources = ", ".join(self.weights[name].spec.source for name in names)
            raise UserError(f"{sources}: cannot be kept in {keep} ({error}): use --dtype float32") from error

    def _bias(self, op: FusedLinear) -> int:
        """The parts' biases with zeros where the matrix has padding, or where a part has none."""
        if all(part.bias is None for part in op.parts):
            return _NONE
        padded = []
        for part in op.parts:
            width = self._width(part.out)
            bias = np.zeros(self._padded(width), np.float32)
            if part.bias is not None:
                bias[:width] = self._read(part.bias)
            padded.append(bias)
        return self.model.vector(np.concatenate(padded))

    def _vector(self, name: str | None) -> int:
        return _NONE if name is None else self.model.vector(self._read(name))

    def _read(self, name: str) -> FloatArray:
        values = self.weights[name].read()
        self.weights[name].release()
        return values

    def _rope(self, rope: Rope | None) -> int:
        if rope is None:
            return _NONE
        if rope not in self.ropes:
            self.ropes[rope] = self.model.rope(np.array(rope.inverse_frequencies, np.float32))
        return self.ropes[rope]


def _unknown(op: Op | FusedLinear) -> UserError:
    return UserError(f"device cpu has no {op} of its own: use --device reference")

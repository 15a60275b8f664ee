"""Weights on the device: matrices padded for the kernels, side by side where layers were fused; vectors in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from knee.devices.base import Weight, Weights
from knee.devices.cuda.tiling import padded
from knee.errors import NumericsError, UserError

TORCH_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.bfloat16}
_DIRECT = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weights (outputs, padded inputs); `scale` (outputs) where they are int8."""

    data: Tensor
    scale: Tensor | None


@dataclass(slots=True)
class Store:
    """Reads each weight once, in the order in which they are asked for."""

    weights: Weights
    dtype: str
    device: torch.device
    matrices: dict[tuple[str, ...], Matrix] = field(default_factory=dict)
    vectors: dict[tuple[str | None, ...], Tensor] = field(default_factory=dict)

    def matrix(self, *names: str) -> Matrix:
        """The outputs of several weights, one after another."""
        if names not in self.matrices:
            self.matrices[names] = self._pack(names)
        return self.matrices[names]

    def vector(self, *names: str | None, width: int | None = None, sizes: Sequence[int] = ()) -> Tensor | None:
        """Several vectors one after another, then zeros up to `width`. None where all are; zeros for one of them."""
        if all(name is None for name in names):
            return None
        if names not in self.vectors:
            made = [
                torch.zeros(size, device=self.device) if name is None else self._read(name).float()
                for name, size in zip(names, sizes or [0] * len(names), strict=True)
            ]
            joined = torch.cat([one.reshape(-1) for one in made])
            self.vectors[names] = torch.nn.functional.pad(joined, (0, (width or len(joined)) - len(joined)))
        return self.vectors[names]

    def table(self, name: str) -> Tensor:
        """A matrix of float32 that is only looked up: learned positions."""
        if (name,) not in self.vectors:
            self.vectors[(name,)] = self._read(name).float().contiguous()
        return self.vectors[(name,)]

    @property
    def bytes(self) -> int:
        """Of everything read so far."""
        kept = [*self.vectors.values()]
        for matrix in self.matrices.values():
            kept += [matrix.data] if matrix.scale is None else [matrix.data, matrix.scale]
        return sum(tensor.nbytes for tensor in kept)

    def _pack(self, names: tuple[str, ...]) -> Matrix:
        rows = sum(self.weights[name].spec.shape[0] for name in names)
        inputs = self.weights[names[0]].spec.shape[1]
        int8 = self.dtype == "int8"
        kept = torch.int8 if int8 else TORCH_TYPES[self.dtype]
        data = torch.zeros((rows, padded(inputs)), dtype=kept, device=self.device)
        scale = torch.empty(rows, device=self.device) if int8 else None
        first = 0
        for name in names:
            values = self._read(name)
            part = slice(first, first + len(values))
            if scale is not None:
                values = values.float()
                largest = values.abs().amax(dim=1)
                scale[part] = torch.where(largest > 0, largest / 127, 1.0)
                values = torch.round(values / scale[part, None]).clamp(-127, 127)
            data[part, :inputs] = values.to(kept)
            if kept is torch.float16 and not bool(torch.isfinite(data[part]).all()):
                raise UserError(f"tensor {name} has values that float16 does not hold: use --dtype bfloat16")
            first = part.stop
        return Matrix(data, scale)

    def _read(self, name: str) -> Tensor:
        """A weight on the device in some float type. Raises `NumericsError` where it is not finite."""
        weight = self.weights[name]
        values = _as_stored(weight)
        if values is None:
            values = torch.from_numpy(np.ascontiguousarray(weight.read()))
        values = values.to(self.device)
        if not bool(torch.isfinite(values).all()):
            raise NumericsError(f"tensor {weight.spec.source} holds NaN or infinite values: the file may be damaged")
        weight.release()
        return values


def _as_stored(weight: Weight) -> Tensor | None:
    """The file's own bytes where torch knows their type; they are copied on the way to the device."""
    if weight.storage not in _DIRECT:
        return None
    stored = weight.stored()
    if stored.storage != weight.storage:
        return None
    whole = torch.from_numpy(np.array(stored.data)).view(_DIRECT[weight.storage]).reshape(stored.rows, stored.columns)
    part = whole[:, stored.begin : stored.end].T if stored.transposed else whole[stored.begin : stored.end]
    return part.reshape(weight.spec.shape)

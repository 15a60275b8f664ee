"""Weights that lie in memory, for devices in tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from knee.devices.base import FloatArray, StoredWeight, Weight
from knee.program import Program, WeightSpec


@dataclass(frozen=True, slots=True)
class ArrayWeight:
    """Float32 values, handed out without a look at them."""

    spec: WeightSpec
    values: FloatArray
    storage: str = "F32"

    def read(self) -> FloatArray:
        return self.values

    def stored(self) -> StoredWeight:
        rows = len(self.values)
        data = np.ascontiguousarray(self.values).view(np.uint8).reshape(-1)
        return StoredWeight(data, "F32", rows, self.values.size // rows, False, 0, rows)

    def release(self) -> None:
        pass


def array_weights(program: Program, values: Mapping[str, FloatArray]) -> dict[str, Weight]:
    """These values as the weights of a program."""
    return {name: ArrayWeight(spec, values[name]) for name, spec in program.weights.items()}


def random_values(program: Program, seed: int = 0) -> dict[str, FloatArray]:
    """Standard normal numbers for every weight."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(spec.shape, dtype=np.float32) for name, spec in program.weights.items()}

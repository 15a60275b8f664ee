"""In which types the cpu device keeps a model's matrices. Vectors and position tables are always float32.

int8 is a scale for every 32 weights (and, for files of Q4_1, a minimum); int4 a scale and a minimum for every 32: what
GGUF calls Q8_0 and Q4_1, and Q4_0 with a minimum. So the values of such files are kept as they are, and `--dtype auto`
takes the narrowest type that does so. A token embedding or output matrix suffers most from rounding: int4 keeps it in
int8 unless its file has it in four bits already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

from knee.devices.base import Weight, WeightPlan, Weights
from knee.devices.fuse import RESULT
from knee.program import Embed, Linear, Program

Dtype = Literal["float32", "bfloat16", "int8", "int4"]

# Bytes of a weight, scales and padding included.
_BYTES: dict[Dtype, float] = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.13, "int4": 0.63}
FOUR_BITS = {"Q4_0", "Q4_1"}
# The storage types that each type holds without loss; float32 holds all of them.
_EXACT: dict[Dtype, set[str]] = {"int4": FOUR_BITS, "int8": {"Q8_0", *FOUR_BITS}, "bfloat16": {"BF16"}}


@dataclass(frozen=True, slots=True)
class CpuPlan(WeightPlan):
    """And the type of each matrix."""

    keep: Mapping[str, Dtype] = field(default_factory=dict)


def plan_dtypes(program: Program, weights: Weights, dtype: str) -> CpuPlan:
    """How to keep a program's weights. `dtype` is "auto" or one that the device has."""
    matrices = {name: weights[name] for name in _matrices(program)}
    chosen = _narrowest({weight.storage for weight in matrices.values()}) if dtype == "auto" else _checked(dtype)
    ends = _ends(program)
    keep = {name: _kept(weight, chosen, name in ends) for name, weight in matrices.items()}
    size = sum(spec.size * _BYTES[keep.get(name, "float32")] for name, spec in program.weights.items())
    return CpuPlan(chosen, ceil(size), _reason(dtype, matrices, keep), keep)


def _matrices(program: Program) -> list[str]:
    names = [op.weight for op in program.ops if isinstance(op, Embed | Linear)]
    return list(dict.fromkeys(names))


def _ends(program: Program) -> set[str]:
    """The weights that turn tokens into rows, and rows into logits."""
    return {op.weight for op in program.ops if isinstance(op, Embed) or (isinstance(op, Linear) and op.out == RESULT)}


def _narrowest(storages: set[str]) -> Dtype:
    if not storages:
        return "float32"
    if storages <= {"Q8_0"}:
        return "int8"
    if storages <= _EXACT["int8"]:  # int4 keeps what is stored in eight bits in eight
        return "int4"
    return "bfloat16" if storages <= _EXACT["bfloat16"] else "float32"


def _checked(dtype: str) -> Dtype:
    return next(known for known in _BYTES if known == dtype)


def _kept(weight: Weight, dtype: Dtype, is_end: bool) -> Dtype:
    if dtype != "int4" or weight.storage in FOUR_BITS:
        return dtype
    return "int8" if is_end or weight.storage == "Q8_0" else "int4"


def _reason(dtype: str, matrices: Weights, keep: Mapping[str, Dtype]) -> str:
    if dtype == "auto":
        return f"the narrowest type that holds the file's {_listed(matrices.values())} without loss"
    rounded = [
        weight
        for name, weight in matrices.items()
        if keep[name] != "float32" and weight.storage not in _EXACT[keep[name]]
    ]
    return f"rounded from the file's {_listed(rounded)}" if rounded else ""


def _listed(weights: Iterable[Weight]) -> str:
    """Storage types, the one with the most weights first."""
    sizes: dict[str, int] = {}
    for weight in weights:
        sizes[weight.storage] = sizes.get(weight.storage, 0) + weight.spec.size
    return ", ".join(sorted(sizes, key=lambda storage: -sizes[storage]))

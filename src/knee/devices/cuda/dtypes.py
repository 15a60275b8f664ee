"""In which type the cuda device keeps a model's matrices. Vectors are float32, activations of the weights' type.

int8 has a scale for every output; activations and KV cache are bfloat16 beside it.
"""

from __future__ import annotations

from math import ceil

from knee.devices.base import WeightPlan, Weights
from knee.devices.cuda.tiling import padded
from knee.program import Embed, Linear, Program

DTYPES = ("float32", "bfloat16", "float16", "int8")
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0}
_SCALES = 1.01  # scales and vectors that are kept twice
_EXACT = {"float32": None, "bfloat16": {"BF16"}, "float16": {"F16"}, "int8": set[str]()}  # None: all


def plan_dtype(program: Program, weights: Weights, dtype: str) -> WeightPlan:
    """How to keep a program's weights. `dtype` is "auto" or one that the device has."""
    storages = {weights[name].storage for name in matrices(program)}
    chosen = ("float16" if storages == {"F16"} else "bfloat16") if dtype == "auto" else dtype
    exact = _EXACT[chosen]
    rounded = set() if exact is None else storages - exact
    reason = f"rounded from the file's {', '.join(sorted(rounded))}" if rounded else ""
    if reason and dtype == "auto":
        reason += "; --dtype float32 keeps the values and is slower"
    kept = set(matrices(program))
    size = sum(
        spec.shape[0] * padded(spec.shape[1]) * _BYTES[chosen] if name in kept else spec.size * 4.0
        for name, spec in program.weights.items()
    )
    return WeightPlan(chosen, ceil(size * _SCALES), reason)


def matrices(program: Program) -> list[str]:
    """Weights that are kept in the chosen type."""
    return list(dict.fromkeys(op.weight for op in program.ops if isinstance(op, Embed | Linear)))

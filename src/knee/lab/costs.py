"""What a step must cost at least on this machine: the program's costs as a few numbers, and the two roofs above them.

A step's FLOPs and bytes are linear in what it runs, so a record keeps seven numbers and no program, and its floors can
be worked out again from the record alone. The roofline is that of Williams et al. 2009: a step takes as long as its
bytes at full bandwidth or its arithmetic at the full rate, whichever is longer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from knee.lab.gpu_speed import measure_gpu_roofs
from knee.lab.speed import Floor, measure_roofs
from knee.lab.sweep_records import CostModel, Limits
from knee.program import Cost, Program, SpanShape, StepShape, Widths

if TYPE_CHECKING:
    from knee.devices.cpu.dtypes import Dtype
    from knee.llm import LLM


# --- what a step has to do ---------------------------------------------------------------------------------------


def device_widths(llm: LLM) -> Widths:
    """Bytes of a weight and of a cached element as a loaded model's device keeps them, scales and padding included."""
    device, program = llm.device, llm.program
    return Widths(
        weight=device.weight_bytes / program.parameters,
        kv=device.kv_bytes_per_token / program.kv_elements_per_token,
    )


def cost_model(program: Program, widths: Widths) -> CostModel:
    """A program's costs for steps that want at least one row of logits, with the KV cache on.

    (Where no logits are wanted, the last matrix is not read: a chunk of a prompt that is not its last costs less.)
    """
    # Counted in elements, which floats hold exactly, and only then multiplied by their widths.
    one = Widths(weight=1.0, kv=1.0, activation=1.0)

    def cost(*spans: SpanShape) -> Cost:
        return program.cost(StepShape(spans), one)

    base = cost(SpanShape(new=1))
    again = _less(cost(SpanShape(new=1), SpanShape(new=1)), base)  # a token, an output, a pair, a token of context
    longer = _less(cost(SpanShape(new=1, cached=1)), base)  # a pair, a token of context
    per_output = _less(cost(SpanShape(new=2, outputs=2)), cost(SpanShape(new=2, outputs=1))).flops
    return CostModel(
        flops_per_token=again.flops - longer.flops - per_output,
        flops_per_output=per_output,
        flops_per_pair=longer.flops,
        weight_bytes=(base.weight_bytes - again.weight_bytes) * widths.weight,
        weight_bytes_per_token=again.weight_bytes * widths.weight,
        kv_bytes_per_token=(again.kv_bytes - longer.kv_bytes) * widths.kv,
        kv_bytes_per_context=longer.kv_bytes * widths.kv,
    )


def _less(cost: Cost, other: Cost) -> Cost:
    return Cost(
        cost.flops - other.flops,
        cost.weight_bytes - other.weight_bytes,
        cost.kv_bytes - other.kv_bytes,
        cost.activation_bytes - other.activation_bytes,
    )


def step_cost(costs: CostModel, *, tokens: float, outputs: float, pairs: float, context: float) -> Cost:
    """FLOPs and bytes of one step; activations, which stay in a cache, are not in the model."""
    return Cost(
        flops=tokens * costs.flops_per_token + outputs * costs.flops_per_output + pairs * costs.flops_per_pair,
        weight_bytes=costs.weight_bytes + tokens * costs.weight_bytes_per_token,
        kv_bytes=tokens * costs.kv_bytes_per_token + context * costs.kv_bytes_per_context,
    )


# --- how long that takes at least --------------------------------------------------------------------------------


def floor_of(costs: CostModel, limits: Limits, *, tokens: float, outputs: float, pairs: float, context: float) -> Floor:
    """The least time of a step. Both limits must be above 0."""
    cost = step_cost(costs, tokens=tokens, outputs=outputs, pairs=pairs, context=context)
    return Floor(cost.bytes / (limits.read_gb_s * 1e9), cost.flops / (limits.gflop_s * 1e9))


def roofline_batch(costs: CostModel, limits: Limits, context: float) -> float | None:
    """The number of decode rows, each with `context` tokens, at which arithmetic takes as long as reading.

    None where it never does: what a row reads of its own keys and values takes longer than its arithmetic.
    """
    if not limits.read_gb_s or not limits.gflop_s:
        return None
    none, row = (floor_of(costs, limits, tokens=n, outputs=n, pairs=n * context, context=n * context) for n in (0, 1))
    gained = row.arithmetic_s - (row.memory_s - none.memory_s)  # by a row's arithmetic on its reading
    return none.memory_s / gained if gained > 0 else None


# --- the machine's limits ----------------------------------------------------------------------------------------


def measure_limits(dtype: str, threads: int, device: str = "cpu") -> Limits:
    """The two roofs with so many threads and weights of this type, in about a second: the GPU's for its device."""
    if device == "cuda":
        read, arithmetic = measure_gpu_roofs(dtype)
    else:
        read, arithmetic = measure_roofs(cast("Dtype", dtype), threads)
    how = " · ".join(dict.fromkeys((read.how, arithmetic.how)))
    return Limits(read_gb_s=read.best, gflop_s=arithmetic.best, dtype=dtype, how=how)


def best_of(a: Limits, b: Limits) -> Limits:
    """Of two measurements of one machine the better of each: the lower one was disturbed."""
    how = " · ".join(dict.fromkeys(f"{a.how} · {b.how}".split(" · ")))
    return Limits(read_gb_s=max(a.read_gb_s, b.read_gb_s), gflop_s=max(a.gflop_s, b.gflop_s), dtype=a.dtype, how=how)

"""The cpu device: the whole program goes to native code once, then a step is one call.

The same bits come out of a row whatever the batch: native code sums every output in one fixed order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from knee.devices.base import Device, Span, SpanOutput, Want, Weights, not_finite
from knee.devices.cpu.dtypes import CpuPlan, plan_dtypes
from knee.devices.cpu.encode import encode
from knee.errors import UserError
from knee.machine import default_threads
from knee.program import Program

ISA_VARIABLE = "KNEE_ISA"  # forces an instruction set

_WANTS = {Want.NOTHING: 0, Want.TOKEN: 1, Want.LOGITS: 2, Want.ALL_LOGITS: 3}
_NOT_FINITE = -2
_NOTHING = SpanOutput()


class CpuDevice(Device):
    """Runs a program with native code. `isa` is the instruction set in use, `threads` their number."""

    name = "cpu"
    dtypes = ("float32", "bfloat16", "int8", "int4")

    def __init__(self, program: Program, weights: Weights, dtype: str = "auto", threads: int | None = None) -> None:
        from knee.devices.cpu import _native

        plan = self.plan(program, weights, dtype)
        self.dtype, self.dtype_reason = plan.dtype, plan.reason
        self.program = program
        self.isa = choose_isa()
        self.threads = threads or default_threads()
        try:
            self._model = _native.Model(
                self.isa, self.threads, self.dtype, program.heads, program.kv_heads, program.head_dim
            )
        except RuntimeError as error:
            raise UserError(f"{self.threads} threads cannot be started ({error}): give --threads fewer") from error
        encode(self._model, program, weights, plan.keep)

    @classmethod
    def unavailable(cls) -> str | None:
        """The extension module may be missing, or made for other processors."""
        try:
            choose_isa()
        except ImportError as error:
            return (
                f"its native code is missing or cannot be loaded ({error}): install knee again (pip install knee, or "
                "pip install . in its source; without a wheel for your system this takes a C++ compiler); "
                "--device reference runs everywhere, but slowly"
            )
        return None

    @classmethod
    def plan(cls, program: Program, weights: Weights, dtype: str = "auto") -> CpuPlan:
        """By default the narrowest type that keeps the file's values."""
        return plan_dtypes(program, weights, dtype)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values in float32 or bfloat16 beside such weights, in float16 beside int8 and int4."""
        return self._model.kv_bytes_per_token(self.program.layers)

    @property
    def weight_bytes(self) -> int:
        """Packed matrices, scales and padding included, and vectors."""
        return self._model.weight_bytes

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """A new pool; the operating system gives pages as they are written."""
        self._model.allocate_kv(self.program.layers, num_blocks, block_size)

    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:
        """One call into native code, and as little as possible around it: this runs once for every step."""
        tokens, logits = self._model.execute(
            [(span.tokens, span.start, span.block_table, _WANTS[span.want]) for span in batch]
        )
        if _NOT_FINITE in tokens:
            raise not_finite(batch[tokens.index(_NOT_FINITE)])
        if logits is None:
            return [_output(token) for token in tokens]
        outputs, first = [], 0
        for span, token in zip(batch, tokens, strict=True):
            rows = len(span.tokens) if span.want is Want.ALL_LOGITS else int(span.want is Want.LOGITS)
            outputs.append(SpanOutput(logits=logits[first : first + rows]) if rows else _output(token))
            first += rows
        return outputs


def choose_isa() -> str:
    """The best instruction set of this CPU, or the one that KNEE_ISA forces.

    Raises `UserError` where there is none or not that one, `ImportError` where the native code cannot be loaded.
    """
    from knee.devices.cpu import _native

    supported = _native.supported_isas()
    forced = os.environ.get(ISA_VARIABLE)
    if not supported:
        built = ", ".join(_native.compiled_isas())
        raise UserError(f"this CPU has none of the instruction sets that knee was built for ({built})")
    if forced and forced not in supported:
        raise UserError(
            f"the environment variable {ISA_VARIABLE} is {forced!r}; this CPU and this build of knee have: "
            f"{', '.join(supported)}: unset it for the best of them"
        )
    return forced or supported[0]


def _output(token: int) -> SpanOutput:
    return _NOTHING if token < 0 else SpanOutput(token)

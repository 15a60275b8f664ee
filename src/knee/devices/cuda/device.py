"""The cuda device: the program as Triton kernels on an NVIDIA GPU, whole steps as CUDA graphs.

torch and Triton (the extra `cuda`) are imported when a device is made. Steps are started and finished apart, so that
the host can prepare the next one while the GPU works on this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from knee.devices.base import Device, Span, SpanOutput, StepOutput, Want, WeightPlan, Weights, not_finite
from knee.devices.cuda.batch import coarse, outputs_of
from knee.devices.cuda.dtypes import DTYPES, plan_dtype
from knee.errors import KneeError, NumericsError, OutOfMemory, UserError
from knee.program import Program

if TYPE_CHECKING:
    from torch import Tensor

    from knee.devices.cuda.steps import Flight, Steps

MEMORY_VARIABLE = "KNEE_GPU_MEMORY_FRACTION"
MEMORY_FRACTION = 0.9
"""Of the GPU's memory; weights and KV pool stay within it. What a step works in comes on top."""

INSTALL = f"{sys.executable} -m pip install torch triton nvidia-ml-py"
"""What the extra `cuda` brings, for this very Python."""

_NOT_FINITE = -2
_NOTHING = SpanOutput()


class CudaDevice(Device):
    """Runs a program on the first visible NVIDIA GPU. `graphs`: whether steps are captured and replayed."""

    name = "cuda"
    dtypes = DTYPES
    overlaps = True
    can_vary = True
    draws = True
    learns_shapes = True
    start_seconds = 4.0  # torch, the GPU's context, the first kernels
    block_size_default = 64
    token_budget_default = 8192

    def __init__(
        self,
        program: Program,
        weights: Weights,
        dtype: str = "auto",
        threads: int | None = None,  # noqa: ARG002  the host's part has one
        interpret: bool = False,
    ) -> None:
        """`interpret` runs the kernels in Triton's interpreter on the CPU: slow, for tests."""
        import torch

        from knee.devices.cuda.runner import Runner
        from knee.devices.cuda.steps import Steps

        plan = self.plan(program, weights, dtype)
        self.dtype, self.dtype_reason = plan.dtype, plan.reason
        self.program = program
        where = torch.device("cpu" if interpret else "cuda")
        try:
            self._runner = Runner.make(program, weights, plan.dtype, where, interpret)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"the GPU has no room for the weights ({plan.bytes / 2**30:.2f} GiB)") from error
        self._runner.graphs = not interpret
        self._steps = Steps(self._runner)
        if not interpret:
            torch.cuda.synchronize()  # steps run in a stream of their own, and the weights were written in another
        self._uncached: Steps | None = None
        self.isa = None if interpret else "sm_" + "".join(map(str, torch.cuda.get_device_capability()))

    @classmethod
    def unavailable(cls) -> str | None:
        """There may be no NVIDIA GPU, or no torch and Triton for it."""
        if not has_gpu():
            return "there is no NVIDIA GPU here, or no driver for it"
        missing = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} missing: {INSTALL}"
        import torch

        if not torch.cuda.is_available():
            return f"this torch ({torch.__version__}) cannot use the GPU: install a build of it for CUDA"
        if torch.cuda.get_device_capability() < (8, 0):
            return f"{torch.cuda.get_device_name()} is too old: compute capability 8.0 (Ampere) or newer is needed"
        return None

    @classmethod
    def plan(cls, program: Program, weights: Weights, dtype: str = "auto") -> WeightPlan:
        """By default 16 bits: what matrix units take."""
        return plan_dtype(program, weights, dtype)

    @classmethod
    def free_memory(cls) -> int | None:
        """What is left of the stated fraction of the GPU's memory, memory that torch keeps for reuse included."""
        import torch

        if not torch.cuda.is_available():
            return None
        free, total = torch.cuda.mem_get_info()
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return max(0, int(free + kept - (1 - memory_fraction()) * total))

    @property
    def graphs(self) -> bool:
        """Whether steps are replayed as CUDA graphs; may be switched."""
        return self._runner.graphs

    @graphs.setter
    def graphs(self, on: bool) -> None:
        self._runner.graphs = on

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's bits never depend on the batch; may be switched off for faster prefill."""
        return self._runner.batch_invariant

    @batch_invariant.setter
    def batch_invariant(self, on: bool) -> None:
        if on != self._runner.batch_invariant:
            self._steps.forget()
            self._end_uncached()
        self._runner.batch_invariant = on

    @property
    def warnings(self) -> tuple[str, ...]:  # type: ignore[override]
        """Captures that failed."""
        return tuple(self._steps.warnings)

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values in the type of the activations."""
        return self._runner.dtype.itemsize * self.program.kv_elements_per_token

    @property
    def weight_bytes(self) -> int:
        """Padded matrices, scales, vectors."""
        return self._runner.store.bytes

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        """A new pool; the old one is given back first."""
        self._steps.give_back()
        self._end_uncached()
        pool = self._make_pool(num_blocks, block_size)
        with _blaming_steps():
            self._steps.use(pool)

    def _make_pool(self, num_blocks: int, block_size: int) -> Any:
        import torch

        try:
            return self._runner.make_pool(num_blocks, block_size)
        except torch.OutOfMemoryError as error:
            needed = num_blocks * block_size * self.kv_bytes_per_token / 2**30
            raise OutOfMemory(f"the GPU has no room for a KV pool of {needed:.2f} GiB: use a smaller one") from error

    def execute(self, batch: Sequence[Span]) -> list[SpanOutput]:
        """Start and finish a step."""
        return self.finish(self.start(batch)).spans

    def start(self, batch: Sequence[Span]) -> Flight:
        """Hand a step to the GPU; does not wait for it. Graphs, which hold memory, are given up where there is none."""
        import torch

        try:
            return self._start(batch)
        except (torch.OutOfMemoryError, OutOfMemory):
            pass  # up to here the error holds what was half made
        self._steps.forget()
        if self._uncached is not None:
            self._uncached.forget()
        with _blaming_steps():
            return self._start(batch)

    def _start(self, batch: Sequence[Span]) -> Flight:
        if not all([span.block_table for span in batch]):
            return self._start_uncached(batch)
        if self._uncached is not None:
            self._uncached.settle()
        return self._steps.start(batch)

    def finish(self, started: Flight) -> StepOutput:
        """Wait for the step's tokens."""
        seconds = started.wait()
        batch = started.batch
        tokens = started.tokens[: batch.dims.outputs].tolist()
        if batch.decode_only:
            tokens = tokens[: len(batch.spans)]
            if _NOT_FINITE in tokens:
                raise self._not_finite(batch.spans[tokens.index(_NOT_FINITE)])
            return StepOutput([SpanOutput(token) for token in tokens], seconds)
        outputs = [_NOTHING] * len(batch.spans)
        for place, span in zip(batch.order, batch.spans, strict=True):
            outputs[place] = self._output(span, batch.outputs[place], tokens, started.logits)
        return StepOutput(outputs, seconds)

    def _output(self, span: Span, first: int, tokens: list[int], logits: Tensor | None) -> SpanOutput:
        """A span's part of a step's results, from its first output on."""
        if span.want is Want.NOTHING:
            return _NOTHING
        if span.want is Want.TOKEN:
            if tokens[first] == _NOT_FINITE:
                raise self._not_finite(span)
            return SpanOutput(tokens[first])
        import numpy as np

        assert logits is not None
        found = logits[first : first + outputs_of(span)].numpy()
        if not np.isfinite(found).all():
            raise self._not_finite(span)
        return SpanOutput(logits=found)

    def _not_finite(self, span: Span) -> NumericsError:
        error = not_finite(span)
        return (
            NumericsError(f"{error}, or too large for float16: try --dtype bfloat16")
            if self.dtype == "float16"
            else error
        )

    def _start_uncached(self, batch: Sequence[Span]) -> Flight:
        """With the KV cache off: keys and values of this step only, in a pool of their own.

        A step is either cached or not: one with both kinds of spans is refused.
        """
        from knee.devices.cuda.steps import Steps

        if any([span.block_table for span in batch]):
            raise KneeError(
                "a step has spans with a block table and spans without: the cuda device runs one kind a step"
            )
        size = self.block_size_default
        needed = sum(-(-len(span.tokens) // size) for span in batch)
        self._steps.settle()  # the runner's memory is the same
        steps = self._uncached
        if steps is None or steps.pool is None or steps.pool.keys.shape[1] < needed:
            self._end_uncached()
            self._uncached = steps = Steps(self._runner, self._steps.warnings)
            steps.use(self._make_uncached_pool(coarse(needed)))
        spans, first = [], 0
        for span in batch:
            blocks = -(-len(span.tokens) // size)
            spans.append(replace(span, block_table=range(first, first + blocks)))
            first += blocks
        return steps.start(spans)

    def _make_uncached_pool(self, blocks: int) -> Any:
        """For a step's usual budget at once, if there is room: with a larger pool all graphs are made anew."""
        usual = self.token_budget_default // self.block_size_default
        if blocks < usual:
            with contextlib.suppress(OutOfMemory):
                return self._make_pool(usual, self.block_size_default)
        return self._make_pool(blocks, self.block_size_default)

    def _end_uncached(self) -> None:
        if self._uncached is not None:
            self._uncached.give_back()
        self._uncached = None


@contextlib.contextmanager
def _blaming_steps() -> Iterator[None]:
    """Memory that runs out in here was wanted for what steps work in."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            "the GPU has no room for what a step works in beside weights and KV pool: use a smaller token budget, "
            f"or less of the card for the pool ({MEMORY_VARIABLE}, now {memory_fraction():g})"
        ) from error


def memory_fraction() -> float:
    """Of the GPU's memory that knee may use. `UserError` for a setting that is none."""
    asked = os.environ.get(MEMORY_VARIABLE)
    if asked is None:
        return MEMORY_FRACTION
    try:
        fraction = float(asked)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1:
        raise UserError(f"the environment variable {MEMORY_VARIABLE} is {asked!r}: it must be above 0 and at most 1")
    return fraction


@cache
def has_gpu() -> bool:
    """Whether the NVIDIA driver is there and sees a GPU; does not import torch."""
    for name in ("libcuda.so.1", "libcuda.so"):
        try:
            driver = ctypes.CDLL(name)
        except OSError:
            continue
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    return False

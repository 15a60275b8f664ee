"""A program as kernel launches: buffers, statistics, KV pool, and one launch (or two) for each fused operation.

Everything a step needs to know lies in device memory at addresses that all steps of a shape (`Dims`) share, so that
the launches of a shape can be captured as a CUDA graph once and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from knee.devices.base import Weights
from knee.devices.cuda.batch import Dims, coarse
from knee.devices.cuda.kernels import attention, linear, rows
from knee.devices.cuda.tiling import (
    ATTEND_MANY,
    ATTEND_ONE,
    FINISH,
    LIBRARY_ROWS,
    attend_stages,
    choose_tiling,
    early_warps,
    padded,
    parts_of,
)
from knee.devices.cuda.weights import TORCH_TYPES, Store
from knee.devices.fuse import RESULT, FusedLinear, FusedOp, fuse
from knee.errors import KneeError
from knee.machine import usable_cores
from knee.program import Attention, Embed, Gate, Norm, Op, Program, Rope, SelectOutputs, WriteKV

_TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_NARROWEST_LOGITS = 16  # columns of a tile of the last matrix
_FEWEST_ROWS = 1024  # that there is room for
_FEWEST_TOKENS = 8192  # likewise; where this room grows, no captured step is good any more
_EARLY_WARPS = 8  # for which a multiprocessor has registers, where they hold a split of the cache

Launch = Callable[["Step"], None]


@dataclass(frozen=True, slots=True)
class View:
    """Columns of a buffer from `column` on. `selected`: its rows are those whose logits are wanted, through a map."""

    buffer: str
    column: int = 0
    selected: bool = False


@dataclass(slots=True)
class Ready:
    """A compiled kernel and the constants that it was compiled with, its last arguments."""

    kernel: Any
    constants: tuple[Any, ...]


@dataclass(slots=True)
class Pool:
    """Keys and values, (layers, blocks, kv_heads, block_size, head_dim) each.

    `ready` has the kernels of a step on this pool, in the order in which they are launched, by what they depend on.
    """

    keys: Tensor
    values: Tensor
    block_size: int
    ready: dict[tuple[object, ...], list[Ready]] = field(default_factory=dict)


@dataclass(slots=True)
class Step:
    """What the launches of one step read: its shape, its integers, its block tables, its pool."""

    dims: Dims
    ints: dict[str, Tensor]
    tables: Tensor
    pool: Pool


@dataclass(slots=True)
class Scratch:
    """Device memory that a step works in, for up to `capacity` rows.

    What is too small is made anew, in another Scratch: a captured step goes on with the one that it was captured with.
    """

    capacity: int
    buffers: dict[str, Tensor]
    stats: Tensor  # (norms, 2, capacity): sums of squares, sums
    slots: Tensor
    best: Tensor
    best_at: Tensor
    scaled: Tensor  # rows of the stream times the next norm's weight
    normed: Tensor
    logits: Tensor
    partial: tuple[Tensor, ...]  # of splits: results, (largest, total), how many are done
    products: Tensor | None = None  # of a library


@dataclass
class Runner:
    """A program's launches with everything they need but the step."""

    program: Program
    store: Store
    interpret: bool  # by Triton's interpreter on the CPU, as the tests do
    pdl: bool = False
    graphs: bool = True  # steps are captured and replayed
    batch_invariant: bool = True  # no product goes to a library, whose order of summation depends on the rows
    widths: dict[str, int] = field(default_factory=dict)
    stream: set[str] = field(default_factory=set)  # buffers of the residual stream: float32, with statistics
    views: dict[str, View] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    scratch: Scratch | None = None
    norms: int = 1  # statistics that a step keeps
    compiling: bool = False
    _ready: list[Ready] = field(default_factory=list)  # of the step that is launched
    _place: int = 0  # among its launches
    tokens: Tensor = field(init=False)  # the greedy token of each output of the last step

    @classmethod
    def make(cls, program: Program, weights: Weights, dtype: str, device: torch.device, interpret: bool) -> Runner:
        """Read the weights and prepare the launches."""
        pdl = not interpret and torch.cuda.get_device_capability(device) >= (9, 0)
        runner = cls(program, Store(weights, dtype, device), interpret, pdl)
        _Lowering(runner).run()
        runner.tokens = torch.zeros(_FEWEST_TOKENS, dtype=torch.int32, device=device)
        return runner

    @property
    def device(self) -> torch.device:
        """Where all memory is."""
        return self.store.device

    @cached_property
    def shared_bytes(self) -> int:
        """Shared memory that a program may have, less what the compiler takes for itself."""
        if self.interpret:
            return 220 * 1024
        found = triton.runtime.driver.active.utils.get_device_properties(torch.cuda.current_device())
        return int(found["max_shared_mem"]) - 7 * 1024

    @property
    def tile_rows(self) -> int:
        """Tokens of a tile of a longer span: as many as registers hold."""
        return 16 if self.dtype == torch.float32 else 64

    @property
    def dtype(self) -> torch.dtype:
        """Of activations, keys and values."""
        return TORCH_TYPES[self.store.dtype]

    def make_pool(self, blocks: int, block_size: int) -> Pool:
        """A KV pool; its contents are whatever they are."""
        program = self.program
        shape = (program.layers, blocks, program.kv_heads, block_size, program.head_dim)
        make = torch.zeros if self.interpret else torch.empty
        keys, values = (make(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return Pool(keys, values, block_size)

    def reserve(self, dims: Dims) -> None:
        """Make room for a step of this shape: `scratch` and `tokens` have it then, the same ones or others.

        A step hands nothing on to the next one but its tokens, so a captured step may go on with an older scratch.
        """
        if dims.outputs > len(self.tokens):
            tokens = self._zeros(coarse(dims.outputs), dtype=torch.int32)
            tokens[: len(self.tokens)] = self.tokens  # the next step may want what the last one has made
            self.tokens = tokens
        rows, *sizes = self._needed(dims)
        if self.scratch is None or rows > self.scratch.capacity:
            self.scratch = self._make_scratch(rows)
        self.scratch = self._grown(self.scratch, *sizes)

    def _needed(self, dims: Dims) -> tuple[int, int, int, int]:
        """Rows, best logits of tiles, rows of logits, splits: in powers of two, so that they seldom grow."""
        outputs = coarse(max(1, dims.outputs))
        splits = coarse(dims.items) * self.program.kv_heads * dims.splits if dims.splits > 1 else 1
        return (
            max(_FEWEST_ROWS, coarse(dims.rows)),
            outputs * -(-self.program.vocab_size // _NARROWEST_LOGITS),
            outputs if dims.logits or dims.drawn else 0,
            splits,
        )

    def _make_scratch(self, capacity: int) -> Scratch:
        """For so many rows; what does not depend on them is taken over."""
        old, zeros = self.scratch, self._zeros
        widest = max(width for name, width in self.widths.items() if name in self.stream)
        return Scratch(
            capacity,
            {
                name: zeros(capacity, width, dtype=torch.float32 if name in self.stream else self.dtype)
                for name, width in self.widths.items()
            },
            zeros(self.norms, 2, capacity, dtype=torch.int64),
            zeros(capacity, dtype=torch.int32),
            old.best if old else zeros(0),
            old.best_at if old else zeros(0, dtype=torch.int32),
            zeros(capacity, widest, dtype=self.dtype),
            zeros(capacity, widest, dtype=self.dtype),
            old.logits if old else zeros(0, self.program.vocab_size),
            old.partial if old else (zeros(0),),
        )

    def _grown(self, scratch: Scratch, best: int, logits: int, splits: int) -> Scratch:
        """With room for so many of what does not depend on the rows; the same one if it has that."""
        empty = partial(torch.empty, device=self.device)
        if best > scratch.best.numel():
            scratch = replace(scratch, best=empty(best), best_at=empty(best, dtype=torch.int32))
        if logits > len(scratch.logits):
            scratch = replace(scratch, logits=empty((logits, self.program.vocab_size)))
        if splits > len(scratch.partial[0]):
            shape = (splits, self.group_padded)
            results, sums = empty((*shape, self.dim)), empty((*shape, 2))
            scratch = replace(scratch, partial=(results, sums, self._zeros(splits, dtype=torch.int32)))
        return scratch

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def run(self, step: Step) -> None:
        """All launches of a step."""
        self._ready, self._place = self.ready_for(step), 0
        for launch in self.launches:
            launch(step)

    def ready_for(self, step: Step) -> list[Ready]:
        """The kernels of such a step; none before it was compiled.

        What else they depend on lies in the pool and the program: sizes and strides of tensors.
        """
        return step.pool.ready.setdefault(self.kernels_of(step.dims), [])

    def kernels_of(self, dims: Dims) -> tuple[object, ...]:
        """What tells the kernels of a step from those of others."""
        return self.batch_invariant, self.reads_early(dims), *dims.kernels

    def reads_early(self, dims: Dims) -> bool:
        """Whether the attention of one new token a request reads the cache early: if all programs run at a time."""
        programs = dims.items * self.program.kv_heads * dims.splits
        fitting = self.multiprocessors * (_EARLY_WARPS // self.early_warps)
        return self.pdl and programs <= fitting and self.dtype.itemsize == 2

    def asks_library(self, dims: Dims) -> bool:
        """Whether a product of such a step may go to a library."""
        return not self.batch_invariant and dims.rows > LIBRARY_ROWS

    @cached_property
    def early_warps(self) -> int:
        """Of such a program."""
        return early_warps(attention.SPLIT, self.dim, self.dtype.itemsize)

    @cached_property
    def multiprocessors(self) -> int:
        """Of the GPU."""
        return 1 if self.interpret else torch.cuda.get_device_properties(self.device).multi_processor_count

    @cached_property
    def dim(self) -> int:
        """Columns of a tile that holds a head."""
        return max(16, coarse(self.program.head_dim))

    @cached_property
    def group_padded(self) -> int:
        """Rows of a tile that holds the query heads of one key head."""
        return max(16, coarse(self.program.heads // self.program.kv_heads))

    # --- launches ------------------------------------------------------------------------------------------------

    def options(self, warps: int = 4, stages: int = 3, pdl: bool = True) -> dict[str, Any]:
        """How a kernel is compiled and started. Fusion of multiply and add would depend on what is around them."""
        if self.interpret:
            return {}
        return {
            "num_warps": warps,
            "num_stages": stages,
            "enable_fp_fusion": False,
            "launch_pdl": pdl and self.pdl,
        }

    def start(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        """Launch a kernel. `compile` goes through the launches, too, only to have the kernels compiled.

        Triton finds the compiled kernel by looking at every argument, which takes several times as long as launching
        it. So each is looked for once and then known by its place among the launches of such a step.
        """
        if self.interpret:
            kernel[grid](*arguments, **options)
            return
        place = self._place
        self._place = place + 1
        if place == len(self._ready):
            constants = tuple([options[name] for name in kernel.arg_names[len(arguments) :]])
            self._ready.append(Ready(kernel.warmup(*arguments, grid=grid, **options), constants))
        if not self.compiling:
            ready = self._ready[place]
            ready.kernel[(*grid, 1, 1)](*arguments, *ready.constants)

    def compile(self, steps: Sequence[Step]) -> None:
        """Compile all kernels of some steps side by side, which takes a fraction of the time, and load them."""
        if self.interpret:
            return
        self.compiling = True
        try:
            with ThreadPoolExecutor(usable_cores()) as pool, _compiled_by(pool):
                for step in steps:
                    self.run(step)
            for step in steps:
                for ready in self.ready_for(step):
                    if hasattr(ready.kernel, "result"):
                        ready.kernel = ready.kernel.result()
                    _ = ready.kernel[(1, 1, 1)]  # loads it, which cannot be done while a graph is captured
        except BaseException:
            for step in steps:
                self.ready_for(step).clear()
            raise
        finally:
            self.compiling = False

    def at(self, view: View) -> tuple[Tensor, int]:
        """A view's memory from its first column on, and the distance of its rows."""
        assert self.scratch is not None
        buffer = self.scratch.buffers[view.buffer]
        return buffer[:, view.column :] if view.column else buffer, buffer.stride(0)


def _compiled_by(pool: ThreadPoolExecutor) -> AbstractContextManager[Any]:
    """Where this Triton can do that. A failure is found later: raised here, it would leave Triton in this mode."""
    return triton.AsyncCompileMode(pool, ignore_errors=True) if hasattr(triton, "AsyncCompileMode") else nullcontext()


class _Lowering:
    """Writes down a runner's launches, operation by operation."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.program = runner.program
        self.store = runner.store
        self.ops = fuse(runner.program, epilogues=True)
        self._lay_out()
        self.next_norms = _next_norms(self.ops, runner)
        self.stats: dict[str, int] = {}  # a buffer of the stream -> where its last writer left its statistics
        self.turns: dict[Rope, tuple[Tensor, Tensor]] = {}

    def run(self) -> None:
        """All operations, then the choice of tokens."""
        for op in self.ops:
            match op:
                case Embed():
                    self._embed(op)
                case FusedLinear():
                    self._linear(op)
                case Attention():
                    self._attention(op)
                case Norm():
                    self._norm(op)
                case WriteKV():
                    self._write_kv(op)
                case SelectOutputs():
                    self._select(op)
                case _:
                    raise KneeError(f"the cuda device has no kernel for {type(op).__name__} by itself")
        self._choose()

    # --- buffers -------------------------------------------------------------------------------------------------

    def _lay_out(self) -> None:
        """Which buffers there are, how wide, and which of them are the residual stream."""
        runner, program = self.runner, self.program
        for op in self.ops:
            if isinstance(op, Embed):
                runner.stream.add(op.out)
            if isinstance(op, FusedLinear):
                runner.stream.update(part.residual for part in op.parts if part.residual is not None)
        stored = [op.writes if isinstance(op, FusedLinear) else _single(op) for op in self.ops]
        for names in stored:
            if not names or names == (RESULT,) or names[0] in runner.views:
                continue
            name, column = "+".join(names), 0
            for one in names:
                runner.views[one] = View(name, column)
                column += program.buffers[one].width
            runner.widths[name] = max(padded(column), runner.widths.get(name, 0))

    def _view(self, name: str) -> View:
        return self.runner.views[name]

    def _new_stats(self, buffer: str) -> int:
        place = self.stats[buffer] = self.runner.norms if self.stats else 0
        self.runner.norms = place + 1
        return place

    def _next_weight(self, op: FusedOp) -> Tensor | None:
        """The weight of the RMS norm that alone reads what an operation writes to the stream."""
        norm = self.next_norms.get(id(op))
        if norm is None:
            return None
        return self.store.vector(norm.weight, width=padded(self.program.buffers[norm.x].width))

    def _rope(self, rope: Rope) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (positions, head_dim / 2) each."""
        if rope not in self.turns:
            frequencies = torch.tensor(rope.inverse_frequencies, dtype=torch.float32)
            angles = torch.arange(self.program.positions, dtype=torch.float32)[:, None] * frequencies
            self.turns[rope] = angles.cos().to(self.runner.device), angles.sin().to(self.runner.device)
        return self.turns[rope]

    # --- operations ----------------------------------------------------------------------------------------------

    def _embed(self, op: Embed) -> None:
        runner, matrix, width = self.runner, self.store.matrix(op.weight), self.program.buffers[op.out].width
        position_w = None if op.position_weight is None else self.store.table(op.position_weight)
        view, block, first = self._view(op.out), coarse(width), self._new_stats(op.out)
        if first != 0:
            raise KneeError("the cuda device wants a program to begin with its embedding")
        next_weight = self._next_weight(op)

        def launch(step: Step) -> None:
            scratch, ints = runner.scratch, step.ints
            assert scratch is not None
            out, stride = runner.at(view)
            runner.start(
                rows.embed, (step.dims.rows,),
                ints["tokens"], ints["sources"], runner.tokens, ints["positions"], ints["row_spans"],
                step.tables, step.tables.stride(0), step.pool.block_size, scratch.slots,
                matrix.data, matrix.scale, matrix.data.stride(0), position_w, out, stride, width,
                scratch.stats, runner.norms, scratch.capacity, next_weight, scratch.scaled,
                WIDTH=block, NORMS=coarse(runner.norms), **runner.options(pdl=False),
            )  # fmt: skip

        runner.launches.append(launch)

    def _select(self, op: SelectOutputs) -> None:
        """No copy: who reads the selected rows finds them through a map."""
        later = self.ops[self.ops.index(op) + 1 :]
        if any(op.x in (other.writes if isinstance(other, FusedLinear) else _single(other)) for other in later):
            raise KneeError(f"the cuda device wants {op.x} to stay as it is after its outputs were selected")
        view = self._view(op.x)
        self.runner.views[op.out] = View(view.buffer, view.column, selected=True)
        if op.x in self.runner.stream:
            self.runner.stream.add(op.out)
            self.stats[op.out] = self.stats[op.x]

    def _norm(self, op: Norm) -> None:
        """A norm that is nobody's prologue: of the heads of q or k."""
        runner, width = self.runner, self.program.weights[op.weight].size
        view, out_view = self._view(op.x), self._view(op.out)
        weight, bias = self.store.vector(op.weight), self.store.vector(op.bias)
        groups, block = self.program.buffers[op.x].width // width, coarse(width)

        def launch(step: Step) -> None:
            (x, x_stride), (out, out_stride) = runner.at(view), runner.at(out_view)
            runner.start(
                rows.normalize_groups, (step.dims.rows, groups),
                x, x_stride, weight, bias, op.eps, out, out_stride, width,
                NORM=op.kind, WIDTH=block, PDL=runner.pdl, **runner.options(warps=1),
            )  # fmt: skip

        runner.launches.append(launch)

    def _write_kv(self, op: WriteKV) -> None:
        runner, program = self.runner, self.program
        views = [self._view(name) for name in (op.q, op.k, op.v)]
        cos, sin = (None, None) if op.rope is None else self._rope(op.rope)
        grid, pairs = program.heads + 2 * program.kv_heads, coarse((program.head_dim + 1) // 2)

        def launch(step: Step) -> None:
            scratch, pool = runner.scratch, step.pool
            assert scratch is not None
            (q, q_stride), (k, k_stride), (v, v_stride) = [runner.at(view) for view in views]
            runner.start(
                rows.write_kv, (step.dims.rows, grid),
                q, q_stride, k, k_stride, v, v_stride, step.ints["positions"], scratch.slots, cos, sin,
                pool.keys[op.layer], pool.values[op.layer],
                program.head_dim, program.heads, program.kv_heads, pool.block_size,
                ROPE=op.rope is not None, PAIRS=pairs, PDL=runner.pdl, **runner.options(warps=1),
            )  # fmt: skip

        runner.launches.append(launch)

    def _attention(self, op: Attention) -> None:
        runner, program = self.runner, self.program
        q_view, out_view, group = self._view(op.q), self._view(op.out), program.heads // program.kv_heads
        shared = {
            "GROUP": group, "DIM": runner.dim, "TILE": attention.TILE, "SPLIT": attention.SPLIT,
            "DTYPE": _TRITON_TYPES[runner.dtype], "WIDE": runner.interpret, "PDL": runner.pdl,
        }  # fmt: skip

        def stages_of(choice: tuple[int, int]) -> tuple[int, int]:
            return choice[0], attend_stages(choice[1], runner.dim, runner.dtype.itemsize, runner.shared_bytes)

        def launch(step: Step) -> None:
            scratch, dims, ints, pool = runner.scratch, step.dims, step.ints, step.pool
            assert scratch is not None
            (q, q_stride), (out, out_stride) = runner.at(q_view), runner.at(out_view)
            keys, values = pool.keys[op.layer], pool.values[op.layer]
            whole = pool.block_size % attention.TILE == 0
            if dims.items:
                early = runner.reads_early(dims)
                runner.start(
                    attention.attend_one, (dims.items, program.kv_heads, dims.splits),
                    q, q_stride, out, out_stride, keys, values, ints["decode_rows"], ints["contexts"],
                    step.tables, step.tables.stride(0), *scratch.partial,
                    op.scale, program.head_dim, program.kv_heads, pool.block_size, dims.splits,
                    GROUP_PADDED=runner.group_padded, WHOLE_TILES=whole, EARLY=early, **shared,
                    **runner.options(*((runner.early_warps, 1) if early else stages_of(ATTEND_ONE))),
                )  # fmt: skip
            if dims.tiles:
                runner.start(
                    attention.attend_many, (dims.tiles, program.heads),
                    q, q_stride, out, out_stride, keys, values, ints["tile_rows"], ints["tile_lengths"],
                    ints["tile_positions"], ints["tile_spans"], step.tables, step.tables.stride(0),
                    op.scale, program.head_dim, program.kv_heads, pool.block_size,
                    ROWS=runner.tile_rows, WHOLE_TILES=whole, **shared, **runner.options(*stages_of(ATTEND_MANY)),
                )  # fmt: skip

        runner.launches.append(launch)

    def _linear(self, op: FusedLinear) -> None:
        runner, program = self.runner, self.program
        first = op.parts[0]
        matrix = self.store.matrix(*(part.weight for part in op.parts))
        sizes = [program.weights[part.weight].shape[0] for part in op.parts]
        bias = self.store.vector(*(part.bias for part in op.parts), sizes=sizes)
        norm = op.prologue if isinstance(op.prologue, Norm) else None
        if op.prologue is not None and (norm is None or norm.x not in runner.stream):
            raise KneeError(f"the cuda device has no prologue {type(op.prologue).__name__} for {first.out}")
        x_name = first.x if norm is None else norm.x
        rope = op.epilogue.rope if isinstance(op.epilogue, WriteKV) else None
        made = _Linear(
            runner=runner,
            x=self._view(x_name),
            stats=-1 if norm is None else self.stats[x_name],
            norm=norm,
            norm_vectors=self._norm_vectors(norm, matrix.data.shape[1]),
            next_weight=self._next_weight(op),
            w=matrix.data,
            scale=matrix.scale,
            bias=bias,
            residual=None if first.residual is None else self._view(first.residual),
            out=None if op.writes == (RESULT,) else self._view(op.writes[0]),
            out_stats=self._new_stats(op.writes[0]) if op.writes[0] in runner.stream else -1,
            stats_kind=self._stats_kind(),
            epilogue=_epilogue(op),
            activation=op.epilogue.activation if isinstance(op.epilogue, Gate) else first.activation or "",
            layer=op.epilogue.layer if isinstance(op.epilogue, WriteKV) else 0,
            turns=(None, None) if rope is None else self._rope(rope),
            inputs=program.weights[first.weight].shape[1],
            outputs=sum(sizes),
        )
        runner.launches.append(made.launch)

    def _norm_vectors(self, norm: Norm | None, width: int) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias of a layer norm. Of an RMS norm nothing is left to do but a factor for each row."""
        if norm is None or norm.kind == "rms":
            if norm is not None and norm not in self.next_norms.values():
                raise KneeError(f"the cuda device wants each RMS norm alone behind what writes {norm.x}")
            return None, None
        weight, bias = self.store.vector(norm.weight, width=width), self.store.vector(norm.bias, width=width)
        assert weight is not None
        return weight, torch.zeros_like(weight) if bias is None else bias

    def _stats_kind(self) -> str:
        kinds = {op.prologue.kind for op in self.ops if isinstance(op, FusedLinear) and isinstance(op.prologue, Norm)}
        return "layer" if "layer" in kinds else "rms"

    def _choose(self) -> None:
        runner, program = self.runner, self.program
        last = next(op for op in self.ops if isinstance(op, FusedLinear) and op.writes == (RESULT,))
        inputs, wide = program.weights[last.parts[0].weight].shape[1], runner.dtype == torch.float32

        def launch(step: Step) -> None:
            scratch, dims = runner.scratch, step.dims
            assert scratch is not None
            if not dims.outputs:
                return
            columns = choose_tiling("logits", dims.outputs, inputs, wide, runner.shared_bytes).columns
            tiles = -(-program.vocab_size // columns)
            runner.start(
                rows.choose, (dims.outputs,),
                scratch.best, scratch.best_at, tiles, runner.tokens,
                BLOCK=coarse(tiles), PDL=runner.pdl, **runner.options(),
            )  # fmt: skip
            if dims.drawn:
                runner.start(
                    rows.draw, (dims.outputs,),
                    scratch.logits, program.vocab_size, scratch.best, tiles,
                    step.ints["temperatures"].view(torch.float32), step.ints["uniforms"].view(torch.float32),
                    runner.tokens, TILES=coarse(tiles), BLOCK=1024, PDL=runner.pdl, **runner.options(),
                )  # fmt: skip

        runner.launches.append(launch)


def _next_norms(ops: Sequence[FusedOp], runner: Runner) -> dict[int, Norm]:
    """For each operation (its id) that writes to the stream: the RMS norm that reads that, if it is the only one."""
    readers: dict[int, list[Norm]] = {}
    writer: dict[str, int] = {}
    for op in ops:
        if isinstance(op, SelectOutputs) and op.x in writer:
            writer[op.out] = writer[op.x]
        if isinstance(op, FusedLinear) and isinstance(op.prologue, Norm) and op.prologue.x in writer:
            readers[writer[op.prologue.x]].append(op.prologue)
        written = op.writes if isinstance(op, FusedLinear) else _single(op)
        if written and written[0] in runner.stream:
            writer[written[0]] = id(op)
            readers[id(op)] = []
    return {place: norms[0] for place, norms in readers.items() if len(norms) == 1 and norms[0].kind == "rms"}


def _single(op: Op | FusedLinear) -> tuple[str, ...]:
    """What an operation that is not a linear layer stores in a buffer of its own."""
    return (op.out,) if isinstance(op, Embed | Norm | Attention) else ()


def _epilogue(op: FusedLinear) -> str:
    if op.writes == (RESULT,):
        return "logits"
    return {type(None): "plain", Gate: "gate", WriteKV: "write_kv"}[type(op.epilogue)]


@dataclass(slots=True)
class _Linear:
    """One fused linear layer's launch."""

    runner: Runner
    x: View
    stats: int
    norm: Norm | None
    norm_vectors: tuple[Tensor | None, Tensor | None]
    next_weight: Tensor | None
    w: Tensor
    scale: Tensor | None
    bias: Tensor | None
    residual: View | None
    out: View | None
    out_stats: int
    stats_kind: str
    epilogue: str
    activation: str
    layer: int
    turns: tuple[Tensor | None, Tensor | None]
    inputs: int
    outputs: int

    def launch(self, step: Step) -> None:
        """Start the kernel that suits the number of rows."""
        runner, dims, program = self.runner, step.dims, self.runner.program
        scratch = runner.scratch
        assert scratch is not None
        logits = self.epilogue == "logits"
        count = dims.outputs if logits or self.x.selected else dims.rows
        if not count:
            return
        wide = runner.dtype == torch.float32
        tiles_of = choose_tiling(self.epilogue, count, self.inputs, wide, runner.shared_bytes)
        x, x_stride = runner.at(self.x)
        row_map = step.ints["output_rows"] if self.x.selected else None
        norm = "" if self.norm is None else {"rms": "scaled", "layer": "layer"}[self.norm.kind]
        if norm == "scaled":
            x, x_stride = scratch.scaled, scratch.scaled.stride(0)
        elif norm and (tiles_of.apart or self._by_library(count)):
            self._layer_norm(x, x_stride, row_map, count)
            x, x_stride, row_map, norm = scratch.normed, scratch.normed.stride(0), None, ""
        if logits:
            out, out_stride = scratch.logits, program.vocab_size
        else:
            assert self.out is not None
            out, out_stride = runner.at(self.out)
        shared: dict[str, Any] = {
            "NORM": norm, "EPILOGUE": self.epilogue, "ACTIVATION": self.activation,
            "STATS": self.stats_kind if self.out_stats >= 0 else "", "ROPE": self.turns[0] is not None,
            "WIDTH": self.inputs, "PDL": runner.pdl,
        }  # fmt: skip
        after = (
            self.scale, self.bias, None if self.residual is None else runner.at(self.residual)[0],
            out, out_stride, scratch.stats[self.out_stats] if self.out_stats >= 0 else None, count, self.outputs,
            self.next_weight, scratch.scaled,
            step.ints["positions"], scratch.slots, *self.turns,
            step.pool.keys[self.layer], step.pool.values[self.layer],
            program.head_dim, program.heads, program.kv_heads, step.pool.block_size, scratch.best, scratch.best_at,
        )  # fmt: skip
        stats, eps = scratch.stats[self.stats] if norm else None, self.norm.eps if self.norm else 0.0
        if self._by_library(count):
            result = x if runner.compiling else self._product(x, count)
            grid = (-(-count // FINISH.rows), self._tiles(FINISH.columns))
            runner.start(
                linear.finish_product, grid,
                result, stats, eps, scratch.capacity, *after, **shared,
                ROWS=FINISH.rows, COLUMNS=FINISH.columns, **runner.options(FINISH.warps, pdl=False),
            )  # fmt: skip
            return
        tiles, row_tiles = self._tiles(tiles_of.columns), -(-count // tiles_of.rows)
        kernel = linear.linear_few_rows if tiles_of.few else linear.linear_many_rows
        runner.start(
            kernel, (tiles, row_tiles) if tiles_of.few else (row_tiles, tiles),
            x, x_stride, row_map, stats, *(self.norm_vectors if norm else (None, None)), eps, scratch.capacity,
            self.w, *after, **shared,
            INPUTS=self.w.shape[1], PARTS=parts_of(self.inputs), STORE=logits and (dims.logits or dims.drawn),
            DTYPE=_TRITON_TYPES[runner.dtype], WIDE=runner.interpret, ROWS=tiles_of.rows, COLUMNS=tiles_of.columns,
            AHEAD=tiles_of.ahead, **runner.options(tiles_of.warps, tiles_of.stages),
        )  # fmt: skip

    def _by_library(self, count: int) -> bool:
        """Whether the product goes to cuBLAS, which is faster with many rows but sums otherwise there."""
        runner = self.runner
        return (
            not runner.batch_invariant
            and count > LIBRARY_ROWS
            and self.epilogue != "logits"
            and self.w.dtype == runner.dtype != torch.float32
        )

    def _product(self, x: Tensor, count: int) -> Tensor:
        scratch = self.runner.scratch
        assert scratch is not None
        if scratch.products is None or scratch.products.numel() < scratch.capacity * self.outputs:
            scratch.products = torch.empty(scratch.capacity * self.outputs, dtype=x.dtype, device=x.device)
        result = scratch.products[: count * self.outputs].view(count, self.outputs)
        return torch.mm(x[:count, : self.w.shape[1]], self.w.T, out=result)

    def _tiles(self, columns: int) -> int:
        """Tiles of the outputs; a tile of pairs has half as many of each."""
        half = columns // 2
        if self.epilogue == "gate":
            return -(-(self.outputs // 2) // half)
        if self.epilogue == "write_kv":
            head_dim = self.runner.program.head_dim
            return self.outputs // head_dim * -(-((head_dim + 1) // 2) // half)
        return -(-self.outputs // columns)

    def _layer_norm(self, x: Tensor, x_stride: int, row_map: Tensor | None, count: int) -> None:
        runner, norm = self.runner, self.norm
        scratch = runner.scratch
        assert scratch is not None
        assert norm is not None
        runner.start(
            rows.layer_norm, (count,),
            x, x_stride, row_map, scratch.stats[self.stats], *self.norm_vectors, norm.eps,
            scratch.capacity, scratch.normed, scratch.normed.stride(0),
            WIDTH=self.inputs, BLOCK=coarse(self.inputs), PDL=runner.pdl, **runner.options(),
        )  # fmt: skip

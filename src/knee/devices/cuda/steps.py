"""Steps on their way: integers to the device, a replayed graph or single launches, results back, times from events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from knee.devices.base import Span
from knee.devices.cuda.batch import Batch, Dims, Fields, Tables, round_up
from knee.devices.cuda.kernels.attention import SPLIT
from knee.devices.cuda.runner import Pool, Runner, Step

_LARGEST_GRAPH = 8192  # rows; beyond, launching costs nothing beside the step
_AHEAD = 2  # steps whose integers and results are in use at a time
_WIDTH = 16  # blocks of a block table, at least
_MOST_GRAPHS = 256  # that are kept; the one longest unused goes


@dataclass(slots=True)
class Flight:
    """A step that was started: where its results will be, and when they are there."""

    batch: Batch
    tokens: Tensor  # in pinned memory
    logits: Tensor | None
    began: Any
    ended: Any
    arrived: Any

    def wait(self) -> float | None:
        """Until the results are there; the seconds that the device worked on them."""
        if self.arrived is None:
            return None
        self.arrived.synchronize()
        seconds: float = self.began.elapsed_time(self.ended) / 1e3
        return seconds


@dataclass(slots=True)
class _Slot:
    """Memory of the host that one step in flight uses. Pinned, so that copies run by themselves."""

    ints: Tensor
    tables: Tensor
    written: Tables
    tokens: Tensor
    events: tuple[Any, Any, Any]

    def wait(self) -> None:
        """Until its last step is done, should nobody have waited for that; an event that was never recorded is done."""
        if self.events[2] is not None:
            self.events[2].synchronize()


@dataclass
class Steps:
    """Starts steps on a runner, in a stream of its own, at most `_AHEAD` of them at a time."""

    runner: Runner
    warnings: list[str] = field(default_factory=list)
    pool: Pool | None = None
    _stream: Any = None
    _ints: Tensor | None = None
    _tables: Tensor | None = None
    _slots: list[_Slot] = field(default_factory=list)
    _count: int = 0
    _captured: dict[Dims, Any] = field(default_factory=dict)  # the one used last at the end
    _fields: dict[Dims, Fields] = field(default_factory=dict)
    _made: Sequence[int] = ()
    _generation: int = 0

    def __post_init__(self) -> None:
        if not self.runner.interpret:
            self._stream = torch.cuda.Stream(self.runner.device)

    def use(self, pool: Pool) -> None:
        """Work on this pool from now on; graphs of another one are void. Compiles what a single request needs."""
        self.pool = pool
        first = [Dims(1, 1, 0, 1, 1, 1, False), Dims(16, 0, 1, 1, 1, 1, False)]
        if pool.keys.numel() and not self.runner.interpret:
            with self._on_stream():
                for dims in first:
                    self._reserve(dims, self._fields_of(dims))
                self._compile(first)

    def give_back(self) -> None:
        """The pool, once nothing works on it any more, and what was captured with it."""
        self.settle()
        self.forget()
        self.pool = None

    def start(self, spans: Sequence[Span]) -> Flight:
        """Begin a step behind those that were started before."""
        batch = Batch(spans, SPLIT, self.runner.tile_rows)
        dims = batch.dims
        fields = self._fields_of(dims)
        with self._on_stream():
            self._reserve(dims, fields, max([len(span.block_table) for span in spans]))
            self._prepare(dims)
            slot = self._slots[self._count % _AHEAD]
            self._count += 1
            slot.wait()
            batch.write(slot.ints.numpy()[: fields.size], fields, self._made)
            slot.written.write(batch)
            self._made = batch.outputs
            return self._launch(batch, slot, fields)

    def _launch(self, batch: Batch, slot: _Slot, fields: Fields) -> Flight:
        dims, runner = batch.dims, self.runner
        assert self._ints is not None
        assert self._tables is not None
        began, ended, arrived = slot.events
        if began is not None:
            began.record(self._stream)
        self._ints[: fields.size].copy_(slot.ints[: fields.size], non_blocking=True)
        self._tables[: dims.spans].copy_(slot.tables[: dims.spans], non_blocking=True)
        self._run(dims, fields)
        if ended is not None:
            ended.record(self._stream)
        logits = None
        if dims.logits:
            assert runner.scratch is not None
            logits = torch.empty((dims.outputs, runner.program.vocab_size))
            logits.copy_(runner.scratch.logits[: dims.outputs])  # waits for the step: who chooses is the host
        slot.tokens[: dims.outputs].copy_(runner.tokens[: dims.outputs], non_blocking=True)
        if arrived is not None:
            arrived.record(self._stream)
        return Flight(batch, slot.tokens, logits, began, ended, arrived)

    def _run(self, dims: Dims, fields: Fields) -> None:
        """Replay the shape's graph, or launch kernel by kernel."""
        graph = self._captured.pop(dims, None) if self.runner.graphs else None
        if graph is not None:
            self._captured[dims] = graph
            graph.replay()
            return
        self.runner.run(self._step(dims, fields))

    def _prepare(self, dims: Dims) -> None:
        """Before a shape runs for the first time: compile its kernels and capture it, with decode all smaller ones.

        As requests end, a batch goes through the smaller shapes, and capturing takes time.
        """
        if dims in self._captured:
            return
        if not self.runner.graphs or dims.rows > _LARGEST_GRAPH:
            self._compile([dims])
            return
        shapes = [dims]
        if dims.decode_only and dims.splits == 1:  # contexts grow past a split at any size
            shapes = [replace(dims, rows=rows, items=rows, spans=rows, outputs=rows) for rows in _ladder(dims.rows)]
        missing = [shape for shape in shapes if shape not in self._captured]
        self._compile(missing)
        for shape in missing:
            self._capture(shape)
            if not self.runner.graphs:
                break

    def _compile(self, shapes: Sequence[Dims]) -> None:
        assert self.pool is not None
        new = {self.runner.kernels_of(shape): shape for shape in shapes}
        missing = [shape for kernels, shape in new.items() if not self.pool.ready.get(kernels)]
        if missing:
            self.runner.compile([self._step(shape, self._fields_of(shape)) for shape in missing])

    def _fields_of(self, dims: Dims) -> Fields:
        return self._fields.get(dims) or self._fields.setdefault(dims, Fields(dims))

    def _run_empty(self, step: Step) -> None:
        """Run it with nobody in it: what a library prepares at its first call cannot be captured."""
        kept = self.runner.tokens.clone()  # the step to come may want what the one before has made
        for name, values in step.ints.items():
            values.fill_(-1 if name in ("sources", "row_spans") else 0)
        self.runner.run(step)
        self.runner.tokens.copy_(kept)

    def _capture(self, dims: Dims) -> None:
        step = self._step(dims, self._fields_of(dims))
        if self.runner.asks_library(dims):
            self._run_empty(step)
        if len(self._captured) >= _MOST_GRAPHS:
            del self._captured[next(iter(self._captured))]
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.runner.run(step)
            finally:
                graph.capture_end()
        except RuntimeError as error:
            self.runner.graphs = False
            self.warnings.append(
                f"a step of {dims.rows} rows could not be captured as a CUDA graph ({str(error).splitlines()[0]}): "
                "steps run launch by launch from here on, which is slower"
            )
            return
        self._captured[dims] = graph

    def _step(self, dims: Dims, fields: Fields) -> Step:
        assert self._ints is not None
        assert self._tables is not None
        assert self.pool is not None
        ints = {name: self._ints[begin : begin + length] for name, (begin, length) in fields.places.items()}
        return Step(dims, ints, self._tables, self.pool)

    # --- memory --------------------------------------------------------------------------------------------------

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def forget(self) -> None:
        """Graphs that were captured: what they launch, or where it works, has changed."""
        if self._captured:
            self.settle()
        self._captured.clear()

    def _reserve(self, dims: Dims, fields: Fields, blocks: int = 1) -> None:
        """Room for a step of this shape, with so many blocks a request, on both sides.

        What was captured is void wherever an address changes, also where memory runs out half way.
        """
        if not self._has_room(dims, fields, blocks):
            self.settle()
            self.forget()
            spans, size, outputs = (2 * count for count in (max(32, dims.spans), max(512, fields.size), dims.outputs))
            width = max(_WIDTH, 1 << (blocks - 1).bit_length(), 0 if self._tables is None else self._tables.shape[1])
            device, pinned = self.runner.device, not self.runner.interpret
            slots = [_make_slot(size, spans, width, max(64, outputs), pinned) for _ in range(_AHEAD)]
            tables = torch.zeros((spans, width), dtype=torch.int32, device=device)
            self._ints = torch.zeros(size, dtype=torch.int32, device=device)
            self._tables, self._slots = tables, slots
        try:
            self.runner.reserve(dims)
        finally:
            if self._generation != self.runner.generation:
                self.settle()
                self.forget()
                self._generation = self.runner.generation

    def _has_room(self, dims: Dims, fields: Fields, blocks: int) -> bool:
        tables, ints = self._tables, self._ints
        if tables is None or ints is None:
            return False
        tables_fit = len(tables) >= dims.spans and tables.shape[1] >= blocks
        return tables_fit and len(ints) >= fields.size and len(self._slots[0].tokens) >= dims.outputs

    def settle(self) -> None:
        """Wait for all steps that were started."""
        if self._stream is not None:
            self._stream.synchronize()


def _ladder(rows: int) -> list[int]:
    """The steps of the ladder up to this one, the largest first."""
    return [step for step in range(rows, 0, -1) if round_up(step) == step]


def _make_slot(ints: int, spans: int, width: int, outputs: int, pinned: bool) -> _Slot:
    def zeros(*shape: int) -> Tensor:
        made = torch.zeros(shape, dtype=torch.int32)
        return made.pin_memory() if pinned else made

    tables = zeros(spans, width)
    events = tuple(torch.cuda.Event(enable_timing=True) if pinned else None for _ in range(3))
    return _Slot(zeros(ints), tables, Tables(tables.numpy()), zeros(outputs), events)  # type: ignore[arg-type]

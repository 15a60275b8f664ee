"""Steps on their way: integers to the device, a replayed graph or single launches, results back, times from events."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from knee.devices.base import Span
from knee.devices.cuda.batch import Batch, Dims, Fields, Tables, coarse, round_up
from knee.devices.cuda.kernels.attention import SPLIT
from knee.devices.cuda.runner import Pool, Runner, Scratch, Step

_LARGEST_GRAPH = 8192  # rows; beyond, launching costs nothing beside the step
_AHEAD = 2  # steps whose integers and results are in use at a time
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


class _Sizes(NamedTuple):
    """Of what a step needs on both sides."""

    ints: int
    spans: int
    outputs: int
    blocks: int  # of a span


_ENOUGH = _Sizes(ints=1 << 16, spans=512, outputs=512, blocks=16)  # to begin with


@dataclass(frozen=True, slots=True)
class _Room:
    """Where the integers and block tables of steps lie: on the device, and in as many slots as steps are in flight."""

    ints: Tensor
    tables: Tensor  # (spans, blocks)
    slots: list[_Slot]

    @classmethod
    def make(cls, sizes: _Sizes, device: torch.device, pinned: bool) -> Self:
        """Filled with zeros."""
        slots = [_make_slot(sizes, pinned) for _ in range(_AHEAD)]
        tables = torch.zeros((sizes.spans, sizes.blocks), dtype=torch.int32, device=device)
        return cls(torch.zeros(sizes.ints, dtype=torch.int32, device=device), tables, slots)

    @property
    def sizes(self) -> _Sizes:
        """What it was made for."""
        return _Sizes(len(self.ints), len(self.tables), len(self.slots[0].tokens), self.tables.shape[1])


@dataclass(frozen=True, slots=True)
class _Work:
    """All memory that a step of a shape works in, beside the pool, and the graph that does it.

    What becomes too small is made anew elsewhere, so graphs stay good: only `tokens`, which one step hands on to the
    next, is the same for all. `graph` None: kernel by kernel.
    """

    room: _Room
    scratch: Scratch
    tokens: Tensor
    graph: Any


@dataclass
class Steps:
    """Starts steps on a runner, in a stream of its own, at most `_AHEAD` of them at a time."""

    runner: Runner
    warnings: list[str] = field(default_factory=list)
    pool: Pool | None = None
    _stream: Any = None
    _room: _Room | None = None
    _count: int = 0
    _captured: dict[Dims, _Work] = field(default_factory=dict)  # the one used last at the end
    _fields: dict[Dims, Fields] = field(default_factory=dict)
    _made: Sequence[int] = ()

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
                    room = self._reserve(dims, 1)
                self._compile(first, room)

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
        blocks = max([len(span.block_table) for span in spans])
        with self._on_stream():
            work = self._find(dims, blocks) or self._prepare(dims, blocks)
            slot = work.room.slots[self._count % _AHEAD]
            self._count += 1
            slot.wait()
            batch.write(slot.ints.numpy()[: fields.size], fields, self._made)
            slot.written.write(batch)
            flight = self._launch(batch, slot, work, fields.size)
            self._made = batch.outputs  # at last: where memory ran out, the step is started once more
            return flight

    def _launch(self, batch: Batch, slot: _Slot, work: _Work, size: int) -> Flight:
        dims, room = batch.dims, work.room
        began, ended, arrived = slot.events
        if began is not None:
            began.record(self._stream)
        room.ints[:size].copy_(slot.ints[:size], non_blocking=True)
        room.tables[: dims.spans].copy_(slot.tables[: dims.spans], non_blocking=True)
        if work.graph is None:
            self.runner.run(self._step(dims, room))
        else:
            work.graph.replay()
        if ended is not None:
            ended.record(self._stream)
        logits = None
        if dims.logits:
            logits = torch.empty((dims.outputs, self.runner.program.vocab_size))
            logits.copy_(work.scratch.logits[: dims.outputs])  # waits for the step: who chooses is the host
        slot.tokens[: dims.outputs].copy_(work.tokens[: dims.outputs], non_blocking=True)
        if arrived is not None:
            arrived.record(self._stream)
        return Flight(batch, slot.tokens, logits, began, ended, arrived)

    def _find(self, dims: Dims, blocks: int) -> _Work | None:
        """The shape's graph, if there is one that has room for so many blocks a request."""
        if not self._has(dims, blocks):
            return None
        work = self._captured[dims] = self._captured.pop(dims)
        return work

    def _has(self, dims: Dims, blocks: int) -> bool:
        work = self._captured.get(dims) if self.runner.graphs else None
        return work is not None and work.tokens is self.runner.tokens and work.room.tables.shape[1] >= blocks

    def _prepare(self, dims: Dims, blocks: int) -> _Work:
        """Before a shape runs for the first time: compile its kernels and capture it, with decode all smaller ones.

        As requests end, a batch goes through the smaller shapes, and capturing takes time.
        """
        room, shapes = self._reserve(dims, blocks), [dims]
        if self.runner.graphs and dims.rows <= _LARGEST_GRAPH:
            if dims.decode_only and dims.splits == 1:  # contexts grow past a split at any size
                shapes = [replace(dims, rows=rows, items=rows, spans=rows, outputs=rows) for rows in _ladder(dims.rows)]
            missing = [shape for shape in shapes if not self._has(shape, blocks)]
            self._compile(missing, room)
            for shape in missing:
                self._capture(shape, room)
        else:
            self._compile(shapes, room)
        return self._find(dims, blocks) or self._work(room)

    def _work(self, room: _Room, graph: Any = None) -> _Work:
        assert self.runner.scratch is not None
        return _Work(room, self.runner.scratch, self.runner.tokens, graph)

    def _compile(self, shapes: Sequence[Dims], room: _Room) -> None:
        assert self.pool is not None
        new = {self.runner.kernels_of(shape): shape for shape in shapes}
        missing = [shape for kernels, shape in new.items() if not self.pool.ready.get(kernels)]
        if missing:
            self.runner.compile([self._step(shape, room) for shape in missing])

    def _fields_of(self, dims: Dims) -> Fields:
        return self._fields.get(dims) or self._fields.setdefault(dims, Fields(dims))

    def _run_empty(self, step: Step) -> None:
        """Run it with nobody in it: what a library prepares at its first call cannot be captured."""
        kept = self.runner.tokens.clone()  # the step to come may want what the one before has made
        for name, values in step.ints.items():
            values.fill_(-1 if name in ("sources", "row_spans") else 0)
        try:
            self.runner.run(step)
        finally:
            self.runner.tokens.copy_(kept)

    def _capture(self, dims: Dims, room: _Room) -> None:
        """Unless captures have failed."""
        if not self.runner.graphs:
            return
        step = self._step(dims, room)
        if self.runner.asks_library(dims):
            self._run_empty(step)
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
        self._captured.pop(dims, None)
        if len(self._captured) >= _MOST_GRAPHS:
            del self._captured[next(iter(self._captured))]
        self._captured[dims] = self._work(room, graph)

    def _step(self, dims: Dims, room: _Room) -> Step:
        assert self.pool is not None
        places = self._fields_of(dims).places
        ints = {name: room.ints[begin : begin + length] for name, (begin, length) in places.items()}
        return Step(dims, ints, room.tables, self.pool)

    # --- memory --------------------------------------------------------------------------------------------------

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def forget(self) -> None:
        """Graphs that were captured: what they launch or work on has changed, or their memory is wanted."""
        if self._captured:
            self.settle()
        self._captured.clear()

    def _reserve(self, dims: Dims, blocks: int) -> _Room:
        """Room for a step of this shape, with so many blocks a request, and scratch memory."""
        needed = _Sizes(self._fields_of(dims).size, dims.spans, dims.outputs, blocks)
        now = _ENOUGH if self._room is None else self._room.sizes
        wanted = _Sizes(*[max(size, coarse(need)) for size, need in zip(now, needed, strict=True)])
        if self._room is None or wanted != now:
            self._room = _Room.make(wanted, self.runner.device, pinned=not self.runner.interpret)
        self.runner.reserve(dims)
        return self._room

    def settle(self) -> None:
        """Wait for all steps that were started."""
        if self._stream is not None:
            self._stream.synchronize()


def _ladder(rows: int) -> list[int]:
    """The steps of the ladder up to this one, the largest first."""
    return [step for step in range(rows, 0, -1) if round_up(step) == step]


def _make_slot(sizes: _Sizes, pinned: bool) -> _Slot:
    def zeros(*shape: int) -> Tensor:
        made = torch.zeros(shape, dtype=torch.int32)
        return made.pin_memory() if pinned else made

    tables = zeros(sizes.spans, sizes.blocks)
    events = tuple(torch.cuda.Event(enable_timing=True) if pinned else None for _ in range(3))
    return _Slot(zeros(sizes.ints), tables, Tables(tables.numpy()), zeros(sizes.outputs), events)  # type: ignore[arg-type]

"""A batch of spans as integers for the kernels. NumPy only; nothing here knows torch.

A step's spans are put in this order: those of one token ("decode"; one item of `attend_one` each), then the longer
ones, which are cut into tiles of a few tokens for `attend_many`. All counts are rounded up to the steps of a ladder, so
that few shapes occur and a step of the same shape can be replayed; what is added does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knee.devices.base import Span, Want

IntArray = NDArray[np.int32]

_ALIGN = 16  # integers; fields begin at multiples, which keeps their addresses aligned

_OUTPUTS = {Want.NOTHING: 0, Want.TOKEN: 1, Want.LOGITS: 1}


@dataclass(frozen=True, slots=True)
class Dims:
    """The shape of a step, rounded up: what a captured graph is good for."""

    rows: int  # tokens
    items: int  # spans of one token
    tiles: int  # of longer spans
    spans: int  # rows of the block tables
    outputs: int  # rows whose logits are wanted
    splits: int  # of the longest context of an item
    logits: bool  # whether logits go to the host
    drawn: bool = False  # whether a token is drawn

    @property
    def decode_only(self) -> bool:
        """Whether every span is one token whose greedy successor is wanted."""
        return not self.tiles and not self.logits and self.outputs == self.items == self.rows

    @property
    def kernels(self) -> tuple[object, ...]:
        """What the kernels of a step depend on: two shapes that agree in it launch the same ones."""
        return coarse(self.rows), coarse(self.outputs), self.items > 0, self.tiles > 0, self.logits, self.drawn


class Fields:
    """Where each array of a shape's integers lies: (begin, length) by name."""

    NAMES = (
        "tokens",
        "sources",
        "positions",
        "row_spans",
        "decode_rows",
        "contexts",
        "tile_rows",
        "tile_lengths",
        "tile_positions",
        "tile_spans",
        "output_rows",
        "temperatures",
        "uniforms",
    )

    def __init__(self, dims: Dims) -> None:
        lengths = (
            (dims.rows,) * 4
            + (dims.items,) * 2
            + (dims.tiles,) * 4
            + (dims.outputs,)
            + (dims.outputs if dims.drawn else 0,) * 2
        )
        self.places: dict[str, tuple[int, int]] = {}
        begin = 0
        for name, length in zip(self.NAMES, lengths, strict=True):
            self.places[name] = (begin, length)
            begin += -(-length // _ALIGN) * _ALIGN
        self.size = begin


def round_up(count: int) -> int:
    """The next step of the ladder for rows, items, outputs: 1, 2, 4, 8, 16, then about eight steps an octave."""
    if count <= 1:
        return count
    if count <= 16:
        return 1 << (count - 1).bit_length()
    step = max(16, (1 << (count - 1).bit_length()) // 16)
    return -(-count // step) * step


def _round_up_to_power_of_four(count: int) -> int:
    return int(4 ** -(-(count - 1).bit_length() // 2))


def coarse(count: int) -> int:
    """The next power of two: for counts whose excess costs next to nothing."""
    return 1 << (count - 1).bit_length() if count else 0


def outputs_of(span: Span) -> int:
    """Rows of a span whose logits are wanted."""
    return _OUTPUTS.get(span.want, len(span.tokens))


class Batch:
    """One step's spans in the kernels' order."""

    def __init__(self, spans: Sequence[Span], split: int, tile_rows: int) -> None:
        lengths = [len(span.tokens) for span in spans]
        self.order: Sequence[int] = range(len(spans))
        self.spans = spans
        self.items = lengths.count(1)
        if self.items < len(spans):
            self.order = sorted(self.order, key=lambda i: lengths[i] > 1)
            self.spans = [spans[i] for i in self.order]
        self._split = split
        self._tile_rows = tile_rows

    @cached_property
    def decode_only(self) -> bool:
        """Whether every span is one token whose successor is wanted. Its shape may be that of other batches, too."""
        return self.items == len(self.spans) and all([span.want is Want.TOKEN for span in self.spans])

    @cached_property
    def dims(self) -> Dims:
        """Its shape."""
        spans, items = self.spans, self.items
        longer = spans[items:]
        context = max([span.start for span in spans[:items]], default=0) + 1
        splits = _round_up_to_power_of_four(-(-context // self._split))
        drawn = any([span.draw is not None for span in spans])
        if self.decode_only:
            rows = round_up(items)
            return Dims(rows, rows, 0, rows, rows, splits, False, drawn)
        rows = items + sum(len(span.tokens) for span in longer)
        tiles = sum(-(-len(span.tokens) // self._tile_rows) for span in longer)
        outputs = sum(outputs_of(span) for span in spans)
        logits = any(span.want in (Want.LOGITS, Want.ALL_LOGITS) for span in spans)
        return Dims(
            round_up(rows),
            round_up(items),
            coarse(tiles),
            round_up(items) + coarse(len(longer)),
            round_up(outputs),
            splits,
            logits,
            drawn,
        )

    @cached_property
    def table_rows(self) -> list[int]:
        """The row of the block tables of each span, in the kernels' order."""
        gap = self.dims.spans - coarse(len(self.spans) - self.items) - self.items
        return [i if i < self.items else i + gap for i in range(len(self.spans))]

    @cached_property
    def outputs(self) -> Sequence[int]:
        """For each span as it was given: its first output."""
        if self.decode_only:
            return range(len(self.spans))
        found, first = [0] * len(self.spans), 0
        for place, span in zip(self.order, self.spans, strict=True):
            found[place] = first
            first += outputs_of(span)
        return found

    def write(self, into: IntArray, fields: Fields, made: Sequence[int]) -> None:
        """Fill a shape's integers. `made` are the outputs of the batch before, which sources refer to."""
        at = {name: into[begin : begin + length] for name, (begin, length) in fields.places.items()}
        items = self.items
        single = self.spans[:items]
        for name in ("tokens", "sources", "positions", "row_spans", "decode_rows", "contexts", "output_rows"):
            at[name][...] = -1 if name in ("sources", "row_spans") else 0
        at["tokens"][:items] = [span.tokens[0] for span in single]
        at["sources"][:items] = [-1 if span.source is None else made[span.source] for span in single]
        starts = np.array([span.start for span in single], np.int32)
        at["positions"][:items] = starts
        at["contexts"][:items] = starts + 1
        order = np.arange(items, dtype=np.int32)
        at["row_spans"][:items] = order
        at["decode_rows"][:items] = order
        if self.decode_only:
            at["output_rows"][:items] = order
        else:
            self._write_longer(at)
        if self.dims.drawn:
            self._write_draws(at["temperatures"].view(np.float32), at["uniforms"].view(np.float32))

    def _write_longer(self, at: dict[str, IntArray]) -> None:
        """The rows of longer spans, their tiles, and which rows' logits are wanted."""
        at["tile_lengths"][...] = 0
        row, tile, output = 0, 0, 0
        for place, (span, table_row) in enumerate(zip(self.spans, self.table_rows, strict=True)):
            count = len(span.tokens)
            if place >= self.items:
                rows = slice(row, row + count)
                at["tokens"][rows] = span.tokens
                at["positions"][rows] = np.arange(span.start, span.start + count)
                at["row_spans"][rows] = table_row
                for first in range(0, count, self._tile_rows):
                    at["tile_rows"][tile] = row + first
                    at["tile_lengths"][tile] = min(self._tile_rows, count - first)
                    at["tile_positions"][tile] = span.start + first
                    at["tile_spans"][tile] = table_row
                    tile += 1
            row += count
            wanted = outputs_of(span)
            at["output_rows"][output : output + wanted] = np.arange(row - wanted, row)
            output += wanted

    def _write_draws(self, temperatures: NDArray[np.float32], uniforms: NDArray[np.float32]) -> None:
        """Of each output; temperature 0 is greedy."""
        temperatures[...] = 0
        outputs = self.outputs
        for place, span in zip(self.order, self.spans, strict=True):
            if span.draw is not None:
                temperatures[outputs[place]], uniforms[outputs[place]] = span.draw


class Tables:
    """Block tables on their way to the device. Rows that have not changed since they were last written here stay."""

    def __init__(self, array: IntArray) -> None:
        self.array = array
        self._written: list[list[int]] = [[] for _ in range(len(array))]

    def write(self, batch: Batch) -> None:
        """One row for each span; its blocks, the rest is never read."""
        array, written = self.array, self._written
        for row, span in zip(batch.table_rows, batch.spans, strict=True):
            blocks = span.block_table
            if written[row] != blocks:
                written[row] = list(blocks)
                array[row, : len(blocks)] = blocks

"""A batch as integers: every token, position, table row, tile and wanted output is where the kernels look for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.devices.base import UNKNOWN, Span, Want
from knee.devices.cuda.batch import Batch, Dims, Fields, Tables, round_up

SPLIT = 256
WANTS = st.sampled_from(Want)


@st.composite
def spans(draw: st.DrawFn, wants: st.SearchStrategy[Want] = WANTS, most: int = 40) -> list[Span]:
    """Requests at any place; blocks of their own, more than the tokens need or not."""
    made: list[Span] = []
    block_size, blocks = draw(st.sampled_from([1, 16, 64])), 0
    for _ in range(draw(st.integers(1, most))):
        length = draw(st.one_of(st.just(1), st.integers(1, 70)))
        start = draw(st.integers(0, 900))
        tokens = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        count = -(-(start + length) // block_size) + draw(st.integers(0, 2))
        made.append(Span(tokens, start, list(range(blocks, blocks + count)), draw(wants)))
        blocks += count
    return made


def arrays(batch: Batch, made: Sequence[int] = ()) -> dict[str, Any]:
    """A batch's fields, written into memory that held something else before."""
    fields = Fields(batch.dims)
    memory = np.full(fields.size, 12345, np.int32)
    batch.write(memory, fields, made)
    return {name: memory[begin : begin + length].tolist() for name, (begin, length) in fields.places.items()}


def wanted_rows(span: Span) -> int:
    return {Want.NOTHING: 0, Want.ALL_LOGITS: len(span.tokens)}.get(span.want, 1)


def rows_of(batch: Batch) -> list[range]:
    """The rows of each span, in the kernels' order: those of one token first."""
    rows, first = [], 0
    for span in batch.spans:
        rows.append(range(first, first + len(span.tokens)))
        first += len(span.tokens)
    return rows


@pytest.mark.parametrize("tile_rows", [16, 64])
@settings(max_examples=50)
@given(given_spans=spans())
def test_every_token_is_where_it_should_be(tile_rows: int, given_spans: list[Span]) -> None:
    batch = Batch(given_spans, SPLIT, tile_rows)
    at, dims = arrays(batch), batch.dims
    assert [given_spans[i] for i in batch.order] == list(batch.spans)
    assert sorted(batch.order) == list(range(len(given_spans)))
    tables = dict(zip(batch.table_rows, batch.spans, strict=True))
    assert len(tables) == len(batch.spans)
    assert set(tables) <= set(range(dims.spans))
    taken = 0
    for span, rows, table_row in zip(batch.spans, rows_of(batch), batch.table_rows, strict=True):
        for n, row in enumerate(rows):
            assert at["tokens"][row] == span.tokens[n]
            assert at["positions"][row] == span.start + n
            assert at["row_spans"][row] == table_row
        taken += len(rows)
    assert taken <= dims.rows
    assert set(at["sources"]) == {-1}
    assert at["row_spans"][taken:] == [-1] * (dims.rows - taken), "rows of nobody write no keys and values"
    assert set(at["tokens"][taken:]) <= {0}
    assert set(at["positions"][taken:]) <= {0}


@settings(max_examples=50)
@given(given_spans=spans())
def test_single_tokens_are_items_and_longer_spans_are_tiles(given_spans: list[Span]) -> None:
    batch = Batch(given_spans, SPLIT, 16)
    at, dims, seen = arrays(batch), batch.dims, Counter[int]()
    for item, (context, row) in enumerate(zip(at["contexts"], at["decode_rows"], strict=True)):
        if item >= batch.items:
            assert context == 0
            continue
        span = batch.spans[item]
        assert len(span.tokens) == 1
        assert (context, row) == (span.start + 1, item)
        assert batch.table_rows[item] == item, "attend_one looks for an item's blocks there"
        assert context <= dims.splits * SPLIT
        seen[row] += 1
    tables = dict(zip(batch.table_rows, batch.spans, strict=True))
    firsts = dict(zip(batch.table_rows, [rows[0] for rows in rows_of(batch)], strict=True))
    for tile, length in enumerate(at["tile_lengths"]):
        assert 0 <= length <= 16
        if length:
            table_row, row, position = at["tile_spans"][tile], at["tile_rows"][tile], at["tile_positions"][tile]
            assert position - tables[table_row].start == row - firsts[table_row]
            assert row - firsts[table_row] + length <= len(tables[table_row].tokens)
            seen.update(range(row, row + length))
    assert seen == Counter(range(sum(len(span.tokens) for span in given_spans)))


@settings(max_examples=50)
@given(given_spans=spans())
def test_each_span_s_outputs_are_its_last_rows(given_spans: list[Span]) -> None:
    batch = Batch(given_spans, SPLIT, 16)
    at, places = arrays(batch), dict(zip(batch.order, rows_of(batch), strict=True))
    taken: list[int] = []
    for place, (span, first) in enumerate(zip(given_spans, batch.outputs, strict=True)):
        count = wanted_rows(span)
        assert first + count <= batch.dims.outputs
        assert at["output_rows"][first : first + count] == list(places[place])[len(span.tokens) - count :]
        taken += range(first, first + count)
    assert len(taken) == len(set(taken))
    assert all(0 <= row < batch.dims.rows for row in at["output_rows"])
    assert batch.dims.logits == any(span.want in (Want.LOGITS, Want.ALL_LOGITS) for span in given_spans)


@settings(max_examples=50)
@given(before=spans(), count=st.integers(1, 30), data=st.data())
def test_an_unknown_token_comes_from_the_output_of_the_span_that_makes_it(
    before: list[Span], count: int, data: st.DataObject
) -> None:
    earlier = Batch(before, SPLIT, 64)
    makers = [place for place, span in enumerate(before) if span.want is Want.TOKEN]
    now = [
        Span([UNKNOWN], 5, [i], Want.TOKEN, source=data.draw(st.sampled_from(makers)))
        if makers and data.draw(st.booleans())
        else Span([7] * data.draw(st.integers(1, 20)), 0, [i], Want.TOKEN)
        for i in range(count)
    ]
    batch = Batch(now, SPLIT, 64)
    at = arrays(batch, earlier.outputs)
    for span, rows in zip(batch.spans, rows_of(batch), strict=True):
        expected = -1 if span.source is None else earlier.outputs[span.source]
        assert at["sources"][rows[0]] == expected
        if span.source is None:
            assert UNKNOWN not in at["tokens"][rows[0] : rows[-1] + 1]


@given(given_spans=spans(), data=st.data())
def test_draws_lie_beside_their_outputs(given_spans: list[Span], data: st.DataObject) -> None:
    draws = {}
    for place, span in enumerate(given_spans):
        if span.want is Want.TOKEN and data.draw(st.booleans()):
            span.draw = draws[place] = data.draw(st.tuples(st.floats(0.5, 2, width=32), st.floats(0, 0.75, width=32)))
    batch = Batch(given_spans, SPLIT, 16)
    at, dims = arrays(batch), batch.dims
    assert dims.drawn == bool(draws)
    assert len(at["temperatures"]) == len(at["uniforms"]) == (dims.outputs if draws else 0)
    if draws:
        temperatures, uniforms = (
            np.array(at[name], np.int32).view(np.float32) for name in ("temperatures", "uniforms")
        )
        for place, draw in draws.items():
            output = batch.outputs[place]
            assert (temperatures[output], uniforms[output]) == draw
        assert np.count_nonzero(temperatures) == len(draws), "temperature 0 is greedy"


def on_ladder(count: int) -> bool:
    return round_up(count) == count


@settings(max_examples=50)
@given(given_spans=spans())
def test_dims_are_on_the_ladder(given_spans: list[Span]) -> None:
    dims = Batch(given_spans, SPLIT, 64).dims
    assert on_ladder(dims.rows)
    assert on_ladder(dims.items)
    assert on_ladder(dims.outputs)
    assert dims.tiles == 0 or dims.tiles.bit_count() == 1
    assert dims.splits.bit_count() == 1
    assert dims.splits.bit_length() % 2, "a power of four"
    assert dims.spans >= len(given_spans)
    longer = dims.spans - dims.items
    assert longer == 0 or longer.bit_count() == 1


@settings(max_examples=50)
@given(given_spans=spans(st.just(Want.TOKEN)))
def test_decode_alone_is_one_count(given_spans: list[Span]) -> None:
    """What smaller decode shapes are captured ahead of, and what a graph of one of them is good for."""
    single = [Span(span.tokens[:1], span.start, span.block_table, span.want) for span in given_spans]
    dims = Batch(single, SPLIT, 64).dims
    rows = round_up(len(single))
    assert dims == Dims(rows, rows, 0, rows, rows, dims.splits, False)
    assert dims.decode_only


@given(count=st.integers(0, 20000))
def test_the_ladder_rounds_up_by_little(count: int) -> None:
    rounded = round_up(count)
    assert count <= rounded
    assert round_up(rounded) == rounded
    assert rounded - count < max(16, count / 8 + 1)
    assert rounded <= round_up(count + 1)


@settings(max_examples=50)
@given(given_spans=spans())
def test_fields_lie_apart_and_aligned(given_spans: list[Span]) -> None:
    fields = Fields(Batch(given_spans, SPLIT, 64).dims)
    ends = 0
    for begin, length in fields.places.values():
        assert begin % 16 == 0
        assert begin >= ends
        ends = begin + length
    assert ends <= fields.size
    assert set(fields.places) == set(Fields.NAMES)


@settings(max_examples=50)
@given(data=st.data())
def test_tables_hold_what_the_batch_says_through_any_number_of_steps(data: st.DataObject) -> None:
    """Requests come, go, change places, lose all blocks and get others, in lists that stay the same objects."""
    rows, width = 90, 20
    tables = Tables(np.full((rows, width), -1, np.int32))
    requests: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 6))):
        for blocks in requests:
            change = data.draw(st.sampled_from(["stays", "grows", "starts anew", "one block is another"]))
            if change == "grows" and len(blocks) < width:
                blocks.append(data.draw(st.integers(0, 99)))
            elif change == "starts anew":
                blocks[:] = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=width))
            elif change == "one block is another":
                blocks[data.draw(st.integers(0, len(blocks) - 1))] = data.draw(st.integers(0, 99))
        requests += data.draw(
            st.lists(
                st.lists(st.integers(0, 99), min_size=1, max_size=width), min_size=0 if requests else 1, max_size=4
            )
        )
        requests = data.draw(st.permutations(requests))[: data.draw(st.integers(1, len(requests)))]
        lengths = [data.draw(st.sampled_from([1, 1, 3])) for _ in requests]
        batch = Batch(
            [Span([0] * n, 0, blocks, Want.TOKEN) for n, blocks in zip(lengths, requests, strict=True)], SPLIT, 64
        )
        tables.write(batch)
        for row, span in zip(batch.table_rows, batch.spans, strict=True):
            assert tables.array[row, : len(span.block_table)].tolist() == list(span.block_table)


def test_tables_do_not_depend_on_a_list_that_changes_after_the_step() -> None:
    tables, blocks = Tables(np.zeros((4, 4), np.int32)), [3, 1]
    span = Span([0], 5, blocks, Want.TOKEN)
    tables.write(Batch([span], SPLIT, 64))
    blocks[0] = 2
    assert tables.array[0].tolist() == [3, 1, 0, 0]
    tables.write(Batch([span], SPLIT, 64))
    assert tables.array[0].tolist() == [2, 1, 0, 0]


@pytest.mark.parametrize("kind", [list, tuple, range])
def test_block_tables_of_any_sequence(kind: type) -> None:
    tables = Tables(np.zeros((4, 8), np.int32))
    for first in (0, 3, 3):
        blocks = range(first, first + 4) if kind is range else kind([first, first + 1, first + 2, first + 3])
        tables.write(Batch([Span([0], 5, blocks, Want.TOKEN)], SPLIT, 64))
        assert tables.array[0, :4].tolist() == [first, first + 1, first + 2, first + 3]

"""Attention over the paged KV cache: a kernel for one new token a request, one for many. The same bits from both.

A pool is (blocks, kv_heads, block_size, head_dim), so that a head's keys of a block lie together. Tiles of 64 tokens
from position 0 on, softmax taken up tile by tile (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022), and
anew for every `SPLIT` tokens; the splits of a context are put together in their order. In decode splits run side by
side (Flash-Decoding, Dao et al. 2023) and the one that ends last puts them together; a prompt's rows go through them
in turn. Where splits begin depends on nothing but the position.
"""

from __future__ import annotations

import triton
import triton.language as tl

from knee.devices.cuda.kernels.common import product
from knee.devices.cuda.tiling import TILE as TILE

SPLIT = 256
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def tile_addresses(
    table, start, token, end, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES: tl.constexpr, EMPTY: tl.constexpr
):
    """Where the keys (or values) of a tile's tokens begin in a pool, those before `end`. WHOLE_TILES: a block holds
    whole tiles. EMPTY: there may be none; a mask that does nothing would cost registers."""
    if WHOLE_TILES:
        if EMPTY:
            block = tl.load(table + start // block_size, mask=start < end, other=0).to(tl.int64)
        else:
            block = tl.load(table + start // block_size).to(tl.int64)
        first = ((block * kv_heads + kv_head) * block_size + start % block_size) * head_dim
        return first + (token - start) * head_dim
    block = tl.load(table + token // block_size, mask=token < end, other=0).to(tl.int64)
    return ((block * kv_heads + kv_head) * block_size + token % block_size) * head_dim


@triton.jit
def weigh(q, k, seen, factor, largest, WIDE: tl.constexpr, DTYPE: tl.constexpr):
    """The softmax weights of a tile of tokens, relative to the largest score of each row so far; that, and the factor
    for what was added up before."""
    score = product(q, k, tl.zeros((q.shape[0], k.shape[1]), tl.float32), WIDE)
    score = tl.where(seen, score * factor, -float("inf"))
    new = tl.maximum(largest, tl.max(score, axis=1))
    base = tl.where(new == -float("inf"), 0.0, new)  # a row that sees nothing of this split yet
    return tl.exp2(score - base[:, None]).to(DTYPE), new, tl.exp2(largest - base)


@triton.jit
def add_values(weight, fade, v, total, acc, WIDE: tl.constexpr, DTYPE: tl.constexpr):
    """The tile's values into `acc`, the weights into `total` (rows, 16; equal columns)."""
    ones = tl.full((v.shape[0], 16), 1.0, tl.float32).to(DTYPE)
    total = product(weight, ones, total * fade[:, None], WIDE)
    acc = product(weight, v, acc * fade[:, None], WIDE)
    return total, acc


@triton.jit
def put_together(largest, total, acc, other_largest, other_total, other_acc):
    """Two splits of the same rows as one; the first may be empty."""
    new = tl.maximum(largest, other_largest)
    base = tl.where(new == -float("inf"), 0.0, new)
    fade, other_fade = tl.exp2(largest - base), tl.exp2(other_largest - base)
    total = total * fade[:, None] + other_total * other_fade[:, None]
    acc = acc * fade[:, None] + other_acc * other_fade[:, None]
    return new, total, acc


@triton.jit(do_not_specialize=["splits", "table_width"])
def attend_one(
    q, q_stride, out, out_stride, keys, values, decode_rows, contexts, tables, table_width,
    partial, partial_stats, counters, scale, head_dim, kv_heads, block_size, splits,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    WHOLE_TILES: tl.constexpr, EARLY: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One new token of a request: the query heads of one key head over one split of the context.

    `decode_rows` says which row of the step the token is, `contexts` how many tokens it sees; 0: nobody is here. EARLY
    reads all of the split but the new token's before the kernel ahead has ended (PDL), and takes many registers.
    """
    item, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + item)  # the step's integers were there before its first kernel
    row = tl.load(decode_rows + item).to(tl.int64)
    begin, last = split * SPLIT, context - 1
    table = tables + item * table_width
    dims = tl.arange(0, DIM)
    dim_ok = dims < head_dim
    tile_keys = ()
    tile_values = ()
    for i in tl.static_range(SPLIT // TILE if EARLY else 0):
        start = begin + i * TILE
        token = start + tl.arange(0, TILE)
        at = tile_addresses(table, start, token, last, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES, True)
        old = token < last
        k = tl.load(keys + at[None, :] + dims[:, None], mask=old[None, :] & dim_ok[:, None], other=0.0)
        v = tl.load(values + at[:, None] + dims[None, :], mask=old[:, None] & dim_ok[None, :], other=0.0)
        tile_keys = tile_keys + (k,)
        tile_values = tile_values + (v,)
    new_block = tl.load(table + tl.maximum(last, 0) // block_size).to(tl.int64)  # EARLY
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if begin < context:
        group = tl.arange(0, GROUP_PADDED)
        there = (group < GROUP)[:, None] & dim_ok[None, :]
        head_at = (kv_head * GROUP + group)[:, None] * head_dim + dims[None, :]
        query = tl.load(q + row * q_stride + head_at, mask=there, other=0.0)
        factor = scale * _LOG2_E
        largest = tl.full((GROUP_PADDED,), -float("inf"), tl.float32)
        total = tl.zeros((GROUP_PADDED, 16), tl.float32)
        acc = tl.zeros((GROUP_PADDED, DIM), tl.float32)
        if EARLY:
            new_at = ((new_block * kv_heads + kv_head) * block_size + last % block_size) * head_dim + dims
            new_key = tl.load(keys + new_at, mask=dim_ok, other=0.0)
            new_value = tl.load(values + new_at, mask=dim_ok, other=0.0)
            for i in tl.static_range(SPLIT // TILE):
                token = begin + i * TILE + tl.arange(0, TILE)
                if begin + i * TILE < context:
                    k = tl.where((token == last)[None, :], new_key[:, None], tile_keys[i])
                    weight, largest, fade = weigh(query, k, (token < context)[None, :], factor, largest, WIDE, DTYPE)
                    v = tl.where((token == last)[:, None], new_value[None, :], tile_values[i])
                    total, acc = add_values(weight, fade, v, total, acc, WIDE, DTYPE)
        else:
            for start in range(begin, tl.minimum(begin + SPLIT, context), TILE):
                token = start + tl.arange(0, TILE)
                ok = token < context
                at = tile_addresses(
                    table, start, token, context, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES, False
                )
                k = tl.load(keys + at[None, :] + dims[:, None], mask=ok[None, :] & dim_ok[:, None], other=0.0)
                weight, largest, fade = weigh(query, k, ok[None, :], factor, largest, WIDE, DTYPE)
                v = tl.load(values + at[:, None] + dims[None, :], mask=ok[:, None] & dim_ok[None, :], other=0.0)
                total, acc = add_values(weight, fade, v, total, acc, WIDE, DTYPE)
        out_at = out + row * out_stride + head_at
        needed = tl.cdiv(context, SPLIT)
        if needed == 1:
            sums = tl.max(total, axis=1)
            tl.store(out_at, (acc / sums[:, None]).to(out.dtype.element_ty), mask=there)
        else:
            base = (item * kv_heads + kv_head) * splits
            leave_split(
                largest, total, acc, partial, partial_stats, base + split, group, dims, there, GROUP, GROUP_PADDED, DIM
            )
            counter = counters + item * kv_heads + kv_head
            if tl.atomic_add(counter, 1, sem="acq_rel") == needed - 1:
                tl.store(counter, 0)
                AT_ONCE: tl.constexpr = 4 if EARLY else 1
                acc = all_splits(partial, partial_stats, base, needed, group, dims, GROUP, GROUP_PADDED, DIM, AT_ONCE)
                tl.store(out_at, acc.to(out.dtype.element_ty), mask=there)


@triton.jit
def leave_split(
    largest, total, acc, partial, partial_stats, place, group, dims, there,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Put a split's result where the last one of its context finds it; all of it is there when this is over."""
    kept = place.to(tl.int64) * GROUP_PADDED + group
    tl.store(partial_stats + kept * 2, largest, mask=group < GROUP)
    tl.store(partial_stats + kept * 2 + 1, tl.max(total, axis=1), mask=group < GROUP)
    tl.store(partial + kept[:, None] * DIM + dims[None, :], acc, mask=there)
    tl.debug_barrier()


@triton.jit
def all_splits(
    partial, partial_stats, base, needed, group, dims,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, DIM: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The result of a context from those of its splits, AT_ONCE of which are read at a time; put together in order."""
    there = group < GROUP
    largest = tl.full((GROUP_PADDED,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP_PADDED, 1), tl.float32)
    acc = tl.zeros((GROUP_PADDED, DIM), tl.float32)
    for first in range(0, needed, AT_ONCE):
        read = ()
        for i in tl.static_range(AT_ONCE):
            kept = (base + first + i).to(tl.int64) * GROUP_PADDED + group
            ok = there & (first + i < needed)
            stats = partial_stats + kept * 2
            one = tl.load(stats, mask=ok, other=0.0, cache_modifier=".cg")
            two = tl.load(stats + 1, mask=ok, other=1.0, cache_modifier=".cg")
            three = tl.load(
                partial + kept[:, None] * DIM + dims[None, :], mask=ok[:, None], other=0.0, cache_modifier=".cg"
            )
            read = read + ((one, two, three),)
        for i in tl.static_range(AT_ONCE):
            if first + i < needed:
                largest, total, acc = put_together(largest, total, acc, read[i][0], read[i][1][:, None], read[i][2])
    return acc / tl.max(total, axis=1)[:, None]


@triton.jit(do_not_specialize=["table_width"])
def attend_many(
    q, q_stride, out, out_stride, keys, values, tile_rows, tile_lengths, tile_positions, tile_spans,
    tables, table_width, scale, head_dim, kv_heads, block_size,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr,
    WHOLE_TILES: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Up to ROWS successive tokens of one request, one query head: rows `tile_rows` + 0 … `tile_lengths` - 1."""
    item, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(tile_lengths + item)
    row = tl.load(tile_rows + item).to(tl.int64)
    position = tl.load(tile_positions + item)
    table = tables + tl.load(tile_spans + item) * table_width
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if length > 0:
        kv_head = head // GROUP
        n = tl.arange(0, ROWS)
        dims = tl.arange(0, DIM)
        dim_ok = dims < head_dim
        there = (n < length)[:, None] & dim_ok[None, :]
        query = tl.load(q + (row + n)[:, None] * q_stride + head * head_dim + dims[None, :], mask=there, other=0.0)
        factor = scale * _LOG2_E
        context = position + length
        largest = tl.full((ROWS,), -float("inf"), tl.float32)
        total = tl.zeros((ROWS, 16), tl.float32)
        acc = tl.zeros((ROWS, DIM), tl.float32)
        for begin in range(0, context, SPLIT):
            part_largest = tl.full((ROWS,), -float("inf"), tl.float32)
            part_total = tl.zeros((ROWS, 16), tl.float32)
            part_acc = tl.zeros((ROWS, DIM), tl.float32)
            for start in range(begin, tl.minimum(begin + SPLIT, context), TILE):
                token = start + tl.arange(0, TILE)
                token_ok = token < context
                at = tile_addresses(
                    table, start, token, context, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES, False
                )
                seen = (token[None, :] <= (position + n)[:, None]) & token_ok[None, :]
                k = tl.load(keys + at[None, :] + dims[:, None], mask=token_ok[None, :] & dim_ok[:, None], other=0.0)
                weight, part_largest, fade = weigh(query, k, seen, factor, part_largest, WIDE, DTYPE)
                v = tl.load(values + at[:, None] + dims[None, :], mask=token_ok[:, None] & dim_ok[None, :], other=0.0)
                part_total, part_acc = add_values(weight, fade, v, part_total, part_acc, WIDE, DTYPE)
            largest, total, acc = put_together(largest, total, acc, part_largest, part_total, part_acc)
        sums = tl.max(total, axis=1)
        out_at = out + (row + n)[:, None] * out_stride + head * head_dim + dims[None, :]
        tl.store(out_at, (acc / sums[:, None]).to(out.dtype.element_ty), mask=there)

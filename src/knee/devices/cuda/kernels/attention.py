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
def tile_addresses(table, start, token, token_ok, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES: tl.constexpr):
    """Where the keys (or values) of a tile's tokens begin in a pool. WHOLE_TILES: a block holds whole tiles."""
    if WHOLE_TILES:
        block = tl.load(table + start // block_size).to(tl.int64)
        first = ((block * kv_heads + kv_head) * block_size + start % block_size) * head_dim
        return first + (token - start) * head_dim
    block = tl.load(table + token // block_size, mask=token_ok, other=0).to(tl.int64)
    return ((block * kv_heads + kv_head) * block_size + token % block_size) * head_dim


@triton.jit
def attend_tile(
    q, keys, values, at, token_ok, seen, dims, dim_ok, factor, largest, total, acc,
    WIDE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """One tile of tokens into the running softmax: `largest` (rows), `total` (rows, 16; equal columns), `acc`."""
    k = tl.load(keys + at[None, :] + dims[:, None], mask=token_ok[None, :] & dim_ok[:, None], other=0.0)
    score = product(q, k, tl.zeros((q.shape[0], k.shape[1]), tl.float32), WIDE)
    score = tl.where(seen, score * factor, -float("inf"))
    new = tl.maximum(largest, tl.max(score, axis=1))
    base = tl.where(new == -float("inf"), 0.0, new)  # a row that sees nothing of this split yet
    fade = tl.exp2(largest - base)
    weight = tl.exp2(score - base[:, None]).to(DTYPE)
    v = tl.load(values + at[:, None] + dims[None, :], mask=token_ok[:, None] & dim_ok[None, :], other=0.0)
    ones = tl.full((k.shape[1], 16), 1.0, tl.float32).to(DTYPE)
    total = product(weight, ones, total * fade[:, None], WIDE)
    acc = product(weight, v, acc * fade[:, None], WIDE)
    return new, total, acc


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
    WHOLE_TILES: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One new token of a request: the query heads of one key head over one split of the context.

    `decode_rows` says which row of the step the token is, `contexts` how many tokens it sees; 0: nobody is here.
    """
    item, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    context = tl.load(contexts + item)  # the step's integers were there before its first kernel
    row = tl.load(decode_rows + item).to(tl.int64)
    begin = split * SPLIT
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if begin < context:
        group = tl.arange(0, GROUP_PADDED)
        dims = tl.arange(0, DIM)
        dim_ok = dims < head_dim
        there = (group < GROUP)[:, None] & dim_ok[None, :]
        head_at = (kv_head * GROUP + group)[:, None] * head_dim + dims[None, :]
        query = tl.load(q + row * q_stride + head_at, mask=there, other=0.0)
        table = tables + item * table_width
        factor = scale * _LOG2_E
        largest = tl.full((GROUP_PADDED,), -float("inf"), tl.float32)
        total = tl.zeros((GROUP_PADDED, 16), tl.float32)
        acc = tl.zeros((GROUP_PADDED, DIM), tl.float32)
        for start in range(begin, tl.minimum(begin + SPLIT, context), TILE):
            token = start + tl.arange(0, TILE)
            token_ok = token < context
            at = tile_addresses(table, start, token, token_ok, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES)
            largest, total, acc = attend_tile(
                query, keys, values, at, token_ok, token_ok[None, :], dims, dim_ok, factor, largest, total, acc,
                WIDE, DTYPE,
            )  # fmt: skip
        out_at = out + row * out_stride + head_at
        needed = tl.cdiv(context, SPLIT)
        if needed == 1:
            sums = tl.max(total, axis=1)
            tl.store(out_at, (acc / sums[:, None]).to(out.dtype.element_ty), mask=there)
        else:
            base = (item * kv_heads + kv_head) * splits
            kept = (base + split).to(tl.int64) * GROUP_PADDED + group
            tl.store(partial_stats + kept * 2, largest, mask=group < GROUP)
            tl.store(partial_stats + kept * 2 + 1, tl.max(total, axis=1), mask=group < GROUP)
            tl.store(partial + kept[:, None] * DIM + dims[None, :], acc, mask=there)
            tl.debug_barrier()  # all of this program's stores come before its mark
            counter = counters + item * kv_heads + kv_head
            done = tl.atomic_add(counter, 1, sem="acq_rel")
            if done == needed - 1:
                tl.store(counter, 0)
                largest = tl.full((GROUP_PADDED,), -float("inf"), tl.float32)
                sum_of_all = tl.zeros((GROUP_PADDED, 1), tl.float32)
                acc = tl.zeros((GROUP_PADDED, DIM), tl.float32)
                for other in range(needed):
                    kept = (base + other).to(tl.int64) * GROUP_PADDED + group
                    other_largest = tl.load(
                        partial_stats + kept * 2, mask=group < GROUP, other=0.0, cache_modifier=".cg"
                    )
                    other_total = tl.load(
                        partial_stats + kept * 2 + 1, mask=group < GROUP, other=1.0, cache_modifier=".cg"
                    )
                    other_acc = tl.load(
                        partial + kept[:, None] * DIM + dims[None, :], mask=there, other=0.0, cache_modifier=".cg"
                    )
                    largest, sum_of_all, acc = put_together(
                        largest, sum_of_all, acc, other_largest, other_total[:, None], other_acc
                    )
                sums = tl.max(sum_of_all, axis=1)
                tl.store(out_at, (acc / sums[:, None]).to(out.dtype.element_ty), mask=there)


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
                at = tile_addresses(table, start, token, token_ok, kv_head, kv_heads, head_dim, block_size, WHOLE_TILES)
                seen = (token[None, :] <= (position + n)[:, None]) & token_ok[None, :]
                part_largest, part_total, part_acc = attend_tile(
                    query, keys, values, at, token_ok, seen, dims, dim_ok, factor,
                    part_largest, part_total, part_acc, WIDE, DTYPE,
                )  # fmt: skip
            largest, total, acc = put_together(largest, total, acc, part_largest, part_total, part_acc)
        sums = tl.max(total, axis=1)
        out_at = out + (row + n)[:, None] * out_stride + head * head_dim + dims[None, :]
        tl.store(out_at, (acc / sums[:, None]).to(out.dtype.element_ty), mask=there)

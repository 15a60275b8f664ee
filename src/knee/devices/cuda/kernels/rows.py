"""The kernels around a step's products: tokens to rows, norms apart, keys and values apart, logits to tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from knee.devices.cuda.kernels.common import STATS_SCALE, in_range, normalize, read_stats, squares_of

NOT_FINITE = tl.constexpr(-2)


@triton.jit(do_not_specialize=["table_width"])
def embed(
    tokens, sources, before, positions, row_spans, tables, table_width, block_size, slots,
    w, w_scale, w_stride, position_w, out, out_stride, width, stats, norms, capacity, next_weight, scaled,
    WIDTH: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    """A row of the stream for each token, its statistics, and its place in the KV pool; clears the other statistics.

    A row with a source takes the token that this output of the step before has made (`before`).
    """
    row = tl.program_id(0)
    token, source = tl.load(tokens + row), tl.load(sources + row)
    if source >= 0:
        token = tl.maximum(tl.load(before + source), 0)  # a logit that was not finite: its request ends anyway
    position, span = tl.load(positions + row), tl.load(row_spans + row)
    block = tl.load(tables + span * table_width + position // block_size, mask=span >= 0, other=0)
    tl.store(slots + row, tl.where(span >= 0, block * block_size + position % block_size, -1))
    n = tl.arange(0, WIDTH)
    there = n < width
    x = tl.load(w + token.to(tl.int64) * w_stride + n, mask=there, other=0.0).to(tl.float32)
    if w_scale is not None:
        x *= tl.load(w_scale + token)
    if position_w is not None:
        x += tl.load(position_w + position.to(tl.int64) * width + n, mask=there, other=0.0)
    x = in_range(x, width)
    tl.store(out + row.to(tl.int64) * out_stride + n, x, mask=there)
    if next_weight is not None:
        weight = tl.load(next_weight + n, mask=there, other=0.0)
        tl.store(scaled + row.to(tl.int64) * out_stride + n, (x * weight).to(scaled.dtype.element_ty), mask=there)
    squares = tl.sum(squares_of(x, width), axis=0)
    sums = tl.sum((x * STATS_SCALE).to(tl.int64), axis=0)
    norm = tl.arange(0, NORMS)
    at = stats + norm.to(tl.int64) * 2 * capacity + row
    tl.store(at, tl.where(norm == 0, squares, 0), mask=norm < norms)
    tl.store(at + capacity, tl.where(norm == 0, sums, 0), mask=norm < norms)


@triton.jit
def layer_norm(
    x, x_stride, row_map, stats, weight, bias, eps, capacity, out, out_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The layer norm before a linear layer apart, for many rows, where every tile would do it again."""
    row = tl.program_id(0)
    n = tl.arange(0, BLOCK)
    there = n < WIDTH
    scale = tl.load(weight + n, mask=there, other=0.0)
    shift = tl.load(bias + n, mask=there, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    source = row
    if row_map is not None:
        source = tl.load(row_map + row)
    mean, deviation = read_stats(stats, source, True, eps, capacity, WIDTH, "layer")
    values = tl.load(x + source.to(tl.int64) * x_stride + n, mask=there, other=0.0)
    values = normalize(values, mean, deviation, scale, shift, "layer")
    tl.store(out + row.to(tl.int64) * out_stride + n, values.to(out.dtype.element_ty), mask=there)


@triton.jit
def normalize_groups(
    x, x_stride, weight, bias, eps, out, out_stride, width,
    NORM: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A norm over each group of `width` columns (the heads of q or k), one program a row and group."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n = tl.arange(0, WIDTH)
    there = n < width
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    values = tl.load(x + row * x_stride + group * width + n, mask=there, other=0.0).to(tl.float32)
    mean = 0.0
    shift = 0.0
    if NORM == "layer":
        mean = tl.sum(values, axis=0) / width
        shift = tl.load(bias + n, mask=there, other=0.0)
    centred = tl.where(there, values - mean, 0.0)
    deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    values = normalize(values, mean, deviation, tl.load(weight + n, mask=there, other=0.0), shift, NORM)
    tl.store(out + row * out_stride + group * width + n, values.to(out.dtype.element_ty), mask=there)


@triton.jit
def write_kv(
    q, q_stride, k, k_stride, v, v_stride, positions, slots, cos, sin, keys, values,
    head_dim, heads, kv_heads, block_size, ROPE: tl.constexpr, PAIRS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Turn q and k, write k and v into the pool: one program a row and head (of q, then k, then v)."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = (head_dim + 1) // 2
    n = tl.arange(0, PAIRS)
    left_ok, right_ok = n < pairs, n + pairs < head_dim
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = q + row * q_stride + head * head_dim + n
    if head >= heads:
        at = k + row * k_stride + (head - heads) * head_dim + n
    if head >= heads + kv_heads:
        at = v + row * v_stride + (head - heads - kv_heads) * head_dim + n
    left = tl.load(at, mask=left_ok, other=0.0).to(tl.float32)
    right = tl.load(at + pairs, mask=right_ok, other=0.0).to(tl.float32)
    if ROPE:
        if head < heads + kv_heads:
            angle = tl.load(positions + row) * pairs + n
            cosine = tl.load(cos + angle, mask=left_ok, other=0.0)
            sine = tl.load(sin + angle, mask=left_ok, other=0.0)
            left, right = left * cosine - right * sine, right * cosine + left * sine
    if head < heads:
        tl.store(at, left.to(q.dtype.element_ty), mask=left_ok)
        tl.store(at + pairs, right.to(q.dtype.element_ty), mask=right_ok)
    else:
        slot = tl.load(slots + row)
        kept = slot >= 0
        block = (slot // block_size).to(tl.int64)
        kv_head = (head - heads) % kv_heads
        to = ((block * kv_heads + kv_head) * block_size + slot % block_size) * head_dim + n
        if head < heads + kv_heads:
            tl.store(keys + to, left.to(keys.dtype.element_ty), mask=left_ok & kept)
            tl.store(keys + to + pairs, right.to(keys.dtype.element_ty), mask=right_ok & kept)
        else:
            tl.store(values + to, left.to(values.dtype.element_ty), mask=left_ok & kept)
            tl.store(values + to + pairs, right.to(values.dtype.element_ty), mask=right_ok & kept)


@triton.jit
def choose(best, best_at, tiles, tokens, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """A row's greedy token from the tiles' largest logits; the first of equal ones. NOT_FINITE: a logit is none."""
    row = tl.program_id(0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    n = tl.arange(0, BLOCK)
    value = tl.load(best + row * tiles + n, mask=n < tiles, other=-float("inf"))
    largest, place = tl.max(value, axis=0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(best_at + row * tiles + place)
    tl.store(tokens + row, tl.where(largest == float("inf"), NOT_FINITE, token))


@triton.jit
def draw(
    logits, vocab, best, tiles, temperatures, uniforms, tokens,
    TILES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Where a row has a temperature, its token by inverse CDF over ids; rows with a logit that is none keep theirs.

    A row goes through its logits twice, block by block in order: for the sum, and for the place. A number that float32
    rounds to 1 leaves the greedy token, as rounding at the very end of the sum does.
    """
    row = tl.program_id(0)
    temperature, uniform = tl.load(temperatures + row), tl.load(uniforms + row)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    t = tl.arange(0, TILES)
    largest = tl.max(tl.load(best + row * tiles + t, mask=t < tiles, other=-float("inf")), axis=0)
    if (temperature > 0) & (largest < float("inf")):
        n = tl.arange(0, BLOCK)
        at = logits + row.to(tl.int64) * vocab
        total = 0.0
        for begin in range(0, vocab, BLOCK):
            score = tl.load(at + begin + n, mask=begin + n < vocab, other=-float("inf"))
            total += tl.sum(tl.exp((score - largest) / temperature), axis=0)
        wanted = uniform * total
        seen = 0.0
        token = vocab
        for begin in range(0, vocab, BLOCK):
            score = tl.load(at + begin + n, mask=begin + n < vocab, other=-float("inf"))
            weight = tl.exp((score - largest) / temperature)
            beyond = (seen + tl.cumsum(weight, axis=0) > wanted) & (weight > 0)
            token = tl.minimum(token, tl.min(tl.where(beyond, begin + n, vocab), axis=0))
            seen += tl.sum(weight, axis=0)
        if token < vocab:  # else rounding has left nobody: the greedy token stays
            tl.store(tokens + row, token)

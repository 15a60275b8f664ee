"""Linear layers: out = epilogue(prologue(x) @ w.T). Two kernels of the same sums, for few rows and for many.

x is (rows, x_stride), the weight (outputs, inputs) with the inputs padded to whole rounds of chunks (zeros), so that
no load needs a mask over K. NORM says what is between the stream and the product: "" nothing, "scaled" a factor for
each row of the result (an RMS norm whose weight x has been multiplied with), "layer" a layer norm of the float32
stream, done here with statistics that the rows' writer left. The epilogue is one of

- "plain": bias, activation, residual, a store, and the statistics of what is stored;
- "gate": the weight has the gate's outputs, then as many of up; stores activation(gate) * up;
- "write_kv": the weight has the heads of q, k and v; turns q and k by their positions, stores q, and k and v into the
  KV pool;
- "logits": the largest logit of each row in the tile and where it is, and the logits themselves if they are wanted.

"gate" and "write_kv" need pairs of outputs in one tile: its left half holds the first of each pair, its right half the
second.
"""

from __future__ import annotations

import triton
import triton.language as tl

from knee.devices.cuda.kernels.common import (
    activate,
    add_parts,
    add_stats,
    halves,
    in_range,
    normalize,
    product,
    read_stats,
)

# Four int8 to four numbers of 16 bits: a byte's lower seven bits and its highest one become the mantissas of numbers so
# large that a unit in the last place is 1, and their difference, which is exact, is the byte's value.
_WIDEN_INT8 = """
    {
        .reg .b32 low, top, low01, top01, low23, top23, minus;
        mov.b32 minus, MINUS_ONES;
        and.b32 low, $2, 0x7f7f7f7f;
        and.b32 top, $2, 0x80808080;
        prmt.b32 low01, low, LARGE, 0x4140;
        prmt.b32 top01, top, LARGE, 0x4140;
        prmt.b32 low23, low, LARGE, 0x4342;
        prmt.b32 top23, top, LARGE, 0x4342;
        fma.rn.TYPE $0, top01, minus, low01;
        fma.rn.TYPE $1, top23, minus, low23;
    }
"""


def _widen_int8(dtype: str, large: str, minus_ones: str) -> tl.constexpr:
    return tl.constexpr(_WIDEN_INT8.replace("TYPE", dtype).replace("LARGE", large).replace("MINUS_ONES", minus_ones))


INT8_TO_BFLOAT16 = _widen_int8("bf16x2", "0x43434343", "0xbf80bf80")  # from 128 on
INT8_TO_FLOAT16 = _widen_int8("f16x2", "0x64646464", "0xbc00bc00")  # from 1024 on


@triton.jit
def tile_columns(tile, outputs, head_dim, EPILOGUE: tl.constexpr, COLUMNS: tl.constexpr):
    """The weight's outputs in a tile, which of them exist, and (scalars) the head and the first pair's place in it."""
    n = tl.arange(0, COLUMNS)
    HALF: tl.constexpr = COLUMNS // 2
    head = tile * 0
    first = tile * HALF
    if EPILOGUE == "gate":
        place = first + n % HALF
        columns = place + (n // HALF) * (outputs // 2)
        return columns, place < outputs // 2, head, first
    if EPILOGUE == "write_kv":
        pairs = (head_dim + 1) // 2
        tiles = tl.cdiv(pairs, HALF)
        head = tile // tiles
        first = (tile % tiles) * HALF
        place = first + n % HALF
        within = place + (n // HALF) * pairs
        return head * head_dim + within, (place < pairs) & (within < head_dim), head, first
    columns = tile * COLUMNS + n
    return columns, columns < outputs, head, first


@triton.jit
def finish_plain(
    acc, rows, row_ok, columns, column_ok, outputs, bias, residual, out, out_stride, out_stats, capacity,
    next_weight, scaled, ACTIVATION: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    if bias is not None:
        acc += tl.load(bias + columns, mask=column_ok, other=0.0)[None, :]
    acc = activate(acc, ACTIVATION)
    there = row_ok[:, None] & column_ok[None, :]
    at = rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    if residual is not None:
        acc += tl.load(residual + at, mask=there, other=0.0)
    if STATS != "":
        acc = in_range(acc, outputs)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=there)
    if next_weight is not None:
        weight = tl.load(next_weight + columns, mask=column_ok, other=0.0)
        tl.store(scaled + at, (acc * weight[None, :]).to(scaled.dtype.element_ty), mask=there)
    add_stats(out_stats, rows, row_ok, tl.where(there, acc, 0.0), outputs, capacity, STATS)


@triton.jit
def finish_gate(
    acc, rows, row_ok, columns, column_ok, first, bias, out, out_stride, outputs,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = COLUMNS // 2
    if bias is not None:
        acc += tl.load(bias + columns, mask=column_ok, other=0.0)[None, :]
    gate, up = halves(acc, ROWS, HALF)
    place = first + tl.arange(0, HALF)
    there = row_ok[:, None] & (place < outputs // 2)[None, :]
    at = rows[:, None].to(tl.int64) * out_stride + place[None, :]
    tl.store(out + at, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=there)


@triton.jit
def finish_write_kv(
    acc, rows, row_ok, columns, column_ok, head, first, bias, out, out_stride,
    positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size,
    ROPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = COLUMNS // 2
    if bias is not None:
        acc += tl.load(bias + columns, mask=column_ok, other=0.0)[None, :]
    left, right = halves(acc, ROWS, HALF)
    pairs = (head_dim + 1) // 2
    place = first + tl.arange(0, HALF)
    left_ok = row_ok[:, None] & (place < pairs)[None, :]
    right_ok = left_ok & (place + pairs < head_dim)[None, :]
    if ROPE:
        if head < heads + kv_heads:
            position = tl.load(positions + rows, mask=row_ok, other=0)
            angle = position[:, None] * pairs + place[None, :]
            cosine = tl.load(cos + angle, mask=left_ok, other=0.0)
            sine = tl.load(sin + angle, mask=left_ok, other=0.0)
            left, right = left * cosine - right * sine, right * cosine + left * sine
    if head < heads:
        at = rows[:, None].to(tl.int64) * out_stride + head * head_dim + place[None, :]
        tl.store(out + at, left.to(out.dtype.element_ty), mask=left_ok)
        tl.store(out + at + pairs, right.to(out.dtype.element_ty), mask=right_ok)
    else:
        which = head - heads
        slot = tl.load(slots + rows, mask=row_ok, other=-1)
        kept = (slot >= 0)[:, None]
        kv_head = which % kv_heads
        block = (slot // block_size).to(tl.int64)
        row = (block * kv_heads + kv_head) * block_size + slot % block_size
        at = row[:, None] * head_dim + place[None, :]
        if which < kv_heads:
            tl.store(keys + at, left.to(keys.dtype.element_ty), mask=left_ok & kept)
            tl.store(keys + at + pairs, right.to(keys.dtype.element_ty), mask=right_ok & kept)
        else:
            tl.store(values + at, left.to(values.dtype.element_ty), mask=left_ok & kept)
            tl.store(values + at + pairs, right.to(values.dtype.element_ty), mask=right_ok & kept)


@triton.jit
def finish_logits(
    acc, rows, row_ok, columns, column_ok, tile, tiles, bias, out, out_stride, best, best_at, STORE: tl.constexpr
):
    if bias is not None:
        acc += tl.load(bias + columns, mask=column_ok, other=0.0)[None, :]
    if STORE:
        at = rows[:, None].to(tl.int64) * out_stride + columns[None, :]
        tl.store(out + at, acc, mask=row_ok[:, None] & column_ok[None, :])
    finite = tl.abs(acc) < float("inf")  # false for NaN, too
    seen = tl.where(column_ok[None, :], tl.where(finite, acc, float("inf")), -float("inf"))
    value, place = tl.max(seen, axis=1, return_indices=True, return_indices_tie_break_left=True)
    tl.store(best + rows * tiles + tile, value, mask=row_ok)
    tl.store(best_at + rows * tiles + tile, tile * acc.shape[1] + place, mask=row_ok)


@triton.jit
def epilogue(
    acc, rows, row_ok, columns, column_ok, head, first, tile, tiles,
    scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
    positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, STATS: tl.constexpr, ROPE: tl.constexpr,
    STORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if scale is not None:
        acc *= tl.load(scale + columns, mask=column_ok, other=0.0)[None, :]
    if EPILOGUE == "plain":
        finish_plain(
            acc, rows, row_ok, columns, column_ok, outputs, bias, residual, out, out_stride, out_stats, capacity,
            next_weight, scaled, ACTIVATION, STATS,
        )  # fmt: skip
    elif EPILOGUE == "gate":
        finish_gate(
            acc, rows, row_ok, columns, column_ok, first, bias, out, out_stride, outputs, ACTIVATION, ROWS, COLUMNS
        )
    elif EPILOGUE == "write_kv":
        finish_write_kv(
            acc, rows, row_ok, columns, column_ok, head, first, bias, out, out_stride,
            positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, ROPE, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        finish_logits(acc, rows, row_ok, columns, column_ok, tile, tiles, bias, out, out_stride, best, best_at, STORE)


@triton.jit
def as_operand(w, DTYPE: tl.constexpr, WIDE: tl.constexpr):
    """A tile of weights in the products' type; int8 exactly.

    Not by a conversion of Triton's: where it sees that an operand was 8 bits wide it deals K out to the matrix
    instructions in another order, and does so for small tiles only. Hence assembly of which it believes that it may do
    more than calculate (`is_pure=False`).
    """
    if w.dtype == tl.int8:
        if WIDE:
            w = w.to(tl.float32)
        elif tl.bfloat16 == DTYPE:
            w = tl.inline_asm_elementwise(INT8_TO_BFLOAT16, "=r,=r,r", [w], dtype=tl.bfloat16, is_pure=False, pack=4)
        else:
            w = tl.inline_asm_elementwise(INT8_TO_FLOAT16, "=r,=r,r", [w], dtype=tl.float16, is_pure=False, pack=4)
    return w.to(DTYPE)


@triton.jit
def read_stats_of(stats, rows, row_ok, eps, capacity, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """What the layer's norm needs of its rows; nothing of the kind without one."""
    mean = tl.zeros(rows.shape, tl.float32)
    deviation = mean
    if NORM == "layer":
        mean, deviation = read_stats(stats, rows, row_ok, eps, capacity, WIDTH, "layer")
    if NORM == "scaled":
        mean, deviation = read_stats(stats, rows, row_ok, eps, capacity, WIDTH, "rms")
    return mean, deviation


@triton.jit
def read_x(at, mask, k, k_ok, mean, deviation, norm_weight, norm_bias, NORM: tl.constexpr, DTYPE: tl.constexpr):
    """A tile of the product's left side. `k` are its columns, `k_ok` those that exist; both broadcast with the tile."""
    x = tl.load(at, mask=mask, other=0.0)
    if NORM == "layer":
        weight = tl.load(norm_weight + k, mask=k_ok, other=0.0)
        bias = tl.load(norm_bias + k, mask=k_ok, other=0.0)
        x = normalize(x, mean, deviation, weight, bias, "layer")
    return x.to(DTYPE)


@triton.jit(do_not_specialize=["rows_in_all"])
def linear_few_rows(
    x, x_stride, row_map, stats, norm_weight, norm_bias, norm_eps, capacity,
    w, scale, bias, residual, out, out_stride, out_stats, rows_in_all, outputs, next_weight, scaled,
    positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
    WIDTH: tl.constexpr, INPUTS: tl.constexpr, PARTS: tl.constexpr, NORM: tl.constexpr, EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr, STATS: tl.constexpr, ROPE: tl.constexpr, STORE: tl.constexpr, DTYPE: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Few rows: a program's four warps sum one part each. Weights are read before the kernel ahead has ended (PDL)."""
    ROUND: tl.constexpr = 64 * PARTS
    tile = tl.program_id(0)
    columns, column_ok, head, first = tile_columns(tile, outputs, head_dim, EPILOGUE, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < rows_in_all
    part = tl.arange(0, 4)[:, None, None]
    w_k = part * 64 + tl.arange(0, 64)[None, :, None]
    w_at = w + columns[None, None, :].to(tl.int64) * INPUTS + w_k
    w_ok = (part < PARTS) & column_ok[None, None, :]
    x_k = part * 64 + tl.arange(0, 64)[None, None, :]
    ahead = ()
    for step in tl.static_range(AHEAD):
        ahead = ahead + (as_operand(tl.load(w_at + step * ROUND, mask=w_ok, other=0), DTYPE, WIDE),)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    source = rows
    if row_map is not None:
        source = tl.load(row_map + rows, mask=row_ok, other=0)
    mean, deviation = read_stats_of(stats, source, row_ok, norm_eps, capacity, WIDTH, NORM)
    x_at = x + source[None, :, None].to(tl.int64) * x_stride + x_k
    x_ok = (part < PARTS) & row_ok[None, :, None]
    mean_3d, deviation_3d = mean[None, :, None], deviation[None, :, None]
    lefts = ()
    for step in tl.static_range(AHEAD):
        k = step * ROUND
        left = read_x(x_at + k, x_ok, k + x_k, part < PARTS, mean_3d, deviation_3d, norm_weight, norm_bias, NORM, DTYPE)
        lefts = lefts + (left,)
    acc = tl.zeros((4, ROWS, COLUMNS), tl.float32)
    for step in tl.static_range(AHEAD):
        acc = product(lefts[step], ahead[step], acc, WIDE)
    for k in range(AHEAD * ROUND, INPUTS, ROUND):
        right = tl.load(w_at + k, mask=w_ok, other=0)
        left = read_x(x_at + k, x_ok, k + x_k, part < PARTS, mean_3d, deviation_3d, norm_weight, norm_bias, NORM, DTYPE)
        acc = product(left, as_operand(right, DTYPE, WIDE), acc, WIDE)
    result = add_parts(acc, ROWS, COLUMNS)
    if NORM == "scaled":
        result *= deviation[:, None]
    epilogue(
        result, rows, row_ok, columns, column_ok, head, first, tile, tl.num_programs(0),
        scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
        positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
        EPILOGUE, ACTIVATION, STATS, ROPE, STORE, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows_in_all"])
def linear_many_rows(
    x, x_stride, row_map, stats, norm_weight, norm_bias, norm_eps, capacity,
    w, scale, bias, residual, out, out_stride, out_stats, rows_in_all, outputs, next_weight, scaled,
    positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
    WIDTH: tl.constexpr, INPUTS: tl.constexpr, PARTS: tl.constexpr, NORM: tl.constexpr, EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr, STATS: tl.constexpr, ROPE: tl.constexpr, STORE: tl.constexpr, DTYPE: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Many rows: a large tile, the parts in turn. Tiles of the same weights run side by side, so that they share L2."""
    ROUND: tl.constexpr = 64 * PARTS
    tile = tl.program_id(1)
    columns, column_ok, head, first = tile_columns(tile, outputs, head_dim, EPILOGUE, COLUMNS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < rows_in_all
    chunk = tl.arange(0, 64)
    w_at = w + columns[None, :].to(tl.int64) * INPUTS + chunk[:, None]
    w_ok = column_ok[None, :]
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    source = rows
    if row_map is not None:
        source = tl.load(row_map + rows, mask=row_ok, other=0)
    row_mean, row_deviation = read_stats_of(stats, source, row_ok, norm_eps, capacity, WIDTH, NORM)
    mean, deviation = row_mean[:, None], row_deviation[:, None]
    x_at = x + source[:, None].to(tl.int64) * x_stride + chunk[None, :]
    x_ok = row_ok[:, None]
    first_part = tl.zeros((ROWS, COLUMNS), tl.float32)
    second_part = tl.zeros((ROWS, COLUMNS), tl.float32)
    third_part = tl.zeros((ROWS, COLUMNS), tl.float32)
    fourth_part = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, INPUTS, ROUND):
        left = read_x(x_at + k, x_ok, k + chunk[None, :], True, mean, deviation, norm_weight, norm_bias, NORM, DTYPE)
        first_part = product(left, as_operand(tl.load(w_at + k, mask=w_ok, other=0), DTYPE, WIDE), first_part, WIDE)
        if PARTS > 1:
            j = k + 64
            left = read_x(
                x_at + j, x_ok, j + chunk[None, :], True, mean, deviation, norm_weight, norm_bias, NORM, DTYPE
            )
            second_part = product(
                left, as_operand(tl.load(w_at + j, mask=w_ok, other=0), DTYPE, WIDE), second_part, WIDE
            )
        if PARTS > 2:
            j = k + 128
            left = read_x(
                x_at + j, x_ok, j + chunk[None, :], True, mean, deviation, norm_weight, norm_bias, NORM, DTYPE
            )
            third_part = product(left, as_operand(tl.load(w_at + j, mask=w_ok, other=0), DTYPE, WIDE), third_part, WIDE)
        if PARTS > 3:
            j = k + 192
            left = read_x(
                x_at + j, x_ok, j + chunk[None, :], True, mean, deviation, norm_weight, norm_bias, NORM, DTYPE
            )
            fourth_part = product(
                left, as_operand(tl.load(w_at + j, mask=w_ok, other=0), DTYPE, WIDE), fourth_part, WIDE
            )
    acc = (first_part + third_part) + (second_part + fourth_part)
    if NORM == "scaled":
        acc *= deviation
    epilogue(
        acc, rows, row_ok, columns, column_ok, head, first, tile, tl.num_programs(1),
        scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
        positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
        EPILOGUE, ACTIVATION, STATS, ROPE, STORE, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows_in_all"])
def finish_product(
    product, stats, norm_eps, capacity,
    scale, bias, residual, out, out_stride, out_stats, rows_in_all, outputs, next_weight, scaled,
    positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
    WIDTH: tl.constexpr, NORM: tl.constexpr, EPILOGUE: tl.constexpr,
    ACTIVATION: tl.constexpr, STATS: tl.constexpr, ROPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What is left of a linear layer whose product (rows, outputs) a library has calculated."""
    tile = tl.program_id(1)
    columns, column_ok, head, first = tile_columns(tile, outputs, head_dim, EPILOGUE, COLUMNS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_ok = rows < rows_in_all
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = rows[:, None].to(tl.int64) * outputs + columns[None, :]
    acc = tl.load(product + at, mask=row_ok[:, None] & column_ok[None, :], other=0.0).to(tl.float32)
    if NORM == "scaled":
        _, deviation = read_stats_of(stats, rows, row_ok, norm_eps, capacity, WIDTH, NORM)
        acc *= deviation[:, None]
    epilogue(
        acc, rows, row_ok, columns, column_ok, head, first, tile, tl.num_programs(1),
        scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
        positions, slots, cos, sin, keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
        EPILOGUE, ACTIVATION, STATS, ROPE, False, ROWS, COLUMNS,
    )  # fmt: skip

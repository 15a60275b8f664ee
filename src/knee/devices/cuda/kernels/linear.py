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


NOTHING = tl.constexpr("mov.b32 $0, $1;")


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
def fetch_constants(
    rows, row_ok, columns, column_ok, head, first, scale, bias, next_weight, positions, cos, sin,
    head_dim, heads, kv_heads, ROPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What an epilogue reads that no kernel of the step writes: it can be on its way before the kernel ahead has ended.

    By columns the scale, the bias and the next norm's weight; by rows and pairs the cosine and the sine. What there is
    not is zeros that nobody reads.
    """
    HALF: tl.constexpr = COLUMNS // 2
    scales = tl.zeros(columns.shape, tl.float32)
    biases = scales
    weights = scales
    if scale is not None:
        scales = tl.load(scale + columns, mask=column_ok, other=0.0)
    if bias is not None:
        biases = tl.load(bias + columns, mask=column_ok, other=0.0)
    if next_weight is not None:
        weights = tl.load(next_weight + columns, mask=column_ok, other=0.0)
    cosine = tl.zeros((ROWS, HALF), tl.float32)
    sine = cosine
    if ROPE:
        pairs = (head_dim + 1) // 2
        place = first + tl.arange(0, HALF)
        there = row_ok[:, None] & (place < pairs)[None, :] & (head < heads + kv_heads)
        angle = tl.load(positions + rows, mask=row_ok, other=0)[:, None] * pairs + place[None, :]
        cosine = tl.load(cos + angle, mask=there, other=0.0)
        sine = tl.load(sin + angle, mask=there, other=0.0)
    return scales, biases, weights, cosine, sine


@triton.jit
def fetch_written(
    rows, row_ok, columns, column_ok, residual, out_stride, slots,
    EPILOGUE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What an epilogue reads of what earlier kernels of the step have written: the residual, and places in the pool."""
    before = tl.zeros((ROWS, COLUMNS), tl.float32)
    slot = tl.zeros(rows.shape, tl.int32)
    if residual is not None:
        at = rows[:, None].to(tl.int64) * out_stride + columns[None, :]
        before = tl.load(residual + at, mask=row_ok[:, None] & column_ok[None, :], other=0.0)
    if EPILOGUE == "write_kv":
        slot = tl.load(slots + rows, mask=row_ok, other=-1)
    return before, slot


@triton.jit
def finish_plain(
    acc, rows, row_ok, columns, column_ok, outputs, before, weights, residual, out, out_stride, out_stats, capacity,
    next_weight, scaled, ACTIVATION: tl.constexpr, STATS: tl.constexpr,
):  # fmt: skip
    acc = activate(acc, ACTIVATION)
    there = row_ok[:, None] & column_ok[None, :]
    at = rows[:, None].to(tl.int64) * out_stride + columns[None, :]
    if residual is not None:
        acc += before
    if STATS != "":
        acc = in_range(acc, outputs)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=there)
    if next_weight is not None:
        tl.store(scaled + at, (acc * weights[None, :]).to(scaled.dtype.element_ty), mask=there)
    add_stats(out_stats, rows, row_ok, tl.where(there, acc, 0.0), outputs, capacity, STATS)


@triton.jit
def finish_gate(
    acc, rows, row_ok, first, out, out_stride, outputs,
    ACTIVATION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = COLUMNS // 2
    gate, up = halves(acc, ROWS, HALF)
    place = first + tl.arange(0, HALF)
    there = row_ok[:, None] & (place < outputs // 2)[None, :]
    at = rows[:, None].to(tl.int64) * out_stride + place[None, :]
    tl.store(out + at, (activate(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=there)


@triton.jit
def finish_write_kv(
    acc, rows, row_ok, head, first, cosine, sine, slot, out, out_stride,
    keys, values, head_dim, heads, kv_heads, block_size,
    ROPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = COLUMNS // 2
    left, right = halves(acc, ROWS, HALF)
    pairs = (head_dim + 1) // 2
    place = first + tl.arange(0, HALF)
    left_ok = row_ok[:, None] & (place < pairs)[None, :]
    right_ok = left_ok & (place + pairs < head_dim)[None, :]
    if ROPE:
        if head < heads + kv_heads:
            left, right = left * cosine - right * sine, right * cosine + left * sine
    if head < heads:
        at = rows[:, None].to(tl.int64) * out_stride + head * head_dim + place[None, :]
        tl.store(out + at, left.to(out.dtype.element_ty), mask=left_ok)
        tl.store(out + at + pairs, right.to(out.dtype.element_ty), mask=right_ok)
    else:
        which = head - heads
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
    acc, rows, row_ok, columns, column_ok, tile, tiles, out, out_stride, best, best_at, STORE: tl.constexpr
):
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
    scales, biases, weights, cosine, sine, before, slot,
    scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
    keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
    EPILOGUE: tl.constexpr, ACTIVATION: tl.constexpr, STATS: tl.constexpr, ROPE: tl.constexpr,
    STORE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    if scale is not None:
        acc *= scales[None, :]
    if bias is not None:
        acc += biases[None, :]
    if EPILOGUE == "plain":
        finish_plain(
            acc, rows, row_ok, columns, column_ok, outputs, before, weights, residual, out, out_stride, out_stats,
            capacity, next_weight, scaled, ACTIVATION, STATS,
        )  # fmt: skip
    elif EPILOGUE == "gate":
        finish_gate(acc, rows, row_ok, first, out, out_stride, outputs, ACTIVATION, ROWS, COLUMNS)
    elif EPILOGUE == "write_kv":
        finish_write_kv(
            acc, rows, row_ok, head, first, cosine, sine, slot, out, out_stride,
            keys, values, head_dim, heads, kv_heads, block_size, ROPE, ROWS, COLUMNS,
        )  # fmt: skip
    else:
        finish_logits(acc, rows, row_ok, columns, column_ok, tile, tiles, out, out_stride, best, best_at, STORE)


@triton.jit
def hold(tile, WIDE: tl.constexpr):
    """The tile itself, of which nothing can be stored before here: all loads ahead of this are under way by then.

    Without it each tile is stored to shared memory as soon as it is there, and the load of the next waits for that.
    """
    if not WIDE:
        if tile.dtype == tl.bfloat16:
            tile = tl.inline_asm_elementwise(NOTHING, "=r,r", [tile], dtype=tl.bfloat16, is_pure=False, pack=2)
        elif tile.dtype == tl.float16:
            tile = tl.inline_asm_elementwise(NOTHING, "=r,r", [tile], dtype=tl.float16, is_pure=False, pack=2)
        elif tile.dtype == tl.float32:
            tile = tl.inline_asm_elementwise(NOTHING, "=r,r", [tile], dtype=tl.float32, is_pure=False, pack=1)
    return tile


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
    loaded = ()
    for step in tl.static_range(AHEAD):
        loaded = loaded + (tl.load(w_at + step * ROUND, mask=w_ok, other=0),)
    scales, biases, weights, cosine, sine = fetch_constants(
        rows, row_ok, columns, column_ok, head, first, scale, bias, next_weight, positions, cos, sin,
        head_dim, heads, kv_heads, ROPE, ROWS, COLUMNS,
    )  # fmt: skip
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    ahead = ()
    for step in tl.static_range(AHEAD):
        ahead = ahead + (as_operand(hold(loaded[step], WIDE), DTYPE, WIDE),)
    if PDL:
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
    before, slot = fetch_written(rows, row_ok, columns, column_ok, residual, out_stride, slots, EPILOGUE, ROWS, COLUMNS)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()  # for the second time: no load is moved to behind it
    held = ()
    for step in tl.static_range(AHEAD):
        held = held + (hold(lefts[step], WIDE),)
    acc = tl.zeros((4, ROWS, COLUMNS), tl.float32)
    for step in tl.static_range(AHEAD):
        acc = product(held[step], ahead[step], acc, WIDE)
    for k in range(AHEAD * ROUND, INPUTS, ROUND):
        right = tl.load(w_at + k, mask=w_ok, other=0)
        left = read_x(x_at + k, x_ok, k + x_k, part < PARTS, mean_3d, deviation_3d, norm_weight, norm_bias, NORM, DTYPE)
        acc = product(left, as_operand(right, DTYPE, WIDE), acc, WIDE)
    result = add_parts(acc, ROWS, COLUMNS)
    if NORM == "scaled":
        result *= deviation[:, None]
    epilogue(
        result, rows, row_ok, columns, column_ok, head, first, tile, tl.num_programs(0),
        scales, biases, weights, cosine, sine, before, slot,
        scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
        keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
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
    scales, biases, weights, cosine, sine = fetch_constants(
        rows, row_ok, columns, column_ok, head, first, scale, bias, next_weight, positions, cos, sin,
        head_dim, heads, kv_heads, ROPE, ROWS, COLUMNS,
    )  # fmt: skip
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
    before, slot = fetch_written(rows, row_ok, columns, column_ok, residual, out_stride, slots, EPILOGUE, ROWS, COLUMNS)
    epilogue(
        acc, rows, row_ok, columns, column_ok, head, first, tile, tl.num_programs(1),
        scales, biases, weights, cosine, sine, before, slot,
        scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
        keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
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
    scales, biases, weights, cosine, sine = fetch_constants(
        rows, row_ok, columns, column_ok, head, first, scale, bias, next_weight, positions, cos, sin,
        head_dim, heads, kv_heads, ROPE, ROWS, COLUMNS,
    )  # fmt: skip
    before, slot = fetch_written(rows, row_ok, columns, column_ok, residual, out_stride, slots, EPILOGUE, ROWS, COLUMNS)
    epilogue(
        acc, rows, row_ok, columns, column_ok, head, first, tile, tl.num_programs(1),
        scales, biases, weights, cosine, sine, before, slot,
        scale, bias, residual, out, out_stride, out_stats, capacity, outputs, next_weight, scaled,
        keys, values, head_dim, heads, kv_heads, block_size, best, best_at,
        EPILOGUE, ACTIVATION, STATS, ROPE, False, ROWS, COLUMNS,
    )  # fmt: skip

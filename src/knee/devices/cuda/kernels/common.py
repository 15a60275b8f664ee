"""What several kernels share: products, sums and elementwise steps whose bits do not depend on the shape of a tile.

The law that the same row gives the same bits in any batch holds by construction, not by luck:

- a product sums over K in chunks of 64 inputs, dealt out in turn to a few parts (`PARTS`, fixed for a K). A part is one
  chain of matrix instructions in ascending order; the parts are added in one fixed tree. Tiles for few rows run the
  parts side by side, tiles for many rows one after another: the same sums;
- a norm's statistics are sums of integers (fixed point), which are the same in any order, so that any number of
  programs may add to them with atomics. Who writes a row of the residual stream adds to its statistics and leaves the
  row times the next RMS norm's weight beside it; what is left of the norm, 1 / deviation, is a factor of a whole row
  that the next layer applies to its results;
- sums over softmax weights are products with a matrix of ones, in the order of the product beside them;
- everything else is elementwise, and the compiler may not contract it (`enable_fp_fusion=False` at every launch).
"""

from __future__ import annotations

import triton
import triton.language as tl

STATS_SCALE = tl.constexpr(float(2**22))
"""Fixed point of a norm's sums: steps of 2^-22."""

LARGEST_SUM = tl.constexpr(float(2**40))
"""That a row's sum of squares may have, which is 2^62 in fixed point. One value may have its share of it."""


@triton.jit
def product(a, b, acc, WIDE: tl.constexpr):
    """acc + a @ b. WIDE widens 16-bit operands first: for Triton's interpreter, which cannot multiply bfloat16."""
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee", out_dtype=tl.float32)


@triton.jit
def add_parts(acc, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The sum of four parts, (4, ROWS, COLUMNS), as (first + third) + (second + fourth)."""
    pairs = tl.permute(tl.reshape(acc, (2, 2, ROWS, COLUMNS)), (1, 2, 3, 0))
    first, third = tl.split(pairs)
    even, odd = tl.split(tl.permute(first + third, (1, 2, 0)))
    return even + odd


@triton.jit
def halves(tile, ROWS: tl.constexpr, HALF: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, HALF)), (0, 2, 1)))


@triton.jit
def activate(x, KIND: tl.constexpr):
    """silu, the tanh approximation of gelu, or relu, in float32."""
    if KIND == "silu":
        x = x / (1 + tl.exp(-x))
    elif KIND == "gelu_tanh":
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = 0.5 * x * (1 + (1 - 2 / (tl.exp(2 * inner) + 1)))
    elif KIND == "relu":
        x = tl.maximum(x, 0.0)
    return x


@triton.jit
def in_range(x, width):
    """x, and NaN for what is too large for the sums of a row of so many columns: such a row must not pass unseen."""
    return tl.where(x * x * width <= LARGEST_SUM, x, float("nan"))


@triton.jit
def squares_of(x, width):
    """Squares in fixed point. What is out of range is in the stream as NaN, whatever stands here."""
    return (tl.where(x * x * width <= LARGEST_SUM, x * x, 0.0) * STATS_SCALE + 0.5).to(tl.int64)


@triton.jit
def add_stats(stats, rows, row_ok, x, width, capacity, KIND: tl.constexpr):
    """Add a tile of the stream (rows, columns; zeros where there is none) to its rows' sums, in fixed point.

    The sums of squares come first, `capacity` of them, then the sums (KIND "layer" only).
    """
    if KIND != "":
        tl.atomic_add(stats + rows, tl.sum(squares_of(x, width), axis=1), mask=row_ok, sem="relaxed")
        if KIND == "layer":
            sums = (x * STATS_SCALE).to(tl.int64)
            tl.atomic_add(stats + capacity + rows, tl.sum(sums, axis=1), mask=row_ok, sem="relaxed")


@triton.jit
def read_stats(stats, rows, row_ok, eps, capacity, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """Mean and 1 / standard deviation of rows of WIDTH columns, float32; the mean is 0 for KIND "rms"."""
    one: tl.constexpr = 1.0 / (STATS_SCALE * WIDTH)
    squares = tl.load(stats + rows, mask=row_ok, other=0)
    if KIND == "layer":
        exact = tl.load(stats + capacity + rows, mask=row_ok, other=0).to(tl.float64) * one
        mean = exact.to(tl.float32)
        variance = (squares.to(tl.float64) * one - exact * exact).to(tl.float32)
    else:
        variance = squares.to(tl.float32) * one
        mean = variance * 0
    return mean, 1.0 / tl.sqrt(variance + eps)


@triton.jit
def normalize(x, mean, scale, weight, bias, KIND: tl.constexpr):
    """(x - mean) * scale * weight + bias, all of shapes that broadcast."""
    if KIND == "layer":
        return (x - mean) * scale * weight + bias
    return x * scale * weight

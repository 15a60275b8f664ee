"""How a linear layer is cut into tiles: which kernel, tile sizes, warps. Speed only; no choice here changes a bit.

The table was measured; `docs/performance.md` says on what.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

CHUNK = 64
"""Inputs in a chunk of a sum."""

_MOST_WASTE = 1.15  # padding of the inputs that more parts may cost
_MOST_AHEAD = 6  # rounds of a sum that are all read ahead; of a longer one as many as its tiles say


TILE = 64
"""Tokens of a tile of attention."""

# Warps and stages of the attention kernels.
ATTEND_ONE = (4, 3)
ATTEND_MANY = (4, 2)


@dataclass(frozen=True, slots=True)
class Tiling:
    """A linear layer's tiles. `ahead`: rounds of weights that are read before the kernel ahead has ended.

    `apart`: the norm before it runs as a kernel of its own.
    """

    few: bool
    rows: int
    columns: int
    warps: int
    stages: int
    ahead: int = 0
    apart: bool = False


LIBRARY_ROWS = 512
"""With more rows than this a product goes to cuBLAS, where bits may depend on the batch."""
FINISH = Tiling(few=False, rows=32, columns=64, warps=4, stages=1)
"""Of the kernel that does the rest then."""


@cache
def parts_of(inputs: int) -> int:
    """Into how many parts the sum over so many inputs is dealt: at most four, the most that pad them by little."""
    chunks = -(-inputs // CHUNK)
    return next(parts for parts in (4, 3, 2, 1) if parts == 1 or _rounds(chunks, parts) * parts <= chunks * _MOST_WASTE)


@cache
def padded(inputs: int) -> int:
    """Inputs as they are stored: whole rounds of a chunk for each part."""
    parts = parts_of(inputs)
    return CHUNK * parts * _rounds(-(-inputs // CHUNK), parts)


def _rounds(chunks: int, parts: int) -> int:
    """Two at least. Where no loop is around it, Triton makes dot(a, b, 0) + c into dot(a, b, c), which is another sum:
    two parts of one chunk would become one chain, or a bias its beginning."""
    return max(2, -(-chunks // parts))


# Few rows of many inputs: memory has to be kept busy for longer.
_FOR_LONG_SUMS = {
    "write_kv": Tiling(True, 16, 16, 4, 3, ahead=4),
    "plain": Tiling(True, 16, 16, 4, 4, ahead=10),
    "gate": Tiling(True, 16, 32, 4, 3, ahead=4),
}


@cache
def choose_tiling(epilogue: str, rows: int, inputs: int, wide: bool, shared: int) -> Tiling:
    """For a step of so many rows, on a card with so many bytes of shared memory for a program.

    The choice changes only where the rows pass a power of two. `wide`: 32-bit operands, which do not use matrix
    instructions.
    """
    if wide:
        return Tiling(few=True, rows=16, columns=16, warps=4, stages=2)
    return _fitting(_fastest(epilogue, rows, inputs), inputs, shared)


def _fastest(epilogue: str, rows: int, inputs: int) -> Tiling:
    """What was measured on one H100; shared memory aside."""
    rounds = padded(inputs) // _round(inputs)
    if epilogue == "logits":
        return _for_logits(rows)
    if rows <= 32 and rounds > _MOST_AHEAD:
        return _FOR_LONG_SUMS[epilogue]
    if rows <= 128 and not (epilogue == "gate" and rows > 32):
        columns = 32 if rows > 16 or epilogue == "gate" or (epilogue == "plain" and rows <= 4) else 16
        return Tiling(True, 16, columns, 4, 3, ahead=rounds if rounds <= _MOST_AHEAD else 0)
    if rows <= 512:
        columns = 128 if epilogue == "gate" and rows > 128 else 32
        return Tiling(False, 64, columns, 4, 4, apart=True)
    if epilogue == "gate":
        return Tiling(False, 128, 128, 8, 2, apart=True)
    return Tiling(False, 64, 64, 4, 2 if rounds <= 3 and rows > 1024 else 3, apart=True)


def _for_logits(rows: int) -> Tiling:
    if rows <= 16:
        return Tiling(False, 16, 64, 4, 4, apart=True)
    if rows <= 128:
        return Tiling(False, 64, 128, 8, 3, apart=True)
    return Tiling(False, 128, 128, 8, 2, apart=True)


def _fitting(tiling: Tiling, inputs: int, shared: int) -> Tiling:
    """With as many stages, or rounds ahead, as shared memory holds; smaller if it does not hold two."""
    rounds = padded(inputs) // _round(inputs)
    stage = 2 * (4 * CHUNK if tiling.few else _round(inputs)) * (tiling.rows + tiling.columns)
    if 2 * stage > shared and tiling.columns > 16:
        return _fitting(replace(tiling, columns=tiling.columns // 2), inputs, shared)
    if 2 * stage > shared and tiling.rows > 16:
        return _fitting(replace(tiling, rows=tiling.rows // 2), inputs, shared)
    held = max(1, shared // stage)
    return replace(tiling, stages=min(tiling.stages, held), ahead=min(tiling.ahead, rounds, held))


def _round(inputs: int) -> int:
    return CHUNK * parts_of(inputs)


def early_warps(split: int, dim: int, size: int) -> int:
    """Of the attention that reads a whole split of the cache early: a thread then holds 512 bytes of it."""
    needed = 2 * split * dim * size // (512 * 32)
    return max(4, 1 << (needed - 1).bit_length())


def attend_stages(stages: int, dim: int, size: int, shared: int) -> int:
    """Of an attention kernel: what shared memory holds of tiles of keys and values of `size` bytes a number."""
    return max(1, min(stages, shared // (2 * TILE * dim * size) - 1))

"""The cuda device's attention kernels against attention in float64: every context around the ends of tiles and splits.

What a kernel must not read is NaN: unwritten places of the pool, whole blocks that nobody owns. What it must not write
is NaN before and after.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("triton", reason="the kernels need Triton and torch (pip install knee[oracle])")

import torch
import triton
import triton.language as tl
from torch import Tensor

from knee.devices.cuda.kernels.attention import SPLIT, TILE, attend_many, attend_one
from tests.devices.interpreter import INTERPRET, WHERE

CONTEXTS = (257, 1, 63, 600, 64, 65, 1290, 256, 255)  # in no order
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
NAN = float("nan")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A shape of heads and blocks; requests of CONTEXTS tokens in a pool, their blocks in any order."""

    group: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    tile_rows: int
    kv_heads: int = 2

    @property
    def heads(self) -> int:
        return self.group * self.kv_heads

    def __str__(self) -> str:
        return f"group{self.group}-dim{self.head_dim}-block{self.block_size}-{str(self.dtype).split('.')[1]}"


CASES = [
    Case(1, 10, 16, torch.float32, 16),
    Case(3, 10, 1, torch.float32, 64, kv_heads=1),
    Case(3, 64, 64, torch.float32, 16, kv_heads=1),
    Case(1, 64, 128, torch.bfloat16, 64),
    Case(3, 10, 64, torch.bfloat16, 64, kv_heads=1),
    Case(2, 80, 5, torch.float16, 16, kv_heads=1),
]


@dataclass(frozen=True)
class Pool:
    """Keys and values of CONTEXTS' requests, as (tokens, kv_heads, head_dim) each and where the kernels look."""

    keys: list[Array]
    values: list[Array]
    pool_keys: Tensor
    pool_values: Tensor
    tables: Tensor


@cache
def pool_of(case: Case) -> Pool:
    rng, size = np.random.default_rng(3), case.block_size
    width = -(-max(CONTEXTS) // size) + 1
    counts = [-(-context // size) for context in CONTEXTS]
    nobody = sum(counts)  # a block that holds NaN
    shuffled, taken = rng.permutation(nobody), 0
    tables = np.full((len(CONTEXTS), width), nobody, np.int32)
    pools = [torch.full((nobody + 1, case.kv_heads, size, case.head_dim), NAN, dtype=case.dtype) for _ in range(2)]
    kept: list[list[Array]] = [[], []]
    for row, (context, count) in enumerate(zip(CONTEXTS, counts, strict=True)):
        tables[row, :count] = shuffled[taken : taken + count]
        taken += count
        token = np.arange(context)
        blocks, places = tables[row, token // size], token % size
        for pool, arrays in zip(pools, kept, strict=True):
            made = torch.from_numpy(rng.standard_normal((context, case.kv_heads, case.head_dim))).to(case.dtype)
            pool[blocks, :, places] = made
            arrays.append(made.double().numpy())
    keys, values = (pool.to(WHERE) for pool in pools)
    return Pool(kept[0], kept[1], keys, values, torch.from_numpy(tables).to(WHERE))


def expected(case: Case, q: Array, pool: Pool, request: int, context: int) -> Array:
    """(heads, head_dim): one query that sees the first `context` tokens of a request."""
    keys, values = pool.keys[request][:context], pool.values[request][:context]
    out = np.empty_like(q)
    for head in range(case.heads):
        score = keys[:, head // case.group] @ q[head] * case.head_dim**-0.5
        weight = np.exp(score - score.max())
        out[head] = weight @ values[:, head // case.group] / weight.sum()
    return out


def queries(case: Case, rows: int) -> Tensor:
    """Rows with more columns than the heads need, as where q lies beside k and v."""
    rng = np.random.default_rng(4)
    return torch.from_numpy(rng.standard_normal((rows, case.heads * case.head_dim + 7))).to(WHERE, case.dtype)


def heads_of(case: Case, tensor: Tensor) -> Array:
    width = case.heads * case.head_dim
    found: Array = tensor[:, :width].double().cpu().numpy().reshape(len(tensor), case.heads, case.head_dim)
    return found


def constants(case: Case) -> dict[str, Any]:
    return {
        "GROUP": case.group,
        "DIM": max(16, triton.next_power_of_2(case.head_dim)),
        "TILE": TILE,
        "SPLIT": SPLIT,
        "WHOLE_TILES": case.block_size % TILE == 0,
        "DTYPE": TYPES[case.dtype],
        "WIDE": INTERPRET,
        "PDL": False,
        "scale": case.head_dim**-0.5,
        "head_dim": case.head_dim,
        "kv_heads": case.kv_heads,
        "block_size": case.block_size,
    } | ({} if INTERPRET else {"enable_fp_fusion": False})


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=WHERE)


class One:
    """Launches of `attend_one`: an item for each request, in rows of no order, and two items that nobody is in."""

    def __init__(self, case: Case) -> None:
        self.case, self.pool = case, pool_of(case)
        items, splits = len(CONTEXTS) + 2, 7  # one split more than any context has
        self.rows = [int(row) for row in np.random.default_rng(5).permutation(items)]
        self.q = queries(case, items)
        kept = items * case.kv_heads * splits
        padded = max(16, triton.next_power_of_2(case.group))
        dim = max(16, triton.next_power_of_2(case.head_dim))
        self.partial = torch.full((kept, padded, dim), NAN, device=WHERE)
        self.stats = torch.full((kept, padded, 2), NAN, device=WHERE)
        self.counters = torch.zeros(kept, dtype=torch.int32, device=WHERE)
        self.items, self.splits, self.padded = items, splits, padded

    def __call__(self, early: bool) -> Tensor:
        out = torch.full((self.items, self.case.heads * self.case.head_dim + 3), NAN, device=WHERE, dtype=self.q.dtype)
        attend_one[(self.items, self.case.kv_heads, self.splits)](
            q=self.q, q_stride=self.q.stride(0), out=out, out_stride=out.stride(0),
            keys=self.pool.pool_keys, values=self.pool.pool_values,
            decode_rows=ints(*self.rows), contexts=ints(*CONTEXTS, 0, 0),
            tables=self.pool.tables, table_width=self.pool.tables.stride(0),
            partial=self.partial, partial_stats=self.stats, counters=self.counters, splits=self.splits,
            GROUP_PADDED=self.padded, EARLY=early, **constants(self.case),
        )  # fmt: skip
        return out


def room(case: Case) -> float:
    return {torch.float32: 2e-6, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}[case.dtype]


@pytest.mark.parametrize("early", [False, True], ids=["", "early"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_token_sees_its_whole_context_and_nothing_else(case: Case, early: bool) -> None:
    launch = One(case)
    out = launch(early)
    got, q, width = heads_of(case, out), heads_of(case, launch.q), case.heads * case.head_dim
    for request, context in enumerate(CONTEXTS):
        row = launch.rows[request]
        assert np.abs(got[row] - expected(case, q[row], launch.pool, request, context)).max() < room(case), context
    assert out[:, width:].isnan().all()
    assert out[launch.rows[len(CONTEXTS) :]].isnan().all(), "items without a request write nothing"
    assert not launch.counters.any()
    assert torch.equal(launch(early).nan_to_num(), out.nan_to_num())


# (request, first position, length) of tiles: some that begin or end at, before or behind the ends of tiles and splits.
def tiles_of(rows: int) -> list[tuple[int, int, int]]:
    request = CONTEXTS.index(600)
    starts = (0, 48, 60, 63, 64, 250, 255, 256, 511, 584)
    long = [(request, start, min(rows, 600 - start, 1 + start % 17)) for start in starts]
    return [
        *long,
        (0, 257 - rows, rows),
        (1, 0, 1),
        (CONTEXTS.index(65), 64, 1),
        (CONTEXTS.index(63), 0, min(rows, 63)),
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_many_tokens_see_what_came_before_each(case: Case) -> None:
    pool, tiles = pool_of(case), tiles_of(case.tile_rows)
    lengths = [length for _, _, length in tiles]
    firsts = np.concatenate([[0], np.cumsum(lengths)])
    q = queries(case, int(firsts[-1]) + 2)  # two rows of nobody's
    out = torch.full((len(q), case.heads * case.head_dim + 3), NAN, device=WHERE, dtype=case.dtype)
    attend_many[(len(tiles) + 1, case.heads)](
        q=q, q_stride=q.stride(0), out=out, out_stride=out.stride(0), keys=pool.pool_keys, values=pool.pool_values,
        tile_rows=ints(*firsts), tile_lengths=ints(*lengths, 0),
        tile_positions=ints(*[start for _, start, _ in tiles], 7),
        tile_spans=ints(*[request for request, _, _ in tiles], 12345),  # of the last, nothing but its length counts
        tables=pool.tables, table_width=pool.tables.stride(0), ROWS=case.tile_rows, **constants(case),
    )  # fmt: skip
    got, asked, width = heads_of(case, out), heads_of(case, q), case.heads * case.head_dim
    for (request, start, length), first in zip(tiles, firsts, strict=False):
        for n in {0, length // 2, length - 1}:
            wanted = expected(case, asked[first + n], pool, request, start + n + 1)
            assert np.abs(got[first + n] - wanted).max() < room(case), (start, n)
    assert not out[:-2, :width].isnan().any()
    assert out[:, width:].isnan().all()
    assert out[-2:].isnan().all()


@pytest.mark.gpu
@pytest.mark.parametrize("early", [False, True], ids=["", "early"])
@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_kernels_give_the_same_bits(case: Case, rows: int, early: bool) -> None:
    launch = One(case)
    one, pool = launch(early), launch.pool
    taken, count = [], len(CONTEXTS)  # each request's query as a tile of one row, and as the last of a longer one
    for request, context in enumerate(CONTEXTS):
        taken += [(request, context - 1, 1), (request, context - min(context, rows), min(context, rows))]
    q = torch.cat([launch.q.new_ones((length, launch.q.shape[1])) for _, _, length in taken])
    ends = np.cumsum([length for _, _, length in taken])
    for request in range(count):
        q[ends[2 * request : 2 * request + 2] - 1] = launch.q[launch.rows[request]]
    out = torch.full((len(q), one.shape[1]), NAN, device=WHERE, dtype=case.dtype)
    attend_many[(len(taken), case.heads)](
        q=q, q_stride=q.stride(0), out=out, out_stride=out.stride(0), keys=pool.pool_keys, values=pool.pool_values,
        tile_rows=ints(*(end - length for end, (_, _, length) in zip(ends, taken, strict=True))),
        tile_lengths=ints(*[length for _, _, length in taken]),
        tile_positions=ints(*[start for _, start, _ in taken]),
        tile_spans=ints(*[request for request, _, _ in taken]),
        tables=pool.tables, table_width=pool.tables.stride(0), ROWS=rows, **constants(case),
    )  # fmt: skip
    width = case.heads * case.head_dim
    for request in range(count):
        for end in ends[2 * request : 2 * request + 2]:
            assert torch.equal(out[end - 1, :width], one[launch.rows[request], :width]), CONTEXTS[request]

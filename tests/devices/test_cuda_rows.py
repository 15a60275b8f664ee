"""The cuda device's kernels around the products: embedding, norms, writes into the KV pool, the choice of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("triton", reason="the kernels need Triton and torch (pip install knee[oracle])")

import torch
from torch import Tensor

from knee.devices.cuda.kernels.rows import choose, draw, embed, layer_norm, normalize_groups, write_kv
from tests.devices.interpreter import INTERPRET, WHERE

NAN, INF = float("nan"), float("inf")
EPS = 1e-5
FIXED = 2.0**22
OPTIONS: dict[str, Any] = {} if INTERPRET else {"enable_fp_fusion": False}

Array = NDArray[np.float64]


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(WHERE, dtype)


def ints(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values).tolist(), dtype=torch.int32, device=WHERE)


def exact(tensor: Tensor) -> Array:
    found: Array = tensor.double().cpu().numpy()
    return found


def nothing(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, NAN, dtype=dtype, device=WHERE)


# --- embed -------------------------------------------------------------------------------------------------------

WIDTH, PADDED, VOCAB, CAPACITY, NORMS = 42, 64, 11, 8, 5
TOKENS = [3, -1, 10, 0, -1]
SOURCES = [-1, 2, -1, -1, 0]
BEFORE = [-2, 6, 9]  # what the step before made; -2: a logit that was not finite
SEEN = [3, 9, 10, 0, 0]
POSITIONS = [0, 5, 8, 7, 11]
SPANS = [1, 0, 2, -1, 1]
TABLES = [[4, 7, 1], [6, 2, 9], [8, 0, 3]]
SLOTS = [24, 29, 12, -1, 39]  # blocks of four


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "positions", "next norm"])
def test_embedding_leaves_rows_statistics_and_slots(kind: str) -> None:
    dtype = {"bfloat16": torch.bfloat16, "int8": torch.int8}.get(kind, torch.float32)
    w = torch.zeros((VOCAB, PADDED), dtype=dtype, device=WHERE)
    w[:, :WIDTH] = (numbers(1, VOCAB, WIDTH) * (50 if kind == "int8" else 1)).to(dtype)
    scale = numbers(2, VOCAB).abs() if kind == "int8" else None
    position_w = numbers(3, 20, WIDTH) if kind == "positions" else None
    next_weight = numbers(4, WIDTH) if kind == "next norm" else None
    wanted = exact(w)[SEEN, :WIDTH]
    if scale is not None:
        wanted = wanted * exact(scale)[SEEN, None]
    if position_w is not None:
        wanted = wanted + exact(position_w)[POSITIONS]
    out, scaled = nothing(CAPACITY, PADDED), nothing(CAPACITY, PADDED)
    stats = torch.full((NORMS, 2, CAPACITY), 77, dtype=torch.int64, device=WHERE)
    slots = torch.full((CAPACITY,), 77, dtype=torch.int32, device=WHERE)
    embed[(len(TOKENS),)](
        ints(TOKENS), ints(SOURCES), ints(BEFORE), ints(POSITIONS), ints(SPANS), ints(TABLES), 3, 4, slots,
        w, scale, PADDED, position_w, out, PADDED, WIDTH, stats, NORMS, CAPACITY, next_weight, scaled,
        WIDTH=64, NORMS=8, **OPTIONS,
    )  # fmt: skip
    there = len(TOKENS)
    np.testing.assert_allclose(exact(out)[:there, :WIDTH], wanted, rtol=1e-6, atol=1e-7)
    assert out[there:].isnan().all()
    assert out[:, WIDTH:].isnan().all()
    if next_weight is None:
        assert scaled.isnan().all()
    else:
        np.testing.assert_allclose(exact(scaled)[:there, :WIDTH], wanted * exact(next_weight), rtol=1e-6, atol=1e-7)
    assert slots.tolist() == SLOTS + [77] * (CAPACITY - there)
    sums = exact(stats) / FIXED
    np.testing.assert_allclose(sums[0, 0, :there], (wanted**2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(sums[0, 1, :there], wanted.sum(axis=1), rtol=1e-6, atol=1e-6)
    assert not stats[1:, :, :there].any(), "the step's other statistics begin at zero"
    assert (stats[:, :, there:] == 77).all()


# --- norms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selected", [False, True])
def test_a_layer_norm_apart(selected: bool) -> None:
    rows, width = 6, 50
    x = nothing(CAPACITY, 64)
    x[:, :width] = numbers(1, CAPACITY, width) * 3 + 2
    weight, bias = numbers(2, width), numbers(3, width)
    values = exact(x)[:, :width]
    stats = np.array([(values**2).sum(axis=1), values.sum(axis=1)]) * FIXED
    chosen = np.array([7, 0, 3, 3, 1, 6]) if selected else np.arange(rows)
    picked = values[chosen]
    wanted = (picked - picked.mean(axis=1, keepdims=True)) / np.sqrt(picked.var(axis=1, keepdims=True) + EPS)
    out = nothing(CAPACITY, 70)
    layer_norm[(rows,)](
        x, 64, ints(chosen) if selected else None, torch.from_numpy(stats.astype(np.int64)).to(WHERE), weight, bias,
        EPS, CAPACITY, out, 70, WIDTH=width, BLOCK=64, PDL=False, **OPTIONS,
    )  # fmt: skip
    np.testing.assert_allclose(exact(out)[:rows, :width], wanted * exact(weight) + exact(bias), rtol=1e-5, atol=2e-6)
    assert out[rows:].isnan().all()
    assert out[:, width:].isnan().all()


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("inplace", [False, True])
def test_norms_of_heads(kind: str, inplace: bool) -> None:
    rows, groups, width = 5, 3, 10
    x = nothing(rows + 2, 40)
    x[:rows] = numbers(1, rows, 40)
    weight, bias = numbers(2, width), numbers(3, width) if kind == "layer" else None
    heads = exact(x)[:rows, : groups * width].reshape(rows, groups, width)
    centred = heads - heads.mean(axis=2, keepdims=True) * (kind == "layer")
    wanted = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + EPS) * exact(weight)
    wanted = (wanted + (0 if bias is None else exact(bias))).reshape(rows, -1)
    before = x.clone()
    out = x if inplace else nothing(rows + 2, 40)
    normalize_groups[(rows, groups)](
        x, 40, weight, bias, EPS, out, 40, width, NORM=kind, WIDTH=16, PDL=False, **OPTIONS
    )
    np.testing.assert_allclose(exact(out)[:rows, : groups * width], wanted, rtol=1e-5, atol=2e-6)
    untouched = before if inplace else nothing(rows + 2, 40)
    assert torch.equal(out[:, groups * width :].nan_to_num(9), untouched[:, groups * width :].nan_to_num(9))
    assert out[rows:].isnan().all()


# --- keys and values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rope"), [(6, 2, 10, True), (2, 1, 5, False), (1, 1, 64, True)]
)
def test_keys_and_values_apart(heads: int, kv_heads: int, head_dim: int, rope: bool) -> None:
    rows, size, blocks, pairs = 4, 3, 5, (head_dim + 1) // 2
    q, k, v = numbers(1, rows, heads * head_dim + 3), numbers(2, rows, 77), numbers(3, rows, 80)
    positions, slots = np.array([3, 0, 11, 5]), np.array([14, 0, -1, 7])
    angles = np.random.default_rng(4).uniform(0, 6, (12, pairs))
    cos, sin = (torch.from_numpy(turn(angles)).float().to(WHERE) for turn in (np.cos, np.sin))

    def turned(x: Tensor, count: int) -> Array:
        made = exact(x)[:, : count * head_dim].reshape(rows, count, head_dim)
        if not rope:
            return made
        left, right, angle = made[..., :pairs], made[..., pairs:], angles[positions][:, None]
        first, second = left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)
        return np.concatenate([first, second], axis=-1)

    queries, new = (
        turned(q, heads),
        (turned(k, kv_heads), exact(v)[:, : kv_heads * head_dim].reshape(rows, kv_heads, -1)),
    )
    beside = q[:, heads * head_dim :].clone()
    keys, values = (nothing(blocks, kv_heads, size, head_dim) for _ in range(2))
    write_kv[(rows, heads + 2 * kv_heads)](
        q, q.stride(0), k, k.stride(0), v, v.stride(0), ints(positions), ints(slots),
        cos if rope else None, sin if rope else None, keys, values, head_dim, heads, kv_heads, size,
        ROPE=rope, PAIRS=64, PDL=False, **OPTIONS,
    )  # fmt: skip
    np.testing.assert_allclose(exact(q)[:, : heads * head_dim], queries.reshape(rows, -1), rtol=1e-5, atol=2e-6)
    assert torch.equal(q[:, heads * head_dim :], beside)
    for pool, made in zip((keys, values), new, strict=True):
        wanted = np.full(pool.shape, NAN)
        for row in np.flatnonzero(slots >= 0):
            wanted[slots[row] // size, :, slots[row] % size] = made[row]
        np.testing.assert_allclose(exact(pool), wanted, rtol=1e-5, atol=2e-6)


# --- the choice of tokens ----------------------------------------------------------------------------------------


def test_the_first_tile_of_the_largest_logit_wins_and_one_that_is_no_number_is_told() -> None:
    best = [
        [1.0, 5.0, 2.0, 5.0, 4.0],
        [5.0, 5.0, 5.0, 5.0, 5.0],
        [-3.0, -2.0, -9.0, -2.5, -1.0],
        [1.0, INF, 2.0, 3.0, 4.0],
        [0.0, 0.0, 0.0, 0.0, INF],
        [-0.0, 0.0, -1.0, -1.0, -1.0],
    ]
    at = np.arange(30).reshape(6, 5) * 10
    tokens = torch.full((8,), 77, dtype=torch.int32, device=WHERE)
    best_on_device = torch.tensor(best, device=WHERE)
    choose[(6,)](best_on_device, ints(at), 5, tokens, BLOCK=8, PDL=False, **OPTIONS)
    assert tokens.tolist() == [10, 50, 140, -2, -2, 250, 77, 77]


DRAWN_VOCAB = 2500  # three blocks of the kernel


def test_a_token_is_drawn_by_inverse_cdf_over_ids() -> None:
    rows = 9
    logits = numbers(1, rows, DRAWN_VOCAB) * 2
    logits[3, :1500] = -1e4  # no probability at all: the first token cannot be one of them
    logits[4, 2499] = 50.0  # all of the probability
    temperatures = np.array([1.0, 0.7, 2.5, 1.0, 1.0, 1e-6, 0.0, 1.0, 1.0], np.float32)
    uniforms = np.array([0.3, 0.999, 0.5, 0.0, 0.9, 0.4, 0.5, 0.25, 0.75], np.float32)
    tiles = 3
    best = torch.nn.functional.pad(logits, (0, 3 * 1000 - DRAWN_VOCAB), value=-INF).reshape(rows, tiles, -1).amax(dim=2)
    best[7, 1] = INF  # as where a logit is none
    tokens = torch.full((rows + 1,), 77, dtype=torch.int32, device=WHERE)
    tokens[7] = -2
    draw[(rows,)](
        logits, DRAWN_VOCAB, best, tiles, torch.from_numpy(temperatures).to(WHERE),
        torch.from_numpy(uniforms).to(WHERE), tokens, TILES=4, BLOCK=1024, PDL=False, **OPTIONS,
    )  # fmt: skip
    scores = exact(logits)
    for row in (0, 1, 2, 3, 4, 5, 8):
        weights = np.exp((scores[row] - scores[row].max()) / temperatures[row])
        cumulative = np.cumsum(weights) / weights.sum()
        token = int(tokens[row])
        before = cumulative[token - 1] if token else 0.0
        assert before - 1e-5 <= uniforms[row] <= cumulative[token] + 1e-5, row
    assert int(tokens[3]) >= 1500
    assert int(tokens[4]) == 2499
    assert int(tokens[5]) == scores[5].argmax()
    assert tokens[6:8].tolist() == [77, -2], "temperature 0 is greedy; a logit that is none stays told"
    assert int(tokens[rows]) == 77

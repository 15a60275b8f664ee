"""The cuda device's linear kernels against float64 and against each other: every epilogue, every number of parts.

Sizes fit no tile. Rows that are not there, and columns beside the result, are NaN before and after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("triton", reason="the kernels need Triton and torch (pip install knee[oracle])")

import torch
import triton
import triton.language as tl
from torch import Tensor

from knee.devices.cuda.kernels.linear import linear_few_rows, linear_many_rows
from knee.devices.cuda.tiling import padded, parts_of
from tests.devices.interpreter import INTERPRET, WHERE

TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
NAN = float("nan")
EPS = 1e-5
FIXED = 2.0**22
ROWS, CAPACITY = 19, 24
INPUTS = {1: 42, 2: 230, 3: 350, 4: 500}  # by parts
SEVERAL_ROUNDS = 600  # ten chunks in two parts

Array = NDArray[np.float64]


def test_these_inputs_are_in_so_many_parts() -> None:
    assert {parts_of(inputs): inputs for inputs in INPUTS.values()} == INPUTS
    assert padded(SEVERAL_ROUNDS) > 2 * 64 * parts_of(SEVERAL_ROUNDS)


@dataclass(frozen=True)
class Tiling:
    few: bool
    rows: int
    columns: int
    ahead: bool = False  # whether the weights are read before everything else

    def __str__(self) -> str:
        return f"{'few' if self.few else 'many'}{self.rows}x{self.columns}{'-ahead' if self.ahead else ''}"


TILINGS = [Tiling(True, 16, 16), Tiling(True, 16, 32, True), Tiling(False, 16, 64), Tiling(False, 64, 32)]


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    made = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(made).to(WHERE, dtype)


def exact(tensor: Tensor) -> Array:
    found: Array = tensor.double().cpu().numpy()
    return found


def nothing(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, NAN, dtype=dtype, device=WHERE)


def statistics(x: Tensor) -> Tensor:
    """(2, CAPACITY) as the writers of rows leave them: sums of squares, sums."""
    made = np.zeros((2, CAPACITY))
    values = exact(x)
    made[:, : len(x)] = np.array([(values**2).sum(axis=1), values.sum(axis=1)]) * FIXED
    return torch.from_numpy(made.astype(np.int64)).to(WHERE)


@dataclass
class Layer:
    """x (ROWS, inputs) and a weight (outputs, inputs) as the kernels want them, and a value for every argument."""

    inputs: int
    outputs: int
    dtype: torch.dtype = torch.float32
    x: Tensor = field(init=False)  # float32 or `dtype`, padded; NaN rows below
    w: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.x = nothing(CAPACITY, padded(self.inputs) + 9, dtype=self.dtype)
        self.x[:ROWS] = 0
        self.x[:ROWS, : self.inputs] = numbers(1, ROWS, self.inputs, dtype=self.dtype)
        self.w = torch.zeros((self.outputs, padded(self.inputs)), dtype=self.dtype, device=WHERE)
        self.w[:, : self.inputs] = numbers(2, self.outputs, self.inputs, dtype=self.dtype) / self.inputs**0.5

    @property
    def most_ahead(self) -> int:
        """Rounds that shared memory holds."""
        return 4 if self.dtype == torch.float32 else 10

    @property
    def rows(self) -> Array:
        return exact(self.x[:ROWS, : self.inputs])

    @property
    def matrix(self) -> Array:
        return exact(self.w[:, : self.inputs])

    def launch(self, tiling: Tiling, tiles: int | None = None, **given: Any) -> None:
        """One launch of the kernel that a tiling names."""
        epilogue = given["EPILOGUE"]
        round_size = 64 * parts_of(self.inputs)
        absent = (
            "row_map stats norm_weight norm_bias scale bias residual out out_stats next_weight scaled positions slots"
        )
        arguments: dict[str, Any] = dict.fromkeys([*absent.split(), "cos", "sin", "keys", "values", "best", "best_at"])
        arguments |= dict.fromkeys(("out_stride", "head_dim", "heads", "kv_heads", "block_size"), 1)
        arguments |= {"norm_eps": EPS, "capacity": CAPACITY, "rows_in_all": ROWS, "outputs": self.outputs}
        arguments |= {"x": self.x, "x_stride": self.x.stride(0), "w": self.w}
        arguments |= {
            "WIDTH": self.inputs,
            "INPUTS": padded(self.inputs),
            "PARTS": parts_of(self.inputs),
            "NORM": "",
            "EPILOGUE": epilogue,
            "ACTIVATION": "",
            "STATS": "",
            "ROPE": False,
            "STORE": False,
            "DTYPE": TYPES[self.dtype],
            "WIDE": INTERPRET,
            "ROWS": tiling.rows,
            "COLUMNS": tiling.columns,
            "AHEAD": min(self.most_ahead, padded(self.inputs) // round_size) if tiling.ahead else 0,
            "PDL": False,
        }
        if not INTERPRET:
            arguments["enable_fp_fusion"] = False
        columns = triton.cdiv(self.outputs, tiling.columns) if tiles is None else tiles
        rows = triton.cdiv(given.get("rows_in_all", ROWS), tiling.rows)
        kernel = linear_few_rows if tiling.few else linear_many_rows
        kernel[(columns, rows) if tiling.few else (rows, columns)](**(arguments | given))


def activated(x: Array, kind: str) -> Array:
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return np.maximum(x, 0) if kind == "relu" else x


def agree(results: list[Tensor]) -> None:
    """All tilings gave the same: on a GPU to the bit, in the interpreter up to NumPy's order of sums."""
    for other in results[1:]:
        if INTERPRET:
            room = 2e-6 * max(1.0, float(np.nanmax(np.abs(exact(results[0])))))
            np.testing.assert_allclose(exact(other), exact(results[0]), rtol=1e-5, atol=room)
        else:
            assert torch.equal(other.nan_to_num(), results[0].nan_to_num())


@pytest.mark.parametrize(
    ("inputs", "activation", "norm", "stats"),
    [
        (INPUTS[1], "relu", "", ""),
        (INPUTS[2], "silu", "layer", "layer"),
        (INPUTS[3], "", "scaled", "rms"),
        (INPUTS[4], "gelu_tanh", "layer", "layer"),
        (SEVERAL_ROUNDS, "", "", "rms"),
    ],
)
def test_plain(inputs: int, activation: str, norm: str, stats: str) -> None:
    layer, outputs = Layer(inputs, 37), 37
    bias, residual, next_weight = numbers(3, outputs), numbers(4, CAPACITY, outputs + 5), numbers(5, outputs)
    norm_weight, norm_bias = (torch.zeros(padded(inputs), device=WHERE) for _ in range(2))
    norm_weight[:inputs], norm_bias[:inputs] = numbers(6, inputs), numbers(7, inputs)
    x, matrix = layer.rows, layer.matrix
    if norm == "layer":
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + EPS)
        x = x * exact(norm_weight)[:inputs] + exact(norm_bias)[:inputs]
    product = x @ matrix.T
    if norm == "scaled":
        product /= np.sqrt((x**2).mean(axis=1, keepdims=True) + EPS)
    wanted = activated(product + exact(bias), activation) + exact(residual)[:ROWS, :outputs]
    results, sums = [], []
    for tiling in TILINGS:
        out, scaled = nothing(CAPACITY, outputs + 5), nothing(CAPACITY, outputs + 5)
        out_stats = torch.zeros((2, CAPACITY), dtype=torch.int64, device=WHERE)
        layer.launch(
            tiling, EPILOGUE="plain", bias=bias, residual=residual, out=out, out_stride=outputs + 5,
            out_stats=out_stats, next_weight=next_weight, scaled=scaled, ACTIVATION=activation, STATS=stats,
            stats=statistics(layer.x[:ROWS, :inputs]), norm_weight=norm_weight, norm_bias=norm_bias, NORM=norm,
        )  # fmt: skip
        np.testing.assert_allclose(exact(out)[:ROWS, :outputs], wanted, rtol=2e-5, atol=5e-6)
        np.testing.assert_allclose(exact(scaled)[:ROWS, :outputs], wanted * exact(next_weight), rtol=2e-5, atol=1e-5)
        for made in (out, scaled):
            assert made[ROWS:].isnan().all()
            assert made[:, outputs:].isnan().all()
        stored = exact(out)[:ROWS, :outputs]
        left = np.array([(stored**2).sum(axis=1) * (stats != ""), stored.sum(axis=1) * (stats == "layer")])
        np.testing.assert_allclose(exact(out_stats)[:, :ROWS] / FIXED, left, rtol=1e-6, atol=1e-6)
        assert not out_stats[:, ROWS:].any()
        results += [out, scaled]
        sums.append(out_stats)
    agree(results[::2])
    agree(results[1::2])
    agree(sums)


def test_a_row_in_place_of_the_residual_and_selected_rows() -> None:
    """out is the residual, as in the stream; x comes through a map, as for outputs."""
    layer, outputs = Layer(INPUTS[2], 20), 20
    chosen = np.array([18, 3, 3, 0, 7], np.int32)
    stream = numbers(4, CAPACITY, outputs)
    wanted = exact(stream)[: len(chosen)] + layer.rows[chosen] @ layer.matrix.T
    row_map = torch.from_numpy(np.append(chosen, 10**6)).to(WHERE)  # the last is nobody's
    results = []
    for tiling in TILINGS:
        out = stream.clone()
        layer.launch(
            tiling, EPILOGUE="plain", residual=out, out=out, out_stride=outputs, row_map=row_map, rows_in_all=5
        )
        np.testing.assert_allclose(exact(out)[:5], wanted, rtol=2e-5, atol=5e-6)
        assert torch.equal(out[5:], stream[5:])
        results.append(out)
    agree(results)


@pytest.mark.parametrize(
    ("inputs", "half", "activation"),
    [(INPUTS[1], 35, "silu"), (INPUTS[4], 50, "gelu_tanh"), (SEVERAL_ROUNDS, 7, "relu")],
)
def test_gate(inputs: int, half: int, activation: str) -> None:
    layer, bias = Layer(inputs, 2 * half), numbers(3, 2 * half)
    product = layer.rows @ layer.matrix.T + exact(bias)
    wanted = activated(product[:, :half], activation) * product[:, half:]
    results = []
    for tiling in TILINGS:
        out = nothing(CAPACITY, half + 6)
        tiles = triton.cdiv(half, tiling.columns // 2)
        layer.launch(tiling, tiles, EPILOGUE="gate", bias=bias, out=out, out_stride=half + 6, ACTIVATION=activation)
        np.testing.assert_allclose(exact(out)[:ROWS, :half], wanted, rtol=2e-5, atol=1e-5)
        assert out[ROWS:].isnan().all()
        assert out[:, half:].isnan().all()
        results.append(out)
    agree(results)


@pytest.mark.parametrize(
    ("inputs", "heads", "kv_heads", "head_dim", "block_size", "rope"),
    [
        (INPUTS[1], 6, 2, 10, 4, True),
        (INPUTS[3], 2, 2, 34, 1, False),
        (INPUTS[2], 3, 1, 5, 16, False),  # an odd head has a pair of one
        (INPUTS[4], 1, 1, 64, 64, True),
    ],
)
def test_write_kv(inputs: int, heads: int, kv_heads: int, head_dim: int, block_size: int, rope: bool) -> None:
    width, pairs = heads * head_dim, (head_dim + 1) // 2
    layer = Layer(inputs, (heads + 2 * kv_heads) * head_dim)
    bias = numbers(3, layer.outputs)
    rng = np.random.default_rng(8)
    positions = rng.integers(0, 50, ROWS)
    angles = rng.uniform(0, 6, (50, pairs))
    cos, sin = (torch.from_numpy(turn(angles)).float().to(WHERE) for turn in (np.cos, np.sin))
    blocks = 3 + ROWS // block_size
    slots = rng.permutation(blocks * block_size)[:ROWS]
    slots[[2, 17]] = -1  # rows that only round a step up
    made = (layer.rows @ layer.matrix.T + exact(bias)).reshape(ROWS, -1, head_dim)
    if rope:
        turning, angle = made[:, : heads + kv_heads], angles[positions][:, None]
        left, right = turning[..., :pairs], turning[..., pairs:]
        made[:, : heads + kv_heads] = np.concatenate(
            [left * np.cos(angle) - right * np.sin(angle), right * np.cos(angle) + left * np.sin(angle)], axis=-1
        )
    results = []
    for tiling in TILINGS:
        out = nothing(CAPACITY, width + 6)
        keys, values = (nothing(blocks, kv_heads, block_size, head_dim) for _ in range(2))
        tiles = (heads + 2 * kv_heads) * triton.cdiv(pairs, tiling.columns // 2)
        layer.launch(
            tiling, tiles, EPILOGUE="write_kv", bias=bias, out=out, out_stride=width + 6,
            positions=torch.from_numpy(positions.astype(np.int32)).to(WHERE),
            slots=torch.from_numpy(slots.astype(np.int32)).to(WHERE),
            cos=cos if rope else None, sin=sin if rope else None, ROPE=rope, keys=keys, values=values,
            head_dim=head_dim, heads=heads, kv_heads=kv_heads, block_size=block_size,
        )  # fmt: skip
        np.testing.assert_allclose(exact(out)[:ROWS, :width], made[:, :heads].reshape(ROWS, -1), rtol=2e-5, atol=1e-5)
        assert out[ROWS:].isnan().all()
        assert out[:, width:].isnan().all()
        for pool, first in ((keys, heads), (values, heads + kv_heads)):
            wanted = np.full(pool.shape, NAN)
            for row in np.flatnonzero(slots >= 0):
                wanted[slots[row] // block_size, :, slots[row] % block_size] = made[row, first : first + kv_heads]
            np.testing.assert_allclose(exact(pool), wanted, rtol=2e-5, atol=1e-5)
        results.append(torch.cat([out.flatten(), keys.flatten(), values.flatten()]))
    agree(results)


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("inputs", [INPUTS[1], INPUTS[3]])
def test_logits(inputs: int, store: bool) -> None:
    layer, outputs = Layer(inputs, 61), 61
    layer.w[7] = layer.w[50] = layer.w[30] = 4 * layer.w[30]  # equal logits, the largest of about half of the rows
    logits = layer.rows @ layer.matrix.T
    kept = []
    for tiling in TILINGS:
        tiles = triton.cdiv(outputs, tiling.columns)
        best, best_at = nothing(CAPACITY * tiles), torch.full((CAPACITY * tiles,), -7, device=WHERE, dtype=torch.int32)
        out = nothing(CAPACITY, outputs) if store else None
        layer.launch(
            tiling, tiles, EPILOGUE="logits", out=out, out_stride=outputs, best=best, best_at=best_at, STORE=store
        )
        got, places = exact(best).reshape(CAPACITY, tiles), best_at.cpu().numpy().reshape(CAPACITY, tiles)
        for tile in range(tiles):
            columns = logits[:, tile * tiling.columns : (tile + 1) * tiling.columns]
            np.testing.assert_allclose(got[:ROWS, tile], columns.max(axis=1), rtol=2e-5, atol=5e-6)
            near = np.take_along_axis(logits, places[:ROWS, tile, None], axis=1)[:, 0]
            np.testing.assert_allclose(near, columns.max(axis=1), rtol=2e-5, atol=5e-6)
            assert (places[:ROWS, tile] // tiling.columns == tile).all()
            later = {16: [], 32: [30], 64: [30, 50]}[tiling.columns]
            assert not np.isin(places[:ROWS, tile], later).any(), "the first of equal ones in a tile"
        assert np.isnan(got[ROWS:]).all()
        assert (places[ROWS:] == -7).all()
        if out is not None:
            np.testing.assert_allclose(exact(out)[:ROWS], logits, rtol=2e-5, atol=5e-6)
            assert out[ROWS:].isnan().all()
            kept.append(out)
    agree(kept)


@pytest.mark.parametrize("broken", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_a_logit_that_is_no_number_makes_the_tile_s_largest_infinite(tiling: Tiling, broken: float) -> None:
    layer = Layer(INPUTS[1], 37)
    bias = torch.zeros(37, device=WHERE)
    bias[36] = broken
    tiles = triton.cdiv(37, tiling.columns)
    best, best_at = nothing(ROWS * tiles), torch.zeros(ROWS * tiles, dtype=torch.int32, device=WHERE)
    layer.launch(tiling, tiles, EPILOGUE="logits", bias=bias, best=best, best_at=best_at)
    largest = exact(best).reshape(ROWS, tiles)
    assert (largest[:, -1] == np.inf).all()
    assert np.isfinite(largest[:, :-1]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("int8", [False, True], ids=["plain", "int8"])
@pytest.mark.parametrize("inputs", [INPUTS[3], SEVERAL_ROUNDS])
def test_narrow_weights(dtype: torch.dtype, int8: bool, inputs: int) -> None:
    """Operands of 16 bits, sums in float32: what is stored in float32 is nearly exact."""
    layer, outputs = Layer(inputs, 37, dtype), 37
    scale = None
    if int8:
        scale = numbers(9, outputs).abs() + 0.5
        layer.w = torch.zeros_like(layer.w, dtype=torch.int8)
        whole = np.random.default_rng(10).integers(-127, 128, (outputs, layer.inputs))
        layer.w[:, : layer.inputs] = torch.from_numpy(whole.astype(np.int8)).to(WHERE)
    wanted = layer.rows @ layer.matrix.T * (1.0 if scale is None else exact(scale))
    results = []
    for tiling in TILINGS:
        out = nothing(CAPACITY, outputs)
        layer.launch(tiling, EPILOGUE="plain", scale=scale, out=out, out_stride=outputs)
        np.testing.assert_allclose(exact(out)[:ROWS], wanted, rtol=2e-5, atol=1e-5 * np.abs(wanted).max())
        results.append(out)
    agree(results)

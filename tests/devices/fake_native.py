"""The extension module `_native` in NumPy: what its interface means, as code. Float32 whatever the weights' type.

It checks what it is given as strictly as it can: ids, places of buffers, padding of biases, the order of calls. Padding
is filled with NaN, so that whatever reads it is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import knee.devices.cpu
from knee.devices.base import STORED, FloatArray
from knee.weights.tensor import storage_type

PANEL = 16
MODELS: list[Model] = []  # all that were made, the latest last

_ACTIVATE: dict[str, Callable[[FloatArray], FloatArray]] = {
    "": lambda x: x,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}

View = tuple[int, int, int]


def module() -> ModuleType:
    """A module with this file's `Model`."""
    made: Any = ModuleType("knee.devices.cpu._native")
    made.Model = Model
    made.supported_isas = lambda: ["fast", "portable"]
    made.compiled_isas = lambda: ["fastest", "fast", "portable"]
    return made  # type: ignore[no-any-return]


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The fake stands in for the extension module, whether that is there or not."""
    made = module()
    monkeypatch.setitem(__import__("sys").modules, "knee.devices.cpu._native", made)
    monkeypatch.setattr(knee.devices.cpu, "_native", made, raising=False)
    monkeypatch.delenv("KNEE_ISA", raising=False)
    MODELS.clear()
    return made


def padded(width: int) -> int:
    """Up to whole panels."""
    return -(-width // PANEL) * PANEL


class Matrix:
    """Parts side by side, (padded outputs, inputs), with the first output of each."""

    def __init__(self, parts: list[tuple[Any, ...]], keep: str) -> None:
        self.keep = keep
        self.storages = [part[1] for part in parts]
        values = [unpacked(*part) for part in parts]
        self.widths = [len(one) for one in values]
        rows = [np.pad(one, ((0, padded(len(one)) - len(one)), (0, 0)), constant_values=np.nan) for one in values]
        self.values = np.concatenate(rows)

    def real(self) -> Iterator[tuple[int, int]]:
        """(first column, columns) of each part."""
        first = 0
        for width in self.widths:
            yield first, width
            first += padded(width)


def unpacked(data: Any, storage: str, rows: int, columns: int, transposed: bool, begin: int, end: int) -> FloatArray:
    """(outputs, inputs) of one part."""
    assert storage in STORED
    assert data.dtype == np.uint8
    assert data.ndim == 1
    assert data.flags.c_contiguous
    assert not transposed or storage in ("F32", "F16", "BF16")
    kind = storage_type(storage)
    decoded = kind.decode(data.reshape(-1, kind.block_bytes)).astype(np.float32).reshape(rows, columns)
    values = (decoded.T if transposed else decoded)[begin:end]
    assert len(values) == end - begin
    if not np.isfinite(values).all():
        raise ValueError("not finite")
    return values


class Model:
    """Keeps weights and operations; runs them in order."""

    panel = PANEL

    def __init__(self, isa: str, threads: int, dtype: str, heads: int, kv_heads: int, head_dim: int) -> None:
        self.isa, self.threads, self.dtype = isa, threads, dtype
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.matrices: list[Matrix] = []
        self.vectors: list[FloatArray] = []
        self.tables: list[FloatArray] = []
        self.ropes: list[FloatArray] = []
        self.buffers: list[tuple[int, bool]] = []
        self.ops: list[tuple[str, Callable[[Step], None]]] = []
        self.pools: list[tuple[FloatArray, FloatArray]] = []
        self.block_size = 0
        MODELS.append(self)

    # --- weights

    def matrix(self, parts: list[tuple[Any, ...]], keep: str) -> int:
        assert keep in ("float32", "bfloat16", "int8", "int4")
        self.matrices.append(Matrix(parts, keep))
        return len(self.matrices) - 1

    def vector(self, values: FloatArray) -> int:
        assert values.dtype == np.float32
        assert values.ndim == 1
        self.vectors.append(values.copy())
        return len(self.vectors) - 1

    def table(self, values: FloatArray) -> int:
        assert values.dtype == np.float32
        assert values.ndim == 2
        self.tables.append(values.copy())
        return len(self.tables) - 1

    def rope(self, inverse_frequencies: FloatArray) -> int:
        assert inverse_frequencies.dtype == np.float32
        assert inverse_frequencies.shape == (self.head_dim // 2,)
        self.ropes.append(inverse_frequencies.copy())
        return len(self.ropes) - 1

    @property
    def weight_bytes(self) -> int:
        return 4 * (sum(m.values.size for m in self.matrices) + sum(v.size for v in [*self.vectors, *self.tables]))

    def kv_bytes_per_token(self, layers: int) -> int:
        return 2 * layers * self.kv_heads * self.head_dim * {"float32": 4}.get(self.dtype, 2)

    # --- operations

    def buffer(self, width: int, outputs: bool) -> int:
        self.buffers.append((padded(width), outputs))
        return len(self.buffers) - 1

    def embed(self, out: View, matrix: int, table: int) -> None:
        weights, positions = self.matrices[matrix], self.tables[table] if table >= 0 else None
        assert out[2] == weights.values.shape[1]

        def run(step: Step) -> None:
            x = weights.values[step.tokens]
            step.write(out, x if positions is None else x + positions[step.positions])

        self.ops.append(("embed", run))

    def norm(self, out: View, x: View, kind: str, weight: int, bias: int, eps: float) -> None:
        self._check(out, x)
        assert out[2] == x[2]
        assert x[2] % len(self.vectors[weight]) == 0
        self.ops.append(("norm", lambda step: step.write(out, self._normed(step.read(x), kind, weight, bias, eps))))

    def _normed(self, x: FloatArray, kind: str, weight: int, bias: int, eps: float) -> FloatArray:
        scale = self.vectors[weight]
        groups = x.reshape(len(x), -1, len(scale))
        if kind == "layer":
            groups = groups - groups.mean(axis=-1, keepdims=True)
        else:
            assert kind == "rms"
        normed = groups / np.sqrt((groups**2).mean(axis=-1, keepdims=True) + np.float32(eps)) * scale
        if bias >= 0:
            assert len(self.vectors[bias]) == len(scale)
            normed = normed + self.vectors[bias]
        return normed.reshape(x.shape)  # type: ignore[no-any-return]

    def linear(
        self, out: View, prologue: tuple[Any, ...], matrix: int, bias: int, activation: str, residual: View | None
    ) -> None:
        weights, prepared = self.matrices[matrix], self._prologue(prologue, self.matrices[matrix])
        parts = list(weights.real())
        buffer, first, width = out
        assert first % PANEL == 0
        assert width == parts[0][1]
        assert first + len(weights.values) <= self.buffers[buffer][0]
        assert residual is None or (len(parts) == 1 and residual[2] == width)
        for read in prologue[1:3] if prologue[0] != "copy" else ():
            assert not (read[0] == buffer and first <= read[1] < first + len(weights.values))
        vector = self._bias(bias, weights)

        def run(step: Step) -> None:
            made = _ACTIVATE[activation](prepared(step) @ weights.values.T + vector)
            for column, columns in parts:
                values = made[:, column : column + columns]
                step.write(
                    (buffer, first + column, columns), values if residual is None else values + step.read(residual)
                )

        self.ops.append(("linear", run))

    def _bias(self, bias: int, weights: Matrix) -> FloatArray | float:
        if bias < 0:
            return 0.0
        vector = self.vectors[bias]
        assert len(vector) == len(weights.values)
        unpadded = np.zeros(len(vector), bool)
        for column, columns in weights.real():
            unpadded[column : column + columns] = True
        assert (vector[~unpadded] == 0).all()
        return vector

    def _prologue(self, prologue: tuple[Any, ...], weights: Matrix) -> Callable[[Step], FloatArray]:
        kind, x, up, weight, bias, eps, activation = prologue
        self._check(x)
        assert x[2] == weights.values.shape[1]
        match kind:
            case "copy":
                assert (up, weight, bias, eps, activation) == ((-1, 0, 0), -1, -1, 0.0, "")
                return lambda step: step.read(x)
            case "gate":
                self._check(up)
                assert (weight, bias, eps) == (-1, -1, 0.0)
                return lambda step: _ACTIVATE[activation](step.read(x)) * step.read(up)
            case _:
                assert (up, activation) == ((-1, 0, 0), "")
                assert len(self.vectors[weight]) == x[2]
                return lambda step: self._normed(step.read(x), kind, weight, bias, eps)

    def write_kv(self, layer: int, q: View, k: View, v: View, rope: int) -> None:
        self._check(q, k, v)
        assert (q[2], k[2], v[2]) == tuple(n * self.head_dim for n in (self.heads, self.kv_heads, self.kv_heads))

        def run(step: Step) -> None:
            if rope >= 0:
                for view in (q, k):
                    step.write(view, self._turned(step.read(view), step.positions, self.ropes[rope]))
            if step.slots is not None:
                keys, values = self.pools[layer]
                keys[step.slots], values[step.slots] = step.read(k), step.read(v)

        self.ops.append(("write_kv", run))

    def _turned(self, x: FloatArray, positions: Any, frequencies: FloatArray) -> FloatArray:
        angles = positions[:, None, None].astype(np.float32) * frequencies
        first, second = np.split(x.reshape(len(x), -1, self.head_dim), 2, axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        turned = np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
        return turned.reshape(x.shape)  # type: ignore[no-any-return]

    def attention(self, layer: int, out: View, q: View, k: View, v: View, scale: float) -> None:
        self._check(out, q, k, v)

        def run(step: Step) -> None:
            queries, made = step.read(q), []
            for rows, slots, start in step.spans:
                if slots is None:
                    keys, values = step.read(k)[rows], step.read(v)[rows]
                else:
                    keys, values = self.pools[layer][0][slots], self.pools[layer][1][slots]
                made.append(self._attended(queries[rows], keys, values, start, scale))
            step.write(out, np.concatenate(made))

        self.ops.append(("attention", run))

    def _attended(self, q: FloatArray, keys: FloatArray, values: FloatArray, start: int, scale: float) -> FloatArray:
        shared = self.heads // self.kv_heads
        split = [x.reshape(len(x), -1, self.head_dim).swapaxes(0, 1) for x in (q, keys, values)]
        heads, k, v = split[0], np.repeat(split[1], shared, axis=0), np.repeat(split[2], shared, axis=0)
        scores = heads @ k.swapaxes(1, 2) * np.float32(scale)
        future = np.arange(len(keys)) > (start + np.arange(len(q)))[:, None]
        scores = np.where(future, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return mixed.swapaxes(0, 1).reshape(len(q), -1)  # type: ignore[no-any-return]

    def select_outputs(self, out: View, x: View) -> None:
        assert self.buffers[out[0]][1]
        assert not self.buffers[x[0]][1]
        self.ops.append(("select_outputs", lambda step: step.write(out, step.read(x)[step.wanted])))

    def logits(self, prologue: tuple[Any, ...], matrix: int, bias: int, vocab: int) -> None:
        weights, prepared = self.matrices[matrix], self._prologue(prologue, self.matrices[matrix])
        assert weights.widths == [vocab]
        vector = self._bias(bias, weights)

        def run(step: Step) -> None:
            step.logits = (prepared(step) @ weights.values.T + vector)[:, :vocab]

        self.ops.append(("logits", run))

    def _check(self, *views: View) -> None:
        for buffer, column, width in views:
            assert 0 <= buffer < len(self.buffers)
            assert column % PANEL == 0
            assert width > 0
            assert column + width <= self.buffers[buffer][0]

    # --- running

    def allocate_kv(self, layers: int, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        shape = (num_blocks * block_size, self.kv_heads * self.head_dim)
        self.pools = [(np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)) for _ in range(layers)]

    def execute(self, spans: list[tuple[Any, int, Any, int]]) -> tuple[list[int], FloatArray | None]:
        assert self.ops[-1][0] == "logits"
        step = Step(self, spans)
        with np.errstate(all="ignore"):
            for _, run in self.ops:
                run(step)
        tokens, rows, first = [], [np.zeros((0, 0), np.float32)][:0], 0
        for new, _, _, want in spans:
            logits = step.logits[first : first + [0, 1, 1, len(new)][want]]
            first += len(logits)
            broken = not np.isfinite(logits).all()
            tokens.append(-2 if broken else int(logits[0].argmax()) if want == 1 else -1)
            rows += [logits] if want > 1 else []
        return tokens, np.concatenate(rows) if rows else None


class Step:
    """Buffers and rows of one step."""

    def __init__(self, model: Model, spans: list[tuple[Any, int, Any, int]]) -> None:
        self.tokens = np.concatenate([np.array(new, np.int64) for new, *_ in spans])
        self.positions = np.concatenate([np.arange(start, start + len(new)) for new, start, *_ in spans])
        self.logits = np.zeros((0, 0), np.float32)
        self.spans: list[tuple[slice, Any, int]] = []
        written, wanted, first = [], [], 0
        for new, start, table, want in spans:
            rows = slice(first, first + len(new))
            slots = None
            if table:
                places = np.arange(start + len(new))
                slots = np.array(table)[places // model.block_size] * model.block_size + places % model.block_size
                written.append(slots[start:])
            self.spans.append((rows, slots, start))
            wanted += list(range(rows.stop - [0, 1, 1, len(new)][want], rows.stop))
            first = rows.stop
        self.slots = np.concatenate(written) if written else None
        self.wanted = np.array(wanted, np.int64)
        counts = {False: len(self.tokens), True: len(self.wanted)}
        self._buffers = [np.full((counts[outputs], width), np.nan, np.float32) for width, outputs in model.buffers]

    def read(self, view: View) -> FloatArray:
        buffer, column, width = view
        return self._buffers[buffer][:, column : column + width]

    def write(self, view: View, values: FloatArray) -> None:
        buffer, column, width = view
        assert values.shape == (len(self._buffers[buffer]), width)
        self._buffers[buffer][:, column : column + width] = values

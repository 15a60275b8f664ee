"""The cuda device: what it computes in any kind of step, what it refuses, and that steps may overlap.

Without a GPU Triton's interpreter runs the kernels, a few milliseconds for each program: there the tiles are larger
than on a GPU, which changes nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

pytest.importorskip("triton", reason="the kernels need Triton and torch (pip install knee[oracle])")

import torch

from knee.devices import CudaDevice, Device, ReferenceDevice, Span, Want
from knee.devices.base import UNKNOWN, FloatArray, SpanOutput
from knee.devices.cuda import runner
from knee.devices.cuda.batch import Dims
from knee.devices.cuda.dtypes import matrices
from knee.devices.cuda.tiling import Tiling
from knee.devices.cuda.weights import TORCH_TYPES
from knee.errors import KneeError, NumericsError, UserError
from knee.models import build_program
from knee.program import Program
from tests.devices.interpreter import INTERPRET
from tests.devices.models import CONFIGS, VOCAB
from tests.devices.weights import ArrayWeight, array_weights

# What is infinite on its way to a logit makes NumPy, and so the interpreter, warn.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, VOCAB, 64)]
MODELS = CONFIGS | {
    "one-layer": CONFIGS["qwen3"] | {"num_hidden_layers": 1},
    "long": CONFIGS["llama"]  # longer than a split of the attention, as narrow as can be
    | {
        "hidden_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 600,
    },
}

Values = dict[str, FloatArray]


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if INTERPRET and "real_tiles" not in request.keywords:
        monkeypatch.setattr(
            runner, "choose_tiling", lambda *_: Tiling(few=True, rows=32, columns=64, warps=4, stages=2)
        )


@cache
def small_model(config: str) -> tuple[Program, Values]:
    """Weights of a size that keeps logits apart, and activations near one."""
    program = build_program(MODELS[config])
    rng = np.random.default_rng(1)
    values = {
        name: rng.standard_normal(spec.shape, dtype=np.float32) / np.float32(spec.shape[-1] ** 0.5)
        for name, spec in program.weights.items()
    }
    return program, values


def device(config: str, dtype: str = "float32", **other_values: FloatArray) -> CudaDevice:
    program, values = small_model(config)
    return CudaDevice(program, array_weights(program, values | other_values), dtype, interpret=INTERPRET)


@cache
def shared(config: str, dtype: str = "float32") -> CudaDevice:
    """One for all tests that leave nothing behind in it but a pool."""
    return device(config, dtype)


def rounded(program: Program, values: Values, dtype: str) -> Values:
    """The weights that the device keeps, in float32: what is left between it and the reference is its arithmetic."""
    kept = dict(values)
    for name in matrices(program):
        if dtype == "int8":
            scale = np.abs(values[name]).max(axis=1, keepdims=True) / 127
            kept[name] = np.round(values[name] / scale) * scale
        else:
            kept[name] = torch.from_numpy(values[name]).to(TORCH_TYPES[dtype]).float().numpy()
    return kept


@cache
def reference(config: str, dtype: str) -> FloatArray:
    """Logits of TOKENS at every position, with weights of that type."""
    program, values = small_model(config)
    exact = ReferenceDevice(program, array_weights(program, rounded(program, values, dtype)))
    [output] = exact.execute([Span(TOKENS, 0, (), Want.ALL_LOGITS)])
    assert output.logits is not None
    return output.logits


ROOM = {"float32": 1e-5, "bfloat16": 0.015, "float16": 0.001, "int8": 0.015}  # of the largest logit


def poison(runs: Device) -> None:
    """NaN wherever a step works, so that what it does not write itself is seen. Columns that pad a row stay zero."""
    assert isinstance(runs, CudaDevice)
    scratch = runs._runner.scratch
    if scratch is None:
        return
    widths = {name: buffer.width for name, buffer in runs.program.buffers.items()}
    for name, buffer in scratch.buffers.items():
        buffer[:, : sum(widths[one] for one in name.split("+"))] = float("nan")
    stream = widths[next(iter(runs._runner.stream))]
    for rows in (scratch.scaled, scratch.normed):
        rows[:, :stream] = float("nan")
    for floats in (scratch.best, scratch.logits, *scratch.partial[:2]):
        if floats is not None:
            floats.fill_(float("nan"))
    scratch.stats.fill_(12345678)


class Checked:
    """A device whose outputs are compared with the reference's: every span runs TOKENS from its start on."""

    def __init__(self, runs: Device, config: str, dtype: str = "float32") -> None:
        self.device, self.expected = runs, reference(config, dtype)
        self.room = ROOM[dtype] * float(np.abs(self.expected).max())

    def __call__(self, *spans: Span) -> list[SpanOutput]:
        poison(self.device)
        outputs = self.device.execute(spans)
        assert len(outputs) == len(spans)
        for span, output in zip(spans, outputs, strict=True):
            self.check(span, output)
        return outputs

    def check(self, span: Span, output: SpanOutput) -> None:
        end = span.start + len(span.tokens)
        assert (output.token is not None) == (span.want is Want.TOKEN)
        assert (output.logits is not None) == (span.want in (Want.LOGITS, Want.ALL_LOGITS))
        if output.token is not None:
            last = self.expected[end - 1]
            assert last[output.token] >= last.max() - 2 * self.room
        if output.logits is not None:
            first = span.start if span.want is Want.ALL_LOGITS else end - 1
            assert output.logits.shape == (end - first, VOCAB)
            assert output.logits.dtype == np.float32
            assert np.abs(output.logits - self.expected[first:end]).max() < self.room


def span(start: int, end: int, blocks: list[int] | tuple[()], want: Want) -> Span:
    return Span(TOKENS[start:end], start, blocks, want)


IN_FLOAT32 = [(config, "float32") for config in CONFIGS]
NARROWER = [(config, dtype) for config in ("llama", "gpt2", "one-layer") for dtype in ("bfloat16", "float16", "int8")]


@pytest.mark.parametrize(("config", "dtype"), IN_FLOAT32 + NARROWER)
def test_any_kind_of_step_computes_what_the_reference_does(config: str, dtype: str) -> None:
    run = Checked(shared(config, dtype), config, dtype)
    run.device.allocate_kv(num_blocks=9, block_size=8)
    pool = shared(config, dtype)._steps.pool
    assert pool is not None
    for memory in (pool.keys, pool.values):
        memory.fill_(float("nan"))  # a GPU's may hold anything
    a, b, c = [7, 2, 5], [1], [8, 0]
    run(span(0, 9, a, Want.NOTHING), span(0, 1, b, Want.TOKEN), span(0, 5, c, Want.LOGITS))
    run(span(1, 2, b, Want.LOGITS), span(9, 20, a, Want.ALL_LOGITS), span(5, 6, c, Want.TOKEN))
    run(span(2, 3, b, Want.TOKEN), span(20, 21, a, Want.TOKEN), span(6, 7, c, Want.TOKEN))


@pytest.mark.parametrize("config", ["llama", "gpt2"])
def test_without_a_cache_a_span_is_the_whole_prefix(config: str) -> None:
    run = Checked(shared(config), config)
    run(span(0, 13, (), Want.ALL_LOGITS), span(0, 1, (), Want.TOKEN), span(0, 5, (), Want.NOTHING))
    run(span(0, 20, (), Want.TOKEN), span(0, 2, (), Want.LOGITS))


@pytest.mark.parametrize(("config", "block_size"), [("llama", 1), ("gpt2", 64), ("gpt2", 5)])
def test_blocks_of_any_size(config: str, block_size: int) -> None:
    run = Checked(shared(config), config)
    count = -(-30 // block_size)
    run.device.allocate_kv(2 * count, block_size)
    blocks = [int(block) for block in np.random.default_rng(2).permutation(2 * count)]
    one, other = blocks[:count], blocks[count:]
    run(span(0, 11, one, Want.NOTHING), span(0, 20, other, Want.TOKEN))
    run(span(11, 29, one, Want.LOGITS), span(20, 21, other, Want.LOGITS))
    run(span(29, 30, one, Want.LOGITS), span(21, 22, other, Want.LOGITS))


@pytest.mark.real_tiles
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_tiles_of_a_gpu(dtype: str) -> None:
    run = Checked(shared("llama", dtype), "llama", dtype)
    run.device.allocate_kv(num_blocks=3, block_size=16)
    run(span(0, 19, [2, 0], Want.ALL_LOGITS))
    run(span(19, 20, [2, 0], Want.TOKEN))


def test_contexts_of_several_splits() -> None:
    """300 tokens in chunks, then decode; the second request is as long and lies in the blocks between."""
    program, values = small_model("long")
    exact = ReferenceDevice(program, array_weights(program, values))
    tokens, runs = (TOKENS * 5)[:270], shared("long")
    found = []
    for one in (exact, runs):
        one.allocate_kv(num_blocks=10, block_size=64)
        first, second = [9, 1, 7, 3, 5], [0, 2, 4, 6, 8]
        one.execute([Span(tokens[:200], 0, first, Want.NOTHING), Span(tokens[5:25], 0, second, Want.NOTHING)])
        outputs = one.execute([Span(tokens[200:263], 200, first, Want.ALL_LOGITS), Span([7], 20, second, Want.LOGITS)])
        outputs += one.execute([Span([5], 21, second, Want.LOGITS), Span(tokens[263:264], 263, first, Want.LOGITS)])
        found.append(np.concatenate([output.logits for output in outputs if output.logits is not None]))
    assert found[0].shape == (63 + 3, VOCAB)
    assert np.abs(found[1] - found[0]).max() < 1e-5 * np.abs(found[0]).max()


def test_chunks_of_one_token_that_want_nothing_get_nothing() -> None:
    """As many as round a decode step up to the shape that it would have without them."""
    run = Checked(shared("one-layer"), "one-layer")
    run.device.allocate_kv(8, 16)
    run(*[span(0, 1, [i], Want.NOTHING if i in (0, 3, 6) else Want.TOKEN) for i in range(8)])


@pytest.mark.parametrize("cached", [True, False])
def test_a_token_is_drawn_where_that_is_asked_for(cached: bool) -> None:
    """Beside greedy ones, and beside spans that want nothing."""
    runs, expected = shared("llama"), reference("llama", "float32")
    runs.allocate_kv(8, 16)
    draws = [(0.9, 0.99), (1.3, 0.6), None, (0.7, 0.05)]
    ends = [3, 1, 4, 1]
    spans = [
        Span(TOKENS[:end], 0, [2 * i] if cached else (), Want.TOKEN, draw=draw)
        for i, (end, draw) in enumerate(zip(ends, draws, strict=True))
    ]
    spans.insert(1, span(0, 2, [7] if cached else (), Want.NOTHING))
    outputs = [output for output in runs.execute(spans) if output.token is not None]
    for end, draw, output in zip(ends, draws, outputs, strict=True):
        scores, token = expected[end - 1].astype(np.float64), output.token
        assert token is not None
        if draw is None:
            assert token == scores.argmax()
            continue
        weights = np.exp(scores / draw[0])
        cumulative = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
        assert cumulative[token] - 1e-5 <= draw[1] <= cumulative[token + 1] + 1e-5


# --- steps that overlap ------------------------------------------------------------------------------------------


def joining(kind: str) -> list[Span]:
    """Spans of requests that join in the third step, in blocks 3 and on; they make it larger than any before."""
    if kind == "a long prompt":
        return [Span((TOKENS * 2)[:66], 0, [3, 4], Want.NOTHING)]
    return [Span(TOKENS[:1], 0, [3 + i], Want.NOTHING) for i in range(66)]


def greedy(runs: CudaDevice, blocks: list[list[int]], joiners: list[Span], overlapped: bool) -> list[list[int]]:
    """Four tokens of each request, from a prompt of one token; in every step they stand in another order."""
    made: list[list[int]] = [[] for _ in blocks]
    flights, sources, order = [], dict[int, int](), list(range(len(blocks)))

    def land() -> None:
        flight, places = flights.pop(0)
        outputs = runs.finish(flight).spans
        for request, place in places.items():
            token = outputs[place].token
            assert token is not None
            made[request].append(token)

    for step in range(4):
        batch, order = list(joiners) if step == 2 else [], order[1:] + order[:1]
        places = {}
        for request in order:
            known = [TOKENS[request], *made[request]][step:]
            source = None if known else sources[request]
            places[request] = len(batch)
            batch.append(Span(known or [UNKNOWN], step, blocks[request], Want.TOKEN, source))
        sources = places
        flights.append((runs.start(batch), places))
        if not overlapped or len(flights) > 1:
            land()
    while flights:
        land()
    return made


@pytest.mark.parametrize("kind", ["a long prompt", "many requests"])
def test_steps_that_overlap_make_the_same_tokens(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is allocated grows in the third step, while the second is in flight, whose tokens the third one needs."""
    monkeypatch.setattr(runner, "_FEWEST_ROWS", 64)
    blocks, found = [[2], [0], [1]], []
    for overlapped in (False, True):
        runs = device("long")
        runs.allocate_kv(70, 64)
        found.append(greedy(runs, blocks, joining(kind), overlapped))
    assert found[0] == found[1]
    assert {len(tokens) for tokens in found[0]} == {4}
    assert len({tuple(tokens) for tokens in found[0]}) == len(blocks)


def test_a_step_s_outputs_stay_while_the_next_one_runs() -> None:
    runs = shared("llama")
    runs.allocate_kv(4, 16)
    first = runs.start([span(0, 5, [0], Want.TOKEN), span(0, 3, [1], Want.LOGITS)])
    second = runs.start([span(3, 4, [1], Want.LOGITS), span(5, 6, [0], Want.TOKEN)])
    check = Checked(runs, "llama")
    for flight, spans in (
        (first, [span(0, 5, [0], Want.TOKEN), span(0, 3, [1], Want.LOGITS)]),
        (second, [span(3, 4, [1], Want.LOGITS), span(5, 6, [0], Want.TOKEN)]),
    ):
        for one, output in zip(spans, runs.finish(flight).spans, strict=True):
            check.check(one, output)


def test_block_tables_may_change_once_a_step_has_been_started() -> None:
    """The engine takes blocks back, and gives them to others, while the step that reads them is in flight."""
    runs, check = shared("llama"), Checked(shared("llama"), "llama")
    runs.allocate_kv(4, 16)
    table = [3, 1]
    check(span(0, 17, table, Want.NOTHING))
    flight = runs.start([span(17, 18, table, Want.LOGITS)])
    table.clear()
    [output] = runs.finish(flight).spans
    check.check(span(17, 18, [3, 1], Want.LOGITS), output)
    table += [0, 2]
    check(span(0, 17, table, Want.LOGITS), span(18, 19, [3, 1], Want.LOGITS))
    check(span(17, 18, table, Want.LOGITS), span(19, 20, [3, 1], Want.LOGITS))


def test_a_new_pool_is_used_from_the_next_step_on() -> None:
    run = Checked(shared("long"), "long")
    for num_blocks, block_size in ((2, 4), (6, 1), (1, 64), (3, 4)):
        run.device.allocate_kv(num_blocks, block_size)
        blocks = list(range(num_blocks))[::-1]
        run(span(0, 5, blocks, Want.NOTHING))
        run(span(5, 6, blocks, Want.LOGITS))
        run.device.allocate_kv(0, block_size)


# --- numbers that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", CudaDevice.dtypes)
@pytest.mark.parametrize("config", ["llama", "gpt2"])
def test_weights_that_are_no_numbers_are_named(config: str, dtype: str) -> None:
    program, values = small_model(config)
    for name in (next(name for name, value in values.items() if value.ndim == n) for n in (1, 2)):
        broken = values[name].copy()
        broken.reshape(-1)[-1] = np.nan if dtype != "int8" else np.inf
        with pytest.raises(NumericsError, match=re.escape(program.weights[name].source)):
            device(config, dtype, **{name: broken})


@pytest.mark.parametrize("want", [Want.TOKEN, Want.LOGITS, Want.ALL_LOGITS])
def test_logits_that_are_no_numbers_are_an_error(want: Want) -> None:
    """Of one request, whose token's embedding is too large; the other one's are fine, and it may go on."""
    _, values = small_model("gpt2-untied")
    loud = values["wte.weight"].copy()
    loud[TOKENS[4]] = 3e38
    runs = device("gpt2-untied", **{"wte.weight": loud})
    runs.allocate_kv(4, 16)
    others = [token for token in range(VOCAB) if token != TOKENS[4]]
    well = Span(others[:3], 0, [2], want)
    with pytest.raises(NumericsError, match="position 5 is NaN or infinite"):
        runs.execute([well, Span(TOKENS[:6], 0, [1], want)])
    [again] = runs.execute([Span(others[3:4], 3, [2], Want.LOGITS)])
    assert again.logits is not None


def test_a_prefill_chunk_with_damaged_activations_is_found_by_the_token_after_it() -> None:
    _, values = small_model("gpt2")
    positions = values["wpe.weight"].copy()
    positions[3] = 3e38
    runs = device("gpt2", **{"wpe.weight": positions})
    runs.allocate_kv(2, 16)
    runs.execute([Span(TOKENS[:10], 0, [1], Want.NOTHING)])
    with pytest.raises(NumericsError, match="position 10 is NaN or infinite"):
        runs.execute([Span(TOKENS[10:11], 10, [1], Want.TOKEN)])


@pytest.mark.parametrize("size", [1e3, 1e4, 1e5, 1e6, 1e7, 1e15])
def test_a_stream_of_any_size_gives_the_right_logits_or_an_error(size: float) -> None:
    """A norm's sums are in fixed point: what does not fit must not pass for a smaller number."""
    program, values = small_model("llama")
    loud = {"model.embed_tokens.weight": values["model.embed_tokens.weight"] * np.float32(size)}
    exact = ReferenceDevice(program, array_weights(program, values | loud))
    [expected] = exact.execute([Span(TOKENS[:4], 0, (), Want.ALL_LOGITS)])
    try:
        [output] = device("llama", **loud).execute([Span(TOKENS[:4], 0, (), Want.ALL_LOGITS)])
    except NumericsError:
        assert size > 1e4, "streams as large as this occur in models that are in order"
        return
    assert expected.logits is not None
    assert output.logits is not None
    assert np.abs(output.logits - expected.logits).max() < 1e-4 * np.abs(expected.logits).max()


@pytest.mark.parametrize("config", ["llama", "gpt2"])
def test_products_by_the_library_are_products(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """batch_invariant off: torch multiplies, a kernel does the rest."""
    monkeypatch.setattr(runner, "LIBRARY_ROWS", 2)
    runs = device(config, "float16")
    runs.batch_invariant = False
    calls: list[int] = []
    product = runner._Linear._product
    monkeypatch.setattr(runner._Linear, "_product", lambda *given: calls.append(given[2]) or product(*given))
    runs.allocate_kv(2, 16)
    wanted = reference(config, "float16")[:12]
    [output] = runs.execute([Span(TOKENS[:12], 0, [1], Want.ALL_LOGITS)])
    goes = 1 if INTERPRET else 2  # on a GPU once with nobody in it, once to be captured
    assert calls == [16] * 4 * runs.program.layers * goes
    assert output.logits is not None
    assert np.abs(output.logits - wanted).max() < ROOM["float16"] * np.abs(wanted).max()


def test_an_uncached_step_leaves_the_pool_alone_and_kinds_do_not_mix() -> None:
    runs = device("llama")
    runs.allocate_kv(2, 16)
    runs.execute([Span(TOKENS[:6], 0, [1], Want.NOTHING)])
    runs.execute([Span(TOKENS[:9], 0, (), Want.TOKEN)])
    [output] = runs.execute([Span(TOKENS[6:7], 6, [1], Want.LOGITS)])
    assert output.logits is not None
    assert np.abs(output.logits[0] - reference("llama", "float32")[6]).max() < 1e-4
    with pytest.raises(KneeError, match="one kind a step"):
        runs.execute([Span(TOKENS[:3], 0, [0], Want.TOKEN), Span(TOKENS[:3], 0, (), Want.TOKEN)])


def test_steps_without_a_cache_keep_their_pool_and_graphs() -> None:
    """A prefix grows; a larger pool at every length would void what was captured."""
    runs, pools = device("llama"), []
    runs.allocate_kv(2, 16)
    for length in (1, 30, 1, 64):
        runs.execute([Span(TOKENS[:length], 0, (), Want.TOKEN)])
        assert runs._uncached is not None
        pools.append(runs._uncached.pool)
    assert all(pool is pools[0] for pool in pools)


def test_float16_refuses_weights_that_it_does_not_hold() -> None:
    _, values = small_model("llama")
    loud = values["model.layers.0.mlp.down_proj.weight"].copy()
    loud[1, 2] = 1e5
    with pytest.raises(UserError, match="does not hold: use --dtype bfloat16"):
        device("llama", "float16", **{"model.layers.0.mlp.down_proj.weight": loud})


# --- weights -----------------------------------------------------------------------------------------------------


def test_int8_weights_are_rounded_to_the_nearest_step_of_their_output() -> None:
    runs = shared("llama", "int8")
    _, values = small_model("llama")
    packed = 0
    for names, matrix in runs._runner.store.matrices.items():
        exact = np.concatenate([values[name] for name in names])
        assert matrix.scale is not None
        scale = matrix.scale.cpu().numpy()[:, None]
        kept = matrix.data.cpu().numpy().astype(np.float32)
        np.testing.assert_allclose(scale, np.abs(exact).max(axis=1, keepdims=True) / 127, rtol=1e-6)
        assert np.abs(kept[:, : exact.shape[1]] * scale - exact).max() <= 0.5001 * scale.max()
        assert (np.abs(kept[:, : exact.shape[1]] * scale - exact) <= 0.5001 * scale).all()
        assert not kept[:, exact.shape[1] :].any(), "inputs are padded with zeros"
        packed += len(names)
    assert packed == len(matrices(runs.program))


def test_an_output_of_zeros_stays_zero_in_int8() -> None:
    program, values = small_model("llama")
    name = matrices(program)[0]
    silent = values[name].copy()
    silent[3] = 0
    runs = device("llama", "int8", **{name: silent})
    [matrix] = [matrix for names, matrix in runs._runner.store.matrices.items() if name in names]
    assert not matrix.data[3].any()
    assert matrix.scale is not None
    assert torch.isfinite(matrix.scale).all()


@pytest.mark.parametrize(
    ("storages", "dtype", "chosen", "reason"),
    [
        ({"BF16"}, "auto", "bfloat16", ""),
        ({"F16"}, "auto", "float16", ""),
        ({"F32"}, "auto", "bfloat16", "rounded from the file's F32; --dtype float32 keeps the values and is slower"),
        ({"F16", "BF16"}, "auto", "bfloat16",
         "rounded from the file's F16; --dtype float32 keeps the values and is slower"),
        ({"Q4_0", "Q6_K"}, "auto", "bfloat16",
         "rounded from the file's Q4_0, Q6_K; --dtype float32 keeps the values and is slower"),
        ({"BF16"}, "float16", "float16", "rounded from the file's BF16"),
        ({"BF16"}, "int8", "int8", "rounded from the file's BF16"),
        ({"F32", "Q4_0"}, "float32", "float32", ""),
    ],
)  # fmt: skip
def test_the_plan_says_what_is_kept_and_why(storages: set[str], dtype: str, chosen: str, reason: str) -> None:
    program, values = small_model("gpt2")
    names = sorted(storages)
    kinds = {name: names[i % len(names)] for i, name in enumerate(matrices(program))}
    weights = {name: ArrayWeight(spec, values[name], kinds.get(name, "F32")) for name, spec in program.weights.items()}
    plan = CudaDevice.plan(program, weights, dtype)
    assert (plan.dtype, plan.reason) == (chosen, reason)
    taken = shared("gpt2", chosen).weight_bytes
    assert 0.9 * taken <= plan.bytes <= 1.1 * taken


@pytest.mark.parametrize("dtype", CudaDevice.dtypes)
def test_what_a_device_says_of_itself(dtype: str) -> None:
    runs = shared("llama", dtype)
    assert runs.dtype == dtype
    assert runs.overlaps
    assert runs.warnings == ()
    width = 4 if dtype == "float32" else 2
    assert runs.kv_bytes_per_token == width * runs.program.kv_elements_per_token
    matrix_bytes = sum(matrix.data.nbytes for matrix in runs._runner.store.matrices.values())
    assert matrix_bytes < runs.weight_bytes < 2 * matrix_bytes
    assert (runs.isa is None) == INTERPRET


# --- launches ----------------------------------------------------------------------------------------------------


class FakeKernel:
    """Triton's two ends: `warmup` finds or compiles, and what comes back launches."""

    arg_names = ("x", "count", "SIZE", "KIND")

    def __init__(self) -> None:
        self.looked_for: list[tuple[object, ...]] = []
        self.launched: list[tuple[object, ...]] = []

    def warmup(self, *arguments: object, grid: tuple[int, ...], **options: object) -> FakeKernel:
        self.looked_for.append((arguments, grid, options))
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments: self.launched.append((grid[:3], *arguments))


def test_a_kernel_is_looked_for_once_and_then_launched_with_all_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, kernel = device("llama")._runner, FakeKernel()
    monkeypatch.setattr(runs, "interpret", False)
    ready: list[runner.Ready] = []
    for count in (3, 4):
        runs._ready, runs._place = ready, 0
        runs.start(kernel, (count,), "x", count, KIND="plain", SIZE=64, num_warps=4)
        runs.start(kernel, (count, 2), "y", count, KIND="gate", SIZE=32, num_warps=8)
    assert [options["num_warps"] for _, _, options in kernel.looked_for] == [4, 8]  # type: ignore[index]
    assert kernel.launched == [
        ((3, 1, 1), "x", 3, 64, "plain"),
        ((3, 2, 1), "y", 3, 32, "gate"),
        ((4, 1, 1), "x", 4, 64, "plain"),
        ((4, 2, 1), "y", 4, 32, "gate"),
    ]


def test_no_kernel_contracts_multiply_and_add(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it would be done depends on what is around: another tile, other bits."""
    runs = device("llama")._runner
    monkeypatch.setattr(runs, "interpret", False)
    for options in (runs.options(), runs.options(8, 2, pdl=False)):
        assert options["enable_fp_fusion"] is False


def test_compiling_launches_nothing_and_a_kernel_that_fails_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs, kernel = device("llama")._runner, FakeKernel()
    assert runs.multiprocessors >= 1
    monkeypatch.setattr(runs, "interpret", False)
    monkeypatch.setattr(runs, "launches", [lambda step: runs.start(kernel, (1,), "x", 1, SIZE=1, KIND=step)])
    step = runner.Step(Dims(1, 1, 0, 1, 1, 1, False), {}, torch.zeros(1), runs.make_pool(1, 16))
    monkeypatch.setattr(kernel, "result", lambda: 1 / 0, raising=False)
    with pytest.raises(ZeroDivisionError):
        runs.compile([step])
    monkeypatch.setattr(kernel, "result", lambda: kernel)
    assert not runs.ready_for(step)
    runs.compile([step])
    assert len(kernel.looked_for) == 2
    assert not kernel.launched
    runs.run(step)
    assert len(kernel.looked_for) == 2
    assert len(kernel.launched) == 1

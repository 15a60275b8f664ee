"""The cpu device with its real kernels: what it computes, and that a row's bits depend on nothing beside it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.devices import ReferenceDevice, Span, Want
from knee.devices.base import FloatArray
from knee.devices.cpu import _native
from knee.devices.cpu.device import ISA_VARIABLE, CpuDevice
from knee.errors import NumericsError, UserError
from knee.models import build_program
from knee.program import Program
from tests.devices.models import CONFIGS, VOCAB
from tests.devices.weights import array_weights

DTYPES = CpuDevice.dtypes
ISAS = _native.supported_isas()
TOKENS = list(np.random.default_rng(5).integers(0, VOCAB, 50))


@cache
def small_model(config: str) -> tuple[Program, dict[str, FloatArray]]:
    """Weights of a size that keeps logits apart, and activations near one."""
    program = build_program(CONFIGS[config])
    rng = np.random.default_rng(1)
    values = {
        name: rng.standard_normal(spec.shape, dtype=np.float32) / np.float32(spec.shape[-1] ** 0.5)
        for name, spec in program.weights.items()
    }
    return program, values


@cache
def device(config: str, dtype: str, isa: str, threads: int = 2) -> CpuDevice:
    program, values = small_model(config)
    before = os.environ.get(ISA_VARIABLE)
    os.environ[ISA_VARIABLE] = isa
    try:
        return CpuDevice(program, array_weights(program, values), dtype, threads)
    finally:
        os.environ.pop(ISA_VARIABLE) if before is None else os.environ.update({ISA_VARIABLE: before})


def logits(runner: CpuDevice | ReferenceDevice, tokens: Sequence[int]) -> FloatArray:
    [output] = runner.execute([Span(tokens, 0, (), Want.ALL_LOGITS)])
    assert output.logits is not None
    return output.logits


@cache
def alone(config: str, dtype: str, isa: str) -> FloatArray:
    """What a request of TOKENS gets when it runs alone, uncached, on one thread."""
    return logits(device(config, dtype, isa, threads=1), TOKENS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("config", CONFIGS)
def test_float32_is_the_reference_in_float32(config: str, isa: str) -> None:
    program, values = small_model(config)
    expected = logits(ReferenceDevice(program, array_weights(program, values)), TOKENS)
    assert np.abs(logits(device(config, "float32", isa), TOKENS) - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("config", CONFIGS)
def test_narrower_weights_stay_near_it(config: str, isa: str, dtype: str) -> None:
    exact, rounded = alone(config, "float32", isa), alone(config, dtype, isa)
    room = {"bfloat16": 0.02, "int8": 0.03, "int4": 0.25}[dtype]
    error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert 0 < error < room


@st.composite
def cuts(draw: st.DrawFn) -> list[list[int]]:
    """For some requests, into which chunks each one's tokens are cut."""
    requests = draw(st.integers(1, 5))
    return [draw(st.lists(st.integers(1, 30), min_size=1, max_size=8)) for _ in range(requests)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25, deadline=None)
@given(
    config=st.sampled_from(sorted(CONFIGS)),
    chunks=cuts(),
    block_size=st.integers(1, 60),
    threads=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_bits_depend_on_no_batch_chunk_block_or_thread(
    isa: str, dtype: str, config: str, chunks: list[list[int]], block_size: int, threads: int, seed: int
) -> None:
    runner, expected = device(config, dtype, isa, threads), alone(config, dtype, isa)
    per_request = -(-len(TOKENS) // block_size)
    blocks = np.random.default_rng(seed).permutation(per_request * len(chunks)).reshape(len(chunks), -1).tolist()
    runner.allocate_kv(per_request * len(chunks), block_size)
    done = [0] * len(chunks)
    for turn in range(max(map(len, chunks))):
        batch, rows = [], []
        for i, sizes in enumerate(chunks):
            end = min(len(TOKENS), done[i] + sizes[turn]) if turn < len(sizes) else done[i]
            if end > done[i]:
                want = Want.ALL_LOGITS if i % 2 == 0 else Want.LOGITS
                batch.append(Span(TOKENS[done[i] : end], done[i], blocks[i], want))
                rows.append(expected[done[i] : end] if want is Want.ALL_LOGITS else expected[end - 1 : end])
                done[i] = end
        for output, wanted in zip(runner.execute(batch), rows, strict=True):
            assert output.logits is not None
            assert output.logits.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_token_is_the_first_greatest_logit(isa: str, dtype: str) -> None:
    runner = device("llama", dtype, isa)
    spans = [Span(TOKENS[: n + 1], 0, (), Want.TOKEN) for n in range(len(TOKENS))]
    tokens = [output.token for output in runner.execute(spans)]
    assert tokens == alone("llama", dtype, isa).argmax(axis=1).tolist()


def test_spans_that_want_nothing_get_nothing() -> None:
    runner = device("gpt2", "float32", ISAS[0])
    [first, second] = runner.execute([Span(TOKENS, 0, (), Want.NOTHING), Span(TOKENS, 0, (), Want.TOKEN)])
    assert first.token is None
    assert first.logits is None
    assert second.token is not None
    [only] = runner.execute([Span(TOKENS, 0, (), Want.NOTHING)])
    assert only.token is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_no_numbers_are_named(dtype: str) -> None:
    program, values = small_model("llama")
    name, broken = next((name, value.copy()) for name, value in values.items() if value.ndim == 2)
    broken[1, 1] = np.nan
    with pytest.raises(UserError, match=re.escape(program.weights[name].source)):
        CpuDevice(program, array_weights(program, values | {name: broken}), dtype)


def test_infinite_logits_are_an_error_and_not_a_token() -> None:
    program, values = small_model("llama")
    loud = values | {"model.norm.weight": np.full_like(values["model.norm.weight"], np.inf)}
    runner = CpuDevice(program, array_weights(program, loud), "float32")
    with pytest.raises(NumericsError, match="NaN or infinite"):
        runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_damaged_position_is_not_washed_out_by_the_cache(dtype: str) -> None:
    program, values = small_model("gpt2")
    positions = values["wpe.weight"].copy()
    positions[3] = 3e38
    runner = CpuDevice(program, array_weights(program, values | {"wpe.weight": positions}), dtype)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        runner.execute([Span(TOKENS[:10], 0, (), Want.TOKEN)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_longer_than_one_pass_is_cut_without_a_trace(dtype: str) -> None:
    """More than 256 rows: requests are cut between passes, and each gets what it gets alone."""
    config = CONFIGS["llama"] | {"max_position_embeddings": 512}
    program = build_program(config)
    runner = CpuDevice(program, array_weights(program, small_model("llama")[1]), dtype, 2)
    long = (TOKENS * 8)[:200]
    wants = (Want.ALL_LOGITS, Want.TOKEN, Want.NOTHING, Want.LOGITS)
    outputs = runner.execute([Span(long, 0, (), want) for want in wants])
    expected = logits(runner, long)
    assert outputs[0].logits is not None
    assert outputs[0].logits.tobytes() == expected.tobytes()
    assert outputs[1].token == expected[-1].argmax()
    assert outputs[2].token is None
    assert outputs[3].logits is not None
    assert outputs[3].logits.tobytes() == expected[-1:].tobytes()


def _stored(storage: str, rng: np.random.Generator) -> tuple[np.ndarray, str, int, int, bool, int, int]:
    """16 outputs of 32 inputs in a storage format of blocks, with scales around 0.1."""
    block = {"Q4_1": 20, "Q4_0": 18, "Q8_0": 34}[storage]
    data = rng.integers(0, 256, (16, block), dtype=np.uint8)
    for at in range(0, 4 if storage == "Q4_1" else 2, 2):
        data[:, at : at + 2] = rng.uniform(0.05, 0.1, (16, 1)).astype(np.float16).view(np.uint8)
    return data.reshape(-1), storage, 16, 32, False, 0, 16


@pytest.mark.parametrize("other", ["Q8_0", "F32"])
def test_blocks_with_a_minimum_share_no_int8_matrix_with_others(other: str) -> None:
    rng = np.random.default_rng(2)
    model = _native.Model(ISAS[0], 1, "int8", 1, 1, 32)
    plain = (rng.standard_normal(512, dtype=np.float32).view(np.uint8), "F32", 16, 32, False, 0, 16)
    with pytest.raises(ValueError, match="4-bit blocks and others"):
        model.matrix([_stored("Q4_1", rng), plain if other == "F32" else _stored(other, rng)], "int8")
    model.matrix([_stored("Q4_1", rng), _stored("Q4_0", rng)], "int8")


def test_operations_that_do_not_fit_are_refused() -> None:
    model = _native.Model(ISAS[0], 1, "float32", 2, 1, 16)
    none, buffer, short = (-1, 0, 0), model.buffer(64, False), model.vector(np.ones(3, np.float32))
    data = np.zeros(64 * 64, np.float32).view(np.uint8)
    matrix = model.matrix([(data, "F32", 64, 64, False, 0, 64)], "float32")
    x, out = (buffer, 0, 64), (model.buffer(64, False), 0, 64)
    copy = ("copy", x, none, -1, -1, 0.0, "")
    for refused in (
        lambda: model.linear(out, ("rms", x, none, short, -1, 1e-5, ""), matrix, -1, "", None),
        lambda: model.linear(x, copy, matrix, -1, "", None),
        lambda: model.linear((out[0], 8, 56), copy, matrix, -1, "", None),
        lambda: model.linear(out, copy, matrix, -1, "", (buffer, 8, 56)),
        lambda: model.linear(out, copy, matrix + 1, -1, "", None),
        lambda: model.linear(out, ("copy", (buffer, 0, 32), none, -1, -1, 0.0, ""), matrix, -1, "", None),
        lambda: model.embed((buffer, 0, 65), matrix, -1),
        lambda: model.embed(x, matrix, 0),
        lambda: model.write_kv(0, (buffer, 0, 16), x, x, -1),
        lambda: model.write_kv(0, (buffer, 0, 32), (buffer, 0, 16), (buffer, 0, 16), 0),
        lambda: model.attention(0, (out[0], 0, 16), (buffer, 0, 32), (buffer, 0, 16), (buffer, 0, 16), 1.0),
        lambda: model.select_outputs((out[0], 0, 32), x),
        lambda: model.norm(out, x, "rms", short, -1, 1e-5),
    ):
        with pytest.raises((ValueError, IndexError)):
            refused()
    with pytest.raises(ValueError, match="heads"):
        _native.Model(ISAS[0], 1, "float32", 2, 0, 16)
    assert _native.Model(ISAS[0], 0, "float32", 2, 1, 16).threads == 1


@pytest.mark.parametrize(
    "span",
    [
        ([], 0, [0], 1),
        ([1], 4, [0], 1),
        ([1], 0, [7], 1),
        ([1], 0, [-1], 1),
        ([VOCAB], 0, [0], 1),
        ([-1], 0, [0], 1),
        ([1], 1, [], 1),
        ([1], -1, [0], 1),
        ([1] * 65, 0, [], 1),
    ],
)
def test_native_code_refuses_what_would_leave_its_memory(span: tuple[list[int], int, list[int], int]) -> None:
    runner = device("gpt2", "float32", ISAS[0])
    runner.allocate_kv(num_blocks=2, block_size=4)
    with pytest.raises(ValueError, match=r"span|block|vocabulary|position"):
        runner._model.execute([span])


def test_an_unknown_instruction_set_is_refused_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ISA_VARIABLE, "mmx")
    program, values = small_model("llama")
    with pytest.raises(UserError, match=f"'mmx'.*{ISAS[0]}"):
        CpuDevice(program, array_weights(program, values))


def _tokens_in_child(runner: CpuDevice, answers: multiprocessing.SimpleQueue[int | None]) -> None:
    answers.put(runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])[0].token)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_threads_come_back_after_a_fork() -> None:
    runner = device("llama", "float32", ISAS[0], threads=3)
    [expected] = runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=_tokens_in_child, args=(runner, answers), daemon=True)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert answers.get() == expected.token
    assert runner.execute([Span(TOKENS, 0, (), Want.TOKEN)]) == [expected]


_ENDLESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background was born deaf to it
from tests.devices.test_cpu import ISAS, TOKENS, Span, Want, device
runner = device("llama", "float32", ISAS[0], threads=3)
try:
    print("running", flush=True)
    while True:
        runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])
except KeyboardInterrupt:
    print("stopped", len(runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])), flush=True)
"""


def test_ctrl_c_stops_between_two_steps_and_harms_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", _ENDLESS], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30)[0] == "stopped 1\n"
            assert process.returncode == 0
        finally:
            process.kill()

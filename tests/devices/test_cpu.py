"""The cpu device with its real kernels: what it computes, and that a row's bits depend on nothing beside it."""

from __future__ import annotations

import multiprocessing
import os
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
    with pytest.raises((NumericsError, UserError), match=r"NaN|cannot be kept"):
        CpuDevice(program, array_weights(program, values | {name: broken}), dtype)


def test_infinite_logits_are_an_error_and_not_a_token() -> None:
    program, values = small_model("llama")
    loud = values | {"model.norm.weight": np.full_like(values["model.norm.weight"], np.inf)}
    runner = CpuDevice(program, array_weights(program, loud), "float32")
    with pytest.raises(NumericsError, match="NaN or infinite"):
        runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])


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
    child = context.Process(target=_tokens_in_child, args=(runner, answers))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert answers.get() == expected.token
    assert runner.execute([Span(TOKENS, 0, (), Want.TOKEN)]) == [expected]


_ENDLESS = """
from tests.devices.test_cpu import ISAS, TOKENS, Span, Want, device
runner = device("llama", "float32", ISAS[0], threads=3)
print("running", flush=True)
try:
    while True:
        runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])
except KeyboardInterrupt:
    print("stopped", len(runner.execute([Span(TOKENS, 0, (), Want.TOKEN)])), flush=True)
"""


def test_ctrl_c_stops_between_two_steps_and_harms_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "stopped 1\n"
    assert process.returncode == 0

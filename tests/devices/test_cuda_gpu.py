"""The cuda device on a GPU: a row's bits depend on nothing beside it, CUDA graphs and overlap change no token."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="random models are made with transformers (pip install knee[oracle])")

import torch

from knee import LLM, SamplingParams
from knee.devices import CudaDevice, Span, Want
from knee.devices.base import UNKNOWN, FloatArray
from knee.devices.cuda import runner
from knee.engine.policies import make_policy
from knee.errors import OutOfMemory
from knee.models import build_program
from knee.program import Program
from tests.devices.weights import array_weights
from tests.parity.oracle import RandomModel, greedy, logits

pytestmark = pytest.mark.gpu

VOCAB = 2003
LLAMA: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 1024,
}
GPT2: dict[str, Any] = {"n_embd": 192, "n_layer": 3, "n_head": 3, "vocab_size": VOCAB, "n_positions": 1024}
CONFIGS = {
    "llama": {"architectures": ["LlamaForCausalLM"], **LLAMA},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], **LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2},
    "gpt2": {"architectures": ["GPT2LMHeadModel"], **GPT2},
}
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, VOCAB, 640)]
LENGTH = 600  # of the request that is looked at: across two ends of a split


@cache
def model(config: str) -> tuple[Program, dict[str, FloatArray]]:
    program = build_program(CONFIGS[config])
    rng = np.random.default_rng(1)
    values = {
        name: rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(1.2 / spec.shape[-1] ** 0.5)
        for name, spec in program.weights.items()
    }
    return program, values


def device(config: str, dtype: str) -> CudaDevice:
    program, values = model(config)
    return CudaDevice(program, array_weights(program, values), dtype)


RUNS = [(config, dtype) for config in ("llama", "gpt2") for dtype in CudaDevice.dtypes] + [("qwen3", "bfloat16")]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def runs(request: pytest.FixtureRequest) -> CudaDevice:
    return device(*request.param)


@pytest.fixture(scope="module")
def alone(runs: CudaDevice) -> FloatArray:
    """The request's logits at every position: all tokens at once, nothing beside it, nothing cached."""
    [output] = runs.execute([Span(TOKENS[:LENGTH], 0, (), Want.ALL_LOGITS)])
    assert output.logits is not None
    return output.logits


def same_bits(found: FloatArray | None, wanted: FloatArray) -> bool:
    return found is not None and found.tobytes() == wanted.tobytes()


# --- a row's bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk", "block_size"), [(1, 64), (1, 16), (7, 64), (64, 128), (100, 5), (257, 64)])
def test_bits_do_not_depend_on_chunks_and_blocks(
    runs: CudaDevice, alone: FloatArray, chunk: int, block_size: int
) -> None:
    """Chunks of one token go through the kernels of decode."""
    count = -(-LENGTH // block_size)
    runs.allocate_kv(count, block_size)
    blocks = [int(block) for block in np.random.default_rng(chunk).permutation(count)]
    first = 0 if chunk > 1 else 500
    if first:
        runs.execute([Span(TOKENS[:first], 0, blocks, Want.NOTHING)])
    for start in range(first, LENGTH, chunk):
        end = min(LENGTH, start + chunk)
        [output] = runs.execute([Span(TOKENS[start:end], start, blocks, Want.ALL_LOGITS)])
        assert same_bits(output.logits, alone[start:end]), start


@pytest.mark.parametrize("others", [0, 2, 16, 63, 199])
def test_bits_do_not_depend_on_the_batch(runs: CudaDevice, alone: FloatArray, others: int) -> None:
    """Prefill of one beside decode and prefill of others, then decode of all; each step in another order."""
    rng = np.random.default_rng(others)
    runs.allocate_kv(10 + 2 * others, 64)
    shuffled = [int(block) for block in rng.permutation(10 + 2 * others)]
    mine, theirs = shuffled[:10], [shuffled[10 + 2 * i : 12 + 2 * i] for i in range(others)]
    done = [0] * others

    def step(start: int, end: int, want: Want) -> None:
        batch: list[Span] = []
        for i in range(others):
            length = 1 if done[i] else int(rng.integers(1, 30))
            batch.append(Span(TOKENS[i : i + length], done[i], theirs[i], list(Want)[rng.integers(len(Want))]))
            done[i] += length
        place = int(rng.integers(0, others + 1))
        batch.insert(place, Span(TOKENS[start:end], start, mine, want))
        output = runs.execute(batch)[place]
        if want is Want.TOKEN:
            assert output.token == alone[end - 1].argmax()
        elif want is Want.ALL_LOGITS:
            assert same_bits(output.logits, alone[start:end]), start

    step(0, 250, Want.ALL_LOGITS)
    for position in range(250, 262):
        step(position, position + 1, Want.ALL_LOGITS)
    step(262, 270, Want.TOKEN)
    step(270, 509, Want.NOTHING)
    for position in range(509, 520):
        step(position, position + 1, Want.ALL_LOGITS if position % 2 else Want.TOKEN)


# --- CUDA graphs, steps that overlap -----------------------------------------------------------------------------


def generate(runs: CudaDevice, lengths: list[int], steps: int, ahead: int = 0) -> tuple[list[list[int]], FloatArray]:
    """Greedy tokens of prompts of these lengths; one prompt more joins and one request less goes on from time to time.

    `ahead` steps are in flight while the next is started. Last come logits of all, from one more step.
    """
    runs.allocate_kv(4 * (len(lengths) + steps), 64)
    prompts = [TOKENS[i : i + length] for i, length in enumerate(lengths)]
    made: list[list[int]] = [[] for _ in prompts]
    started = [0] * len(prompts)  # tokens in the pool
    flights: list[tuple[Any, list[int]]] = []
    places: dict[int, int] = {}
    going = list(range(0, len(prompts), 2))

    def land() -> None:
        flight, whose = flights.pop(0)
        for request, output in zip(whose, runs.finish(flight).spans, strict=True):
            assert output.token is not None
            made[request].append(output.token)

    def span(request: int, want: Want) -> Span:
        blocks, start = list(range(4 * request, 4 * request + 4)), started[request]
        if start == 0:
            return Span(prompts[request], 0, blocks, want)
        known = [*prompts[request], *made[request]]
        token = known[start] if start < len(known) else UNKNOWN
        return Span([token], start, blocks, want, places[request] if token == UNKNOWN else None)

    for step in range(steps):
        if step % 3 == 1 and 2 * (step // 3) + 1 < len(prompts):
            going.append(2 * (step // 3) + 1)
        if step % 5 == 4 and len(going) > 2:
            going.pop(0)
        batch = [span(request, Want.TOKEN) for request in going]
        places = {request: place for place, request in enumerate(going)}
        for request, one in zip(going, batch, strict=True):
            started[request] += len(one.tokens)
        flights.append((runs.start(batch), list(going)))
        while len(flights) > ahead:
            land()
    while flights:
        land()
    last = runs.execute([span(request, Want.LOGITS) for request in going])
    return made, np.concatenate([output.logits for output in last if output.logits is not None])


LENGTHS = [5, 130, 1, 17, 64, 2, 90, 33] * 5


def test_graphs_change_no_token_and_no_bit(runs: CudaDevice) -> None:
    runs.graphs = False
    expected, last = generate(runs, LENGTHS, 40)
    runs.graphs = True
    for ahead in (0, 1):
        tokens, logits_of_all = generate(runs, LENGTHS, 40, ahead)
        assert tokens == expected
        assert same_bits(logits_of_all, last)
    assert runs._steps._captured, "nothing was captured: the comparison would prove nothing"
    assert runs.warnings == ()


@pytest.mark.parametrize("lengths", [[3, 200], [1, 240, 1, 1, 1, 1], [1] * 300, [240] * 5], ids=len)
def test_steps_that_overlap_make_the_same_tokens_as_memory_grows(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first step is small; later ones need more rows, tables and splits while one is in flight."""
    monkeypatch.setattr(runner, "_FEWEST_ROWS", 64)
    expected, _ = generate(device("llama", "bfloat16"), lengths, 14)
    assert generate(device("llama", "bfloat16"), lengths, 14, ahead=1)[0] == expected


class _Counted(torch.cuda.CUDAGraph):
    captures = 0

    def capture_begin(self, *arguments: Any, **options: Any) -> None:
        _Counted.captures += 1
        super().capture_begin(*arguments, **options)


def test_what_was_rehearsed_is_not_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables, splits and rows grow on the way, with graphs from before that go on where they were captured."""
    monkeypatch.setattr(runner, "_FEWEST_ROWS", 64)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Counted)
    runs = device("llama", "bfloat16")
    runs.allocate_kv(80, 16)
    results = []
    for _ in range(2):
        _Counted.captures, made = 0, []
        for start, end in [(0, 5), *((i, i + 1) for i in range(5, 300)), (300, LENGTH)]:
            span = Span(TOKENS[start:end], start, range(-(-end // 16)), Want.TOKEN)
            other = Span(TOKENS[start : start + 1], 0, [40], Want.TOKEN)
            made += [output.token for output in runs.execute([span, other] if start % 50 == 20 else [span])]
        results.append((made, _Counted.captures))
    (made, captures), again = results
    assert captures > 5
    assert again == (made, 0)
    assert runs.warnings == ()


class _NoGraph:
    def capture_begin(self, **_: Any) -> None:
        raise RuntimeError("no graph today\nsecond line")


def test_a_capture_that_fails_is_told_once_and_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama", "bfloat16")
    runs.graphs = False
    expected, last = generate(runs, LENGTHS, 12)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _NoGraph)
    runs = device("llama", "bfloat16")
    tokens, logits_of_all = generate(runs, LENGTHS, 12, ahead=1)
    assert tokens == expected
    assert same_bits(logits_of_all, last)
    [warning] = runs.warnings
    assert "could not be captured as a CUDA graph (no graph today)" in warning
    assert not runs.graphs


def test_a_capture_that_breaks_half_way_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama", "bfloat16")
    runs.graphs = False
    expected, _ = generate(runs, LENGTHS, 12)
    runs = device("llama", "bfloat16")
    run = runs._runner.run

    def waits(step: Any) -> None:
        run(step)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # which no graph can do

    monkeypatch.setattr(runs._runner, "run", waits)
    tokens, _ = generate(runs, LENGTHS, 12, ahead=1)
    assert tokens == expected
    assert len(runs.warnings) == 1


def test_a_step_s_seconds_are_the_gpu_s(runs: CudaDevice) -> None:
    runs.allocate_kv(4, 64)
    runs.execute([Span(TOKENS[:200], 0, [0, 1, 2, 3], Want.TOKEN)])
    for _ in range(3):
        began = time.perf_counter()
        seconds = runs.finish(runs.start([Span(TOKENS[:200], 0, [0, 1, 2, 3], Want.TOKEN)])).seconds
        assert seconds is not None
        assert 0 < seconds < time.perf_counter() - began


def test_a_fresh_device_computes_on_its_weights_and_not_before_they_are_there() -> None:
    """Its first step comes right after loading, in a stream of its own."""
    expected = None
    for _ in range(5):
        runs = device("llama", "int8")
        runs.allocate_kv(1, 64)
        [output] = runs.execute([Span(TOKENS[:9], 0, [0], Want.LOGITS)])
        expected = output.logits if expected is None else expected
        assert same_bits(output.logits, expected)


# --- memory ------------------------------------------------------------------------------------------------------


def test_a_pool_of_no_blocks_gives_memory_back() -> None:
    runs = device("llama", "bfloat16")
    runs.allocate_kv(1, 64)
    before = CudaDevice.free_memory()
    assert before is not None
    blocks = 2**30 // (64 * runs.kv_bytes_per_token)
    runs.allocate_kv(blocks, 64)
    assert (CudaDevice.free_memory() or 0) < before - 0.9 * 2**30
    runs.allocate_kv(0, 64)
    assert (CudaDevice.free_memory() or 0) > before - 2**26


def test_a_pool_that_does_not_fit_is_an_error_and_a_smaller_one_works() -> None:
    runs = device("llama", "bfloat16")
    with pytest.raises(OutOfMemory, match="no room for a KV pool"):
        runs.allocate_kv(2**40 // (64 * runs.kv_bytes_per_token), 64)
    runs.allocate_kv(2, 64)
    assert runs.execute([Span(TOKENS[:100], 0, [1, 0], Want.TOKEN)])[0].token is not None


def test_many_pools_and_models_one_after_another_take_no_more_memory() -> None:
    left = []
    for round_ in range(6):
        runs = device("llama", "bfloat16")
        for size in (16, 64):
            runs.allocate_kv(2**28 // (size * runs.kv_bytes_per_token), size)
            runs.execute([Span(TOKENS[: 10 + 50 * round_], 0, list(range(40)), Want.LOGITS)])
            runs.execute([Span(TOKENS[:1], 0, [i], Want.TOKEN) for i in range(40)])
        del runs
        left.append(CudaDevice.free_memory() or 0)
    assert left[-1] > left[1] - 2**27


# --- whole models ------------------------------------------------------------------------------------------------

RANDOM = [
    RandomModel("llama", "llama", LLAMA | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}),
    RandomModel("gpt2", "gpt2", GPT2),
]


@pytest.fixture(scope="module", params=RANDOM, ids=[one.name for one in RANDOM])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    folder: Path = tmp_path_factory.mktemp(request.param.name)
    return str(folder), request.param.save(folder)


@pytest.mark.oracle
def test_float32_makes_the_tokens_of_transformers(saved: tuple[str, Any]) -> None:
    folder, oracle = saved
    prompt = TOKENS[:21]
    expected = greedy(oracle, prompt, 64)
    llm = LLM.load(folder, device="cuda", dtype="float32")
    [request] = llm.generate([prompt], SamplingParams(max_new_tokens=64, ignore_eos=True))
    assert request.output == expected
    assert len(set(expected)) > 10, "the oracle repeats itself: the comparison would prove little"
    [output] = llm.device.execute([Span(prompt + expected, 0, (), Want.ALL_LOGITS)])
    assert output.logits is not None
    assert np.abs(output.logits - logits(oracle, prompt + expected)).max() < 1e-3


@pytest.mark.parametrize("dtype", CudaDevice.dtypes)
def test_overlap_changes_no_token_under_any_policy(saved: tuple[str, Any], dtype: str) -> None:
    llm = LLM.load(saved[0], device="cuda", dtype=dtype)
    prompts = [TOKENS[i : i + length] for i, length in enumerate((1, 2, 5, 9, 13, 17, 21, 34, 40, 64, 100))]
    params = [SamplingParams(max_new_tokens=10 + 3 * i, ignore_eos=True) for i in range(len(prompts))]
    params[3] = SamplingParams(max_new_tokens=20, temperature=0.8, seed=7, ignore_eos=True)

    def tokens(name: str, size: int, overlap: bool, **more: Any) -> tuple[list[list[int]], int]:
        wait = 0.0 if name == "dynamic" else None
        budget = more.pop("budget", 2048)
        policy = make_policy(name, max_batch_size=size, max_wait_ms=wait, max_batched_tokens=budget)
        engine = llm.engine(policy, longest=160, overlap=overlap, **more)
        requests = [engine.submit(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
        for _ in engine.run():
            engine.kv.check_integrity(engine.running)
        return [request.output for request in requests], sum(request.num_preemptions for request in requests)

    expected, _ = tokens("single", 1, False)
    for overlap in (False, True):
        for name in ("static", "dynamic", "continuous"):
            assert tokens(name, 8, overlap)[0] == expected, (name, overlap)
            got, preemptions = tokens(name, 8, overlap, block_size=4, num_blocks=60)
            assert got == expected, (name, overlap)
            assert preemptions > 0
        assert tokens("continuous", 8, overlap, budget=16)[0] == expected, overlap
        assert tokens("continuous", 4, overlap, kv_cache=False)[0] == expected, overlap
    assert llm.device.warnings == ()

"""When only the policy changes, only time may change: the same greedy tokens, however the work is cut up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="random models are made with transformers (pip install knee[oracle])")

from knee import LLM, SamplingParams
from knee.devices import DEVICES
from knee.engine.policies import make_policy
from tests.parity.oracle import RandomModel

SHAPES = {
    "llama": RandomModel(
        "llama",
        "llama",
        {
            "hidden_size": 90,
            "intermediate_size": 170,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "vocab_size": 1003,
            "max_position_embeddings": 256,
        },
    ),
    "gpt2": RandomModel(
        "gpt2", "gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 3, "vocab_size": 1003, "n_positions": 256}
    ),
}


@dataclass(frozen=True)
class Way:
    """One way to cut up the same work."""

    policy: str = "continuous"
    batch: int = 4
    wait_ms: float | None = None
    chunk: int = 512
    block: int = 16
    blocks: int | None = None  # fewer than fit: preemption
    kv_cache: bool = True


WAYS = [
    Way("single", 1),
    *(Way(policy, batch) for policy in ("static", "continuous") for batch in (1, 2, 3, 8, 16)),
    *(Way("dynamic", batch, wait) for batch in (1, 4, 16) for wait in (0.0, 1.0, 10.0)),
    *(Way("continuous", 4, chunk=chunk) for chunk in (4, 5, 7, 16, 64)),
    *(Way("continuous", 4, block=block) for block in (1, 2, 5, 64, 256)),
    *(Way(policy, 8, block=4, blocks=24) for policy in ("static", "dynamic", "continuous")),
    *(Way(policy, 4, kv_cache=False) for policy in ("static", "dynamic", "continuous")),
    Way("continuous", 16, chunk=16, block=3, blocks=30),
]


def tokens(llm: LLM, way: Way, prompts: list[list[int]], params: list[SamplingParams]) -> tuple[list[list[int]], int]:
    """Tokens of each request, and how often one was preempted."""
    policy = make_policy(way.policy, max_batch_size=way.batch, max_wait_ms=way.wait_ms, max_batched_tokens=way.chunk)
    engine = llm.engine(policy, longest=80, kv_cache=way.kv_cache, block_size=way.block, num_blocks=way.blocks)
    requests = [engine.submit(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
    for _ in engine.run():
        engine.kv.check_integrity(engine.running)
    assert engine.kv.used_blocks == 0
    return [request.output for request in requests], sum(request.num_preemptions for request in requests)


RUNNERS = [("reference", "float32"), *(("cpu", dtype) for dtype in DEVICES["cpu"].dtypes)]


@pytest.fixture(scope="module", params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp(request.param)
    SHAPES[request.param].save(path)
    return str(path)


@pytest.fixture(scope="module", params=RUNNERS, ids="-".join)
def llm(request: pytest.FixtureRequest, folder: str) -> LLM:
    device, dtype = request.param
    return LLM.load(folder, device=device, dtype=dtype)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [[int(token) for token in rng.integers(0, 1003, length)] for length in (1, 2, 5, 9, 13, 17, 21, 34, 40)]


def test_greedy_tokens_do_not_depend_on_the_way(llm: LLM, prompts: list[list[int]]) -> None:
    params = [SamplingParams(max_new_tokens=10 + 3 * i, ignore_eos=True) for i in range(len(prompts))]
    expected, _ = tokens(llm, Way("single", 1, block=256), prompts, params)
    for way in WAYS:
        got, preemptions = tokens(llm, way, prompts, params)
        assert got == expected, way
        assert (way.blocks is None) == (preemptions == 0), way


def test_sampled_tokens_do_not_depend_on_the_way(llm: LLM, prompts: list[list[int]]) -> None:
    params = [
        SamplingParams(max_new_tokens=20, temperature=0.8, top_k=50, top_p=0.95, seed=i) for i in range(len(prompts))
    ]
    expected, _ = tokens(llm, Way("single", 1), prompts, params)
    for way in WAYS:
        assert tokens(llm, way, prompts, params)[0] == expected, way


WAYS_ON_THE_REAL_MODEL = [
    Way("static", 4),
    Way("dynamic", 3, 10.0),
    Way("continuous", 8, chunk=16),
    Way("continuous", 4, block=3, blocks=30),
    Way("continuous", 4, block=256),
    Way("static", 4, kv_cache=False),
]


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_greedy_tokens_of_the_real_model_do_not_depend_on_the_way(device: str) -> None:
    llm = LLM.load("smollm2-135m", device=device)
    texts = ("The capital of France is", "def quicksort(items):", "Q: What is a KV cache?\nA:", "1, 1, 2, 3, 5, 8,")
    prompts = [llm.encode(text) for text in texts]
    params = [SamplingParams(max_new_tokens=24, ignore_eos=True)] * len(prompts)
    expected, _ = tokens(llm, Way("single", 1), prompts, params)
    for way in WAYS_ON_THE_REAL_MODEL:
        got, preemptions = tokens(llm, way, prompts, params)
        assert got == expected, way
        assert (way.blocks is None) == (preemptions == 0), way

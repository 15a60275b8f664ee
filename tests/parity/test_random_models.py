"""Random models of every architecture and of odd shapes: knee computes what transformers computes, in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the oracle is not installed (pip install knee[oracle])")

from knee import LLM, SamplingParams
from knee.devices import Span, Want
from tests.parity.oracle import RandomModel, greedy, logits

pytestmark = pytest.mark.oracle

NEW_TOKENS = 128
PROMPT_TOKENS = 21
DEVICES = ("reference", "cpu")


def model(name: str, model_type: str, *, heads: int, kv_heads: int, head_dim: int, hidden: int, **values: Any) -> Any:
    """A small member of the Llama family: 3 layers, nothing a power of two that need not be one."""
    shape = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden + 10,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": 1003,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    }
    return pytest.param(RandomModel(name, model_type, shape | values), id=name)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0}

MODELS = [
    model("llama-mha-dim32", "llama", heads=5, kv_heads=5, head_dim=32, hidden=90),
    model("llama-gqa3-dim64-tied", "llama", heads=6, kv_heads=2, head_dim=64, hidden=222, tie_word_embeddings=True),
    model("llama-gqa8-dim80", "llama", heads=8, kv_heads=1, head_dim=80, hidden=136),
    model("llama-gqa3-dim128", "llama", heads=3, kv_heads=1, head_dim=128, hidden=99),
    model("llama-biases", "llama", heads=6, kv_heads=2, head_dim=32, hidden=102, attention_bias=True, mlp_bias=True),
    model("llama-rope-llama3", "llama", heads=4, kv_heads=4, head_dim=64, hidden=100, rope_parameters=LLAMA3_ROPE),
    model("llama-rope-linear", "llama", heads=4, kv_heads=4, head_dim=32, hidden=100, rope_parameters=LINEAR_ROPE),
    model("qwen2-gqa3-dim64", "qwen2", heads=6, kv_heads=2, head_dim=64, hidden=150),
    model("qwen2-gqa8-dim32-tied", "qwen2", heads=8, kv_heads=1, head_dim=32, hidden=120, tie_word_embeddings=True),
    model("qwen3-gqa3-dim80", "qwen3", heads=3, kv_heads=1, head_dim=80, hidden=105),
    model("qwen3-mha-dim128-biases", "qwen3", heads=2, kv_heads=2, head_dim=128, hidden=70, attention_bias=True),
    pytest.param(
        RandomModel(
            "gpt2-dim32", "gpt2", {"n_embd": 96, "n_layer": 3, "n_head": 3, "vocab_size": 1003, "n_positions": 256}
        ),
        id="gpt2-dim32",
    ),
    pytest.param(
        RandomModel(
            "gpt2-dim80-untied",
            "gpt2",
            {
                "n_embd": 240,
                "n_layer": 4,
                "n_head": 3,
                "vocab_size": 1003,
                "n_positions": 256,
                "tie_word_embeddings": False,
            },
        ),
        id="gpt2-dim80-untied",
    ),
    pytest.param(RandomModel("distilgpt2-shape", "gpt2", {"n_layer": 6}), id="distilgpt2-shape"),
]


@dataclass(frozen=True)
class Pair:
    """The same model on all sides, and what transformers generates from one prompt."""

    llms: dict[str, LLM]  # by device, in float32
    oracle: Any
    prompt: list[int]
    expected: list[int]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder: Path = tmp_path_factory.mktemp(request.param.name)
    oracle = request.param.save(folder)
    llms = {device: LLM.load(str(folder), device=device, dtype="float32") for device in DEVICES}
    rng = np.random.default_rng(7)
    prompt = [int(token) for token in rng.integers(0, llms["cpu"].program.vocab_size, PROMPT_TOKENS)]
    return Pair(llms, oracle, prompt, greedy(oracle, prompt, NEW_TOKENS))


@pytest.mark.parametrize("device", DEVICES)
def test_greedy_tokens_are_those_of_transformers(pair: Pair, device: str) -> None:
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    [request] = pair.llms[device].generate([pair.prompt], params)
    assert request.output == pair.expected
    assert len(set(pair.expected)) > 10, "the oracle repeats itself: the comparison would prove little"


@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_those_of_transformers_at_every_position(pair: Pair, device: str) -> None:
    tokens = pair.prompt + pair.expected
    llm = pair.llms[device]
    [output] = llm.device.execute([Span(tokens, 0, (), Want.ALL_LOGITS)])
    assert output.logits is not None
    assert output.logits.shape == (len(tokens), llm.program.vocab_size)
    assert np.abs(output.logits - logits(pair.oracle, tokens)).max() < 1e-3


@pytest.mark.parametrize("device", DEVICES)
def test_logits_through_the_cache_in_chunks_are_the_same(pair: Pair, device: str) -> None:
    tokens = pair.prompt + pair.expected
    expected = logits(pair.oracle, tokens)
    runner = pair.llms[device].device
    runner.allocate_kv(num_blocks=80, block_size=3)
    blocks = list(range(79, 79 - -(-len(tokens) // 3), -1))
    for first in range(0, len(tokens), 20):
        chunk = tokens[first : first + 20]
        [output] = runner.execute([Span(chunk, first, blocks, Want.ALL_LOGITS)])
        assert output.logits is not None
        assert np.abs(output.logits - expected[first : first + 20]).max() < 1e-3


def test_number_of_parameters_is_that_of_transformers(pair: Pair) -> None:
    assert pair.llms["cpu"].program.parameters == sum(p.numel() for p in pair.oracle.parameters())

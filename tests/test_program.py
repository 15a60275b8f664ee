"""A program knows what it costs, checked against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.errors import ModelLoadError
from knee.models import ARCHITECTURES, build_program
from knee.program import Linear, Program, SpanShape, StepShape, Widths, WriteKV

SMOLLM2: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
DISTILGPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 768,
    "n_layer": 6,
    "n_head": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
}


@pytest.fixture(scope="module")
def smollm2() -> Program:
    return build_program(SMOLLM2)


def test_smollm2_has_its_published_number_of_parameters(smollm2: Program) -> None:
    assert smollm2.parameters == 134_515_008


def test_distilgpt2_has_its_published_number_of_parameters() -> None:
    assert build_program(DISTILGPT2).parameters == 81_912_576


def test_kv_cache_of_smollm2_takes_22_5_kib_a_token_in_bfloat16(smollm2: Program) -> None:
    assert smollm2.kv_elements_per_token * 2 == 22.5 * 1024


def test_a_decode_step_at_batch_1_reads_every_weight_once(smollm2: Program) -> None:
    cost = smollm2.cost(StepShape.decode(batch=1, context=1), Widths(weight=2, kv=2))
    one_embedding_row = 576
    assert cost.weight_bytes == 2 * (smollm2.parameters + one_embedding_row)


def test_a_decode_step_costs_two_flops_a_weight_and_row(smollm2: Program) -> None:
    shape = StepShape.decode(batch=4, context=1)
    linear = [op for op in smollm2.ops if isinstance(op, Linear)]
    flops = sum(op.cost(smollm2, shape, Widths()).flops for op in linear)
    vectors = 576 * (2 * 30 + 1)
    assert flops == 4 * 2 * (smollm2.parameters - vectors)


def test_more_rows_read_no_more_weights(smollm2: Program) -> None:
    matrices = 2 * (smollm2.parameters + 576)
    eight = smollm2.cost(StepShape.decode(batch=8, context=1), Widths(weight=2))
    assert eight.weight_bytes == matrices + 2 * 7 * 576  # only seven more rows of the embedding


def test_a_decode_step_reads_the_context_and_writes_one_token(smollm2: Program) -> None:
    cost = smollm2.cost(StepShape.decode(batch=3, context=100), Widths(kv=2))
    assert cost.kv_bytes == 3 * (100 + 1) * 22.5 * 1024


def test_prefill_attends_to_half_a_square() -> None:
    assert SpanShape(new=10).attended == 55
    assert SpanShape(new=1, cached=9).attended == 10


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(1, 60))
def test_a_prefill_in_chunks_attends_to_the_same_pairs(chunks: list[int], extra: int) -> None:
    whole, cached, pairs = sum(chunks) + extra, 0, 0
    for new in [*chunks, extra]:
        pairs += SpanShape(new=new, cached=cached).attended
        cached += new
    assert pairs == SpanShape(new=whole).attended


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": None}, "architecture"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "576"}, "hidden_size"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"num_key_value_heads": 2}, "share"),
        ({"hidden_act": "mish"}, "silu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "llama3"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.0}}, "factor"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"head_dim": 33}, "even"),
        ({"head_dim": 2**30}, "at most 4096"),
        ({"layer_types": 5}, "layer_types"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_a_config_that_knee_cannot_run_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelLoadError, match=named):
        build_program(SMOLLM2 | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_head": 7}, "n_head"),
        ({"activation_function": "gelu"}, "gelu_new"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_a_gpt2_that_knee_cannot_run_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelLoadError, match=named):
        build_program(DISTILGPT2 | change)


def test_the_error_for_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(ModelLoadError) as error:
        build_program({"architectures": ["X"]})
    assert all(name in str(error.value) for name in ARCHITECTURES)


def test_an_empty_section_does_not_hide_the_rope_scaling_beside_it() -> None:
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    plain, scaled = build_program(SMOLLM2), build_program(SMOLLM2 | linear | {"rope_parameters": {}})
    [first, *_] = [op.rope for op in plain.ops if isinstance(op, WriteKV)]
    [second, *_] = [op.rope for op in scaled.ops if isinstance(op, WriteKV)]
    assert first is not None
    assert second is not None
    assert second.inverse_frequencies == tuple(f / 2 for f in first.inverse_frequencies)

"""A GGUF file becomes a checkpoint with Hugging Face names, or a message."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knee.errors import ModelLoadError, NumericsError
from knee.weights.checkpoint import Checkpoint
from knee.weights.gguf import open_gguf
from tests.weights.files import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    entry,
    gguf_bytes,
    llama_tensors,
    tensor_info,
    text,
    write_gguf,
)

UINT32, STRING, ARRAY, UINT64 = 4, 8, 9, 10


def opened(path: Path) -> Checkpoint:
    return open_gguf(path, "tiny", str(path))


def opened_bytes(folder: Path, content: bytes) -> Checkpoint:
    path = folder / "hostile.gguf"
    path.write_bytes(content)
    return opened(path)


# --- what is read ---------------------------------------------------------------------------------------------------


def test_config_has_the_keys_of_a_hugging_face_llama(tmp_path: Path) -> None:
    checkpoint = opened(write_gguf(tmp_path / "tiny.gguf"))
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": pytest.approx(1e-5),
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 64,
        "vocab_size": 32,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.eos_token_ids == {2}
    assert checkpoint.format == "gguf"


def test_tensors_have_hugging_face_names_and_values(tmp_path: Path) -> None:
    stored = llama_tensors()
    tensors = opened(write_gguf(tmp_path / "tiny.gguf", tensors=stored)).tensors
    assert len(tensors) == len(stored)
    for name, source in {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    }.items():
        np.testing.assert_array_equal(tensors[name].read(), stored[source])


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order: row i of a head's first half, then row i of its second half."""
    order = [
        head * HEAD_DIM + half * HEAD_DIM // 2 + i
        for head in range(heads)
        for i in range(HEAD_DIM // 2)
        for half in range(2)
    ]
    return rows[order]


@pytest.mark.parametrize("dtype", ["F32", "Q8_0"])
def test_rows_of_queries_and_keys_are_put_back_into_halves(tmp_path: Path, dtype: str) -> None:
    tensors = llama_tensors()
    wide = {name: np.tile(values, (1, 2)) for name, values in tensors.items() if ".attn_" in name and values.ndim == 2}
    query, key = wide["blk.0.attn_q.weight"], wide["blk.0.attn_k.weight"]
    bias = np.arange(HEADS * HEAD_DIM, dtype=np.float32)
    tensors["blk.0.attn_q.weight"] = interleaved(query, HEADS)
    tensors["blk.0.attn_k.weight"] = interleaved(key, KV_HEADS)
    tensors["blk.0.attn_q.bias"] = interleaved(bias, HEADS)
    types = {"blk.0.attn_q.weight": dtype, "blk.0.attn_k.weight": dtype}
    checkpoint = opened(write_gguf(tmp_path / "tiny.gguf", tensors=tensors, types=types))
    assert checkpoint.config["attention_bias"] is True
    attention = "model.layers.0.self_attn"
    np.testing.assert_allclose(checkpoint.tensors[f"{attention}.q_proj.weight"].read(), query, atol=0.02)
    np.testing.assert_allclose(checkpoint.tensors[f"{attention}.k_proj.weight"].read(), key, atol=0.02)
    np.testing.assert_array_equal(checkpoint.tensors[f"{attention}.q_proj.bias"].read(), bias)


def test_rope_factors_and_linear_scaling_reach_the_config(tmp_path: Path) -> None:
    factors = np.array([1, 2, 4, 8], np.float32)
    checkpoint = opened(write_gguf(tmp_path / "a.gguf", tensors=llama_tensors() | {"rope_freqs.weight": factors}))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "factors", "factors": [1.0, 2.0, 4.0, 8.0]}
    assert not any("rope" in name for name in checkpoint.tensors)
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    checkpoint = opened(write_gguf(tmp_path / "b.gguf", scaling))
    assert checkpoint.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_an_output_matrix_unties_the_embeddings(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["output.weight"] = tensors["token_embd.weight"] + 1
    checkpoint = opened(write_gguf(tmp_path / "tiny.gguf", tensors=tensors))
    assert checkpoint.config["tie_word_embeddings"] is False
    np.testing.assert_array_equal(checkpoint.tensors["lm_head.weight"].read(), tensors["output.weight"])


def test_the_end_of_a_turn_ends_generation_too(tmp_path: Path) -> None:
    checkpoint = opened(write_gguf(tmp_path / "tiny.gguf", {"tokenizer.ggml.eot_token_id": 5}))
    assert checkpoint.eos_token_ids == {2, 5}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "'yarn' is not supported; supported: none, linear"),
        ({"llama.rope.dimension_count": 4}, "rope over 4 of 8 dimensions"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.logit_scale": 2.0}, "llama.logit_scale is not supported"),
        ({"llama.block_count": None}, "no llama.block_count"),
        ({"llama.block_count": "one"}, "llama.block_count is 'one'"),
        ({"llama.block_count": [1]}, "llama.block_count"),
        ({"llama.attention.head_count": 0}, "0 attention heads"),
        ({"llama.attention.head_count": 5}, "need 40 rows"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ({"split.count": 2}, "one part of several"),
    ],
)
def test_metadata_out_of_reach_are_refused_by_name(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        opened(write_gguf(tmp_path / "tiny.gguf", metadata))


def test_other_architectures_and_types_are_refused_with_what_is_supported(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="'qwen3' is not supported; supported in GGUF files: llama"):
        opened(write_gguf(tmp_path / "a.gguf", architecture="qwen3"))
    wide = llama_tensors() | {"token_embd.weight": np.ones((32, 32), np.float32)}
    with pytest.raises(ModelLoadError, match=r"'token_embd\.weight' is Q5_0; supported: F32, F16"):
        opened(write_gguf(tmp_path / "b.gguf", tensors=wide, types={"token_embd.weight": "Q5_0"}))


def test_unknown_tensors_are_refused(tmp_path: Path) -> None:
    extra = llama_tensors() | {"blk.1.attn_q.weight": np.ones((4, HIDDEN), np.float32)}
    path = write_gguf(tmp_path / "tiny.gguf", tensors=extra)
    with pytest.raises(ModelLoadError, match=r"'blk\.1\.attn_q\.weight' is no part of a llama model of 1 layers"):
        opened(path)


def test_nan_in_a_tensor_is_named_when_it_is_read(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["output_norm.weight"][3] = np.nan
    checkpoint = opened(write_gguf(tmp_path / "tiny.gguf", tensors=tensors))
    with pytest.raises(NumericsError, match=r"model\.norm\.weight"):
        checkpoint.tensors["model.norm.weight"].read()


HUGE = 2**63
ARRAY_OF_TEXTS = struct.pack("<IQ", STRING, HUGE)
HOSTILE = {
    "empty": b"",
    "no magic": b"GGML" + bytes(100),
    "magic only": b"GGUF",
    "version 1": gguf_bytes(version=1),
    "big-endian": gguf_bytes(version=3 << 24),
    "2^63 tensors": gguf_bytes(tensors=HUGE),
    "a million tensors": gguf_bytes(tensors=10**6, body=10**6),
    "2^63 entries": gguf_bytes(metadata=HUGE),
    "text of 2^63 bytes": gguf_bytes([struct.pack("<Q", HUGE) + b"x"]),
    "array of 2^63 numbers": gguf_bytes([entry("a", ARRAY, struct.pack("<IQ", UINT64, HUGE))]),
    "array of 2^63 texts": gguf_bytes([entry("a", ARRAY, ARRAY_OF_TEXTS)]),
    "array of arrays": gguf_bytes([entry("a", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
    "unknown value type": gguf_bytes([entry("a", 77, b"")], body=64),
    "no UTF-8": gguf_bytes([entry("a", STRING, text(b"\xff\xfe"))]),
    "key twice": gguf_bytes([entry("a", UINT32, bytes(4))] * 2),
    "million short texts": gguf_bytes([entry("a", ARRAY, struct.pack("<IQ", STRING, 2**20 + 1))], body=9 << 20),
    "header without end": gguf_bytes([entry("a", STRING, struct.pack("<Q", 60 << 20))], body=64 << 20),
    "alignment 0": gguf_bytes([entry("general.alignment", UINT32, bytes(4))]),
    "alignment 24": gguf_bytes([entry("general.alignment", UINT32, struct.pack("<I", 24))]),
    "no dimensions": gguf_bytes(infos=[tensor_info("t", [])], body=64),
    "many dimensions": gguf_bytes(infos=[tensor_info("t", [1] * 9)], body=64),
    "zero dimension": gguf_bytes(infos=[tensor_info("t", [0, 4])], body=64),
    "product overflows to 0": gguf_bytes(infos=[tensor_info("t", [2**32, 2**32])], body=64),
    "product overflows to 64": gguf_bytes(infos=[tensor_info("t", [2**60 + 1, 16])], body=64),
    "unknown dtype": gguf_bytes(infos=[tensor_info("t", [4], dtype=999)], body=64),
    "half a block": gguf_bytes(infos=[tensor_info("t", [33], dtype=8)], body=64),
    "past the end": gguf_bytes(infos=[tensor_info("t", [32])], body=64),
    "offset 2^63": gguf_bytes(infos=[tensor_info("t", [4], offset=HUGE)], body=64),
    "unaligned": gguf_bytes(infos=[tensor_info("t", [4], offset=8)], body=64),
    "overlapping": gguf_bytes(infos=[tensor_info("t", [16]), tensor_info("u", [16], offset=32)], body=128),
    "name twice": gguf_bytes(infos=[tensor_info("t", [8]), tensor_info("t", [8], offset=32)], body=64),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_cost_a_message_and_little_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(ModelLoadError):
            opened(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert time.perf_counter() - started < 10  # tracing is slow; without it all of them take milliseconds


@pytest.fixture(scope="module")
def tiny_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 10**6), flips=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), max_size=4))
def test_any_damage_loads_or_is_a_model_load_error(
    tmp_path: Path, tiny_bytes: bytes, cut: int, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(tiny_bytes[: cut % (2 * len(tiny_bytes))])
    for position, value in flips:
        if position < len(damaged):
            damaged[position] = value
    try:
        for tensor in opened_bytes(tmp_path, bytes(damaged)).tensors.values():
            tensor.read()
    except (ModelLoadError, NumericsError):
        pass

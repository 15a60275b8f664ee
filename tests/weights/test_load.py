"""A program's weights are exactly what the checkpoint holds, or nothing is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from knee import LLM
from knee.devices import ReferenceDevice
from knee.devices.base import WeightPlan
from knee.errors import ModelLoadError, NumericsError, OutOfMemory
from knee.program import Program, WeightSpec
from knee.weights import load
from knee.weights.checkpoint import Checkpoint
from knee.weights.load import FileWeight, check_memory, find_weights, open_checkpoint
from knee.weights.safetensors import read_safetensors
from knee.weights.tensor import MappedTensor
from tests.cli.conftest import tiny_config, tiny_tensors
from tests.weights.files import HEAD_DIM, HEADS, write_folder, write_gguf

QKV = np.arange(24, dtype=np.float32).reshape(2, 12)  # (inputs, outputs), as GPT-2 stores it
UP = np.arange(6, dtype=np.float32).reshape(3, 2)
TENSORS = {"qkv": QKV, "qkv.bias": np.arange(12, dtype=np.float32), "up": UP}
SPECS = {
    "q": WeightSpec((4, 2), "qkv", transposed=True, part=(0, 4)),
    "k": WeightSpec((4, 2), "qkv", transposed=True, part=(4, 8)),
    "v": WeightSpec((4, 2), "qkv", transposed=True, part=(8, 12)),
    "q_bias": WeightSpec((4,), "qkv.bias", part=(0, 4)),
    "kv_bias": WeightSpec((8,), "qkv.bias", part=(4, 12)),
    "up": WeightSpec((3, 2), "up"),
}


def program(weights: dict[str, WeightSpec]) -> Program:
    return Program("test", (), {}, weights, layers=1, heads=1, kv_heads=1, head_dim=2, vocab_size=3, positions=8)


def checkpoint(folder: Path, extra: dict[str, Any] | None = None) -> Checkpoint:
    return open_checkpoint(str(write_folder(folder / "model", TENSORS | (extra or {}), {})))


def load_weights(program: Program, checkpoint: Checkpoint, threads: int | None = None) -> dict[str, np.ndarray]:
    return ReferenceDevice(program, find_weights(program, checkpoint), threads=threads).weights


def test_weights_are_cut_and_turned_as_the_program_says(tmp_path: Path) -> None:
    weights = load_weights(program(SPECS), checkpoint(tmp_path))
    assert list(weights) == list(SPECS)
    np.testing.assert_array_equal(weights["q"], QKV.T[:4])
    np.testing.assert_array_equal(weights["k"], QKV.T[4:8])
    np.testing.assert_array_equal(weights["v"], QKV.T[8:])
    np.testing.assert_array_equal(weights["q_bias"], np.arange(4))
    np.testing.assert_array_equal(weights["kv_bias"], np.arange(4, 12))
    np.testing.assert_array_equal(weights["up"], UP)
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        assert weight.flags.c_contiguous
        assert weight.shape == SPECS[name].shape


def test_the_stored_form_is_the_file_s_bytes_without_a_copy(tmp_path: Path) -> None:
    weights = find_weights(program(SPECS), checkpoint(tmp_path))
    k = weights["k"].stored()
    assert (k.storage, k.rows, k.columns, k.transposed, k.begin, k.end) == ("F32", 2, 12, True, 4, 8)
    np.testing.assert_array_equal(k.data.view(np.float32).reshape(k.rows, k.columns), QKV)
    assert np.shares_memory(k.data, weights["v"].stored().data)
    bias = weights["kv_bias"].stored()
    assert (bias.rows, bias.columns, bias.transposed, bias.begin, bias.end) == (12, 1, False, 4, 12)
    up = weights["up"].stored()
    assert (up.rows, up.columns, up.transposed, up.begin, up.end) == (3, 2, False, 0, 3)


@pytest.mark.parametrize("stored_as", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q6_K"])
def test_heads_of_a_gguf_file_are_in_order_in_both_forms(tmp_path: Path, stored_as: str) -> None:
    """llama.cpp interleaves the halves of each head of q; 256 columns make whole blocks of every type."""
    q = np.random.default_rng(0).standard_normal((HEADS * HEAD_DIM, 256), np.float32)
    tensors = {"token_embd.weight": np.ones((3, 256), np.float32), "blk.0.attn_q.weight": q}
    types = {} if stored_as == "Q6_K" else {"blk.0.attn_q.weight": stored_as}
    path = write_gguf(tmp_path / "q.gguf", tensors=tensors, types=types)
    spec = WeightSpec(q.shape, "model.layers.0.self_attn.q_proj.weight")
    opened = open_checkpoint(str(path))
    tensor = opened.tensors[spec.source]
    if stored_as == "Q6_K":  # which the gguf package cannot write
        blocks = np.random.default_rng(0).integers(0, 100, (HEADS * HEAD_DIM, 210), np.uint8)
        tensor = replace(tensor, dtype="Q6_K", data=memoryview(blocks.reshape(-1)))
    weight = FileWeight(spec, tensor)
    form = weight.stored()
    assert (form.rows, form.columns, form.begin, form.end) == (HEADS * HEAD_DIM, 256, 0, HEADS * HEAD_DIM)
    assert form.storage == ("F32" if stored_as == "Q6_K" else stored_as)
    again = MappedTensor("again", q.shape, form.storage, memoryview(form.data))
    np.testing.assert_array_equal(again.read(), weight.read())
    if stored_as == "F32":
        halves = q.reshape(HEADS, HEAD_DIM // 2, 2, 256).swapaxes(1, 2).reshape(q.shape)
        np.testing.assert_array_equal(weight.read(), halves)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_of_safetensors_is_handed_out_as_it_is(tmp_path: Path, dtype: Any) -> None:
    values = np.arange(-6, 6, dtype=np.float32).reshape(3, 4).astype(dtype)
    save_file({"up": values}, tmp_path / "model.safetensors")
    [(_, tensor)] = read_safetensors(tmp_path / "model.safetensors").items()
    weight = FileWeight(WeightSpec((2, 3), "up", transposed=True, part=(1, 3)), tensor)
    form = weight.stored()
    assert form.storage == {"float16": "F16", "bfloat16": "BF16"}[values.dtype.name]
    np.testing.assert_array_equal(form.data.view(dtype).reshape(3, 4), values)
    np.testing.assert_array_equal(weight.read(), values.astype(np.float32).T[1:3])


def test_a_quantized_tensor_of_several_weights_is_refused(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path)
    quantized = MappedTensor("qkv", (12, 32), "Q8_0", memoryview(bytes(12 * 34)))
    spec = {"q": WeightSpec((4, 32), "qkv", part=(0, 4)), "kv": WeightSpec((8, 32), "qkv", part=(4, 12))}
    with pytest.raises(ModelLoadError, match="Q8_0 and holds several"):
        find_weights(program(spec), replace(opened, tensors={"qkv": quantized}))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells which pages are there")
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_released_weights_leave_no_page_of_the_file_in_memory(tmp_path: Path, kind: str) -> None:
    big = {"token_embd.weight": np.ones((1024, 4096), np.float32)}  # 16 MiB
    if kind == "gguf":
        opened = open_checkpoint(str(write_gguf(tmp_path / "big.gguf", tensors=big)))
        spec = WeightSpec((1024, 4096), "model.embed_tokens.weight")
    else:
        opened = open_checkpoint(str(write_folder(tmp_path / "big", big, {})))
        spec = WeightSpec((1024, 4096), "token_embd.weight")
    weight, before = find_weights(program({"w": spec}), opened)["w"], mapped_bytes()
    assert weight.stored().data.max() > 0
    assert mapped_bytes() - before > 8 << 20
    weight.release()
    assert mapped_bytes() - before < 1 << 20
    assert weight.read().min() == 1


def mapped_bytes() -> int:
    """Bytes of this process's memory that are pages of files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile:")]
    return int(line.split()[1]) << 10


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path)
    one, many = load_weights(program(SPECS), opened, threads=1), load_weights(program(SPECS), opened, threads=5)
    assert all(np.array_equal(one[name], many[name]) for name in SPECS)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"1 tensors \(down\) missing"):
        find_weights(program(SPECS | {"down": WeightSpec((2,), "down")}), checkpoint(tmp_path))


def test_a_left_over_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"hold 1 tensors \(adapter\)"):
        find_weights(program(SPECS), checkpoint(tmp_path, {"adapter": UP}))


def test_buffers_and_the_tied_output_are_no_left_overs(tmp_path: Path) -> None:
    extra = {"h.0.attn.bias": UP, "layers.0.rotary_emb.inv_freq": UP, "lm_head.weight": UP}
    assert find_weights(program(SPECS), checkpoint(tmp_path, extra)).keys() == SPECS.keys()


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("up", WeightSpec((2, 3), "up"), r"shape \(3, 2\), but the config asks for \(2, 3\)"),
        ("v", WeightSpec((5, 2), "qkv", True, (8, 13)), r"shape \(2, 12\), but the config asks for \(2, 13\)"),
        ("v", WeightSpec((3, 2), "qkv", True, (8, 11)), r"shape \(2, 12\), but the config asks for \(2, 11\)"),
        ("kv_bias", WeightSpec((9,), "qkv.bias", part=(4, 13)), r"shape \(12,\), but the config asks for \(13,\)"),
    ],
)
def test_a_shape_that_does_not_fit_names_both(tmp_path: Path, name: str, spec: WeightSpec, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        find_weights(program(SPECS | {name: spec}), checkpoint(tmp_path))


def test_nan_is_named_by_its_tensor(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="tensor up holds 1 NaN"):
        load_weights(program(SPECS), checkpoint(tmp_path, {"up": np.array([[1, 2], [np.nan, 4], [5, 6]], np.float32)}))


def test_too_little_memory_is_said_with_the_type_that_would_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_memory", lambda: 100)
    check_memory(WeightPlan("int8", 100))
    with pytest.raises(OutOfMemory, match=r"need 0\.50 GiB in bfloat16 and 0\.00 GiB"):
        check_memory(WeightPlan("bfloat16", 1 << 29))


def test_too_little_memory_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_memory", lambda: 100)
    monkeypatch.setattr(FileWeight, "read", lambda _: pytest.fail("read a tensor"))
    folder = write_folder(tmp_path / "tiny", tiny_tensors(), tiny_config())
    with pytest.raises(OutOfMemory, match="in float32"):
        LLM.load(str(folder), device="reference")


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "hidden_size", "head_dim", "vocab_size"])
def test_a_config_larger_than_its_files_is_refused_before_a_program_is_made(tmp_path: Path, key: str) -> None:
    folder = write_folder(tmp_path / "model", TENSORS, {key: 2**40})
    with pytest.raises(ModelLoadError, match=f"the config has {key} 1099511627776, but the files hold 42 weights"):
        open_checkpoint(str(folder))
    with pytest.raises(ModelLoadError, match="num_hidden_layers 4294967295"):
        open_checkpoint(str(write_gguf(tmp_path / "tiny.gguf", {"llama.block_count": 2**32 - 1})))


def test_a_checkpoint_is_called_by_its_file_or_folder(tmp_path: Path) -> None:
    assert checkpoint(tmp_path).name == "model"
    assert open_checkpoint(str(write_gguf(tmp_path / "tiny.v1.gguf"))).name == "tiny.v1"


def test_the_hash_is_of_the_file_and_follows_its_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv("KNEE_CACHE", str(tmp_path / "cache"))
    path = write_gguf(tmp_path / "tiny.gguf")
    opened = open_checkpoint(str(path))
    assert opened.sha256() == opened.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(b"other")
    assert opened.sha256() == hashlib.sha256(b"other").hexdigest()

"""A program's weights are exactly what the checkpoint holds, or nothing is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knee.errors import ModelLoadError, NumericsError, OutOfMemory
from knee.program import Program, WeightSpec
from knee.weights import load
from knee.weights.checkpoint import Checkpoint
from knee.weights.load import load_weights, open_checkpoint
from tests.weights.files import write_folder, write_gguf

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


def test_the_number_of_threads_changes_nothing(tmp_path: Path) -> None:
    opened = checkpoint(tmp_path)
    one, many = load_weights(program(SPECS), opened, threads=1), load_weights(program(SPECS), opened, threads=5)
    assert all(np.array_equal(one[name], many[name]) for name in SPECS)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"1 tensors \(down\) missing"):
        load_weights(program(SPECS | {"down": WeightSpec((2,), "down")}), checkpoint(tmp_path))


def test_a_left_over_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"hold 1 tensors \(adapter\)"):
        load_weights(program(SPECS), checkpoint(tmp_path, {"adapter": UP}))


def test_buffers_and_the_tied_output_are_no_left_overs(tmp_path: Path) -> None:
    extra = {"h.0.attn.bias": UP, "layers.0.rotary_emb.inv_freq": UP, "lm_head.weight": UP}
    assert load_weights(program(SPECS), checkpoint(tmp_path, extra)).keys() == SPECS.keys()


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
        load_weights(program(SPECS | {name: spec}), checkpoint(tmp_path))


def test_nan_is_named_by_its_tensor(tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match="tensor up holds 1 NaN"):
        load_weights(program(SPECS), checkpoint(tmp_path, {"up": np.array([[1, 2], [np.nan, 4], [5, 6]], np.float32)}))


def test_too_little_memory_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_memory", lambda: 100)
    monkeypatch.setattr(load, "_read", lambda *_: pytest.fail("read a tensor"))
    with pytest.raises(OutOfMemory, match=r"GiB in float32 and 0\.00 GiB"):
        load_weights(program(SPECS), checkpoint(tmp_path))


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

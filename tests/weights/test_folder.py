"""A Hugging Face folder becomes a checkpoint, or a message; code and pickles in it are never touched."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from knee.errors import ModelLoadError
from knee.weights.checkpoint import Checkpoint
from knee.weights.folder import open_folder
from knee.weights.safetensors import read_safetensors
from tests.weights.files import safetensors_bytes, write_folder

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b.bias": np.ones(3, np.float32)}


def opened(folder: Path) -> Checkpoint:
    return open_folder(folder, "tiny", str(folder))


# --- what is read ---------------------------------------------------------------------------------------------------


def test_a_file_of_the_safetensors_package_is_read(tmp_path: Path) -> None:
    stored = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.arange(5, dtype=np.float16)}
    save_file(stored, tmp_path / "m.safetensors", metadata={"format": "np"})
    tensors = read_safetensors(tmp_path / "m.safetensors")
    assert tensors.keys() == stored.keys()
    for name, values in stored.items():
        np.testing.assert_array_equal(tensors[name].read(), values)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for file, name in (("model-1-of-2.safetensors", "a.weight"), ("model-2-of-2.safetensors", "b.bias")):
        save_file({name: TENSORS[name]}, tmp_path / file)
    index = {"weight_map": {"a.weight": "model-1-of-2.safetensors", "b.bias": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = opened(tmp_path)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {"a.weight": (2, 3), "b.bias": (3,)}
    assert [file.name for file in checkpoint.files] == ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    first = checkpoint.sha256()
    (tmp_path / "model-2-of-2.safetensors").write_bytes(b"changed")
    assert checkpoint.sha256() != first


def test_gpt2_names_lose_their_prefix(tmp_path: Path) -> None:
    write_folder(tmp_path, {"transformer.wte.weight": TENSORS["a.weight"]}, {})
    assert list(opened(tmp_path).tensors) == ["wte.weight"]


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, set()),
        ({"eos_token_id": 7}, None, {7}),
        ({"eos_token_id": 7}, {"eos_token_id": [8, 9]}, {8, 9}),
        ({"eos_token_id": 7}, {"temperature": 1.0}, {7}),
    ],
)
def test_generation_config_knows_best_what_ends_a_text(
    tmp_path: Path, config: dict[str, Any], generation: dict[str, Any] | None, expected: set[int]
) -> None:
    write_folder(tmp_path, TENSORS, config)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert opened(tmp_path).eos_token_ids == expected


def test_a_name_with_and_without_the_prefix_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"transformer.wte.weight": TENSORS["a.weight"], "wte.weight": TENSORS["a.weight"]}, {})
    with pytest.raises(ModelLoadError, match=r"holds 'wte\.weight' twice"):
        opened(tmp_path)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "never run"),
        ({"quantization_config": {"bits": 4}}, "quantized safetensors are not supported"),
        ({"eos_token_id": "seven"}, "eos_token_id is seven"),
        ([], "a JSON object was expected"),
    ],
)
def test_configs_out_of_reach_are_refused(tmp_path: Path, config: Any, message: str) -> None:
    write_folder(tmp_path, TENSORS, config)
    with pytest.raises(ModelLoadError, match=message):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000])
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match="no valid JSON"):
        opened(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"config\.json is missing"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"holds no weights; put model\.safetensors there"):
        opened(tmp_path)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pt"])
def test_pickles_are_refused_with_the_way_out(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"\x80\x04")
    with pytest.raises(ModelLoadError, match="convert it to safetensors"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a.weight": "../../etc/x.safetensors"}, "is no name of a safetensors file"),
        ({"a.weight": 3}, "is no name of a safetensors file"),
        ({"a.weight": "gone.safetensors"}, "is missing"),
        ({"other": "here.safetensors"}, "holds 'other', but it does not"),
        ([], "weight_map is missing"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "here.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelLoadError, match=message):
        opened(tmp_path)


def one(shape: Any = (2,), place: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


HOSTILE = {
    "empty": b"",
    "seven bytes": b"1234567",
    "header of 2^63 bytes": safetensors_bytes({}, length=2**63),
    "header of 64 MiB": safetensors_bytes(b"{" + b" " * (64 << 20)),
    "no JSON": safetensors_bytes(b"{'a'}"),
    "a million brackets": safetensors_bytes(b"[" * 1_000_000),
    "a list": safetensors_bytes([]),
    "name twice": safetensors_bytes(b'{"a":{},"a":{}}'),
    "entry is a number": safetensors_bytes({"a": 3}),
    "shape is a text": safetensors_bytes({"a": one(shape="2")}, bytes(8)),
    "shape below 0": safetensors_bytes({"a": one(shape=[-2])}, bytes(8)),
    "shape is true": safetensors_bytes({"a": one(shape=[True, 2])}, bytes(8)),
    "shape of a thousand dimensions": safetensors_bytes({"a": one(shape=[9**9] * 1000)}, bytes(8)),
    "product overflows": safetensors_bytes({"a": one(shape=[2**32, 2**32])}, bytes(8)),
    "unknown dtype": safetensors_bytes({"a": one(dtype="F8_E4M3")}, bytes(8)),
    "past the end": safetensors_bytes({"a": one()}, bytes(4)),
    "offset 2^63": safetensors_bytes({"a": one(place=[2**63, 2**63 + 8])}, bytes(8)),
    "backwards": safetensors_bytes({"a": one(place=[8, 0])}, bytes(8)),
    "zero size": safetensors_bytes({"a": one(shape=[0], place=[0, 0])}),
    "overlapping": safetensors_bytes({"a": one(), "b": one(place=[4, 12])}, bytes(12)),
    "gap": safetensors_bytes({"a": one(), "b": one(place=[12, 20])}, bytes(20)),
    "bytes left over": safetensors_bytes({"a": one()}, bytes(9)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_cost_a_message_and_little_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    tracemalloc.start()
    started = time.perf_counter()
    try:
        with pytest.raises(ModelLoadError):
            read_safetensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100e6
    assert time.perf_counter() - started < 10


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 1000), flips=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=4))
def test_any_damage_loads_or_is_a_model_load_error(tmp_path: Path, cut: int, flips: list[tuple[int, int]]) -> None:
    header = {"a": one([2, 3], [0, 24]), "b": one([3], [24, 36]), "__metadata__": {"format": "pt"}}
    damaged = bytearray(safetensors_bytes(header, bytes(36))[: cut or None])
    for position, value in flips:
        if position < len(damaged):
            damaged[position] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged)
    try:
        for tensor in read_safetensors(path).values():
            tensor.read()
    except ModelLoadError:
        pass

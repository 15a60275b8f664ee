"""Small model files that the tests write themselves."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 16, 24, 4, 2, 8, 32
ALIGNMENT = 32


def llama_tensors(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """One layer, by llama.cpp's names. heads x head_dim is not the hidden size, as in some models."""
    shapes = {
        "token_embd.weight": (VOCABULARY, HIDDEN),
        "output_norm.weight": (HIDDEN,),
        "blk.0.attn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_k.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
        "blk.0.attn_output.weight": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.ffn_gate.weight": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_up.weight": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, INTERMEDIATE),
    }
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def llama_metadata() -> dict[str, Any]:
    """Metadata that fit `llama_tensors`; plain values, written with the type that `write_gguf` picks."""
    return {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": INTERMEDIATE,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.key_length": HEAD_DIM,
        "llama.attention.value_length": HEAD_DIM,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[np.float32]] | None = None,
    architecture: str = "llama",
    types: Mapping[str, str] | None = None,
) -> Path:
    """A file by the `gguf` package. Metadata replace or (None) remove those of `llama_metadata`."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for key, value in {**llama_metadata(), **(metadata or {})}.items():
        _add(writer, key, value)
    for name, values in (llama_tensors() if tensors is None else tensors).items():
        dtype = gguf.GGMLQuantizationType[(types or {}).get(name, "F32")]
        stored = values if dtype == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(values, dtype)
        writer.add_tensor(name, stored, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


# --- a GGUF header by hand, for what the package would refuse to write ----------------------------------------------


def text(value: str | bytes) -> bytes:
    """A string as GGUF stores it."""
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, value_type: int, value: bytes) -> bytes:
    """A metadata entry."""
    return text(key) + struct.pack("<I", value_type) + value


def tensor_info(name: str, dimensions: list[int], dtype: int = 0, offset: int = 0) -> bytes:
    """A tensor's entry; dimensions innermost first."""
    numbers = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + numbers + struct.pack("<IQ", dtype, offset)


def gguf_bytes(
    entries: list[bytes] | None = None, infos: list[bytes] | None = None, body: int = 0, **counts: int
) -> bytes:
    """A file with `body` zero bytes of tensors. `tensors`, `metadata` and `version` override what is true."""
    entries, infos = entries or [], infos or []
    head = b"GGUF" + struct.pack(
        "<IQQ",
        counts.get("version", 3),
        counts.get("tensors", len(infos)),
        counts.get("metadata", len(entries)),
    )
    header = head + b"".join(entries) + b"".join(infos)
    return header + bytes(-len(header) % ALIGNMENT) + bytes(body)


# --- safetensors ----------------------------------------------------------------------------------------------------


def safetensors_bytes(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header (an object, or the very bytes), and a length that may be a lie."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def write_folder(folder: Path, tensors: Mapping[str, NDArray[np.float32]], config: Mapping[str, Any]) -> Path:
    """A model folder with one safetensors file in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    header, body = {}, b""
    for name, values in tensors.items():
        raw = np.ascontiguousarray(values, "<f4").tobytes()
        place = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": place}
        body += raw
    (folder / "model.safetensors").write_bytes(safetensors_bytes(header, body))
    (folder / "config.json").write_text(json.dumps(config))
    return folder

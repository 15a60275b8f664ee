"""Model folders with the shapes of known models and random weights: as fast or slow as the real ones, and no download.

Weights are as GPT-2 starts out with: small, and one where a norm multiplies. No tokenizer: prompts are token ids.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from knee.models import build_program
from knee.program import Norm, Program

Storage = Literal["F32", "BF16"]

DISTILGPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_layer": 6,
    "n_head": 12,
    "n_embd": 768,
    "vocab_size": 50257,
    "n_positions": 1024,
}
SMOLLM2_135M: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
LLAMA_3_2_1B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}

# Numbers that are drawn, to be written again and again, each tensor going on where the last one ended. A prime, so that
# no two rows of a matrix are the same.
_DRAWN = 4_194_301
_WIDTHS: dict[Storage, int] = {"F32": 4, "BF16": 2}
_TINY = {
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 64,
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "head_dim": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """The same kind of model, small enough for a test; its context stays as long as it was."""
    return config | {key: value for key, value in _TINY.items() if key in config}


def write_random(config: dict[str, Any], folder: Path, storage: Storage = "F32") -> None:
    """Make `folder` a model of this config, its weights stored as said."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    program = build_program(config)
    shapes = _stored_shapes(program)
    ones = {program.weights[op.weight].source for op in program.ops if isinstance(op, Norm)}
    drawn = _stored(np.random.default_rng(0).standard_normal(_DRAWN, np.float32) * np.float32(0.02), storage)
    at = 0
    with (folder / "model.safetensors").open("wb") as file:
        _write_header(file, shapes, storage)
        for source, shape in shapes.items():
            if source in ones:
                file.write(_stored(np.ones(shape, np.float32), storage))
            else:
                at = _write_drawn(file, drawn, at, prod(shape) * _WIDTHS[storage])


def _stored_shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Each stored tensor's shape; where several weights are parts of one, the last part says how long it is."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in program.weights.values():
        whole = (spec.part[1] if spec.part else spec.shape[0], *spec.shape[1:])
        shape = whole[::-1] if spec.transposed else whole
        shapes[spec.source] = max(shape, shapes.get(spec.source, shape))
    return shapes


def _write_header(file: BinaryIO, shapes: dict[str, tuple[int, ...]], storage: Storage) -> None:
    """The format is https://huggingface.co/docs/safetensors; the package would want all tensors in memory."""
    entries, end = {}, 0
    for source, shape in shapes.items():
        begin, end = end, end + prod(shape) * _WIDTHS[storage]
        entries[source] = {"dtype": storage, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)


def _stored(values: NDArray[np.float32], storage: Storage) -> memoryview:
    """Bytes of the values; a bfloat16 is the upper half of a float32, and random numbers need no better rounding."""
    if storage == "F32":
        return memoryview(values.astype("<f4")).cast("B")
    return memoryview((values.view(np.uint32) >> 16).astype("<u2")).cast("B")


def _write_drawn(file: BinaryIO, drawn: memoryview, at: int, count: int) -> int:
    """`count` bytes of `drawn`, from `at` and round; where it ended."""
    while count:
        piece = drawn[at : at + count]
        file.write(piece)
        count -= len(piece)
        at = (at + len(piece)) % len(drawn)
    return at

"""A Llama in a GGUF file as a checkpoint with Hugging Face names. Knows llama.cpp's keys and names; computes nothing.

Keys as in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and in llama.cpp's converter. A key that could
change what the model computes and is not known here is refused: a model never runs with a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from knee.errors import ModelLoadError
from knee.weights.checkpoint import Checkpoint
from knee.weights.gguf_file import GgufFile, read_gguf
from knee.weights.tensor import MappedTensor

_ROPE_FACTORS = "rope_freqs.weight"
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR_NAME = re.compile(r"(?:blk\.(?P<layer>\d{1,6})\.)?(?P<part>\w+)\.(?P<kind>weight|bias)")
_KNOWN_KEYS = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "vocab_size",
    "expert_count",
    "expert_used_count",
}


def open_gguf(path: Path, name: str, source: str) -> Checkpoint:
    """Open a GGUF file. `ModelLoadError` if it is damaged or of a kind that is not supported."""
    file = read_gguf(path)
    try:
        return _checkpoint(file, name, source)
    except ModelLoadError as error:
        raise ModelLoadError(f"{path.name}: {error}") from error


def _checkpoint(file: GgufFile, name: str, source: str) -> Checkpoint:
    metadata = _Metadata(file.metadata)
    _check_kind(metadata)
    shape = _attention_shape(metadata)
    config = _config(metadata, shape, file.tensors)
    tokenizer = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    return Checkpoint(
        name=name,
        source=source,
        format="gguf",
        files=(file.path,),
        config=config,
        tensors=_rename(file.tensors, shape, config["num_hidden_layers"]),
        eos_token_ids=_eos_token_ids(metadata),
        folder=None,
        gguf_tokenizer=tokenizer,
    )


@dataclass(frozen=True)
class _Metadata:
    """Metadata values with their types checked. A value missing without a default is an error."""

    values: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelLoadError(f"{key} is {_short(value)}; one whole number was expected")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise ModelLoadError(f"{key} is {_short(value)}; one number above 0 was expected")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ModelLoadError(f"{key} is {_short(value)}; a text was expected")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise ModelLoadError(f"the metadata has no {key}")
        return value


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | bool) else repr(value)[:60]


def _check_kind(metadata: _Metadata) -> None:
    architecture = metadata.text("general.architecture")
    if architecture != "llama":
        raise ModelLoadError(f"architecture {architecture[:60]!r} is not supported; supported in GGUF files: llama")
    if metadata.integer("split.count", 1) > 1:
        raise ModelLoadError("one part of several; join them with `llama-gguf-split --merge`")
    if metadata.integer("llama.expert_count", 0):
        raise ModelLoadError("mixtures of experts are not supported; supported: dense llama models")
    keys = [key.removeprefix("llama.") for key in metadata.values if key.startswith("llama.")]
    unknown = sorted(set(keys) - _KNOWN_KEYS)
    if unknown:
        raise ModelLoadError(f"llama.{unknown[0][:60]} is not supported; it could change what the model computes")


@dataclass(frozen=True, slots=True)
class _AttentionShape:
    heads: int
    kv_heads: int
    head_dim: int


def _attention_shape(metadata: _Metadata) -> _AttentionShape:
    heads = metadata.integer("llama.attention.head_count")
    kv_heads = metadata.integer("llama.attention.head_count_kv", heads)
    if not heads or not kv_heads:
        raise ModelLoadError(f"{heads} attention heads with {kv_heads} for keys and values make no model")
    head_dim = metadata.integer("llama.attention.key_length", metadata.integer("llama.embedding_length") // heads)
    value_dim = metadata.integer("llama.attention.value_length", head_dim)
    if value_dim != head_dim:
        raise ModelLoadError(f"values of {value_dim} beside keys of {head_dim} are not supported; they must be equal")
    turned = metadata.integer("llama.rope.dimension_count", head_dim)
    if turned != head_dim or head_dim % 2:
        raise ModelLoadError(
            f"rope over {turned} of {head_dim} dimensions is not supported; supported: all, an even number"
        )
    return _AttentionShape(heads, kv_heads, head_dim)


def _config(metadata: _Metadata, shape: _AttentionShape, tensors: Mapping[str, MappedTensor]) -> dict[str, Any]:
    """The keys of a `config.json` for LlamaForCausalLM."""
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelLoadError("tensor token_embd.weight is missing")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": metadata.integer("llama.embedding_length"),
        "intermediate_size": metadata.integer("llama.feed_forward_length"),
        "num_hidden_layers": metadata.integer("llama.block_count"),
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": metadata.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number("llama.rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(metadata, tensors.get(_ROPE_FACTORS)),
        "max_position_embeddings": metadata.integer("llama.context_length"),
        "vocab_size": metadata.integer("llama.vocab_size", embedding.shape[0]),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "bos_token_id": metadata.values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.values.get("tokenizer.ggml.eos_token_id"),
    }


def _rope_scaling(metadata: _Metadata, factors: MappedTensor | None) -> dict[str, Any] | None:
    kind = metadata.text("llama.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise ModelLoadError(f"rope scaling {kind[:60]!r} is not supported; supported: none, linear, rope_freqs.weight")
    if factors is not None:
        if kind != "none":
            raise ModelLoadError(f"rope scaling {kind} together with {_ROPE_FACTORS} is not supported")
        return {"rope_type": "factors", "factors": factors.read().reshape(-1).tolist()}
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number("llama.rope.scaling.factor")}
    return None


def _rename(tensors: Mapping[str, MappedTensor], shape: _AttentionShape, layers: int) -> dict[str, MappedTensor]:
    """Hugging Face names; queries and keys with their heads' rows put back into halves."""
    renamed = {}
    for stored in tensors.values():
        if stored.name == _ROPE_FACTORS:
            continue
        match = _TENSOR_NAME.fullmatch(stored.name)
        base = _base_name(match, layers) if match else None
        if match is None or base is None:
            raise ModelLoadError(f"tensor {stored.name[:60]!r} is no part of a llama model of {layers} layers")
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(match["part"])
        if heads and stored.shape[0] != heads * shape.head_dim:
            raise ModelLoadError(
                f"tensor {stored.name!r} has the shape {stored.shape}, but {heads} heads of {shape.head_dim} "
                f"need {heads * shape.head_dim} rows"
            )
        name = f"{base}.{match['kind']}"
        renamed[name] = replace(stored, name=name, interleaved_heads=heads)
    return renamed


def _base_name(match: re.Match[str], layers: int) -> str | None:
    if match["layer"] is None:
        return _NAMES.get(match["part"])
    part = _LAYER_NAMES.get(match["part"])
    return f"model.layers.{int(match['layer'])}.{part}" if part and int(match["layer"]) < layers else None


def _eos_token_ids(metadata: _Metadata) -> frozenset[int]:
    """What ends a text, and what ends a turn in a chat."""
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    return frozenset(metadata.integer(key) for key in keys if key in metadata.values)
